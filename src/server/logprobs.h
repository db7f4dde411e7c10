// Log probabilities of generated tokens in the two shapes of the OpenAI API. Minus infinity becomes -9999.0.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/request.h"
#include "server/json_text.h"
#include "tokenizer/tokenizer.h"

namespace proa {

// Text of a token in these lists: its bytes (U+FFFD where they are no text), or "token_id:N".
std::string token_text(const Tokenizer& tokenizer, int32_t id, bool as_token_id);

// An entry of chat's logprobs.content: {"token", "logprob", "bytes", "top_logprobs": [...]}.
void write_chat_logprob(JsonText& json, const Tokenizer& tokenizer, const TokenEvent& event, bool as_token_ids);

// The logprobs of a completion; one per choice, or one per chunk with the offset going on.
class CompletionLogprobs {
 public:
  // `offset`: characters of the text before the first token.
  CompletionLogprobs(const Tokenizer& tokenizer, bool as_token_ids, int64_t offset = 0)
      : tokenizer_(tokenizer), as_token_ids_(as_token_ids), offset_(offset) {}

  void add(const TokenEvent& event);
  bool empty() const { return tokens_.empty(); }
  // {"text_offset", "token_logprobs", "tokens", "top_logprobs"}; the tokens are forgotten, the offset is not.
  std::string take();

 private:
  const Tokenizer& tokenizer_;
  const bool as_token_ids_;
  int64_t offset_;
  std::vector<int64_t> offsets_;
  std::vector<double> logprobs_;
  std::vector<std::string> tokens_;
  std::vector<std::string> tops_;  // JSON objects
};

}  // namespace proa
