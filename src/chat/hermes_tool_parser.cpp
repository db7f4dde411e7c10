// The format of Hermes and Qwen2.5: <tool_call>{"name": NAME, "arguments": {...}}</tool_call>.
// The object is followed byte by byte; once its name is known the bytes of the arguments pass through as they come. A
// </tool_call> inside a string is text.
#include <algorithm>
#include <optional>

#include "chat/tool_parser.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kCall = "<tool_call>", kCallEnd = "</tool_call>";
constexpr std::string_view kSpace = " \t\r\n\f\v";
constexpr size_t kMaxSpace = 1024;
constexpr size_t kMaxDepth = 256;

bool is_space(char c) { return kSpace.find(c) != kSpace.npos; }

// Follows one JSON value byte by byte, without checking more of it than finding its end takes.
class ValueScanner {
 public:
  enum class Step { inside, last, behind };  // the byte belongs to the value, ends it, or follows it
  Step step(char c) {
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
        if (open_.empty()) return Step::last;
      }
      return Step::inside;
    }
    if (c == '"') {
      if (scalar_) return Step::behind;
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      if (scalar_ || open_.size() >= kMaxDepth) return Step::behind;
      open_ += c == '{' ? '}' : ']';
    } else if (c == '}' || c == ']') {
      if (open_.empty() || open_.back() != c) return Step::behind;
      open_.pop_back();
      if (open_.empty()) return Step::last;
    } else if (c == '<') {  // in no JSON: the call ends in the middle of it
      return Step::behind;
    } else if (open_.empty()) {
      if (c == ',' || is_space(c)) return Step::behind;
      scalar_ = true;
    }
    return Step::inside;
  }
  // What is missing to the end of the value.
  std::string closing() const {
    std::string text = in_string_ ? (escaped_ ? "\\\"" : "\"") : "";
    return text.append(open_.rbegin(), open_.rend());
  }

 private:
  std::string open_;  // the brackets that close what is open, the innermost last
  bool in_string_ = false, escaped_ = false, scalar_ = false;
};

class HermesToolParser final : public ToolParser {
 public:
  ToolDelta feed(std::string_view text) override {
    held_ += text;
    ToolDelta out;
    while (step(false, out)) {
    }
    return out;
  }
  ToolDelta finish() override {
    ToolDelta out;
    while (step(true, out)) {
    }
    return out;
  }

 private:
  enum class State {
    content,  // before the first call
    call,     // held_ is whitespace and, from tag_ on, <tool_call>, after which an object must follow
    key,      // in the object, before a key or its end
    value,    // in a key's value
    ended,    // behind the object
    between,  // behind a call
  };

  bool step(bool at_end, ToolDelta& out) {
    switch (state_) {
      case State::content:
        return read_content(at_end, out);
      case State::call:
        return read_call(at_end);
      case State::key:
        return read_key(at_end, out);
      case State::value:
        return read_value(at_end, out);
      case State::ended:
      case State::between:
        return read_between(at_end);
    }
    return false;
  }

  bool read_content(bool at_end, ToolDelta& out) {
    const size_t begin = held_.find(kCall, literal_);
    size_t size = at_end ? held_.size() : certain_content(held_, kCall);
    if (begin != std::string::npos) {
      const size_t last = std::string_view(held_).substr(0, begin).find_last_not_of(kSpace);
      size = last == std::string::npos ? 0 : last + 1;
      tag_ = begin - size;
      state_ = State::call;
    }
    out.content += held_.substr(0, size);
    held_.erase(0, size);
    literal_ = begin != std::string::npos ? 0 : literal_ - std::min(literal_, size);
    return begin != std::string::npos;
  }

  bool read_call(bool at_end) {
    const std::string_view text = std::string_view(held_).substr(tag_ + kCall.size());
    const size_t at = std::min(text.find_first_not_of(kSpace), text.size());
    if (at <= kMaxSpace) {
      if (at == text.size() && !at_end) return false;
      if (at < text.size() && text[at] == '{') {
        begun_ = held_.substr(0, tag_ + kCall.size() + at + 1);
        held_.erase(0, begun_.size());
        name_.reset();
        arguments_.clear();
        has_arguments_ = false;
        state_ = State::key;
        return true;
      }
    }
    return no_call(held_);
  }

  // What began as a call is text.
  bool no_call(std::string text) {
    held_ = std::move(text);
    if (num_calls_ > 0) {
      held_.erase(0, tag_ + 1);
      state_ = State::between;
    } else {
      literal_ = tag_ + 1;
      state_ = State::content;
    }
    return true;
  }

