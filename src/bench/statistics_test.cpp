#include "bench/statistics.h"

#include <gtest/gtest.h>

namespace proa {
namespace {

TEST(Statistics, MedianAndSpread) {
  const struct {
    std::vector<double> samples;
    double median, min, max, deviation;
  } rows[] = {
      {{3}, 3, 3, 3, 0},
      {{4, 2}, 3, 2, 4, 1.4826},
      {{5, 1, 3}, 3, 1, 5, 2 * 1.4826},
      {{1, 2, 3, 4}, 2.5, 1, 4, 1.4826},
      {{10, 10, 10, 10, 1000}, 10, 10, 1000, 0},  // one neighbour moves nothing
      {{-1, -3, -2}, -2, -3, -1, 1.4826},
  };
  for (const auto& row : rows) {
    const Summary s = summarize(row.samples);
    EXPECT_EQ(s.count, static_cast<int>(row.samples.size()));
    EXPECT_DOUBLE_EQ(s.median, row.median);
    EXPECT_DOUBLE_EQ(s.min, row.min);
    EXPECT_DOUBLE_EQ(s.max, row.max);
    EXPECT_DOUBLE_EQ(s.deviation, row.deviation);
  }
  EXPECT_EQ(summarize({}).count, 0);
  EXPECT_EQ(summarize(std::vector<double>{1, 2}).relative_deviation(), 0);  // two samples know no spread
}

}  // namespace
}  // namespace proa
