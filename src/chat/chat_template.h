// Messages to prompt text: the chat template that comes with a checkpoint, with the conventions of transformers'
// apply_chat_template.
#pragma once

#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chat/jinja.h"
#include "core/result.h"

namespace proa {

// Which parts of the rendered text came from messages: see jinja.h. Encode `from_input` with special tokens off.
using jinja::Segment;

// Texts of the special tokens a template may print; empty where the tokenizer has none.
struct SpecialTokenTexts {
  std::string bos_token;
  std::string eos_token;
};

struct ChatOptions {
  nlohmann::ordered_json tools;  // array of tool definitions in the caller's order, or null
  bool add_generation_prompt = true;
  // The prompt ends inside the last message, for the model to go on with it; add_generation_prompt must be off then.
  bool continue_final_message = false;
  std::optional<bool> enable_thinking;     // left undefined for the template when absent
  nlohmann::ordered_json template_kwargs;  // further variables (chat_template_kwargs of a request), or null
  std::tm now = {};                        // for strftime_now
};

// ChatML, for checkpoints without a template. Lists the tools as JSON and speaks of calls as <tool_call> JSON.
std::string_view chatml_template();

// Immutable and safe to share between threads.
class ChatTemplate {
 public:
  // Parses `source` and finds out by a trial rendering whether it takes content as lists of parts.
  // `name` stands before the line in errors.
  static Result<ChatTemplate> create(std::string_view source, SpecialTokenTexts tokens, std::string name = "");

  // `messages` is an array in OpenAI's shape. Before rendering, as the templates expect:
  //  - tool_calls[].function.arguments given as a JSON string become an object ("" an empty one);
  //  - content given as a list of text parts becomes one string, parts joined by "\n", unless the template takes
  //    lists; parts that are not text are an error;
  //  - reasoning under any of the names reasoning_content, thinking, reasoning is also given as reasoning_content
  //    and thinking.
  // Errors name the message and field ("messages[1].content"), or the template's line. template_kwargs cannot replace
  // messages, tools, add_generation_prompt or the special tokens.
  Result<std::vector<Segment>> render(const nlohmann::ordered_json& messages, const ChatOptions& options = {}) const;

  bool takes_content_parts() const { return takes_content_parts_; }

 private:
  ChatTemplate(jinja::Template parsed, SpecialTokenTexts tokens)
      : template_(std::move(parsed)), tokens_(std::move(tokens)) {}
  bool probe_content_parts() const;

  jinja::Template template_;
  SpecialTokenTexts tokens_;
  bool takes_content_parts_ = false;
};

}  // namespace proa