  bool read_key(bool at_end, ToolDelta& out) {
    size_t at = 0;
    while (at < held_.size() && (is_space(held_[at]) || held_[at] == ',')) ++at;
    consume(at);
    if (held_.empty()) return at_end && end_call(out);
    if (held_.front() == '}') {
      consume(1);
      return end_call(out);
    }
    if (held_.front() != '"') return end_call(out);
    ValueScanner scanner;
    size_t end = 0;
    while (end < held_.size() && scanner.step(held_[end]) != ValueScanner::Step::last) ++end;
    if (end == held_.size()) return at_end && end_call(out);
    const size_t colon = held_.find_first_not_of(kSpace, end + 1);
    const size_t value = colon == std::string::npos ? colon : held_.find_first_not_of(kSpace, colon + 1);
    if (colon != std::string::npos && held_[colon] != ':') return end_call(out);
    if (value == std::string::npos) return at_end && end_call(out);
    key_ = string_value(held_.substr(0, end + 1));
    consume(value);
    scanner_ = {};
    text_.clear();
    is_arguments_ = (key_ == "arguments" || key_ == "parameters") && !has_arguments_;
    // A string or another scalar in place of the object is looked at when it is whole.
    passes_through_ = is_arguments_ && held_.front() == '{';
    state_ = State::value;
    return true;
  }

  bool read_value(bool at_end, ToolDelta& out) {
    size_t at = 0;
    auto step = ValueScanner::Step::inside;
    while (at < held_.size() && step == ValueScanner::Step::inside) step = scanner_.step(held_[at++]);
    if (step == ValueScanner::Step::behind) --at;
    const std::string piece = held_.substr(0, at);
    consume(at);
    if (passes_through_) {
      add_arguments(piece, out);
    } else {
      text_ += piece;
    }
    if (step == ValueScanner::Step::inside && !at_end) return false;
    const std::string closing = step == ValueScanner::Step::last ? "" : scanner_.closing();
    if (passes_through_) {
      add_arguments(closing, out);
      has_arguments_ = true;
    } else {
      end_value(text_ + closing, out);
    }
    state_ = State::key;
    return true;
  }

  void end_value(const std::string& text, ToolDelta& out) {
    if (key_ == "name" && !name_) {
      std::string name = string_value(text);
      if (name.empty()) return;
      name_ = std::move(name);
      index_ = num_calls_++;
      begun_.clear();
      out.add(index_, *name_, arguments_);
    } else if (is_arguments_) {
      const std::string inner = string_value(text);
      add_arguments(inner.empty() ? (text == "null" ? "{}" : text) : inner, out);
      has_arguments_ = true;
    }
  }

  void add_arguments(const std::string& piece, ToolDelta& out) {
    if (piece.empty()) return;
    if (name_) {
      out.add(index_, "", piece);
    } else {
      arguments_ += piece;
    }
  }

  bool end_call(ToolDelta& out) {
    if (!name_) return no_call(begun_ + held_);
    if (!has_arguments_) out.add(index_, "", "{}");
    state_ = State::ended;
    return true;
  }

  bool read_between(bool at_end) {
    held_.erase(0, std::min(held_.find('<'), held_.size()));
    const std::string_view text = held_;
    if (text.empty() ||
        (!at_end && text.size() < kCallEnd.size() && (kCall.starts_with(text) || kCallEnd.starts_with(text)))) {
      return false;
    }
    if (text.starts_with(kCall)) {
      tag_ = 0;
      state_ = State::call;
    } else {
      held_.erase(0, 1);
    }
    return true;
  }

  // Takes bytes out of held_; while there is no name they may have to become text again.
  void consume(size_t size) {
    if (!name_) begun_ += held_.substr(0, size);
    held_.erase(0, size);
  }

  static std::string string_value(const std::string& json) {
    const Json value = Json::parse(json, nullptr, false);
    return value.is_string() ? value.get<std::string>() : "";
  }

  State state_ = State::content;
  std::string held_;
  size_t literal_ = 0;  // content: tags that begin before this byte are none
  size_t tag_ = 0;      // call: where its tag begins
  int num_calls_ = 0;

  // Of the call.
  std::string begun_;  // its text while it has no name
  std::optional<std::string> name_;
  int index_ = 0;
  std::string arguments_;  // while there is no name
  bool has_arguments_ = false;

  // Of the value.
  std::string key_, text_;
  ValueScanner scanner_;
  bool is_arguments_ = false, passes_through_ = false;
};

}  // namespace

std::unique_ptr<ToolParser> make_hermes_tool_parser() { return std::make_unique<HermesToolParser>(); }

}  // namespace proa
