#include "bench/answer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "bench/measure.h"
#include "engine/teacher_forcing.h"

namespace proa {
namespace {

// log of the sum of exponentials.
double log_sum(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

double divergence(std::span<const float> p, std::span<const float> q) {
  const double log_p = log_sum(p), log_q = log_sum(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double lp = p[i] - log_p;
    kl += std::exp(lp) * (lp - (q[i] - log_q));
  }
  return kl;
}

double standard_deviation(std::span<const float> values) {
  const double n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double sum = 0;
  for (const float value : values) sum += (value - mean) * (value - mean);
  return std::sqrt(sum / n);
}

}  // namespace

Result<AnswerCheck> check_answer(const Model& model, Backend& backend, const Model& reference_model, Backend& reference,
                                 const AnswerConfig& config) {
  const auto vocab_size = static_cast<size_t>(model.info().vocab_size);
  const auto prompt = random_prompt(config.seed, 0, config.num_tokens, model.info().vocab_size);
  std::vector<int32_t> rows(prompt.size());
  std::iota(rows.begin(), rows.end(), 0);
  const int half = std::max(1, config.num_tokens / 2);
  const ForcingOptions options{.chunks = {half, 1}, .kv_cache_dtype = config.kv_cache_dtype};
  PROA_ASSIGN(const auto actual, forced_logits(model, backend, prompt, rows, options));
  PROA_ASSIGN(const auto expected, forced_logits(reference_model, reference, prompt, rows, options));

  AnswerCheck check{.num_steps = config.num_tokens};
  double largest = 0, spread_sum = 0;
  bool finite = true;
  for (size_t r = 0; r < rows.size(); ++r) {
    const auto p = std::span(expected).subspan(r * vocab_size, vocab_size);
    const auto q = std::span(actual).subspan(r * vocab_size, vocab_size);
    finite = finite && std::all_of(q.begin(), q.end(), [](float logit) { return std::isfinite(logit); });
    check.kl += divergence(p, q) / config.num_tokens;
    const double spread = standard_deviation(p);
    spread_sum += spread / config.num_tokens;
    for (size_t i = 0; i < vocab_size; ++i) largest = std::max(largest, std::abs(double{p[i]} - q[i]));
  }
  check.logit_noise = spread_sum > 0 ? largest / spread_sum : 0;
  double rounding = 0;
  for (const WeightUse& weight : model.weights()) {
    for (const int num_tokens : options.chunks) {
      rounding = std::max(rounding, backend.product_rounding(weight.format, num_tokens));
    }
  }
  const double noise = config.relative_noise + 4 * rounding;  // which adds up over layers
  check.kl_bound = std::pow(noise * spread_sum, 2) / 2;
  for (size_t r = 0; r < rows.size(); ++r) {
    const auto p = std::span(expected).subspan(r * vocab_size, vocab_size);
    const auto q = std::span(actual).subspan(r * vocab_size, vocab_size);
    const auto best = static_cast<size_t>(std::max_element(q.begin(), q.end()) - q.begin());
    const double lead = double{*std::max_element(p.begin(), p.end())} - p[best];
    if (lead > 2 * noise * spread_sum) ++check.num_best_differ;
  }
  check.passed = finite && check.kl <= check.kl_bound && check.num_best_differ == 0 && spread_sum > 0;
  return check;
}

}  // namespace proa
