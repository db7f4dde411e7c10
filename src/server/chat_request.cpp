#include "server/chat_request.h"

#include <algorithm>
#include <ctime>

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

const Json* member(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

// A part as {"type": "text", "text": ...}, whatever name the client has for text.
std::optional<ApiError> normalise_part(const RequestPolicy& policy, const std::string& where, Json& part) {
  if (part.is_string()) {
    part = {{"type", "text"}, {"text", part.get<std::string>()}};
    return std::nullopt;
  }
  const Json* type = part.is_object() ? member(part, "type") : nullptr;
  if (!type || !type->is_string()) return bad_request("Missing 'type' field in multimodal part.", where);
  const std::string kind = type->get<std::string>();
  for (const char* text_kind : {"text", "input_text", "output_text", "refusal", "thinking"}) {
    if (kind != text_kind) continue;
    const Json* text = member(part, kind == "refusal" || kind == "thinking" ? text_kind : "text");
    if (!text || !text->is_string()) {
      return bad_request("Expected '" + kind + "' part to have a text.", where);
    }
    part = {{"type", "text"}, {"text", text->get<std::string>()}};
    return std::nullopt;
  }
  if (kind.find("image") != std::string::npos || kind.find("audio") != std::string::npos ||
      kind.find("video") != std::string::npos) {
    return bad_request(policy.model + " is not a multimodal model", where);
  }
  return bad_request("Unknown part type: " + kind, where);
}

std::optional<ApiError> normalise_messages(const RequestPolicy& policy, FieldReader& fields, Json& messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    Json& message = messages[i];
    const std::string where = "messages[" + std::to_string(i) + "]";
    if (!message.is_object()) {
      fields.problem(where, "dict_type", "Input should be a valid dictionary");
      continue;
    }
    const Json* role = member(message, "role");
    if (!role || !role->is_string()) {
      fields.problem(where + ".role", role ? "string_type" : "missing",
                     role ? "Input should be a valid string" : "Field required");
      continue;
    }
    if (*role == "developer") message["role"] = "system";
    if (const auto calls = message.find("tool_calls"); calls != message.end() && (calls->is_null() || calls->empty())) {
      message.erase("tool_calls");
    }
    if (!member(message, "content")) message["content"] = "";  // as vLLM: templates add it to text
    Json& content = message["content"];
    for (size_t part = 0; content.is_array() && part < content.size(); ++part) {
      if (auto error = normalise_part(policy, where + ".content[" + std::to_string(part) + "]", content[part]))
        return error;
    }
  }
  return std::nullopt;
}

std::optional<ApiError> read_tools(FieldReader& fields, Json& tools) {
  const Json* given = fields.array("tools");
  if (!given) return std::nullopt;
  if (given->empty()) {
    return bad_request(
        "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.", "tools");
  }
  for (size_t i = 0; i < given->size(); ++i) {
    const Json& tool = (*given)[i];
    const Json* function = tool.is_object() ? member(tool, "function") : nullptr;
    const Json* name = function && function->is_object() ? member(*function, "name") : nullptr;
    if (name && name->is_string()) continue;
    const std::string where = "tools[" + std::to_string(i) + "].function" + (function ? ".name" : "");
    fields.problem(where, "missing", "Field required");
    return std::nullopt;
  }
  tools = *given;
  return std::nullopt;
}

bool offers(const Json& tools, const Json& name) {
  return std::any_of(tools.begin(), tools.end(), [&](const Json& tool) { return tool["function"]["name"] == name; });
}

