// How sure a share of right answers is, and whether two of them differ.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace proa {

struct Interval {
  double low = 0, high = 0;
};

// Wilson's interval of 95 % for `right` of `count` (Wilson 1927).
inline Interval wilson(int64_t right, int64_t count) {
  if (count == 0) return {0, 1};
  const double z = 1.959963984540054, n = static_cast<double>(count), p = static_cast<double>(right) / n;
  const double middle = (p + z * z / (2 * n)) / (1 + z * z / n);
  const double reach = z / (1 + z * z / n) * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return {std::max(0.0, middle - reach), std::min(1.0, middle + reach)};
}

// The same questions answered twice: how many only the first and only the second got right.
struct Paired {
  int64_t only_first = 0, only_second = 0, count = 0;

  double difference() const {  // second - first, of all
    return count ? static_cast<double>(only_second - only_first) / static_cast<double>(count) : 0;
  }
  Interval interval() const {  // of the difference, 95 %, from the variance of paired proportions
    if (count == 0) return {-1, 1};
    const double n = static_cast<double>(count), b = static_cast<double>(only_first),
                 c = static_cast<double>(only_second);
    const double reach = 1.959963984540054 * std::sqrt(std::max(0.0, b + c - (b - c) * (b - c) / n)) / n;
    return {difference() - reach, difference() + reach};
  }
  // McNemar's test, exact and two-sided: the chance of a split at least this uneven if neither were better.
  double p_value() const {
    const int64_t n = only_first + only_second, k = std::min(only_first, only_second);
    if (n == 0) return 1;
    double sum = 0;
    for (int64_t i = 0; i <= k; ++i) {
      const double log_term = std::lgamma(n + 1.0) - std::lgamma(i + 1.0) - std::lgamma(n - i + 1.0);
      sum += std::exp(log_term - static_cast<double>(n) * std::log(2.0));
    }
    return std::min(1.0, 2 * sum);
  }
};

}  // namespace proa
