// The bodies of answers and the events of streams, in the order of fields that vLLM 0.13 sends.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chat/tool_parser.h"
#include "server/answer_parser.h"
#include "server/json_text.h"

namespace proa {

struct ResponseHead {
  std::string id;       // "chatcmpl-..."
  int64_t created = 0;  // seconds since 1970, the same in all chunks
  std::string model;    // the first name served
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // of all choices, reasoning and stop tokens included
  int64_t cached_tokens = 0;      // of the prompt
  int64_t reasoning_tokens = 0;

  void write(JsonText& json) const;
};

// How a choice ended; fields of JSON as they are, "null" where there is nothing.
struct ChoiceEnd {
  std::string finish_reason;         // "stop"
  std::string stop_reason = "null";  // JSON: the stop string or the stop token's id
};

struct ToolCall {
  std::string id, name, arguments;
};

struct ChatChoice {
  std::optional<std::string> content;
  std::optional<std::string> reasoning;
  std::vector<ToolCall> calls;
  std::string logprobs;  // JSON list of entries; empty: null
  ChoiceEnd end;
  std::optional<std::vector<int32_t>> token_ids;
};

struct CompletionChoice {
  std::string text;
  std::string logprobs;  // JSON; empty: null
  ChoiceEnd end;
  std::optional<std::vector<int32_t>> token_ids, prompt_token_ids;
  std::string prompt_logprobs = {};  // JSON; empty: null
};

std::string chat_completion(const ResponseHead& head, std::string_view role, std::span<const ChatChoice> choices,
                            const Usage& usage, const std::optional<std::vector<int32_t>>& prompt_token_ids,
                            std::string_view prompt_logprobs = "");
std::string completion(const ResponseHead& head, std::span<const CompletionChoice> choices, const Usage& usage);

// What a chunk of a stream says about its choice.
struct ChunkFields {
  int index = 0;
  std::string logprobs;            // as in the choices above
  const ChoiceEnd* end = nullptr;  // of the choice's last chunk
  std::optional<std::vector<int32_t>> token_ids;
  const Usage* usage = nullptr;  // continuous_usage_stats
};

// Events of streams: "data: {...}\n\n".
// The first of each choice; prompt_token_ids only if they were asked for.
std::string chat_first_event(const ResponseHead& head, std::string_view role, int index,
                             const std::optional<std::vector<int32_t>>& prompt_token_ids, const Usage* usage);
// Exactly one of content, reasoning and calls. `ids` are those of the calls, by index.
std::string chat_event(const ResponseHead& head, const AnswerDelta& delta, std::span<const std::string> ids,
                       const ChunkFields& fields);
std::string completion_event(const ResponseHead& head, std::string_view text, const ChunkFields& fields,
                             const std::optional<std::vector<int32_t>>& prompt_token_ids);
std::string usage_event(const ResponseHead& head, bool chat, const Usage& usage);
std::string error_event(std::string_view error_json);
constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";

}  // namespace proa
