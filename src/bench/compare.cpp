#include "bench/compare.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/text.h"

namespace proa {
namespace {

constexpr double kNoiseShared = 0.08;    // of a ratio to the probe on a CPU that others use too
constexpr double kNoiseOwn = 0.03;       // on a GPU
constexpr double kNoiseUnprobed = 0.25;  // of bare times on such a CPU: load, first token
constexpr double kNoiseMemory = 0.01;

std::string about(const BenchReport& report) {
  std::string text;
  for (const std::string& part : {report.cpu_model, report.device, report.description,
                                  report.commit.empty() ? "" : "commit " + report.commit, report.date}) {
    if (!part.empty()) text += (text.empty() ? "" : ", ") + part;
  }
  return text;
}

// Share of the limit per sample, with bytes and operations as `counted` has them: when a change lowers what a step
// counts, its speed must not look lower for it.
std::vector<double> relative_speeds(const BenchRow& row, const BenchRow& counted) {
  BenchRow copy = row;
  copy.bytes = counted.bytes;
  copy.flops = counted.flops;
  return copy.shares();
}

Change compare_rows(const BenchRow& before, const BenchRow& after, double floor, bool shared) {
  Change change{.key = before.key()};
  change.before = before.tokens_per_second();
  change.after = after.tokens_per_second();
  if (before.what == What::memory) {
    change.speed_ratio = before.bytes && after.bytes && *after.bytes > 0 ? *before.bytes / *after.bytes : 1;
    change.noise = kNoiseMemory;
  } else if (!before.seconds.empty() && !after.seconds.empty()) {
    const Summary time_before = before.time(), time_after = after.time();
    change.seconds_before = time_before.median;
    change.seconds_after = time_after.median;
    const Summary a = before.share(), b = summarize(relative_speeds(after, before));
    change.relative_to_probe = a.count > 0 && b.count > 0;
    const auto spread = [](const Summary& x, const Summary& y) {
      return 2 * std::hypot(x.relative_deviation(), y.relative_deviation());
    };
    if (change.relative_to_probe) {
      change.speed_ratio = b.median / a.median;
      change.noise = std::max(floor, spread(a, b));
    } else {
      change.speed_ratio = time_before.median / time_after.median;
      change.noise = std::max(shared ? std::max(floor, kNoiseUnprobed) : floor, spread(time_before, time_after));
    }
  }
  if (change.speed_ratio > 1 + change.noise) change.verdict = Verdict::faster;
  if (change.speed_ratio * (1 + change.noise) < 1) change.verdict = Verdict::slower;
  return change;
}

const char* word(const Change& change) {
  const bool memory = change.key.starts_with(to_string(What::memory));
  switch (change.verdict) {
    case Verdict::faster:
      return memory ? "smaller" : "faster";
    case Verdict::slower:
      return memory ? "LARGER" : "SLOWER";
    case Verdict::same:
      break;
  }
  return "same";
}

}  // namespace

double Comparison::worst_loss_percent() const {
  double worst = 0;
  for (const Change& change : changes) {
    if (change.verdict == Verdict::slower) worst = std::max(worst, (1 - change.speed_ratio) * 100);
  }
  return worst;
}

Result<Comparison> compare_reports(const BenchReport& before, const BenchReport& after, const CompareOptions& options) {
  const auto refuse = [](const char* where, std::string expected, std::string actual, const char* hint) {
    return Error{"compare reports", where, std::move(expected), std::move(actual), hint};
  };
  Comparison result{.before = about(before), .after = about(after)};
  for (const BenchReport* report : {&before, &after}) {
    if (!report->failures.empty()) {
      return refuse(report == &before ? "the first" : "the second", "a report that passed its own checks",
                    report->failures.front(), "measure again");
    }
    if (report->interrupted)
      result.notes.push_back(std::string(report == &before ? "the first" : "the second") + " was interrupted");
  }
  const struct {
    const char* name;
    std::string before, after;
  } identity[] = {{"device", before.device, after.device},
                  {"description", before.description, after.description},
                  {"cpu_model", before.cpu_model, after.cpu_model},
                  {"threads", std::to_string(before.threads), std::to_string(after.threads)}};
  for (const auto& field : identity) {
    if (field.before == field.after) continue;
    if (!options.force) return refuse(field.name, field.before, field.after, "--force compares all the same");
    result.notes.push_back(std::string(field.name) + " differs: " + field.before + ", " + field.after);
  }

  const bool shared = before.device == "cpu" || after.device == "cpu";
  const double floor = options.noise_floor.value_or(shared ? kNoiseShared : kNoiseOwn);
  std::vector<bool> met(after.rows.size());
  for (const BenchRow& row : before.rows) {
    const std::string key = row.key();
    size_t i = 0;
    while (i < after.rows.size() && (met[i] || after.rows[i].key() != key)) ++i;
    if (i == after.rows.size()) {
      result.only_before.push_back(key);
      continue;
    }
    met[i] = true;
    if (row.weights != after.rows[i].weights) {
      if (!options.force) return refuse("weights", row.weights, after.rows[i].weights, "--force compares all the same");
      result.notes.push_back("weights differ at " + key + ": " + row.weights + ", " + after.rows[i].weights);
    }
    result.changes.push_back(compare_rows(row, after.rows[i], floor, shared));
  }
  for (size_t i = 0; i < after.rows.size(); ++i) {
    if (!met[i]) result.only_after.push_back(after.rows[i].key());
  }
  if (result.changes.empty()) {
    return refuse("rows", "a measurement that both reports hold",
                  before.rows.empty() || after.rows.empty()
                      ? "no rows"
                      : "\"" + before.rows.front().key() + "\" and \"" + after.rows.front().key() + "\"",
                  "compare runs of the same model and precision");
  }
  return result;
}

std::string to_table(const Comparison& comparison) {
  std::string text = "before  " + comparison.before + "\nafter   " + comparison.after + "\n\n";
  std::vector<std::vector<std::string>> table = {
      {"", "before tok/s", "after tok/s", "before", "after", "speed", "noise", "verdict"}};
  for (const Change& c : comparison.changes) {
    const std::string change = (c.speed_ratio >= 1 ? "+" : "") + percent_text(c.speed_ratio - 1);
    table.push_back({c.key, digits(c.before), digits(c.after),
                     c.seconds_before > 0 ? seconds_text(c.seconds_before) : "",
                     c.seconds_after > 0 ? seconds_text(c.seconds_after) : "",
                     change + (c.relative_to_probe ? " of limit" : ""), percent_text(c.noise), word(c)});
  }
  text += columns(table, 1);
  for (const std::string& key : comparison.only_before) text += "only before: " + key + "\n";
  for (const std::string& key : comparison.only_after) text += "only after: " + key + "\n";
  for (const std::string& note : comparison.notes) text += "note: " + note + "\n";
  return text;
}

std::string to_json(const Comparison& comparison) {
  using Json = nlohmann::ordered_json;
  Json json = {{"before", comparison.before}, {"after", comparison.after}, {"changes", Json::array()}};
  for (const Change& c : comparison.changes) {
    Json change = {{"key", c.key}};
    if (c.before) change["tokens_per_second_before"] = *c.before;
    if (c.after) change["tokens_per_second_after"] = *c.after;
    if (c.seconds_before > 0) change["seconds_before"] = c.seconds_before;
    if (c.seconds_after > 0) change["seconds_after"] = c.seconds_after;
    change["speed_ratio"] = c.speed_ratio;
    change["relative_to_probe"] = c.relative_to_probe;
    change["noise"] = c.noise;
    change["verdict"] = c.verdict == Verdict::same ? "same" : c.verdict == Verdict::faster ? "faster" : "slower";
    json["changes"].push_back(std::move(change));
  }
  json["only_before"] = comparison.only_before;
  json["only_after"] = comparison.only_after;
  json["notes"] = comparison.notes;
  json["worst_loss_percent"] = comparison.worst_loss_percent();
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<CompareOutcome> compare_files(const std::string& before, const std::string& after, const CompareOptions& options,
                                     std::optional<double> fail_above_percent, bool json) {
  PROA_ASSIGN(const BenchReport first, read_report_file(before));
  PROA_ASSIGN(const BenchReport second, read_report_file(after));
  PROA_ASSIGN(const Comparison comparison, compare_reports(first, second, options));
  CompareOutcome outcome{.text = json ? to_json(comparison) : to_table(comparison)};
  if (fail_above_percent && comparison.worst_loss_percent() > *fail_above_percent) outcome.exit_code = 1;
  return outcome;
}

}  // namespace proa
