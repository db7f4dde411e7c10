#include "chat/chat_template.h"

#include <algorithm>
#include <array>
#include <utility>

#include "chat/jinja_text.h"

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

const char* type_of(const Json* value) { return value ? value->type_name() : "nothing"; }

const Json* field_of(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() ? nullptr : &*found;
}

// The shape of a message, as far as every template relies on it. Further fields are the template's affair.
Result<void> check_message(size_t index, const Json& message) {
  if (!message.is_object()) return bad_field(index, "", "an object", message.type_name());
  const Json* role = field_of(message, "role");
  if (!role || !role->is_string()) return bad_field(index, ".role", "a string", type_of(role));
  const Json* content = field_of(message, "content");
  if (content && !content->is_string() && !content->is_array() && !content->is_null()) {
    return bad_field(index, ".content", "a string, an array of parts, or null", content->type_name());
  }
  const Json* calls = field_of(message, "tool_calls");
  if (!calls || calls->is_null()) return {};
  if (!calls->is_array()) return bad_field(index, ".tool_calls", "an array", calls->type_name());
  for (size_t i = 0; i < calls->size(); ++i) {
    const Json& call = (*calls)[i];
    const std::string where = ".tool_calls[" + std::to_string(i) + "]";
    if (!call.is_object()) return bad_field(index, where, "an object", call.type_name());
    const Json* function = field_of(call, "function");
    if (!function) continue;  // some clients leave this level out, and some templates know it
    if (!function->is_object()) return bad_field(index, where + ".function", "an object", function->type_name());
    const Json* name = field_of(*function, "name");
    if (!name || !name->is_string()) return bad_field(index, where + ".function.name", "a string", type_of(name));
  }
  return {};
}

Result<void> check_tools(const Json& tools) {
  const auto bad = [](std::string where, std::string expected, const Json& found) {
    return Error{"render chat template", std::move(where), std::move(expected), found.type_name(), ""};
  };
  if (tools.is_null()) return {};
  if (!tools.is_array()) return bad("tools", "an array", tools);
  for (size_t i = 0; i < tools.size(); ++i) {
    if (!tools[i].is_object()) return bad("tools[" + std::to_string(i) + "]", "an object", tools[i]);
  }
  return {};
}

Result<void> parse_arguments(size_t index, Json* calls) {
  if (!calls->is_array()) return {};
  for (size_t i = 0; i < calls->size(); ++i) {
    Json& call = (*calls)[i];
    if (!call.contains("function")) continue;
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

// Reasoning goes by several names; templates read the first one or, gpt-oss, the second. The order of the fields is
// that of transformers, for templates that print a message as it is.
void alias_reasoning(Json* message) {
  constexpr std::array<const char*, 3> kNames = {"reasoning_content", "thinking", "reasoning"};
  for (const char* name : kNames) {
    const Json* found = field_of(*message, name);
    if (!found || found->is_null()) continue;
    const Json reasoning = *found;
    Json aliased = {{"thinking", reasoning}};
    aliased.update(*message);
    aliased["reasoning_content"] = reasoning;
    *message = std::move(aliased);
    return;
  }
}

// transformers' mark and rules for the end of an unfinished message: what follows the mark goes, and what stood before
// it loses the whitespace that the template itself would have taken.
constexpr std::string_view kContinueTag = "CONTINUE_FINAL_MESSAGE_TAG ";

Result<std::string> mark_final_message(Json* messages) {
  if (messages->empty()) {
    return Error{"render chat template", "continue_final_message", "a message to continue", "no messages", ""};
  }
  const size_t last = messages->size() - 1;
  Json* content = nullptr;
  if (const auto found = messages->back().find("content"); found != messages->back().end()) content = &*found;
  if (content && content->is_array()) {
    Json* text = nullptr;
    for (Json& part : *content) {
      if (part.is_object() && part.contains("text")) text = &part["text"];
    }
    content = text;
  }
  if (!content || !content->is_string()) {
    return bad_field(last, ".content", "text to continue (continue_final_message)", type_of(content));
  }
  std::string original = content->get<std::string>();
  *content = original + std::string(kContinueTag);
  return original;
}

Result<void> cut_after_final_message(const std::string& original, std::vector<Segment>* segments) {
  const std::string text = jinja::join(*segments);
  constexpr std::string_view kBare = kContinueTag.substr(0, kContinueTag.size() - 1);
  const size_t at = text.rfind(kBare);
  const std::string stripped = jinja::strip(jinja::Text(original, jinja::Origin::kInput), nullptr, true, true).bytes;
  if (at == std::string::npos || text.find(stripped) == std::string::npos) {
    return Error{"render chat template", "continue_final_message", "the last message as the template's last text",
                 "a template that drops or changes it", ""};
  }
  std::string kept = text.substr(0, at);
  if (text.compare(at, kContinueTag.size(), kContinueTag) != 0) {
    kept = jinja::strip(jinja::Text(kept, jinja::Origin::kInput), nullptr, false, true).bytes;
  }
  size_t left = kept.size();
  for (size_t i = 0; i < segments->size(); ++i) {
    if ((*segments)[i].text.size() <= left) {
      left -= (*segments)[i].text.size();
      continue;
    }
    (*segments)[i].text.resize(left);
    segments->resize(left > 0 ? i + 1 : i);
  }
  // A template may say the message more than once.
  for (Segment& segment : *segments) {
    for (size_t mark; (mark = segment.text.find(kBare)) != std::string::npos;) {
      const bool whole = segment.text.compare(mark, kContinueTag.size(), kContinueTag) == 0;
      segment.text.erase(mark, whole ? kContinueTag.size() : kBare.size());
    }
  }
  std::erase_if(*segments, [](const Segment& segment) { return segment.text.empty(); });
  return {};
}

}  // namespace

std::string_view chatml_template() { return kChatMl; }

Result<ChatTemplate> ChatTemplate::create(std::string_view source, SpecialTokenTexts tokens, std::string name) {
  PROA_ASSIGN(jinja::Template parsed, jinja::Template::parse(source, std::move(name)));
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
  PROA_TRY(check_tools(options.tools));
  if (options.continue_final_message && options.add_generation_prompt) {
    return Error{"render chat template", "continue_final_message", "add_generation_prompt off", "on", ""};
  }
  Json prepared = messages;
  for (size_t i = 0; i < prepared.size(); ++i) {
    Json& message = prepared[i];
    PROA_TRY(check_message(i, message));
    if (const auto calls = message.find("tool_calls"); calls != message.end()) PROA_TRY(parse_arguments(i, &*calls));
    if (const auto content = message.find("content"); content != message.end() && content->is_array()) {
      PROA_TRY(check_parts(i, &*content, !takes_content_parts_));
    }
    alias_reasoning(&message);
  }

  std::string final_message;
  if (options.continue_final_message) {
    PROA_ASSIGN(final_message, mark_final_message(&prepared));
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
  PROA_ASSIGN(std::vector<Segment> segments, template_.render_segments(context, render_options));
  if (options.continue_final_message) PROA_TRY(cut_after_final_message(final_message, &segments));
  return segments;
}

}  // namespace proa
