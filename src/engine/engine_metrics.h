// What the engine counts about its steps and its caches, for whoever shows it. Written by the engine's thread, read by
// any.
#pragma once

#include <array>
#include <cstdint>

#include "telemetry/metrics.h"

namespace proa {

// Why tokens of a prompt had to be computed although an earlier request had computed the same ones.
enum class PrefixMiss : uint8_t {
  block_evicted,     // their keys and values had to make room
  snapshot_evicted,  // the recurrent state behind them had to make room
  no_snapshot,       // their keys and values are there, but no state was kept at that place
  partial_block,     // they do not fill a block
};
constexpr std::array kPrefixMisses = {"block_evicted", "snapshot_evicted", "no_snapshot", "partial_block"};

struct PrefixStats {      // tokens
  int64_t queries = 0;    // of the prompts that were looked up
  int64_t hits = 0;       // of them, which were not computed again
  int64_t host_hits = 0;  // of the hits, which came from host memory
  std::array<int64_t, kPrefixMisses.size()> misses = {};

  int64_t& missed(PrefixMiss reason) { return misses[static_cast<size_t>(reason)]; }
};

struct EngineMetrics {
  // One sample per step.
  Histogram iteration_tokens{{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}};
  // Seconds in which the backend worked, and what the engine's thread spent before and after it: scheduling, stops,
  // text, hand-over.
  Histogram step_device{{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5}};
  Histogram step_host{{.00001, .00002, .00005, .0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1}};
  Counter failed_steps;
};

}  // namespace proa
