// What a run of the bench found, and how it is written: a table for people, JSON that is read back, rows of CSV, plots.
//
//   BenchReport report = describe_machine(*backend);   // machine.h
//   report.rows.push_back({.what = What::decode, .model = "...", .num_tokens = 256, .seconds = {...}, ...});
//   std::fputs(to_table(report).c_str(), stdout);
//   PROA_TRY(append_csv(report, "bench/results/epyc.csv"));
//
// A value that was not measured is empty everywhere: it is never replaced by a zero or a guess. Speeds, limits and
// shares are computed from samples, bytes and operations by the functions of BenchRow, so no writer can disagree.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/statistics.h"
#include "cache/memory_plan.h"
#include "core/result.h"
#include "ops/probe.h"

namespace proa {

enum class What { load, first_token, prefill, decode, memory };
const char* to_string(What what);

// One measured point. Every sample is one repeat of the same work: `num_tokens` tokens of each of `batch` sequences.
struct BenchRow {
  What what = What::decode;
  std::string part = {};            // of memory: "weights", "kv cache", "peak rss" ...; else empty
  std::string model = {};           // "NVIDIA-Nemotron-3-Nano-30B-A3B"
  std::string quantization = {};    // "q4_0", as --quantization has it or the file says
  std::string weights = {};         // "dummy seed 0", or a hash of the file: never empty in a claim
  std::string kv_cache_dtype = {};  // "bf16"
  int64_t num_tokens = 0;           // per sequence and sample: read by prefill, made by decode; 0 where none are
  int64_t depth = 0;                // tokens in the cache of each sequence before the sample
  int batch = 1;                    // sequences at once

  std::vector<double> seconds = {};  // of each sample
  // Probes taken next to each sample, of the same length as `seconds`; empty: not probed, or no limit of this row (the
  // weights lie in the cache, the device lacks the arithmetic).
  std::vector<double> read_probe = {};          // bytes/s
  std::vector<double> arithmetic_probe = {};    // operations/s
  std::optional<Probe> arithmetic = {};         // which arithmetic that is
  std::optional<double> bytes = {};             // a sample must read and write; of memory: what it takes
  std::optional<double> flops = {};             // a sample must compute; a multiplication and an addition are two
  std::optional<double> weight_bytes = {};      // of `bytes`, weights that one step touches
  std::optional<double> distinct_experts = {};  // per MoE layer and step, mean
  std::optional<double> expected_experts = {};  // expected_distinct_experts() of step_cost.h
  std::optional<double> kl = {};                // of this point to the reference path, where it was compared
  std::vector<int32_t> token_ids =
      {};  // drawn by the first sequence of a decode, for those who check by another program

  std::optional<double> tokens_per_second() const;  // of all sequences together, at the median sample
  std::optional<double> bytes_per_second() const;
  std::optional<double> flops_per_second() const;
  // Seconds that the probes next to sample i allow at best: the slower of reading `bytes` and computing `flops`, which
  // at best overlap.
  std::optional<double> limit_seconds(size_t sample) const;
  std::optional<double> limit_tokens_per_second() const;  // at the median of limit_seconds
  std::vector<double> shares() const;                     // of the limit, per sample; empty where there is no limit
  Summary time() const { return summarize(seconds); }
  Summary share() const { return summarize(shares()); }

  // What makes two rows of different reports the same measurement: "decode NVIDIA-Nemotron-3-Nano-30B-A3B q4_0 kv bf16,
  // 256 tokens at 0, batch 1". The weights are not in it: reports with others are not compared.
  std::string key() const;
};

// The answer, checked before anything is timed.
struct AnswerCheck {
  int64_t num_steps = 0;        // compared, teacher-forced
  double kl = 0;                // mean KL divergence to the reference path, nats
  double kl_bound = 0;          // below which the answer is right, derived from the formats
  int64_t num_best_differ = 0;  // steps whose likeliest token differs though its lead exceeds the noise
  double logit_noise = 0;       // largest |difference of logits|, relative to their spread
  bool passed = false;
};

struct BenchReport {
  std::string device = {};       // Backend::name(): "cpu", "cuda:0"
  std::string description = {};  // Backend::description(): "AVX3_ZEN4, 2 threads"
  std::string cpu_model = {};    // "AMD EPYC ..."
  int threads = 0;
  std::optional<double> clock_mhz = {};           // at the start, where it can be read
  std::optional<int64_t> memory_bytes = {};       // of the machine
  std::optional<int64_t> last_level_cache = {};   // bytes
  std::optional<int64_t> peak_memory_bytes = {};  // resident set of this process
  std::string date = {};                          // UTC, "2026-09-17T08:15:00Z"
  std::string command = {};                       // as typed
  std::string version = {};                       // of proa
  std::string commit = {};                        // "66d680f", "66d680f-dirty", or empty: built outside a repository
  std::optional<MemoryPlan> memory_plan = {};     // of the point that needs most
  std::optional<AnswerCheck> answer = {};
  std::vector<BenchRow> rows = {};
  std::vector<std::string> failures = {};  // what the checks found: not empty means no number here counts
  bool interrupted = false;                // Ctrl-C: the rows before it are whole
};

// Aligned plain text.
std::string to_table(const BenchReport& report);

// One JSON object with every sample; ends in a newline.
std::string to_json(const BenchReport& report);
// Reads what to_json wrote. `where` names it in errors: a syntax error, a field of the wrong type, its name.
Result<BenchReport> read_report(std::string_view json, std::string_view where);
Result<BenchReport> read_report_file(const std::string& path);

// A header and one line per row, each of which stands for itself: date, commit, command, device, probes.
std::string to_csv(const BenchReport& report);
// Appends the rows to a file, which is begun with the header and whose folder is made. Error: the file has another
// header, or cannot be written.
Result<void> append_csv(const BenchReport& report, const std::string& path);

}  // namespace proa
