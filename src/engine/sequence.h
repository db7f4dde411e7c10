// One request's life in the engine, from the queue to its last token.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/reply.h"
#include "engine/request.h"
#include "engine/stop.h"
#include "engine/token_rules.h"
#include "ops/sample.h"
#include "tokenizer/tokenizer.h"

namespace proa {

struct Sequence {
  std::vector<int32_t> token_ids;  // the prompt, then what was generated; never reallocated after submit
  int num_prompt_tokens = 0;
  int max_total_tokens = 0;  // prompt and output: ends with FinishReason::length when reached
  int num_computed = 0;      // tokens that caches hold: all but the last one while decoding
  int num_synthetic = 0;     // of them, whose keys are noise; the recurrent state starts after them

  // What decides when it runs.
  int priority = 0;  // a lower one first
  uint64_t arrival = 0;
  int prefill_end = 0;     // tokens to compute before it decodes: the prompt, or what it had when it was preempted
  int num_admissions = 0;  // 0: it has waited ever since it came

  // What it may share with others.
  bool use_prefix_cache = true;
  std::array<int, 2> turn_ends = {};  // tokens of the prompt behind which a turn ends: the first and the last; 0: none
  int num_cached = 0;                 // tokens of the prompt that were in the prefix cache when it was first admitted
  int last_snapshot = 0;              // tokens: the prefix cache has its state behind them

  // Given by the scheduler while it runs.
  int32_t seat = -1;            // one of max_num_seqs; -1: it waits
  std::vector<int32_t> blocks;  // those that num_computed and the next step need
  int32_t state_slot = -1;      // takes the state of the next step
  int32_t read_slot = -1;       // has the state before it: the same slot, or that of a snapshot

  // How it is sampled and ended. The scheduler looks at params.prompt_logprobs alone.
  SamplingParams params;
  SamplingRow sampling;
  TokenRules rules;
  std::vector<PromptLogprob> prompt_logprobs;  // computed and not handed over yet
  StopMatcher stop;
  std::optional<Detokenizer> detokenizer;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::string id;
  std::shared_ptr<Reply> reply;

  int num_tokens() const { return static_cast<int>(token_ids.size()); }
  int num_generated() const { return num_tokens() - num_prompt_tokens; }
  bool runs() const { return seat >= 0; }
  bool decoding() const { return num_computed >= prefill_end; }  // its next step is one token it drew itself
  std::span<const int32_t> generated() const {
    return std::span(token_ids).subspan(static_cast<size_t>(num_prompt_tokens));
  }
  std::span<const int32_t> uncomputed() const {
    return std::span(token_ids).subspan(static_cast<size_t>(num_computed));
  }
  std::span<const int32_t> first_tokens(int count) const {
    return std::span(token_ids).first(static_cast<size_t>(count));
  }
};

}  // namespace proa
