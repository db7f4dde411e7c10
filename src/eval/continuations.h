// Many prompts through one model at once: those of a group begin with the same tokens, which are computed once; the
// others run on from their keys and state. What follows a prompt is drawn greedily, or given and scored.
//
// One batch per step, as the engine forms them: tokens of running sequences first, then prompts. Blocks of a shared
// beginning are read by all of its group; its recurrent state is read by each once.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/result.h"
#include "models/model.h"
#include "ops/backend.h"

namespace proa {

struct Continuation {
  std::vector<int32_t> prompt;  // at least one token
  // What follows: so many tokens drawn, at most; or these tokens, of each of which the logits are wanted.
  int max_tokens = 0;
  std::vector<int32_t> forced = {};
};

struct ContinuationOptions {
  int max_num_seqs = 32;
  int max_num_batched_tokens = 512;
  int block_size = 16;
  Format kv_cache_dtype = Format::BF16;
  bool forced_as_decodes = false;  // given tokens run one by one, as drawn ones do
  std::vector<int32_t> eos_token_ids = {};
};

struct ContinuationResult {
  // A prompt's drawn tokens, without the end token; `ended`: there was one. Called once per continuation.
  std::function<void(size_t group, size_t index, std::span<const int32_t> tokens, bool ended)> drawn;
  // The logits [vocab_size] that predict forced token `position`.
  std::function<void(size_t group, size_t index, size_t position, const float* logits)> scored;
  // Asked before every step; an error ends the run.
  std::function<Result<void>()> keep_going;
};

struct ContinuationStats {
  int64_t prompt_tokens = 0;    // of all prompts
  int64_t computed_tokens = 0;  // of prompts, those that were not shared
  int64_t drawn_tokens = 0;
  int64_t num_steps = 0;
};

Result<ContinuationStats> run_continuations(const Model& model, Backend& backend, const ContinuationOptions& options,
                                            const std::vector<std::vector<Continuation>>& groups,
                                            const ContinuationResult& result);

}  // namespace proa
