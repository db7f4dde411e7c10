#include "bench/checks.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <string>

#include "core/text.h"

namespace proa {
namespace {

constexpr double kExpertTolerance = 0.10;
constexpr double kBytesTolerance = 0.01;
// Beyond the largest probe value next to the row: what a probe of a tenth of a second is off by at best.
constexpr double kProbeTolerance = 0.02;

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

double largest(const std::vector<double>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

// Weights of a few times the cache are partly read from it: no probe of the memory bounds them.
bool lies_in_cache(const BenchReport& report, const BenchRow& row) {
  return report.device == "cpu" && report.last_level_cache && row.weight_bytes &&
         *row.weight_bytes < 4.0 * static_cast<double>(*report.last_level_cache);
}

}  // namespace

Result<void> check_distinct_experts(const BenchRow& row) {
  if (!row.distinct_experts || !row.expected_experts) return {};
  if (std::abs(*row.distinct_experts - *row.expected_experts) <= kExpertTolerance * *row.expected_experts) return {};
  return Error{.doing = "count distinct experts",
               .where = row.key(),
               .expected = digits(*row.expected_experts) + " a step within 10 %, hit evenly",
               .actual = digits(*row.distinct_experts)};
}

Result<void> check_share(const BenchRow& row) {
  if (row.seconds.empty()) return {};
  double limit = 0;
  if (row.bytes && largest(row.read_probe) > 0) limit = *row.bytes / largest(row.read_probe);
  if (row.flops && largest(row.arithmetic_probe) > 0)
    limit = std::max(limit, *row.flops / largest(row.arithmetic_probe));
  const double seconds = median(row.seconds);
  if (seconds * (1 + kProbeTolerance) >= limit) return {};
  return Error{.doing = "compare with the limit",
               .where = row.key(),
               .expected = "at least " + seconds_text(limit) + ", the limit at the highest probe value",
               .actual = seconds_text(seconds),
               .hint = "the probe or the count is wrong, or work was skipped"};
}

Result<void> check_sequences_differ(std::span<const std::vector<int32_t>> token_ids) {
  constexpr size_t kJudged = 4;  // tokens: fewer may agree by chance
  std::vector<size_t> order;
  for (size_t s = 0; s < token_ids.size(); ++s) {
    if (token_ids[s].size() >= kJudged) order.push_back(s);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return token_ids[a] < token_ids[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (token_ids[order[i - 1]] != token_ids[order[i]]) continue;
    return Error{.doing = "check the sequences of a batch",
                 .where = "batch " + std::to_string(token_ids.size()),
                 .expected = "tokens that differ between sequences",
                 .actual = "the same " + std::to_string(token_ids[order[i]].size()) + " tokens in sequences " +
                           std::to_string(order[i - 1]) + " and " + std::to_string(order[i])};
  }
  return {};
}

Result<void> check_tokens_change(std::span<const int32_t> token_ids, int shortest_loop) {
  const size_t n = token_ids.size();
  for (size_t period = 1; period < static_cast<size_t>(std::max(0, shortest_loop)); ++period) {
    size_t repeated = 0;  // tokens at the end that equal those one period before
    while (repeated + period < n && token_ids[n - 1 - repeated] == token_ids[n - 1 - repeated - period]) ++repeated;
    if (repeated < 8 * period || 2 * repeated < n) continue;
    return Error{.doing = "check the tokens of a sequence",
                 .where = "token " + std::to_string(n - repeated - period) + " and on",
                 .expected = "tokens that go on changing",
                 .actual = "a loop of " + std::to_string(period) + (period == 1 ? " token" : " tokens")};
  }
  return {};
}

std::optional<double> published_weight_bytes(std::string_view model, std::string_view quantization) {
  const std::string name = lower(model), type = lower(quantization);
  if (name.find("nano_30b_a3b") == std::string::npos) return {};
  static constexpr struct {
    std::string_view type;
    double megabytes;
  } kNano30B[] = {{"bf16", 6473},   {"fp8", 3977},  {"nvfp4", 2886}, {"q8_0", 3456},
                  {"q4_k_m", 2506}, {"q4_0", 2022}, {"iq4_nl", 2022}};
  for (const auto& known : kNano30B) {
    if (type == known.type) return known.megabytes * 1e6;
  }
  return {};
}

Result<void> check_weight_bytes(std::string_view model, std::string_view quantization, double weight_bytes) {
  const auto published = published_weight_bytes(model, quantization);
  if (!published || std::abs(weight_bytes - *published) <= kBytesTolerance * *published) return {};
  return Error{.doing = "count the weights a token touches",
               .where = std::string(model) + " " + std::string(quantization),
               .expected = bytes_text(*published) + " within 1 %",
               .actual = bytes_text(weight_bytes)};
}

std::optional<double> least_read_bandwidth(std::string_view device_description) {
  if (device_description.find("H100 80GB HBM3") != std::string_view::npos) return 2.9e12;
  return {};
}

std::vector<std::string> check_report(const BenchReport& report) {
  std::vector<std::string> failures;
  const auto add = [&](const Result<void>& result) {
    if (!result.ok()) failures.push_back(result.error().message());
  };
  if (report.answer && !report.answer->passed) {
    failures.push_back("the answer is wrong: KL " + digits(report.answer->kl) + " to the reference path, bound " +
                       digits(report.answer->kl_bound) + ", best token differs in " +
                       std::to_string(report.answer->num_best_differ) + " of " +
                       std::to_string(report.answer->num_steps) + " steps");
  }
  const auto floor = least_read_bandwidth(report.description);
  for (const BenchRow& row : report.rows) {
    const auto positive = [](const std::vector<double>& values) {
      return std::all_of(values.begin(), values.end(), [](double v) { return v > 0 && std::isfinite(v); });
    };
    if (row.what != What::memory && row.seconds.empty()) failures.push_back(row.key() + ": nothing was timed");
    if (!positive(row.seconds)) failures.push_back(row.key() + ": a sample took no time");
    for (const auto* probes : {&row.read_probe, &row.arithmetic_probe}) {
      if (!positive(*probes)) failures.push_back(row.key() + ": a probe measured nothing");
      if (!probes->empty() && probes->size() != row.seconds.size())
        failures.push_back(row.key() + ": not every sample has its probe");
    }
    if (floor && !row.read_probe.empty() && largest(row.read_probe) < *floor) {
      failures.push_back(row.key() + ": the read probe found " + digits(largest(row.read_probe) * 1e-9) +
                         " GB/s where this device reads at least " + digits(*floor * 1e-9));
    }
    BenchRow judged = row;
    if (lies_in_cache(report, row)) judged.read_probe.clear();
    add(check_share(judged));
    add(check_distinct_experts(row));
    if (row.what == What::decode && row.batch == 1 && row.weight_bytes)
      add(check_weight_bytes(row.model, row.quantization, *row.weight_bytes));
  }
  return failures;
}

}  // namespace proa
