// Checks that catch a bench which lies: kernels that skip work, sequences that are one, wrong counts. Each returns what
// is wrong, in a sentence with both numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "bench/report.h"
#include "core/result.h"

namespace proa {

// Error: the row's distinct experts are more than 10 % off those expected. A skewed router makes decode of a batch
// cheaper than it is.
Result<void> check_distinct_experts(const BenchRow& row);

// Error: the row ran faster than its limit, beyond the spread of the probe: probe or count is wrong, or work was
// skipped.
Result<void> check_share(const BenchRow& row);

// token_ids[s]: what sequence s of a batch drew in the measured steps. Error: two sequences drew the same, which reads
// fewer weights and caches than batch sequences do. Sequences of fewer than 4 tokens are not judged.
Result<void> check_sequences_differ(std::span<const std::vector<int32_t>> token_ids);

// Error: tokens of a sequence that must go on changing (random weights) are one token, or a loop of fewer than
// `shortest_loop` tokens, from some step to the end.
Result<void> check_tokens_change(std::span<const int32_t> token_ids, int shortest_loop = 4);

// Bytes of weights that one token of batch 1 touches, as published for the model and precision; empty: none is known.
std::optional<double> published_weight_bytes(std::string_view model, std::string_view quantization);

// Error: more than 1 % off the published value. Models and precisions without one pass.
Result<void> check_weight_bytes(std::string_view model, std::string_view quantization, double weight_bytes);

// Bytes/s below which a read probe is no measurement of the device of that description; empty: no floor is known.
std::optional<double> least_read_bandwidth(std::string_view device_description);

// All of the above that a report's rows can be judged by, in the words of report.failures: shares, experts, weight
// bytes, the answer, samples without time, probes without a value or below the device's floor. A CPU's rows whose
// weights are less than four of its last-level caches are not held to the memory's bandwidth.
std::vector<std::string> check_report(const BenchReport& report);

}  // namespace proa
