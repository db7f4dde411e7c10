// What the bench times, through the engine that serves: the prefill of a prompt, and the decode of a batch at a depth.
//
// Each pass runs in an engine of its own on the same weights and submits the same requests, so it does the same steps.
// The first pass is not timed: it warms up, counts the experts and draws the tokens that every timed pass must draw
// again. A kernel that skips work when nobody looks draws others.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "bench/report.h"
#include "core/result.h"
#include "engine/engine.h"
#include "models/model.h"

namespace proa {

struct MeasureConfig {
  int num_iters = 3;                 // timed passes
  int max_num_batched_tokens = 512;  // tokens of a step: the chunk of a prefill
  Format kv_cache_dtype = Format::BF16;
  double gpu_memory_utilization = 0.9;
  int64_t gpu_memory_limit = 0;        // as of EngineConfig
  int64_t uncounted_weight_bytes = 0;  // as of EngineConfig
  int64_t kv_offloading_bytes = 0;     // likewise, for measure_history
  uint64_t seed = 0;                   // of the prompts
  double probe_seconds = 0.1;          // of each probe, before the first timed pass and after each
  Probe arithmetic = Probe::f32;       // that a prefill's limit is taken from
  bool random_weights = false;         // experts are hit evenly, and a reply that falls into a loop is an error
  size_t* device_peak = nullptr;       // grows to what was taken of a device with memory of its own while passes ran
  const std::atomic<bool>* interrupted = nullptr;  // set by Ctrl-C: the measurement ends with an error
};

// The engine that a point of the sweep runs in: what it allocates is known before anything runs.
EngineConfig decode_engine(const MeasureConfig& config, int batch, int64_t depth, int num_tokens);
EngineConfig prefill_engine(const MeasureConfig& config, int64_t depth, int num_tokens);

// `batch` different sequences, each with `depth` tokens of noise and a prompt of 8 in its caches, draw num_tokens
// tokens greedily. A sample is the wall clock of num_tokens successive steps in which all sequences take part, the
// host's work included. Fills what was found in a row; its names are the caller's. Errors: sizes that do not fit, a
// pass that draws other tokens than the first, what checks.h finds in the tokens.
Result<BenchRow> measure_decode(const std::shared_ptr<const Model>& model, const std::shared_ptr<Backend>& backend,
                                const Tokenizer& tokenizer, const MeasureConfig& config, int batch, int64_t depth,
                                int num_tokens);

// One prompt of num_tokens random tokens after `depth` of noise. A sample runs from submit to the first token.
Result<BenchRow> measure_prefill(const std::shared_ptr<const Model>& model, const std::shared_ptr<Backend>& backend,
                                 const Tokenizer& tokenizer, const MeasureConfig& config, int64_t depth,
                                 int num_tokens);

// First tokens of a conversation whose first turn is num_tokens long, as chat templates write one: "new history", all
// of it computed; "second turn" and "third turn", whose prompts repeat what was said, the answers without what was
// thought, and add a question of 60 tokens to an answer of 60. So they know the prompt up to the end of the turn
// before. With kv_offloading_bytes another turn, "swapped out": behind a prompt that took the whole device meanwhile.
// A sample runs from submit to the first token; each pass has another history in the same engine. Errors: as
// above; a turn that had to compute more; a first token that is another one when nothing is known.
Result<std::vector<BenchRow>> measure_history(const std::shared_ptr<const Model>& model,
                                              const std::shared_ptr<Backend>& backend, const Tokenizer& tokenizer,
                                              const MeasureConfig& config, int num_tokens);
EngineConfig history_engine(const MeasureConfig& config, int num_tokens);

// Token i of the prompt of sequence s: the same for every model of that vocabulary.
std::vector<int32_t> random_prompt(uint64_t seed, int sequence, int64_t num_tokens, int vocab_size);

}  // namespace proa
