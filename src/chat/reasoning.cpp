#include "chat/reasoning.h"

#include <algorithm>

namespace proa {
namespace {

constexpr std::string_view kOpenTag = "<think>";
constexpr std::string_view kCloseTag = "</think>";
constexpr std::string_view kToolCall = "<tool_call>";
constexpr std::string_view kSpace = " \t\r\n\f\v";

// Whether more text could complete `text` to something that starts with `tag`.
bool is_partial(std::string_view text, std::string_view tag) {
  return text.size() < tag.size() && tag.substr(0, text.size()) == text;
}

std::string_view trim_end(std::string_view text) {
  const size_t last = text.find_last_not_of(kSpace);
  return last == text.npos ? std::string_view() : text.substr(0, last + 1);
}

void drop_leading_space(std::string* text) { text->erase(0, std::min(text->find_first_not_of(kSpace), text->size())); }

}  // namespace

ReasoningStart reasoning_start(std::string_view prompt) {
  const std::string_view end = trim_end(prompt);
  if (end.ends_with(kOpenTag)) return ReasoningStart::kOpen;
  return end.ends_with(kCloseTag) ? ReasoningStart::kClosed : ReasoningStart::kNone;
}

ReasoningParser::ReasoningParser(ReasoningStart start)
    : state_(start == ReasoningStart::kOpen     ? State::kReasoningStart
             : start == ReasoningStart::kClosed ? State::kContentStart
                                                : State::kBefore) {}

ReasoningDelta ReasoningParser::feed(std::string_view delta) {
  held_ += delta;
  ReasoningDelta out;
  advance(false, &out);
  return out;
}

ReasoningDelta ReasoningParser::finish() {
  ReasoningDelta out;
  advance(true, &out);
  return out;
}

void ReasoningParser::advance(bool at_end, ReasoningDelta* out) {
  if (state_ == State::kBefore) {
    const size_t first = held_.find_first_not_of(kSpace);
    const std::string_view rest = first == std::string::npos ? "" : std::string_view(held_).substr(first);
    if (rest.starts_with(kOpenTag)) {
      state_ = State::kReasoningStart;
    } else if (!at_end && is_partial(rest, kOpenTag)) {
      return;
    } else {
      state_ = State::kContent;
    }
  }

  if (state_ == State::kReasoningStart) {
    drop_leading_space(&held_);
    if (!at_end && is_partial(held_, kOpenTag)) return;
    if (held_.starts_with(kOpenTag)) {
      held_.erase(0, kOpenTag.size());
    }
    state_ = State::kReasoning;
    drop_reasoning_space_ = true;
  }

  if (state_ == State::kReasoning) {
    if (drop_reasoning_space_) {
      drop_leading_space(&held_);
      drop_reasoning_space_ = held_.empty();
    }
    const size_t close = held_.find(kCloseTag);
    const size_t call = held_.find(kToolCall);
    if (const size_t boundary = std::min(close, call); boundary != std::string::npos) {
      out->reasoning += trim_end(std::string_view(held_).substr(0, boundary));
      held_.erase(0, boundary + (close < call ? kCloseTag.size() : 0));
      state_ = State::kContentStart;
    } else {
      size_t keep = held_.size();
      for (size_t n = std::min(held_.size(), kToolCall.size() - 1); n > 0 && !at_end; --n) {
        const std::string_view suffix = std::string_view(held_).substr(held_.size() - n);
        if (is_partial(suffix, kCloseTag) || is_partial(suffix, kToolCall)) {
          keep = held_.size() - n;
          break;
        }
      }
      keep = trim_end(std::string_view(held_).substr(0, keep)).size();
      out->reasoning += held_.substr(0, keep);
      held_.erase(0, at_end ? held_.size() : keep);
      return;
    }
  }

  if (state_ == State::kContentStart) {
    drop_leading_space(&held_);
    if (held_.empty()) return;
    state_ = State::kContent;
  }
  out->content += held_;
  held_.clear();
}

ReasoningDelta split_reasoning(std::string_view text, ReasoningStart start) {
  ReasoningParser parser(start);
  ReasoningDelta all = parser.feed(text);
  ReasoningDelta rest = parser.finish();
  return {all.reasoning + rest.reasoning, all.content + rest.content};
}

}  // namespace proa
