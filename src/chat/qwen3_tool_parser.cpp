// The format of Qwen3-Coder and Nemotron-3:
//   <tool_call> <function=NAME> { <parameter=KEY> VALUE </parameter> } </function> </tool_call>
// A value is free text, which may well be about this very format. So a closing tag inside a value counts only where the
// format could go on after it, and tags that the value itself opens are counted. Models leave closing tags out at
// times: a value also ends before the next parameter, before </function></tool_call>, and with the text.
#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "chat/tool_parser.h"
#include "chat/tool_value.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kCall = "<tool_call>", kCallEnd = "</tool_call>";
constexpr std::string_view kFunction = "<function=", kFunctionEnd = "</function>";
constexpr std::string_view kParameter = "<parameter=", kParameterEnd = "</parameter>";
constexpr std::array kTags = {kCall, kCallEnd, kFunction, kFunctionEnd, kParameter, kParameterEnd};
constexpr std::string_view kSpace = " \t\r\n\f\v";
constexpr size_t kMaxName = 256;
constexpr size_t kMaxSpace = 1024;  // between tags

bool is_begin_of(std::string_view text, std::string_view tag) { return tag.starts_with(text); }

// A name in "<function=NAME>" or "<parameter=NAME>".
struct Named {
  enum class Kind { good, bad, incomplete };
  Kind kind;
  std::string_view name = {};
  size_t size = 0;  // of the whole tag
};
Named read_named(std::string_view text, std::string_view tag) {
  const std::string_view rest = text.substr(tag.size());
  const size_t end = rest.substr(0, kMaxName + 1).find_first_of("{}<>\"' \t\r\n\f\v");
  if (end == rest.npos) return {rest.size() > kMaxName ? Named::Kind::bad : Named::Kind::incomplete};
  if (end == 0 || rest[end] != '>') return {Named::Kind::bad};
  return {Named::Kind::good, rest.substr(0, end), tag.size() + end + 1};
}

class Qwen3ToolParser final : public ToolParser {
 public:
  Qwen3ToolParser(const Json& tools, ToolParserOptions options) : options_(options) {
    if (!tools.is_array()) return;
    for (const Json& tool : tools) {
      const Json* function = member(tool, "function");
      const Json* name = member(function ? *function : tool, "name");
      if (!name || !name->is_string()) continue;
      const Json* parameters = member(function ? *function : tool, "parameters");
      const Json* properties = parameters ? member(*parameters, "properties") : nullptr;
      functions_.emplace_back(name->get<std::string>(), properties ? *properties : Json::object());
    }
  }

  ToolDelta feed(std::string_view text) override {
    held_ += text;
    return advance(false);
  }
  ToolDelta finish() override { return advance(true); }

 private:
  enum class State {
    content,         // before the first call
    call,            // after <tool_call>: a function must follow; held_ begins with what led here
    function,        // between parameters
    value,           // held_ begins with the value
    function_ended,  // </tool_call> or another function is to come
    between,         // after a call
  };
  enum class Ends { not_yet, here, nowhere };  // may be known later, ends, is text

  static const Json* member(const Json& object, const char* name) {
    if (!object.is_object()) return nullptr;
    const auto found = object.find(name);
    return found == object.end() ? nullptr : &*found;
  }

  ToolDelta advance(bool at_end) {
    ToolDelta out;
    while (step(at_end, out)) {
    }
    return out;
  }

  // False: more text is needed.
  bool step(bool at_end, ToolDelta& out) {
    switch (state_) {
      case State::content:
        return read_content(at_end, out);
      case State::call:
        return read_call(at_end, out);
      case State::function:
        return read_function(at_end, out);
      case State::value:
        return read_value(at_end, out);
      case State::function_ended:
      case State::between:
        return read_between(at_end, out);
    }
    return false;
  }

  bool read_content(bool at_end, ToolDelta& out) {
    // What was looked at already begins no tag, except where content_from_ says so.
    const size_t call = held_.find(kCall, literal_);
    const size_t bare = options_.bare_functions ? held_.find(kFunction, literal_) : std::string::npos;
    if (const size_t begin = std::min(call, bare); begin != std::string::npos) {
      const size_t last = std::string_view(held_).substr(0, begin).find_last_not_of(kSpace);
      const size_t size = last == std::string::npos ? 0 : last + 1;
      out.content += held_.substr(0, size);
      held_.erase(0, size);
      literal_ = 0;
      tag_ = begin - size;
      state_ = State::call;
      return true;
    }
    size_t size = held_.size();
    if (!at_end) {
      size = certain_content(held_, kCall);
      if (options_.bare_functions) size = std::min(size, certain_content(held_, kFunction));
    }
    out.content += held_.substr(0, size);
    held_.erase(0, size);
    literal_ -= std::min(literal_, size);
    return false;
  }