std::optional<ApiError> read_tool_choice(FieldReader& fields, const RequestPolicy& policy, ChatRequest& request) {
  Json tools;
  if (auto error = read_tools(fields, tools)) return error;
  const Json* choice = fields.find("tool_choice");
  if (tools.is_null()) {
    if (choice && *choice != "none")
      return bad_request("When using `tool_choice`, `tools` must be set.", "tool_choice");
    return std::nullopt;
  }
  if (choice && *choice == "none") {
    if (!policy.exclude_tools_when_tool_choice_none) request.prompt.tools = std::move(tools);
    return std::nullopt;
  }
  if (choice && choice->is_object()) {
    const Json* function = member(*choice, "function");
    const Json* name = function && function->is_object() ? member(*function, "name") : nullptr;
    if (!name || !name->is_string()) {
      return bad_request(
          "Expected field `function` in `tool_choice`. Correct usage: "
          "`{\"type\": \"function\", \"function\": {\"name\": \"my_function\"}}`",
          "tool_choice");
    }
    if (!offers(tools, *name)) {
      return bad_request("The tool specified in `tool_choice` does not match any of the specified `tools`",
                         "tool_choice");
    }
    return not_supported("A named function as `tool_choice` is not supported by this server.", "tool_choice");
  }
  if (choice && *choice == "required") {
    return not_supported("`tool_choice` \"required\" is not supported by this server.", "tool_choice");
  }
  if (choice && *choice != "auto") {
    return bad_request(
        "Invalid value for `tool_choice`: " + choice->dump(-1, ' ', false, Json::error_handler_t::replace) +
            "! Only named tools, \"none\", \"auto\" or \"required\" are supported.",
        "tool_choice");
  }
  if (!policy.enable_auto_tool_choice || policy.tool_parser.empty()) {
    return bad_request("\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set",
                       "tool_choice");
  }
  request.prompt.tools = tools;
  request.tools = std::move(tools);
  return std::nullopt;
}

// Where a variable of the template says something about thinking that the parsers need to know.
void read_thinking(ChatRequest& request) {
  const Json& kwargs = request.prompt.template_kwargs;
  if (!kwargs.is_object()) return;
  for (const char* name : {"enable_thinking", "thinking"}) {
    if (const Json* value = member(kwargs, name); value && value->is_boolean())
      request.enable_thinking = value->get<bool>();
  }
  if (const Json* force = member(kwargs, "force_nonempty_content")) request.force_nonempty_content = *force == true;
}

// thinking_token_budget is vLLM's and strict; reasoning_budget is Nemotron's, which its template may show to the model
// and which ends thinking at a line break, or kBudgetGrace tokens later. -1: no bound.
std::optional<ApiError> read_thinking_budget(FieldReader& fields, const RequestPolicy& policy, ChatRequest& request) {
  constexpr int kBudgetGrace = 500;
  constexpr int64_t kMost = INT32_MAX - kBudgetGrace;
  std::optional<int64_t> budget;
  fields.read("thinking_token_budget", budget);
  if (budget && *budget < -1) {
    return bad_request(
        "thinking_token_budget must be a non-negative integer or -1, got " + std::to_string(*budget) + ".",
        "thinking_token_budget");
  }
  if (budget && *budget >= 0) {
    if (policy.reasoning_parser.empty()) {
      return bad_request(
          "thinking_token_budget is set but --reasoning-parser is not, without which nothing tells where "
          "thinking ends.",
          "thinking_token_budget");
    }
    request.thinking_budget = ThinkingBudget{.tokens = static_cast<int>(std::min(*budget, kMost))};
    return std::nullopt;
  }
  const Json& kwargs = request.prompt.template_kwargs;
  const Json* shown = kwargs.is_object() ? member(kwargs, "reasoning_budget") : nullptr;
  if (budget || !shown || policy.reasoning_parser.empty()) return std::nullopt;
  const auto tokens = to_integer(*shown);
  if (!tokens || *tokens < -1) {
    return bad_request("reasoning_budget must be a non-negative integer or -1, got " +
                           shown->dump(-1, ' ', false, Json::error_handler_t::replace) + ".",
                       "chat_template_kwargs.reasoning_budget");
  }
  if (*tokens >= 0) {
    request.thinking_budget =
        ThinkingBudget{.tokens = static_cast<int>(std::min(*tokens, kMost)), .grace = kBudgetGrace};
  }
  return std::nullopt;
}

}  // namespace

ChatOptions ChatPrompt::options() const {
  const std::time_t now = std::time(nullptr);
  ChatOptions options{.tools = tools,
                      .add_generation_prompt = add_generation_prompt,
                      .continue_final_message = continue_final_message,
                      .template_kwargs = template_kwargs};
  localtime_r(&now, &options.now);
  return options;
}

