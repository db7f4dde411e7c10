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

// Against the tables of the binomial distribution.
TEST(Statistics, IntervalOfTheMedian) {
  const struct {
    int count;
    double low, high, confidence;  // of samples 1, 2, ..., count
  } rows[] = {
      {1, 1, 1, 0},          {2, 1, 2, 0.5},        {5, 1, 5, 0.9375},
      {6, 1, 6, 0.96875},    {8, 1, 8, 0.9921875},  {9, 2, 8, 0.9609375},
      {20, 6, 15, 0.958611}, {100, 40, 61, 0.9648}, {2000, 956, 1045, 0.953447},
  };
  for (const auto& row : rows) {
    std::vector<double> samples;
    for (int i = row.count; i >= 1; --i) samples.push_back(i);
    const Interval interval = median_interval(samples);
    EXPECT_EQ(interval.low, row.low) << row.count;
    EXPECT_EQ(interval.high, row.high) << row.count;
    EXPECT_NEAR(interval.confidence, row.confidence, 1e-4) << row.count;
  }
}

TEST(Statistics, RatioOfInterleavedSeriesIgnoresCommonWeather) {
  // The machine slows down fourfold, b is twice as fast as a all the time.
  const std::vector<double> a = {2, 4, 8, 2, 4, 8}, b = {1, 2, 4, 1, 2, 4};
  const Ratio ratio = paired_ratio(a, b);
  EXPECT_EQ(ratio.median, 2);
  EXPECT_EQ(ratio.interval.low, 2);
  EXPECT_EQ(ratio.interval.high, 2);
}

}  // namespace
}  // namespace proa
