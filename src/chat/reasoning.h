// Splits generated text into reasoning and content while it streams.
// Text up to </think> is reasoning, what follows is content; a <think> that opens the text is dropped; without </think>
// everything is reasoning. ReasoningRules say the rest.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace proa {

// Where the answer begins, by what the rendered prompt ends with.
enum class ReasoningStart {
  kOpen,    // after <think>: the text is reasoning from its first byte
  kClosed,  // after </think>: the text is content, whitespace before it is dropped
  kNone,    // neither: content, unless the text itself begins with <think>
};
ReasoningStart reasoning_start(std::string_view prompt);

struct ReasoningRules {
  bool tool_call_ends = true;  // a <tool_call> while thinking ends it: models leave out </think> at times
  bool keep_space = false;     // off: whitespace around the boundary belongs to neither side
};

// By the names of vLLM's --reasoning-parser: nemotron_v3, nano_v3 (the rules above), deepseek_r1 (neither of them).
// None for other names.
std::optional<ReasoningRules> reasoning_rules(std::string_view parser);

struct ReasoningDelta {
  std::string reasoning;
  std::string content;
};

// One per answer. However the text is cut into deltas, the sums of what comes out are the same. What could still turn
// out to be a tag, or whitespace before one, is held back until the next delta or finish().
class ReasoningParser {
 public:
  explicit ReasoningParser(ReasoningStart start, ReasoningRules rules = {});

  ReasoningDelta feed(std::string_view delta);
  ReasoningDelta finish();  // at the end of the answer: what was held back

  bool in_reasoning() const { return state_ == State::kReasoningStart || state_ == State::kReasoning; }

 private:
  enum class State {
    kBefore,          // a <think> may come
    kReasoningStart,  // whitespace and one <think> are dropped
    kReasoning,
    kContentStart,  // whitespace is dropped
    kContent,
  };
  void advance(bool at_end, ReasoningDelta* out);

  void drop_leading_space();
  std::string_view trim_end(std::string_view text) const;

  const ReasoningRules rules_;
  State state_;
  bool drop_reasoning_space_ = false;  // no reasoning came out yet
  std::string held_;
};

// The whole answer at once.
ReasoningDelta split_reasoning(std::string_view text, ReasoningStart start, ReasoningRules rules = {});

}  // namespace proa
