#include "bench/statistics.h"

namespace proa {

Interval median_interval(std::span<const double> samples, double wanted) {
  assert(!samples.empty());
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  const size_t n = sorted.size();
  // The k-th smallest to the k-th largest misses the median only if fewer than k samples fell on one of its sides:
  // coverage 1 - 2 P(Binomial(n, 1/2) < k). The logarithm of the terms, since 2^-n leaves the doubles.
  Interval best;
  double below = 0;  // P(Binomial(n, 1/2) < k)
  double log_term = -static_cast<double>(n) * std::log(2.0);
  for (size_t k = 1; k <= (n + 1) / 2; ++k) {
    below += std::exp(log_term);
    log_term += std::log(static_cast<double>(n - k + 1) / static_cast<double>(k));
    const double confidence = std::max(0.0, 1 - 2 * below);
    if (k > 1 && confidence < wanted) break;
    best = {sorted[k - 1], sorted[n - k], confidence};
  }
  return best;
}

Ratio paired_ratio(std::span<const double> a, std::span<const double> b) {
  assert(a.size() == b.size() && !a.empty());
  std::vector<double> ratios(a.size());
  for (size_t i = 0; i < a.size(); ++i) ratios[i] = a[i] / b[i];
  return {median(ratios), median_interval(ratios)};
}

}  // namespace proa
