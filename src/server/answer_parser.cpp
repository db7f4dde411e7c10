#include "server/answer_parser.h"

#include <utility>

namespace proa {

void AnswerParser::add(AnswerDelta& answer, ToolDelta delta) {
  answer.content += delta.content;
  for (ToolCallDelta& call : delta.calls) {
    if (call.index > 0 && !parallel_tool_calls_) continue;
    called_tools_ = true;
    answer.calls.push_back(std::move(call));
  }
}

AnswerDelta AnswerParser::feed(std::string_view text) {
  AnswerDelta answer;
  std::string content(text);
  if (reasoning_) {
    ReasoningDelta delta = reasoning_->feed(text);
    answer.reasoning = std::move(delta.reasoning);
    content = std::move(delta.content);
  }
  if (tools_) {
    add(answer, tools_->feed(content));
  } else {
    answer.content = std::move(content);
  }
  return answer;
}

AnswerDelta AnswerParser::finish() {
  AnswerDelta answer;
  std::string content;
  if (reasoning_) {
    ReasoningDelta delta = reasoning_->finish();
    answer.reasoning = std::move(delta.reasoning);
    content = std::move(delta.content);
  }
  if (tools_) {
    add(answer, tools_->feed(content));
    add(answer, tools_->finish());
  } else {
    answer.content = std::move(content);
  }
  return answer;
}

}  // namespace proa