  // held_ is whitespace, then at tag_ <tool_call> or a bare <function=. Until the function's name is known all of it
  // may still be content.
  bool read_call(bool at_end, ToolDelta& out) {
    const std::string_view text = std::string_view(held_).substr(tag_);
    size_t at = text.starts_with(kCall) ? kCall.size() : 0;
    at = std::min(text.find_first_not_of(kSpace, at), text.size());
    const std::string_view rest = text.substr(at);
    if (at > kMaxSpace) {  // whitespace without an end
    } else if (rest.starts_with(kFunction)) {
      const Named named = read_named(rest, kFunction);
      if (named.kind == Named::Kind::good) {
        begin_function(named.name, out);
        held_.erase(0, tag_ + at + named.size);
        return true;
      }
      if (named.kind == Named::Kind::incomplete && !at_end) return false;
    } else if (is_begin_of(rest, kFunction) && !at_end) {
      return false;
    }
    // No call after all.
    if (num_calls_ > 0) {
      held_.erase(0, tag_ + 1);
      state_ = State::between;
    } else {
      literal_ = tag_ + 1;
      state_ = State::content;
    }
    return true;
  }

  void begin_function(std::string_view name, ToolDelta& out) {
    index_ = num_calls_++;
    properties_ = nullptr;
    for (const auto& [known, properties] : functions_) {
      if (known == name) properties_ = &properties;
    }
    seen_.clear();
    out.add(index_, name, "");
    state_ = State::function;
  }

  void end_function(ToolDelta& out) { out.add(index_, "", seen_.empty() ? "{}" : "}"); }

  bool read_function(bool at_end, ToolDelta& out) {
    const size_t begin = std::min(held_.find('<'), held_.size());
    held_.erase(0, begin);
    const std::string_view text = held_;
    if (text.empty() || (!at_end && may_become_tag(text))) {
      if (at_end) end_function(out), state_ = State::between;
      return false;
    }
    size_t size = 1;
    if (text.starts_with(kParameter)) {
      const Named named = read_named(text, kParameter);
      if (named.kind == Named::Kind::incomplete && !at_end) return false;
      if (named.kind == Named::Kind::good) {
        key_ = std::string(named.name);
        size = named.size;
        scanned_ = 0;
        open_parameters_ = open_functions_ = open_calls_ = 0;
        state_ = State::value;
      }
    } else if (text.starts_with(kFunctionEnd)) {
      end_function(out);
      size = kFunctionEnd.size();
      state_ = State::function_ended;
    } else if (text.starts_with(kCallEnd)) {
      end_function(out);
      size = kCallEnd.size();
      state_ = State::between;
    } else if (text.starts_with(kCall) || text.starts_with(kFunction)) {  // both ends are missing
      end_function(out);
      size = 0;
      tag_ = 0;
      state_ = State::call;
    }
    held_.erase(0, size);
    return true;
  }

  bool read_between(bool at_end, ToolDelta&) {
    const std::string_view text = held_;
    const size_t begin = std::min(text.find('<'), text.size());
    held_.erase(0, begin);
    const std::string_view rest = held_;
    if (rest.empty() || (!at_end && may_become_tag(rest))) return false;
    if (rest.starts_with(kCall) || (state_ == State::function_ended && rest.starts_with(kFunction))) {
      tag_ = 0;
      state_ = State::call;
      return true;
    }
    if (rest.starts_with(kCallEnd)) state_ = State::between;
    held_.erase(0, 1);
    return true;
  }

  static bool may_become_tag(std::string_view text) {
    return std::any_of(kTags.begin(), kTags.end(),
                       [&](std::string_view tag) { return text.size() < tag.size() && is_begin_of(text, tag); });
  }

  // --- values ---

  bool knows(std::string_view key) const {
    return !properties_ || properties_->empty() || properties_->contains(std::string(key));
  }

  // What stands behind the whitespace that follows held_[at].
  struct Next {
    bool known;  // false: it may be anything yet
    std::string_view text;
  };
  Next next_after(size_t at, bool at_end) const {
    const std::string_view rest = std::string_view(held_).substr(at);
    const size_t space = std::min(rest.find_first_not_of(kSpace), rest.size());
    if (space > kMaxSpace) return {true, rest.substr(0, 1)};  // whitespace, and so no tag
    const std::string_view text = rest.substr(space);
    return {at_end || !(text.empty() || may_become_tag(text)), text};
  }

  Ends parameter_ends(size_t at, bool at_end) const {
    const Next next = next_after(at + kParameterEnd.size(), at_end);
    if (!next.known) return Ends::not_yet;
    if (next.text.empty() || next.text.starts_with(kFunctionEnd) || next.text.starts_with(kCallEnd)) return Ends::here;
    if (!next.text.starts_with(kParameter)) {
      return at_end && may_become_tag(next.text) ? Ends::here : Ends::nowhere;  // cut while it was closing
    }
    const Named named = read_named(next.text, kParameter);
    if (named.kind == Named::Kind::incomplete) return at_end ? Ends::here : Ends::not_yet;
    return named.kind == Named::Kind::good && knows(named.name) ? Ends::here : Ends::nowhere;
  }

  Ends function_ends(size_t at, bool at_end) const {
    const Next next = next_after(at + kFunctionEnd.size(), at_end);
    if (!next.known) return Ends::not_yet;
    return next.text.empty() || next.text.starts_with(kCallEnd) ? Ends::here : Ends::nowhere;
  }

