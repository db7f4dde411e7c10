// What a client asks of the engine, and what comes back: plain data, no behaviour but the check of its ranges.
// Names and meanings of SamplingParams are those of vLLM's class of the same name.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"

namespace proa {

struct TokenBias {
  int32_t token_id;
  float bias;  // added to the logit
};

// Where thinking that does not end by itself is ended. The output begins inside it.
struct ThinkingBudget {
  int tokens = 0;                               // so many may be thought; then the end follows at the next line break,
  int grace = 0;                                // at the latest so many tokens later
  std::vector<int32_t> end_token_ids = {};      // what is forced then, at least one token
  std::vector<std::string> closing_texts = {};  // what ends thinking where the model says it
};

struct SamplingParams {
  float temperature = 1;              // >= 0; 0: greedy
  float top_p = 1;                    // (0, 1]
  int top_k = 0;                      // 0 or -1: all
  float min_p = 0;                    // [0, 1]
  float repetition_penalty = 1;       // > 0
  float presence_penalty = 0;         // [-2, 2]
  float frequency_penalty = 0;        // [-2, 2]
  std::optional<uint64_t> seed = {};  // the same seed gives the same tokens; unset: a random one

  std::vector<TokenBias> logit_bias = {};            // at most one per token
  std::vector<int32_t> allowed_token_ids = {};       // empty: all
  std::vector<std::vector<int32_t>> bad_words = {};  // sequences of tokens that are not generated
  std::optional<ThinkingBudget> thinking_budget = {};

  std::optional<int> max_tokens = {};        // >= 1; unset: up to the engine's max_model_len
  int min_tokens = 0;                        // tokens before anything but max_tokens may end the reply
  std::vector<std::string> stop = {};        // the reply ends before the first of these texts
  std::vector<int32_t> stop_token_ids = {};  // the reply ends with one of these tokens
  bool ignore_eos = false;                  // the engine's eos_token_ids do not end the reply (they may still be drawn)
  std::optional<int> logprobs = {};         // alternatives reported with every token
  std::optional<int> prompt_logprobs = {};  // the same for every token of the prompt but the first
  bool skip_special_tokens = true;          // control tokens leave no text
  bool include_stop_str_in_output = false;  // the text of the stop string or token is kept

  bool uses_penalties() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

constexpr int kMaxLogprobs = 20;           // alternatives per token
constexpr size_t kMaxStopStrings = 64;     // per request
constexpr size_t kMaxStopBytes = 4096;     // per stop string
constexpr size_t kMaxStopTokenIds = 1024;  // per request
constexpr size_t kMaxBadWords = 4096;      // per request
constexpr size_t kMaxBadWordTokens = 256;  // per word

// Error: the first field out of its range, by name, with the range and the value.
Result<void> validate(const SamplingParams& params, int vocab_size);

struct Request {
  std::string id = {};                         // for people and logs; need not be unique
  std::vector<int32_t> prompt_token_ids = {};  // at least one, each in [0, vocab_size)
  // Measuring at depth: the first that many prompt tokens are taken as computed, their keys and values being the noise
  // of EngineConfig::synthetic_cache, their recurrent state zero. At least one prompt token must follow.
  int num_synthetic_tokens = 0;
  SamplingParams params = {};
  uint32_t sequence_index = 0;  // which of the requests that share params.seed: each draws other numbers
  int priority = 0;             // a lower one runs first; only where EngineConfig::priority_scheduling is on
  std::optional<std::chrono::steady_clock::time_point> deadline =
      {};                        // not finished by then: ends with FinishReason::error
  bool use_prefix_cache = true;  // off: every token of the prompt is computed, and nothing is kept of it
};

enum class FinishReason : uint8_t {
  stop,       // an end token, a stop token or a stop string
  length,     // max_tokens or the engine's max_model_len
  cancelled,  // by the client, or because the engine shuts down
  error,      // see Reply::error()
};

const char* to_string(FinishReason reason);  // "stop"; the OpenAI API's words where it has one

struct TokenLogprob {
  int32_t token_id;
  float logprob;  // natural logarithm
};

struct PromptLogprob {
  int32_t token_id;
  float logprob;                           // as it followed what stands before it
  int32_t rank;                            // among all tokens, 1 for the likeliest
  std::vector<TokenLogprob> top_logprobs;  // [params.prompt_logprobs] best first
};

// One generated token, or (token_id == -1) the end of a reply without one.
struct TokenEvent {
  int32_t token_id = -1;
  std::chrono::steady_clock::time_point time = {};  // when its step ended
  float logprob = 0;                                // of this token, before penalties and temperature
  std::vector<TokenLogprob> top_logprobs = {};      // [params.logprobs] best first
  std::vector<PromptLogprob> prompt_logprobs = {};  // [prompt - 1] with the first token, where they were asked for
  // Text that is certain now, valid UTF-8; often empty, while a character or what could be a stop string is open.
  std::string text = {};

  std::optional<FinishReason> finish_reason = {};  // set in the last event of a reply, and only there
  std::optional<int32_t> stop_token = {};          // finish_reason stop: the token that ended the reply, or
  std::optional<std::string> stop_string = {};     // the stop string that did
};

// Wall clock of one request.
struct Timings {
  double queued_seconds = 0;       // submit to admission
  double prefill_seconds = 0;      // admission to first token
  double decode_seconds = 0;       // first token to last token
  double first_token_seconds = 0;  // submit to first token; 0 while there is none
  int prompt_tokens = 0;
  int cached_tokens = 0;  // of the prompt, that the prefix cache had
  int completion_tokens = 0;

  // Tokens per second after the first one; 0 if there was only one.
  double decode_tokens_per_second() const {
    return completion_tokens > 1 && decode_seconds > 0 ? (completion_tokens - 1) / decode_seconds : 0;
  }
};

}  // namespace proa
