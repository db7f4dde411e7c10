// Generated text as a chat answer: reasoning, content and tool calls, by the parsers that were asked for.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chat/reasoning.h"
#include "chat/tool_parser.h"

namespace proa {

struct AnswerDelta {
  std::string reasoning;
  std::string content;
  std::vector<ToolCallDelta> calls;

  bool empty() const { return reasoning.empty() && content.empty() && calls.empty(); }
};

// One per choice. Tool calls are looked for in what the reasoning parser gives as content.
class AnswerParser {
 public:
  AnswerParser(std::optional<ReasoningParser> reasoning, std::unique_ptr<ToolParser> tools, bool parallel_tool_calls)
      : reasoning_(std::move(reasoning)), tools_(std::move(tools)), parallel_tool_calls_(parallel_tool_calls) {}

  bool parses() const { return reasoning_ || tools_; }  // off: everything is content
  bool in_reasoning() const { return reasoning_ && reasoning_->in_reasoning(); }
  bool called_tools() const { return called_tools_; }

  AnswerDelta feed(std::string_view text);
  AnswerDelta finish();

 private:
  void add(AnswerDelta& answer, ToolDelta delta);

  std::optional<ReasoningParser> reasoning_;
  std::unique_ptr<ToolParser> tools_;
  bool parallel_tool_calls_;  // off: the first call is the only one
  bool called_tools_ = false;
};

}  // namespace proa
