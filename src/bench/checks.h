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

// Experts that `batch` tokens hit together where each draws top_k of num_experts evenly and for itself:
// E (1 - (1 - k/E)^B). For 128 and 6: 6 / 22.4 / 40.8 / 100.5 / 122 at batch 1 / 4 / 8 / 32 / 64.
double expected_distinct_experts(int num_experts, int top_k, int batch);

// Error: measured is more than 10 % off. A skewed router makes decode of a batch cheaper than it is.
Result<void> check_distinct_experts(double measured, int num_experts, int top_k, int batch);

// Error: the row ran faster than its limit, beyond the spread of the probe: probe or count is wrong, or work was
// skipped.
Result<void> check_share(const BenchRow& row);

// token_ids[s]: what sequence s of a batch drew in the measured steps. Error: two sequences drew the same, which reads
// fewer weights and caches than batch sequences do. Sequences of fewer than 4 tokens are not judged.
Result<void> check_sequences_differ(std::span<const std::vector<int32_t>> token_ids);

// step_hashes: a hash per step of what the step left behind (logits, or tokens where those are not at hand). Error:
// steps left what the step before had left, so nothing was computed.
Result<void> check_outputs_change(std::span<const uint64_t> step_hashes);

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