  Ends call_ends(size_t at, bool at_end) const {
    const Next next = next_after(at + kCallEnd.size(), at_end);
    if (!next.known) return Ends::not_yet;
    return next.text.empty() || next.text.starts_with(kCall) ? Ends::here : Ends::nowhere;
  }

  bool read_value(bool at_end, ToolDelta& out) {
    for (;;) {
      scanned_ = std::min(held_.find('<', scanned_), held_.size());
      const std::string_view text = std::string_view(held_).substr(scanned_);
      if (text.empty() || (!at_end && may_become_tag(text))) {
        if (!at_end) return false;
        end_value(scanned_, 0, false, out);
        return true;
      }
      Ends ends = Ends::nowhere;
      size_t size = 1;         // of what is text
      size_t closing_tag = 0;  // of the value's own
      if (text.starts_with(kParameterEnd)) {
        size = kParameterEnd.size();
        if (open_parameters_ > 0) {
          --open_parameters_;
        } else if (open_functions_ == 0) {
          ends = parameter_ends(scanned_, at_end);
          closing_tag = kParameterEnd.size();
        }
      } else if (text.starts_with(kFunctionEnd)) {
        size = kFunctionEnd.size();
        if (open_functions_ > 0) {
          --open_functions_;
        } else {
          ends = function_ends(scanned_, at_end);
        }
      } else if (text.starts_with(kCallEnd)) {
        size = kCallEnd.size();
        if (open_calls_ > 0) {
          --open_calls_;
        } else {
          ends = call_ends(scanned_, at_end);
        }
      } else if (text.starts_with(kParameter)) {
        const Named named = read_named(text, kParameter);
        if (named.kind == Named::Kind::incomplete && !at_end) return false;
        if (named.kind == Named::Kind::good) {
          size = named.size;
          const bool next = open_parameters_ == 0 && open_functions_ == 0 && knows(named.name) && named.name != key_ &&
                            !seen_.contains(std::string(named.name));
          if (next) {
            ends = Ends::here;
          } else {
            ++open_parameters_;
          }
        }
      } else if (text.starts_with(kFunction)) {
        const Named named = read_named(text, kFunction);
        if (named.kind == Named::Kind::incomplete && !at_end) return false;
        if (named.kind == Named::Kind::good) ++open_functions_, size = named.size;
      } else if (text.starts_with(kCall)) {
        ++open_calls_;
        size = kCall.size();
      }
      if (ends == Ends::not_yet) return false;
      if (ends == Ends::here) {
        end_value(scanned_, closing_tag, closing_tag > 0, out);
        return true;
      }
      scanned_ += size;
    }
  }

  // The value is held_[0..size); a closing tag of that size follows. A value without one may end with tags that were
  // taken for text because something in it looked like an opening tag.
  void end_value(size_t size, size_t closing_tag, bool closed, ToolDelta& out) {
    std::string_view value = std::string_view(held_).substr(0, size);
    if (!closed) {
      const size_t open = value.rfind('<');
      if (open != value.npos && size == held_.size() && may_become_tag(value.substr(open)))
        value = value.substr(0, open);
      for (const std::string_view tag : {kCallEnd, kFunctionEnd, kParameterEnd}) {
        const size_t last = value.find_last_not_of(kSpace);
        const std::string_view trimmed = value.substr(0, last == value.npos ? 0 : last + 1);
        if (trimmed.ends_with(tag)) value = trimmed.substr(0, trimmed.size() - tag.size());
      }
    }
    if (value.starts_with('\n')) value.remove_prefix(1);
    if (value.ends_with('\n')) value.remove_suffix(1);
    if (!seen_.contains(key_)) {  // a key that comes twice: the first one was sent already
      const auto schema = properties_ ? properties_->find(key_) : Json::const_iterator();
      const bool has_schema = properties_ && schema != properties_->end();
      out.add(
          index_, "",
          (seen_.empty() ? "{" : ", ") + dump_python(key_) + ": " + tool_value(value, has_schema ? *schema : Json()));
      seen_.insert(key_);
    }
    held_.erase(0, size + closing_tag);
    state_ = State::function;
  }

  const ToolParserOptions options_;
  std::vector<std::pair<std::string, Json>> functions_;  // name and properties of the parameters

  State state_ = State::content;
  std::string held_;
  size_t literal_ = 0;  // content: tags that begin before this byte are none
  size_t tag_ = 0;      // call: where its tag begins
  int num_calls_ = 0;

  // Of the function.
  int index_ = 0;
  const Json* properties_ = nullptr;  // null: no tool of that name
  std::set<std::string> seen_;        // keys

  // Of the value.
  std::string key_;
  size_t scanned_ = 0;
  int open_parameters_ = 0, open_functions_ = 0, open_calls_ = 0;  // tags that the value itself opened
};

}  // namespace

std::unique_ptr<ToolParser> make_qwen3_tool_parser(const Json& tools, ToolParserOptions options) {
  return std::make_unique<Qwen3ToolParser>(tools, options);
}

}  // namespace proa
