#include "chat/jinja.h"

#include <algorithm>
#include <array>

#include "chat/jinja_eval.h"
#include "chat/jinja_lexer.h"
#include "chat/jinja_parser.h"

namespace proa::jinja {
namespace {

bool is_known_role(std::string_view role) {
  constexpr std::array<std::string_view, 8> kRoles = {"system",    "user",    "assistant", "tool",
                                                      "developer", "ipython", "function",  "model"};
  return std::find(kRoles.begin(), kRoles.end(), role) != kRoles.end();
}

Value message_value(const nlohmann::ordered_json& message, Budget& budget) {
  if (!message.is_object()) return from_json(message, Origin::kInput, budget, 2);
  Dict dict;
  for (const auto& [key, value] : message.items()) {
    const bool role = key == "role" && value.is_string() && is_known_role(value.get_ref<const std::string&>());
    dict.set(Value(Text(key, Origin::kInput)), from_json(value, role ? Origin::kTemplate : Origin::kInput, budget, 3),
             budget);
  }
  return Value(std::move(dict));
}

Dict context_values(const nlohmann::ordered_json& context, const RenderOptions& options, Budget& budget) {
  Dict dict;
  for (const auto& [key, value] : context.items()) {
    const auto& trusted = options.trusted;
    Value converted;
    if (key == "messages" && value.is_array()) {
      std::vector<Value> messages;
      for (const auto& message : value) messages.push_back(message_value(message, budget));
      converted = Value(Sequence::list(std::move(messages)));
    } else {
      const bool is_trusted = value.is_string() && std::find(trusted.begin(), trusted.end(), key) != trusted.end();
      converted = from_json(value, is_trusted ? Origin::kTemplate : Origin::kInput, budget, 1);
    }
    dict.set(Value(Text(key, Origin::kTemplate)), std::move(converted), budget);
  }
  return dict;
}

}  // namespace

std::string join(const std::vector<Segment>& segments) {
  std::string text;
  for (const Segment& segment : segments) text += segment.text;
  return text;
}

struct Template::Tree {
  Body body;
  std::string name;
};

Template::Template(std::unique_ptr<const Tree> tree) : tree_(std::move(tree)) {}
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;
Template::~Template() = default;

Result<Template> Template::parse(std::string_view source, std::string name) {
  if (source.size() > kMaxSourceBytes) {
    return Error{.doing = "parse chat template",
                 .where = name,
                 .expected = "at most " + std::to_string(kMaxSourceBytes) + " bytes",
                 .actual = std::to_string(source.size()) + " bytes"};
  }
  auto body = jinja::parse(source);
  if (!body.ok()) {
    Error error = std::move(body).error();
    if (!name.empty()) error.where = name + ": " + error.where;
    return error;
  }
  return Template(std::make_unique<const Tree>(Tree{*std::move(body), std::move(name)}));
}

Result<std::vector<Segment>> Template::render_segments(const nlohmann::ordered_json& context,
                                                       const RenderOptions& options) const {
  if (!context.is_object()) {
    return Error{.doing = "render chat template", .expected = "an object of variables", .actual = context.type_name()};
  }
  constexpr uint64_t kMaxContext = 4'000'000'000;
  Budget budget{
      .steps = options.max_steps, .bytes = options.max_bytes ? options.max_bytes : kMaxContext, .failure = ""};
  const Dict variables = context_values(context, options, budget);
  if (options.max_bytes == 0) budget.bytes = 32'000'000 + 64 * (kMaxContext - budget.bytes);
  Interpreter interpreter(variables, options.now, std::move(budget));
  const Text text = interpreter.run(tree_->body);
  if (interpreter.budget.failed()) {
    Error error{.doing = "render chat template", .actual = interpreter.budget.failure};
    error.where = tree_->name;
    if (interpreter.line() > 0) {
      error.where += (error.where.empty() ? "line " : ": line ") + std::to_string(interpreter.line());
    }
    return error;
  }
  std::vector<Segment> segments;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.marks.find_first_not_of(text.marks[begin], begin);
    if (end == std::string::npos) end = text.size();
    segments.push_back({text.bytes.substr(begin, end - begin), text.origin(begin) == Origin::kInput});
    begin = end;
  }
  return segments;
}

Result<std::string> Template::render(const nlohmann::ordered_json& context, const RenderOptions& options) const {
  PROA_ASSIGN(const std::vector<Segment> segments, render_segments(context, options));
  return join(segments);
}

}  // namespace proa::jinja
