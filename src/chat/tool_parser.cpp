#include "chat/tool_parser.h"

#include <algorithm>

namespace proa {

void ToolDelta::add(int index, std::string_view name, std::string_view arguments) {
  if (calls.empty() || calls.back().index != index) calls.push_back({index, "", ""});
  calls.back().name += name;
  calls.back().arguments += arguments;
}

size_t certain_content(std::string_view text, std::string_view tag) {
  size_t keep = text.size();
  for (size_t n = std::min(text.size(), tag.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) != tag.substr(0, n)) continue;
    keep = text.size() - n;
    break;
  }
  const size_t last = text.substr(0, keep).find_last_not_of(" \t\r\n\f\v");
  return last == text.npos ? 0 : last + 1;
}

std::vector<std::string> tool_parser_names() { return {"hermes", "qwen3_coder", "qwen3_xml"}; }

std::unique_ptr<ToolParser> make_tool_parser(std::string_view parser, const nlohmann::ordered_json& tools,
                                             ToolParserOptions options) {
  if (parser == "qwen3_coder" || parser == "qwen3_xml") return make_qwen3_tool_parser(tools, options);
  if (parser == "hermes") return make_hermes_tool_parser();
  return nullptr;
}

}  // namespace proa
