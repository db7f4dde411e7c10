// One request's life in the engine, from the queue to its last token.
#pragma once

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

  // Given by the scheduler at admission, all that max_total_tokens can need, and taken back at the end.
  std::vector<int32_t> blocks;
  int32_t state_slot = -1;  // -1: not admitted

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
  bool decoding() const { return num_computed >= num_prompt_tokens; }  // its next step is one token it drew itself
  std::span<const int32_t> generated() const {
    return std::span(token_ids).subspan(static_cast<size_t>(num_prompt_tokens));
  }
  std::span<const int32_t> uncomputed() const {
    return std::span(token_ids).subspan(static_cast<size_t>(num_computed));
  }
};

}  // namespace proa