std::optional<ApiError> read_chat_prompt(FieldReader& fields, const RequestPolicy& policy, ChatPrompt& prompt) {
  fields.require("messages");
  if (const Json* messages = fields.array("messages")) {
    prompt.messages = *messages;
    if (prompt.messages.empty()) return bad_request("`messages` must not be an empty array.", "messages");
    if (auto error = normalise_messages(policy, fields, prompt.messages)) return error;
  } else if (!fields.find("messages") && !fields.error()) {
    fields.problem("messages", "list_type", "Input should be a valid list");
  }
  fields.read("add_generation_prompt", prompt.add_generation_prompt);
  fields.read("continue_final_message", prompt.continue_final_message);
  if (prompt.continue_final_message && prompt.add_generation_prompt) {
    return bad_request("Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
                       "continue_final_message");
  }
  prompt.template_kwargs = policy.default_chat_template_kwargs;
  if (const Json* kwargs = fields.object("chat_template_kwargs")) {
    if (!prompt.template_kwargs.is_object()) prompt.template_kwargs = Json::object();
    prompt.template_kwargs.update(*kwargs);
  }
  std::string effort;
  fields.read("reasoning_effort", effort);
  if (!effort.empty()) {
    const auto known = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
    if (std::find(known.begin(), known.end(), effort) == known.end()) {
      fields.problem("reasoning_effort", "literal_error",
                     "Input should be none, minimal, low, medium, high, xhigh or max");
    }
    if (!prompt.template_kwargs.is_object()) prompt.template_kwargs = Json::object();
    if (!prompt.template_kwargs.contains("reasoning_effort")) prompt.template_kwargs["reasoning_effort"] = effort;
    if (!prompt.template_kwargs.contains("enable_thinking"))
      prompt.template_kwargs["enable_thinking"] = effort != "none";
  }
  if (const Json* documents = fields.array("documents")) {
    if (!prompt.template_kwargs.is_object()) prompt.template_kwargs = Json::object();
    prompt.template_kwargs["documents"] = *documents;
  }
  fields.read("chat_template", prompt.chat_template);
  if (prompt.chat_template && !policy.trust_request_chat_template) {
    return bad_request(
        "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with "
        "untrusted chat template.",
        "chat_template");
  }
  return std::nullopt;
}

std::optional<ApiError> read_chat_request(const Json& body, const RequestPolicy& policy, ChatRequest& request) {
  FieldReader fields(body);
  if (!body.is_object()) return not_an_object();
  std::optional<ApiError> contradiction = read_request_fields(fields, policy, request.fields);
  std::optional<int64_t> max_completion_tokens;
  fields.read("max_completion_tokens", max_completion_tokens);
  if (max_completion_tokens) request.fields.max_tokens = max_completion_tokens;
  bool logprobs = false;
  int64_t top_logprobs = 0;
  fields.read("logprobs", logprobs);
  fields.read("top_logprobs", top_logprobs);
  fields.read("parallel_tool_calls", request.parallel_tool_calls);
  fields.read("include_reasoning", request.include_reasoning);

  std::optional<ApiError> prompt_error = read_chat_prompt(fields, policy, request.prompt);
  std::optional<ApiError> tools_error = read_tool_choice(fields, policy, request);
  std::optional<ApiError> budget_error = read_thinking_budget(fields, policy, request);
  if (auto error = fields.error()) return error;
  for (auto* error : {&contradiction, &prompt_error, &tools_error, &budget_error}) {
    if (*error) return *error;
  }
  if (top_logprobs < -1) return bad_request("`top_logprobs` must be a positive value or -1.", "top_logprobs");
  if (top_logprobs != 0 && !logprobs) {
    return bad_request("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs");
  }
  if (logprobs) {  // -1 is the whole vocabulary, which is more than any server here gives
    const int64_t wanted = top_logprobs < 0 ? INT32_MAX : std::min<int64_t>(top_logprobs, INT32_MAX);
    request.fields.logprobs = static_cast<int>(wanted);
    // As vLLM: what is echoed comes with the same alternatives.
    if (request.fields.echo && !request.fields.prompt_logprobs && !request.fields.stream) {
      request.fields.prompt_logprobs = request.fields.logprobs;
    }
  }
  read_thinking(request);
  return check_request_fields(request.fields, policy);
}

}  // namespace proa
