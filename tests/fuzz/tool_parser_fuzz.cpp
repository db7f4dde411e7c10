// libFuzzer target: any bytes as an answer, through the parsers of tool calls and of reasoning, whole and in pieces.
// Both ways must give the same; Qwen3's arguments are a JSON object whatever the text was. The first byte chooses the
// parser, the second the size of the pieces.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "chat/reasoning.h"
#include "chat/tool_parser.h"

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxBytes = 4096;

void expect(bool holds) {
  if (!holds) std::abort();
}

const Json& tools() {
  static const Json json = Json::parse(R"([{"function": {"name": "f", "parameters": {"properties": {
    "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"}, "b": {"type": "boolean"},
    "o": {"type": "object"}, "l": {"anyOf": [{"type": "null"}, {"type": "array"}]}}}}}, {"function": {"name": "g"}}])");
  return json;
}

struct Parsed {
  std::string content;
  std::map<int, std::string> names, arguments;

  void take(const proa::ToolDelta& delta) {
    content += delta.content;
    for (const proa::ToolCallDelta& call : delta.calls) {
      expect(call.name.empty() == names.contains(call.index));
      if (!call.name.empty()) names[call.index] = call.name;
      arguments[call.index] += call.arguments;
    }
  }
  bool operator==(const Parsed&) const = default;
};

Parsed parse(const char* name, bool bare, std::string_view text, size_t piece) {
  const auto parser = proa::make_tool_parser(name, tools(), {.bare_functions = bare});
  Parsed parsed;
  for (size_t at = 0; at < text.size(); at += piece) parsed.take(parser->feed(text.substr(at, piece)));
  parsed.take(parser->finish());
  return parsed;
}

proa::ReasoningDelta reason(std::string_view text, proa::ReasoningStart start, proa::ReasoningRules rules,
                            size_t piece) {
  proa::ReasoningParser parser(start, rules);
  proa::ReasoningDelta all;
  const auto add = [&](const proa::ReasoningDelta& delta) {
    all.reasoning += delta.reasoning;
    all.content += delta.content;
  };
  for (size_t at = 0; at < text.size(); at += piece) add(parser.feed(text.substr(at, piece)));
  add(parser.finish());
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2 || size > kMaxBytes) return 0;
  const int kind = data[0] % 9;
  const size_t piece = 1 + data[1] % 16;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  if (kind < 3) {
    const char* name = kind == 2 ? "hermes" : "qwen3_coder";
    const Parsed whole = parse(name, kind == 1, text, text.size() + 1);
    expect(whole == parse(name, kind == 1, text, piece));
    for (const auto& [index, arguments] : whole.arguments) {
      expect(kind == 2 || Json::parse(arguments, nullptr, false).is_object());
    }
  } else {
    const auto start = static_cast<proa::ReasoningStart>((kind - 3) % 3);
    const auto rules = proa::reasoning_rules(kind < 6 ? "nemotron_v3" : "deepseek_r1");
    const auto whole = reason(text, start, *rules, text.size() + 1);
    const auto cut = reason(text, start, *rules, piece);
    expect(whole.reasoning == cut.reasoning && whole.content == cut.content);
  }
  return 0;
}
