#include "bench/report.h"

#include <algorithm>
#include <cassert>

#include "core/text.h"

namespace proa {
namespace {

constexpr const char* kWhat[] = {"load", "first_token", "prefill", "decode", "memory"};

std::string join(const std::vector<std::string>& parts, const char* between) {
  std::string text;
  for (const std::string& part : parts) {
    if (!part.empty()) text += (text.empty() ? "" : between) + part;
  }
  return text;
}

// What rows of one heading share.
std::string heading(const BenchRow& row) {
  return join({row.model, row.quantization, row.weights.empty() ? "" : "weights " + row.weights,
               row.kv_cache_dtype.empty() ? "" : "KV " + row.kv_cache_dtype},
              ", ");
}

std::string plus_minus(const Summary& summary) {
  if (summary.count < 3 || summary.median == 0) return "";
  return percent_text(summary.relative_deviation());
}

std::vector<std::string> cells(const BenchRow& row) {
  const Summary time = row.time(), share = row.share();
  const auto giga = [](const std::optional<double>& value) { return value ? digits(*value * 1e-9) : ""; };
  std::string name = row.what == What::first_token ? "first token" : to_string(row.what);
  if (!row.part.empty()) name += " " + row.part;
  const bool is_memory = row.what == What::memory;
  const bool has_tokens = row.num_tokens > 0;
  std::optional<double> read, arithmetic;
  if (!row.read_probe.empty()) read = median(row.read_probe);
  if (!row.arithmetic_probe.empty()) arithmetic = median(row.arithmetic_probe);
  return {name,
          has_tokens ? std::to_string(row.num_tokens) : "",
          has_tokens ? std::to_string(row.depth) : "",
          has_tokens ? std::to_string(row.batch) : "",
          digits(row.tokens_per_second()),
          is_memory        ? (row.bytes ? bytes_text(*row.bytes) : "")
          : time.count > 0 ? seconds_text(time.median)
                           : "",
          plus_minus(time),
          time.count > 0 ? std::to_string(time.count) : "",
          giga(row.bytes_per_second()),
          giga(row.flops_per_second()),
          giga(read),
          arithmetic
              ? digits(*arithmetic * 1e-9) + (row.arithmetic ? std::string(" ") + to_string(*row.arithmetic) : "")
              : "",
          digits(row.limit_tokens_per_second()),
          share.count > 0 ? percent_text(share.median) : "",
          plus_minus(share),
          row.distinct_experts
              ? digits(*row.distinct_experts) + (row.expected_experts ? " of " + digits(*row.expected_experts) : "")
              : "",
          digits(row.kl)};
}

const std::vector<std::string> kHeader = {"",      "tokens", "at depth", "batch",   "tok/s",     "time",
                                          "+-",    "n",      "GB/s",     "GFLOP/s", "read GB/s", "arithmetic",
                                          "limit", "share",  "+-",       "experts", "KL"};

}  // namespace

const char* to_string(What what) { return kWhat[static_cast<int>(what)]; }

std::optional<double> BenchRow::tokens_per_second() const {
  if ((what != What::prefill && what != What::decode) || num_tokens <= 0 || seconds.empty()) return {};
  return static_cast<double>(num_tokens) * batch / median(seconds);
}

std::optional<double> BenchRow::bytes_per_second() const {
  if (!bytes || seconds.empty()) return {};
  return *bytes / median(seconds);
}

std::optional<double> BenchRow::flops_per_second() const {
  if (!flops || seconds.empty()) return {};
  return *flops / median(seconds);
}

std::optional<double> BenchRow::limit_seconds(size_t sample) const {
  double limit = 0;
  if (bytes && sample < read_probe.size() && read_probe[sample] > 0) limit = *bytes / read_probe[sample];
  if (flops && sample < arithmetic_probe.size() && arithmetic_probe[sample] > 0)
    limit = std::max(limit, *flops / arithmetic_probe[sample]);
  if (limit == 0) return {};
  return limit;
}

std::optional<double> BenchRow::limit_tokens_per_second() const {
  if (!tokens_per_second()) return {};
  std::vector<double> limits;
  for (size_t i = 0; i < std::max(read_probe.size(), arithmetic_probe.size()); ++i) {
    if (const auto limit = limit_seconds(i)) limits.push_back(*limit);
  }
  if (limits.empty()) return {};
  return static_cast<double>(num_tokens) * batch / median(limits);
}

std::vector<double> BenchRow::shares() const {
  std::vector<double> result;
  for (size_t i = 0; i < seconds.size(); ++i) {
    const auto limit = limit_seconds(i);
    if (!limit) return {};
    result.push_back(*limit / seconds[i]);
  }
  return result;
}

std::string BenchRow::key() const {
  std::string text = to_string(what);
  if (!part.empty()) text += " " + part;
  for (const std::string* field : {&model, &quantization}) {
    if (!field->empty()) text += " " + *field;
  }
  if (!kv_cache_dtype.empty()) text += " kv " + kv_cache_dtype;
  if (num_tokens > 0) {
    text +=
        ", " + std::to_string(num_tokens) + " tokens at " + std::to_string(depth) + ", batch " + std::to_string(batch);
  }
  return text;
}

std::string to_table(const BenchReport& report) {
  std::string text =
      join({report.cpu_model, report.device, report.description,
            report.clock_mhz ? digits(*report.clock_mhz) + " MHz" : "",
            report.memory_bytes ? bytes_text(static_cast<double>(*report.memory_bytes)) + " memory" : ""},
           ", ") +
      "\n";
  text += join({"proa " + report.version, report.commit.empty() ? "" : "commit " + report.commit, report.date}, ", ") +
          "\n";
  if (report.memory_plan) text += report.memory_plan->text() + "\n";
  if (report.answer) {
    const AnswerCheck& a = *report.answer;
    text += std::string("answer ") + (a.passed ? "right" : "WRONG") + ": KL " + digits(a.kl) + " (bound " +
            digits(a.kl_bound) + ") over " + std::to_string(a.num_steps) + " steps, best token differs in " +
            std::to_string(a.num_best_differ) + " beyond the noise of " + digits(a.logit_noise) + "\n";
  }
  // One table, so that the columns of all headings align; the heading lines go between its rows.
  std::vector<std::vector<std::string>> table = {kHeader};
  for (const BenchRow& row : report.rows) table.push_back(cells(row));
  const std::string lines = columns(table, 1);
  size_t position = lines.find('\n') + 1;
  std::string last;
  for (size_t i = 0; i < report.rows.size(); ++i) {
    const std::string now = heading(report.rows[i]);
    if (i == 0 || now != last) text += "\n" + now + "\n" + lines.substr(0, lines.find('\n') + 1);
    last = now;
    const size_t end = lines.find('\n', position) + 1;
    text += lines.substr(position, end - position);
    position = end;
  }
  if (report.interrupted) text += "\ninterrupted: the rows above are whole, what follows them was not measured\n";
  for (const std::string& failure : report.failures) text += "\nFAILED: " + failure + "\n";
  return text;
}

}  // namespace proa
