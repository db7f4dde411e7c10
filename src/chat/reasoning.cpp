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

std::string_view without_end_space(std::string_view text) {
  const size_t last = text.find_last_not_of(kSpace);
  return last == text.npos ? std::string_view() : text.substr(0, last + 1);
}

}  // namespace

std::optional<ReasoningRules> reasoning_rules(std::string_view parser) {
  if (parser == "nemotron_v3" || parser == "nano_v3") return ReasoningRules{};
  if (parser == "deepseek_r1") return ReasoningRules{.tool_call_ends = false, .keep_space = true};
  return std::nullopt;
}

ReasoningStart reasoning_start(std::string_view prompt) {
  const std::string_view end = without_end_space(prompt);
  if (end.ends_with(kOpenTag)) return ReasoningStart::kOpen;
  return end.ends_with(kCloseTag) ? ReasoningStart::kClosed : ReasoningStart::kNone;
}

ReasoningParser::ReasoningParser(ReasoningStart start, ReasoningRules rules)
    : rules_(rules),
      state_(start == ReasoningStart::kOpen     ? State::kReasoningStart
             : start == ReasoningStart::kClosed ? State::kContentStart
                                                : State::kBefore) {}

void ReasoningParser::drop_leading_space() {
  if (!rules_.keep_space) held_.erase(0, std::min(held_.find_first_not_of(kSpace), held_.size()));
}

std::string_view ReasoningParser::trim_end(std::string_view text) const {
  return rules_.keep_space ? text : without_end_space(text);
}

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
    drop_leading_space();
    if (!at_end && is_partial(held_, kOpenTag)) return;
    if (held_.starts_with(kOpenTag)) {
      held_.erase(0, kOpenTag.size());
    }
    state_ = State::kReasoning;
    drop_reasoning_space_ = true;
  }

  if (state_ == State::kReasoning) {
    if (drop_reasoning_space_) {
      drop_leading_space();
      drop_reasoning_space_ = held_.empty();
    }
    const size_t close = held_.find(kCloseTag);
    const size_t call = rules_.tool_call_ends ? held_.find(kToolCall) : std::string::npos;
    if (const size_t boundary = std::min(close, call); boundary != std::string::npos) {
      out->reasoning += trim_end(std::string_view(held_).substr(0, boundary));
      held_.erase(0, boundary + (close < call ? kCloseTag.size() : 0));
      state_ = State::kContentStart;
    } else {
      size_t keep = held_.size();
      for (size_t n = std::min(held_.size(), kToolCall.size() - 1); n > 0 && !at_end; --n) {
        const std::string_view suffix = std::string_view(held_).substr(held_.size() - n);
        if (is_partial(suffix, kCloseTag) || (rules_.tool_call_ends && is_partial(suffix, kToolCall))) {
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
    drop_leading_space();
    if (held_.empty()) return;
    state_ = State::kContent;
  }
  out->content += held_;
  held_.clear();
}

ReasoningDelta split_reasoning(std::string_view text, ReasoningStart start, ReasoningRules rules) {
  ReasoningParser parser(start, rules);
  ReasoningDelta all = parser.feed(text);
  ReasoningDelta rest = parser.finish();
  return {all.reasoning + rest.reasoning, all.content + rest.content};
}

}  // namespace proa
