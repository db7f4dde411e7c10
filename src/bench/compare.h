// What got faster or slower between two reports, beyond the noise of both.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/report.h"
#include "core/result.h"

namespace proa {

struct CompareOptions {
  bool force = false;  // compare other devices, models or weights all the same
  // What two runs of one build differ by, as a part of 1. Empty: 0.08 on a CPU, which others share, 0.03 elsewhere.
  std::optional<double> noise_floor = {};
};

enum class Verdict { same, faster, slower };

// One row that both reports hold.
struct Change {
  std::string key;
  std::optional<double> before, after;  // tokens/s; empty for rows without tokens
  double seconds_before = 0, seconds_after = 0;
  // After / before of the speed, each relative to the probe of its own run where both have one, else of the time alone:
  // above 1 is faster.
  double speed_ratio = 1;
  bool relative_to_probe = false;
  double noise = 0;  // the ratio is beyond it where speed_ratio > 1 + noise or 1 / speed_ratio > 1 + noise
  Verdict verdict = Verdict::same;
};

struct Comparison {
  std::string before, after;  // a line about each report: device, commit, date
  std::vector<Change> changes;
  std::vector<std::string> only_before, only_after;  // keys
  std::vector<std::string> notes;                    // differences that --force let pass; failed checks of a report

  // Largest loss of speed that is beyond the noise, in percent of the speed before; 0: none.
  double worst_loss_percent() const;
};

// Error: other device, CPU, model or weights, with both (unless forced); no row in common; a report that failed its own
// checks (never forced).
Result<Comparison> compare_reports(const BenchReport& before, const BenchReport& after, const CompareOptions& options);

std::string to_table(const Comparison& comparison);
std::string to_json(const Comparison& comparison);

// The whole command `proa bench compare A B`: reads, compares, returns the text to print and the exit code, which is 1
// where a row lost more than `fail_above_percent` beyond the noise.
struct CompareOutcome {
  std::string text;
  int exit_code = 0;
};
Result<CompareOutcome> compare_files(const std::string& before, const std::string& after, const CompareOptions& options,
                                     std::optional<double> fail_above_percent, bool json);

}  // namespace proa
