#include "apps/prompts.h"

#include <ctime>

#include "apps/open_engine.h"

namespace proa {

Result<PromptRenderer> PromptRenderer::create(const Checkpoint& checkpoint, Tokenizer tokenizer,
                                              const std::string& template_file, bool raw,
                                              std::optional<bool> enable_thinking) {
  PromptRenderer renderer(std::move(tokenizer));
  renderer.enable_thinking_ = enable_thinking;
  if (raw) return renderer;
  PROA_ASSIGN(const auto source, chat_template_source(checkpoint, &renderer.tokenizer_, template_file));
  if (source) {
    PROA_ASSIGN(renderer.template_,
                ChatTemplate::create(source->text, special_token_texts(renderer.tokenizer_), source->from));
  }
  return renderer;
}

Result<std::vector<int32_t>> PromptRenderer::prompt(const Question& question) const {
  if (!template_) {
    if (!question.messages.empty()) {
      return Error{"render a question", question.id, "a chat template, since it has messages", "none",
                   "--chat-template"};
    }
    return tokenizer_.encode(question.text, {.parse_special = false, .add_bos = true});
  }
  nlohmann::ordered_json messages = question.messages;
  if (messages.empty()) messages.push_back({{"role", "user"}, {"content", question.text}});
  std::tm now = {};  // a fixed day: a template that writes the date gives the same prompts every time
  now.tm_year = 126;
  now.tm_mday = 1;
  PROA_ASSIGN(const auto rendered, template_->render(messages, {.enable_thinking = enable_thinking_, .now = now}));
  std::vector<TextSegment> segments;
  for (const auto& segment : rendered) segments.push_back({segment.text, !segment.from_input});
  return tokenizer_.encode(segments);
}

}  // namespace proa
