// Tokens that end a turn or a text by what they are called. Files often name one eos only, and the model uses several.
#pragma once

#include <string_view>

namespace proa {

// True for added tokens of these contents. `<|end|>` is not among them: in GPT-OSS it stands between messages.
inline bool ends_generation(std::string_view content) {
  for (const std::string_view known : {"</s>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>",
                                       "<|eom_id|>", "<end_of_turn>", "<|return|>", "<|call|>"}) {
    if (content == known) return true;
  }
  return false;
}

}  // namespace proa
