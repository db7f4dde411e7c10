#include "server/responses.h"

namespace proa {
namespace {

void write_ids(JsonText& json, const std::optional<std::vector<int32_t>>& ids) {
  if (!ids) {
    json.null();
    return;
  }
  json.begin_array();
  for (const int32_t id : *ids) json.integer(id);
  json.end_array();
}

void write_or_null(JsonText& json, std::string_view value) { value.empty() ? json.null() : json.raw(value); }

void write_or_null(JsonText& json, const std::optional<std::string>& text) { text ? json.string(*text) : json.null(); }

void write_head(JsonText& json, const ResponseHead& head, const char* object) {
  json.begin_object().member("id", head.id).member("object", object).member("created", head.created);
  json.member("model", head.model).key("choices").begin_array();
}

std::string event(JsonText& json) { return "data: " + json.end_object().take() + "\n\n"; }

constexpr const char* kChatChunk = "chat.completion.chunk";

void write_chat_logprobs(JsonText& json, const std::string& entries) {
  json.key("logprobs");
  if (entries.empty()) {
    json.null();
  } else {
    json.begin_object().key("content").raw(entries).end_object();
  }
}

}  // namespace

void Usage::write(JsonText& json) const {
  json.begin_object().member("prompt_tokens", prompt_tokens).member("total_tokens", prompt_tokens + completion_tokens);
  json.member("completion_tokens", completion_tokens);
  json.key("prompt_tokens_details").begin_object().member("cached_tokens", cached_tokens).end_object();
  json.key("completion_tokens_details").begin_object().member("reasoning_tokens", reasoning_tokens).end_object();
  json.end_object();
}

std::string chat_completion(const ResponseHead& head, std::string_view role, std::span<const ChatChoice> choices,
                            const Usage& usage, const std::optional<std::vector<int32_t>>& prompt_token_ids,
                            std::string_view prompt_logprobs) {
  JsonText json;
  write_head(json, head, "chat.completion");
  int index = 0;
  for (const ChatChoice& choice : choices) {
    json.begin_object().member("index", index++).key("message").begin_object().member("role", role).key("content");
    write_or_null(json, choice.content);
    for (const char* name : {"refusal", "annotations", "audio", "function_call"}) json.null_member(name);
    json.key("tool_calls").begin_array();
    for (const ToolCall& call : choice.calls) {
      json.begin_object().member("id", call.id).member("type", "function").key("function").begin_object();
      json.member("name", call.name).member("arguments", call.arguments).end_object().end_object();
    }
    json.end_array();
    for (const char* name : {"reasoning", "reasoning_content"}) {
      json.key(name);
      write_or_null(json, choice.reasoning);
    }
    json.end_object();
    write_chat_logprobs(json, choice.logprobs);
    json.member("finish_reason", choice.end.finish_reason).key("stop_reason").raw(choice.end.stop_reason);
    json.key("token_ids");
    write_ids(json, choice.token_ids);
    json.end_object();
  }
  json.end_array().null_member("service_tier").null_member("system_fingerprint").key("usage");
  usage.write(json);
  json.key("prompt_logprobs");
  write_or_null(json, prompt_logprobs);
  json.key("prompt_token_ids");
  write_ids(json, prompt_token_ids);
  return json.null_member("kv_transfer_params").end_object().take();
}

std::string completion(const ResponseHead& head, std::span<const CompletionChoice> choices, const Usage& usage) {
  JsonText json;
  write_head(json, head, "text_completion");
  int index = 0;
  for (const CompletionChoice& choice : choices) {
    json.begin_object().member("index", index++).member("text", choice.text).key("logprobs");
    write_or_null(json, std::string_view(choice.logprobs));
    json.member("finish_reason", choice.end.finish_reason).key("stop_reason").raw(choice.end.stop_reason);
    json.key("token_ids");
    write_ids(json, choice.token_ids);
    json.key("prompt_logprobs");
    write_or_null(json, std::string_view(choice.prompt_logprobs));
    json.key("prompt_token_ids");
    write_ids(json, choice.prompt_token_ids);
    json.end_object();
  }
  json.end_array().null_member("service_tier").null_member("system_fingerprint").key("usage");
  usage.write(json);
  return json.null_member("kv_transfer_params").end_object().take();
}

std::string chat_first_event(const ResponseHead& head, std::string_view role, int index,
                             const std::optional<std::vector<int32_t>>& prompt_token_ids, const Usage* usage) {
  JsonText json;
  write_head(json, head, kChatChunk);
  json.begin_object().member("index", index).key("delta").begin_object().member("role", role).member("content", "");
  json.null_member("reasoning_content").end_object().null_member("logprobs").null_member("finish_reason").end_object();
  json.end_array();
  if (usage) usage->write(json.key("usage"));
  json.key("prompt_token_ids");
  write_ids(json, prompt_token_ids);
  return event(json);
}

std::string chat_event(const ResponseHead& head, const AnswerDelta& delta, std::span<const std::string> ids,
                       const ChunkFields& fields) {
  JsonText json;
  write_head(json, head, kChatChunk);
  json.begin_object().member("index", fields.index).key("delta").begin_object();
  if (!delta.calls.empty()) {
    json.null_member("reasoning_content").key("tool_calls").begin_array();
    for (const ToolCallDelta& call : delta.calls) {
      json.begin_object().member("index", call.index);
      if (!call.name.empty()) json.member("id", ids[static_cast<size_t>(call.index)]).member("type", "function");
      json.key("function").begin_object();
      if (!call.name.empty()) json.member("name", call.name);
      json.member("arguments", call.arguments).end_object().end_object();
    }
    json.end_array();
  } else if (!delta.reasoning.empty()) {
    json.member("reasoning", delta.reasoning).member("reasoning_content", delta.reasoning);
  } else {
    json.member("content", delta.content).null_member("reasoning_content");
  }
  json.end_object();
  write_chat_logprobs(json, fields.logprobs);
  if (fields.end) {
    json.member("finish_reason", fields.end->finish_reason).key("stop_reason").raw(fields.end->stop_reason);
  } else {
    json.null_member("finish_reason");
  }
  json.key("token_ids");
  write_ids(json, fields.token_ids);
  json.end_object().end_array();
  if (fields.usage) fields.usage->write(json.key("usage"));
  return event(json);
}

std::string completion_event(const ResponseHead& head, std::string_view text, const ChunkFields& fields,
                             const std::optional<std::vector<int32_t>>& prompt_token_ids) {
  JsonText json;
  write_head(json, head, "text_completion");
  json.begin_object().member("index", fields.index).member("text", text).key("logprobs");
  write_or_null(json, std::string_view(fields.logprobs));
  json.key("finish_reason");
  fields.end ? json.string(fields.end->finish_reason) : json.null();
  json.key("stop_reason").raw(fields.end ? fields.end->stop_reason : "null").key("prompt_token_ids");
  write_ids(json, prompt_token_ids);
  json.key("token_ids");
  write_ids(json, fields.token_ids);
  json.end_object().end_array().key("usage");
  if (fields.usage) {
    fields.usage->write(json);
  } else {
    json.null();
  }
  return event(json);
}

std::string usage_event(const ResponseHead& head, bool chat, const Usage& usage) {
  JsonText json;
  write_head(json, head, chat ? kChatChunk : "text_completion");
  usage.write(json.end_array().key("usage"));
  return event(json);
}

std::string error_event(std::string_view error_json) { return "data: " + std::string(error_json) + "\n\n"; }

}  // namespace proa
