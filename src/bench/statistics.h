// Statistics of few and noisy samples: medians, because on a shared machine the mean is the neighbour's.
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <span>
#include <vector>

namespace proa {

// The middle value, or the mean of the two in the middle. `values` is not empty.
inline double median(std::vector<double> values) {
  assert(!values.empty());
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

// Repeats of one measurement.
struct Summary {
  int count = 0;  // 0: nothing was measured and the rest is 0
  double median = 0;
  double min = 0;
  double max = 0;
  double deviation = 0;  // 1.4826 x median |sample - median|: the standard deviation where samples are normal
  // What a single sample is off by, as a part of the median: 0 for fewer than 3 samples, which know no spread.
  double relative_deviation() const { return count >= 3 && median != 0 ? deviation / std::abs(median) : 0; }
};

inline Summary summarize(std::span<const double> samples) {
  if (samples.empty()) return {};
  Summary s{.count = static_cast<int>(samples.size())};
  s.median = median({samples.begin(), samples.end()});
  s.min = *std::min_element(samples.begin(), samples.end());
  s.max = *std::max_element(samples.begin(), samples.end());
  std::vector<double> off(samples.begin(), samples.end());
  for (double& value : off) value = std::abs(value - s.median);
  s.deviation = 1.4826 * median(std::move(off));
  return s;
}

}  // namespace proa
