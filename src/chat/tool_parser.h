// Finds tool calls in generated text while it streams.
//
//   auto parser = make_tool_parser("qwen3_coder", request_tools);
//   for (text : pieces) handle(parser->feed(text));
//   handle(parser->finish());
//
// However the text is cut into pieces, the sums of what comes out are the same: the content, and per call its name and
// its arguments, whose fragments add up to one JSON object. Content is what stands before the first call, without the
// whitespace between; text after a call is dropped. What could still turn out to be a tag is held back.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace proa {

struct ToolCallDelta {
  int index;              // of the call in this answer, from 0
  std::string name;       // in a call's first delta, and only there
  std::string arguments;  // the next fragment of JSON
};

struct ToolDelta {
  std::string content;
  std::vector<ToolCallDelta> calls;

  // Adds a fragment, to the last delta if it is of the same call.
  void add(int index, std::string_view name, std::string_view arguments);
};

class ToolParser {
 public:
  virtual ~ToolParser() = default;
  virtual ToolDelta feed(std::string_view text) = 0;
  virtual ToolDelta finish() = 0;  // at the end of the answer: what was held back
};

struct ToolParserOptions {
  // Whether a <function=...> without <tool_call> around it is a call. vLLM takes it where the whole answer is known.
  bool bare_functions = false;
};

// By the names of vLLM's --tool-call-parser:
//  - qwen3_coder, qwen3_xml: <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>, values
//    typed by the tool's schema (tool_value.h);
//  - hermes: <tool_call>{"name": NAME, "arguments": {...}}</tool_call>.
// `tools` is the request's array in OpenAI's shape, or null. Null for other names.
std::unique_ptr<ToolParser> make_tool_parser(std::string_view parser, const nlohmann::ordered_json& tools,
                                             ToolParserOptions options = {});
std::vector<std::string> tool_parser_names();

// The parsers themselves.
std::unique_ptr<ToolParser> make_qwen3_tool_parser(const nlohmann::ordered_json& tools, ToolParserOptions options);
std::unique_ptr<ToolParser> make_hermes_tool_parser();

// How much of `text` is content for certain: all before whitespace that a tag may follow, and before what could become
// `tag`.
size_t certain_content(std::string_view text, std::string_view tag);

}  // namespace proa
