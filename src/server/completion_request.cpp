#include "server/completion_request.h"

#include <algorithm>

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kEmptyPrompt = "Either prompt or prompt_embeds must be provided and non-empty.";

std::optional<std::vector<int32_t>> read_ids(const Json& list) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const Json& item : list) {
    const auto id = item.is_number() ? to_integer(item) : std::nullopt;
    if (!id || *id < INT32_MIN || *id > INT32_MAX) return std::nullopt;
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

void read_prompts(FieldReader& fields, std::vector<CompletionPrompt>& prompts) {
  const Json* prompt = fields.find("prompt");
  if (!prompt) return;
  const auto wrong = [&] {
    fields.problem("prompt", "union_type",
                   "Input should be a string, a list of strings, of token ids, or of lists of token ids");
  };
  if (prompt->is_string()) {
    prompts.emplace_back(prompt->get<std::string>());
    return;
  }
  if (!prompt->is_array()) return wrong();
  if (!prompt->empty() && prompt->front().is_number()) {
    if (auto ids = read_ids(*prompt)) {
      prompts.emplace_back(*std::move(ids));
    } else {
      wrong();
    }
    return;
  }
  for (const Json& item : *prompt) {
    if (item.is_string()) {
      prompts.emplace_back(item.get<std::string>());
      continue;
    }
    auto ids = item.is_array() ? read_ids(item) : std::nullopt;
    if (!ids) return wrong();
    prompts.emplace_back(*std::move(ids));
  }
}

}  // namespace

std::optional<ApiError> read_completion_request(const Json& body, const RequestPolicy& policy,
                                                CompletionRequest& request) {
  FieldReader fields(body);
  if (!body.is_object()) return not_an_object();
  request.fields.add_special_tokens = true;
  std::optional<ApiError> contradiction = read_request_fields(fields, policy, request.fields);
  if (!request.fields.max_tokens) request.fields.max_tokens = kDefaultCompletionTokens;
  std::optional<int64_t> logprobs;
  fields.read("logprobs", logprobs);
  read_prompts(fields, request.prompts);
  if (auto error = fields.error()) return error;
  if (contradiction) return contradiction;

  if (const Json* budget = fields.find("thinking_token_budget"); budget && *budget != -1) {
    return not_supported("`thinking_token_budget` is for chat completions.", "thinking_token_budget");
  }
  if (const Json* suffix = fields.find("suffix"); suffix && *suffix != "") {
    return bad_request("suffix is not currently supported", "suffix");
  }
  if (logprobs) {
    if (*logprobs < 0) return bad_request("`logprobs` must be a positive value.", "logprobs");
    request.fields.logprobs = static_cast<int>(std::min<int64_t>(*logprobs, INT32_MAX));
    if (request.fields.echo && !request.fields.prompt_logprobs) {
      request.fields.prompt_logprobs = request.fields.logprobs;
    }
  }
  if (request.prompts.empty()) return bad_request(kEmptyPrompt, "prompt");
  if (request.prompts.size() > kMaxPrompts) {
    return bad_request("prompt must be at most " + std::to_string(kMaxPrompts) + " prompts, got " +
                           std::to_string(request.prompts.size()) + ".",
                       "prompt");
  }
  for (const CompletionPrompt& prompt : request.prompts) {
    if (std::visit([](const auto& value) { return value.empty(); }, prompt)) return bad_request(kEmptyPrompt, "prompt");
  }
  return check_request_fields(request.fields, policy, request.fields.echo);
}

}  // namespace proa
