#include "chat/chat_template.h"

#include <algorithm>
#include <array>
#include <utility>

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kChatMl =
    "{%- set ns = namespace(first=0, system='') %}\n"
    "{%- if messages and messages[0].role == 'system' %}\n"
    "  {%- set ns.first = 1 %}\n"
    "  {%- set ns.system = messages[0].content or '' %}\n"
    "{%- endif %}\n"
    "{%- if ns.system or tools %}\n"
    "  {{- '<|im_start|>system\\n' + ns.system }}\n"
    "  {%- if tools %}\n"
    "    {{- ('\\n\\n' if ns.system else '') + '# Tools\\n\\nThe functions you may call, as JSON "
    "schemas:\\n<tools>\\n' }}\n"
    "    {%- for tool in tools %}{{- tool | tojson + '\\n' }}{% endfor %}\n"
    "    {{- '</tools>\\n\\nTo call a function, answer with its name and arguments as JSON:\\n<tool_call>\\n' }}\n"
    "    {{- '{\"name\": \"function\", \"arguments\": {\"parameter\": \"value\"}}\\n</tool_call>' }}\n"
    "  {%- endif %}\n"
    "  {{- '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages[ns.first:] %}\n"
    "  {%- if message.role == 'tool' %}\n"
    "    {%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user\\n' }}{% endif %}\n"
    "    {{- '<tool_response>\\n' + (message.content or '') + '\\n</tool_response>\\n' }}\n"
    "    {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}\n"
    "  {%- else %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}\n"
    "    {%- for call in message.tool_calls or [] %}\n"
    "      {{- '\\n' if not loop.first or message.content }}\n"
    "      {{- '<tool_call>\\n{\"name\": ' + call.function.name | tojson + ', \"arguments\": ' }}\n"
    "      {{- call.function.arguments | tojson + '}\\n</tool_call>' }}\n"
    "    {%- endfor %}\n"
    "    {{- '<|im_end|>\\n' }}\n"
    "  {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}\n";

Error bad_field(size_t message, std::string field, std::string expected, std::string actual) {
  return Error{.doing = "render chat template",
               .where = "messages[" + std::to_string(message) + "]" + field,
               .expected = std::move(expected),
               .actual = std::move(actual)};
}

Result<void> parse_arguments(size_t index, Json* calls) {
  if (!calls->is_array()) return {};
  for (size_t i = 0; i < calls->size(); ++i) {
    Json& call = (*calls)[i];
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    Json& function = call["function"];
    const auto found = function.find("arguments");
    if (found == function.end()) continue;
    if (found->is_null()) *found = Json::object();
    if (!found->is_string()) continue;
    const std::string& text = found->get_ref<const std::string&>();
    const bool blank = text.find_first_not_of(" \t\r\n") == std::string::npos;
    Json parsed = blank ? Json::object() : Json::parse(text, nullptr, false);
    if (!parsed.is_object()) {
      return bad_field(index, ".tool_calls[" + std::to_string(i) + "].function.arguments", "a JSON object",
                       parsed.is_discarded() ? "text that is not JSON" : parsed.type_name());
    }
    *found = std::move(parsed);
  }
  return {};
}

Result<void> check_parts(size_t index, Json* content, bool flatten) {
  std::string joined;
  for (size_t i = 0; i < content->size(); ++i) {
    const Json& part = (*content)[i];
    const std::string field = ".content[" + std::to_string(i) + "]";
    if (part.is_string()) {
      joined += (i > 0 ? "\n" : "") + part.get_ref<const std::string&>();
      continue;
    }
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || !type->is_string()) {
      return bad_field(index, field, "a content part with a type", part.type_name());
    }
    const auto text = part.find("text");
    if (*type != "text" || text == part.end() || !text->is_string()) {
      return bad_field(index, field, "a text part", "type " + type->get<std::string>());
    }
    joined += (i > 0 ? "\n" : "") + text->get_ref<const std::string&>();
  }
  if (flatten) *content = std::move(joined);
  return {};
}

void alias_reasoning(Json* message) {
  constexpr std::array<const char*, 3> kNames = {"reasoning_content", "thinking", "reasoning"};
  for (const char* name : kNames) {
    const auto found = message->find(name);
    if (found == message->end() || found->is_null()) continue;
    const Json reasoning = *found;
    (*message)["reasoning_content"] = reasoning;
    if (!message->contains("thinking")) (*message)["thinking"] = reasoning;
    return;
  }
}

}  // namespace

std::string_view chatml_template() { return kChatMl; }

Result<ChatTemplate> ChatTemplate::create(std::string_view source, SpecialTokenTexts tokens) {
  PROA_ASSIGN(jinja::Template parsed, jinja::Template::parse(source));
  ChatTemplate result(std::move(parsed), std::move(tokens));
  result.takes_content_parts_ = result.probe_content_parts();
  return result;
}

// A template that takes lists prints the text of a part; one that does not fails, or prints the list itself.
bool ChatTemplate::probe_content_parts() const {
  constexpr std::string_view kProbe = "c4f1probe";
  // Arrays are named: compilers disagree on what a braced list of one element is.
  const Json part = {{"type", "text"}, {"text", kProbe}};
  const Json message = {{"role", "user"}, {"content", Json::array({part})}};
  const Json context = {
      {"messages", Json::array({message})},
      {"tools", nullptr},
      {"documents", nullptr},
      {"add_generation_prompt", true},
      {"bos_token", tokens_.bos_token},
      {"eos_token", tokens_.eos_token},
  };
  jinja::RenderOptions limits;
  limits.max_steps = 1'000'000;
  limits.max_bytes = 16'000'000;
  const Result<std::string> rendered = template_.render(context, limits);
  if (!rendered) return false;
  const size_t found = rendered->find(kProbe);
  return found != std::string::npos && rendered->find("'type'") == std::string::npos &&
         rendered->find("\"type\"") == std::string::npos;
}

Result<std::vector<Segment>> ChatTemplate::render(const Json& messages, const ChatOptions& options) const {
  if (!messages.is_array()) {
    return Error{
        .doing = "render chat template", .where = "messages", .expected = "an array", .actual = messages.type_name()};
  }
  Json prepared = messages;
  for (size_t i = 0; i < prepared.size(); ++i) {
    Json& message = prepared[i];
    if (!message.is_object()) return bad_field(i, "", "an object", message.type_name());
    if (const auto calls = message.find("tool_calls"); calls != message.end()) PROA_TRY(parse_arguments(i, &*calls));
    if (const auto content = message.find("content"); content != message.end() && content->is_array()) {
      PROA_TRY(check_parts(i, &*content, !takes_content_parts_));
    }
    alias_reasoning(&message);
  }

  Json context = Json::object();
  if (options.template_kwargs.is_object()) context = options.template_kwargs;
  if (options.enable_thinking) context["enable_thinking"] = *options.enable_thinking;
  context["messages"] = std::move(prepared);
  context["tools"] = options.tools;  // null, not undefined, when there are none: as transformers passes it
  if (!context.contains("documents")) context["documents"] = nullptr;
  context["add_generation_prompt"] = options.add_generation_prompt;
  context["bos_token"] = tokens_.bos_token;
  context["eos_token"] = tokens_.eos_token;
  jinja::RenderOptions render_options;
  render_options.now = options.now;
  return template_.render_segments(context, render_options);
}

}  // namespace proa
