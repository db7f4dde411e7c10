// A conversation with a model: turns in, streamed answers out. Knows no terminal.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/open_engine.h"
#include "chat/reasoning.h"
#include "core/result.h"

namespace proa {

struct SessionOptions {
  std::optional<bool> enable_thinking;  // unset: as the template has it
  bool raw = false;                     // the text is the prompt: no template, no reasoning apart
  SamplingParams params;
};

struct Answer {
  std::string content;
  std::string reasoning;
  std::vector<int32_t> prompt_token_ids;
  std::vector<TokenEvent> tokens;  // every generated token
  FinishReason finish_reason = FinishReason::stop;
  Timings timings;

  nlohmann::ordered_json to_json() const;  // the fields that `proa run --json` documents, but load_s
};

class ChatSession {
 public:
  enum class Part { reasoning, content };
  // Called with every piece of text as it becomes certain. Returns false to stop the answer.
  using OnText = std::function<bool(Part part, std::string_view text)>;

  ChatSession(OpenedEngine& opened, SessionOptions options) : opened_(opened), options_(std::move(options)) {}

  // Adds a user turn, generates the answer and adds it. `keep_going` is asked about ten times a second while nothing
  // comes; when it says no, the answer ends where it is. After an error the conversation is as before.
  Result<Answer> ask(const std::string& text, const OnText& on_text, const std::function<bool()>& keep_going);

  void set_system(std::string text);  // begins anew with this system message; empty: none
  void reset();                       // begins anew, the system message stays
  const std::optional<Answer>& last() const { return last_; }

 private:
  struct Prompt {
    std::vector<int32_t> token_ids;
    ReasoningStart start = ReasoningStart::kNone;
  };
  Result<Prompt> render() const;

  OpenedEngine& opened_;
  SessionOptions options_;
  nlohmann::ordered_json messages_ = nlohmann::ordered_json::array();
  std::string raw_prompt_;
  std::optional<Answer> last_;
};

}  // namespace proa
