#include "eval/statistics.h"

#include <gtest/gtest.h>

namespace proa {
namespace {

// Values of R's binom.confint(method = "wilson") and by hand.
TEST(EvalStatistics, WilsonsInterval) {
  const struct {
    int64_t right, count;
    double low, high;
  } rows[] = {
      {0, 0, 0, 1},  // nothing is known
      {0, 10, 0, 0.27753},
      {10, 10, 0.72247, 1},
      {8, 10, 0.49016, 0.94332},
      {95, 100, 0.88825, 0.97846},
      {2920, 3120, 0.92681, 0.94399},
  };
  for (const auto& row : rows) {
    const Interval found = wilson(row.right, row.count);
    EXPECT_NEAR(found.low, row.low, 2e-4) << row.right << " of " << row.count;
    EXPECT_NEAR(found.high, row.high, 2e-4) << row.right << " of " << row.count;
  }
}

TEST(EvalStatistics, McNemarIsABinomialTest) {
  EXPECT_DOUBLE_EQ((Paired{0, 0, 100}).p_value(), 1);
  EXPECT_NEAR((Paired{5, 0, 100}).p_value(), 2.0 / 32, 1e-12);
  EXPECT_NEAR((Paired{1, 5, 100}).p_value(), 2.0 * 7 / 64, 1e-12);
  EXPECT_DOUBLE_EQ((Paired{4, 4, 100}).p_value(), 1);
  EXPECT_LT((Paired{300, 100, 3000}).p_value(), 1e-20);
}

TEST(EvalStatistics, DifferencesOfPairs) {
  const Paired p{12, 4, 400};
  EXPECT_DOUBLE_EQ(p.difference(), -0.02);
  // sqrt(16 - 64/400) / 400 = 0.00995
  EXPECT_NEAR(p.interval().low, -0.02 - 1.96 * 0.00995, 1e-5);
  EXPECT_NEAR(p.interval().high, -0.02 + 1.96 * 0.00995, 1e-5);
  EXPECT_EQ((Paired{0, 0, 10}).interval().low, 0);
}

}  // namespace
}  // namespace proa
