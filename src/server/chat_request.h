// The body of POST /v1/chat/completions: read, checked, and brought into the form that chat templates take.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "chat/chat_template.h"
#include "server/api_error.h"
#include "server/request_fields.h"

namespace proa {

// What is rendered to a prompt; /tokenize takes the same.
struct ChatPrompt {
  nlohmann::ordered_json messages;  // array; content is text, parts are text parts
  nlohmann::ordered_json tools;     // array for the template, or null
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  nlohmann::ordered_json template_kwargs;    // object or null
  std::optional<std::string> chat_template;  // in place of the checkpoint's

  ChatOptions options() const;
};

struct ChatRequest {
  RequestFields fields;
  ChatPrompt prompt;
  nlohmann::ordered_json tools;  // as given, for the parser; null where calls are not looked for
  bool parallel_tool_calls = true;
  bool include_reasoning = true;
  // What chat_template_kwargs say about thinking.
  std::optional<bool> enable_thinking;
  bool force_nonempty_content = false;
  std::optional<ThinkingBudget> thinking_budget;  // its numbers alone
};

// `body` is any JSON. Error: the first thing that is wrong, or all that have a wrong type.
std::optional<ApiError> read_chat_request(const nlohmann::ordered_json& body, const RequestPolicy& policy,
                                          ChatRequest& request);

// The part of it that /tokenize shares; `fields` are those of `body`.
std::optional<ApiError> read_chat_prompt(FieldReader& fields, const RequestPolicy& policy, ChatPrompt& prompt);

}  // namespace proa
