// From questions of a file to the tokens of a prompt: through the checkpoint's chat template, or as plain text.
#pragma once

#include <optional>
#include <vector>

#include "chat/chat_template.h"
#include "checkpoint/checkpoint.h"
#include "core/result.h"
#include "eval/questions.h"
#include "tokenizer/tokenizer.h"

namespace proa {

class PromptRenderer {
 public:
  // `template_file`: in place of the checkpoint's; `raw`: no template, texts are continued.
  static Result<PromptRenderer> create(const Checkpoint& checkpoint, Tokenizer tokenizer,
                                       const std::string& template_file, bool raw,
                                       std::optional<bool> enable_thinking = {});
  // Errors: messages where there is no template; those of the template.
  Result<std::vector<int32_t>> prompt(const Question& question) const;
  bool raw() const { return !template_; }

 private:
  explicit PromptRenderer(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}
  Tokenizer tokenizer_;
  std::optional<ChatTemplate> template_;
  std::optional<bool> enable_thinking_;
};

}  // namespace proa
