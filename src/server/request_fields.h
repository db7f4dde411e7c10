// What the bodies of chat completions and completions have in common: vLLM's sampling parameters and how the answer is
// to be sent.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/request.h"
#include "server/api_error.h"
#include "server/field_reader.h"

namespace proa {

// What flags and checkpoint say about requests.
struct RequestPolicy {
  SamplingParams defaults;                // for fields that a request leaves out
  std::optional<int64_t> max_new_tokens;  // of any answer, whatever a request asks for
  int max_logprobs = kMaxLogprobs;        // alternatives per token
  bool force_include_usage = false;       // --enable-force-include-usage
  bool return_tokens_as_token_ids = false;
  int stream_interval = 1;  // tokens of a choice in one event of a stream, but for the first
  std::string response_role = "assistant";
  bool priority_scheduling = false;  // requests may have a priority

  std::string reasoning_parser;  // empty: thoughts stay in the content
  std::string tool_parser;       // empty: none
  bool enable_auto_tool_choice = false;
  bool exclude_tools_when_tool_choice_none = false;
  bool trust_request_chat_template = false;
  nlohmann::ordered_json default_chat_template_kwargs;  // an object, or null
  std::string model;                                    // for messages to people
};

constexpr int kMaxChoices = 128;  // n

struct RequestFields {
  std::string model;      // empty: the first one served
  SamplingParams params;  // without max_tokens and logprobs, which follow from what is below
  std::optional<int64_t> max_tokens;
  std::optional<int> logprobs;         // alternatives per token, 0 for the token alone
  std::optional<int> prompt_logprobs;  // the same for the prompt
  std::vector<std::string> bad_words;  // none of them empty
  int n = 1;
  int priority = 0;     // a lower one runs first
  bool salted = false;  // cache_salt: shares no prefix with requests that have none or another
  bool stream = false;
  bool include_usage = false;     // a last chunk with the usage
  bool continuous_usage = false;  // the usage in every chunk
  int stream_interval = 1;
  bool echo = false;
  bool add_special_tokens = false;
  std::optional<int64_t> truncate_prompt_tokens;  // keep so many tokens of the prompt, -1: as many as the model takes
  bool truncate_right = false;                    // keep its beginning instead of its end
  bool return_token_ids = false;
  bool return_tokens_as_token_ids = false;
  std::string request_id;
};

// Reads them; wrong types go to `fields`, what contradicts itself or is not supported comes back.
std::optional<ApiError> read_request_fields(FieldReader& fields, const RequestPolicy& policy, RequestFields& request);

// Ranges, with vLLM's messages. max_tokens may be 0 where a completion only echoes.
std::optional<ApiError> check_request_fields(const RequestFields& request, const RequestPolicy& policy,
                                             bool zero_tokens_allowed = false);

// The temperature that is used: below 1e-5 greedy, and from there on at least 0.01.
float effective_temperature(float temperature);

}  // namespace proa
