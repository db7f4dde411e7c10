// Log probabilities of generated tokens in the two shapes of the OpenAI API. Minus infinity becomes -9999.0.
#pragma once

#include <cstdint>
#include <optional>
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

// "prompt_logprobs": for each token of the prompt a map from ids to {"logprob", "rank", "decoded_token"}, itself first;
// null for the first one. `logprobs` are those of all but the first.
std::string prompt_logprobs_json(const Tokenizer& tokenizer, const std::vector<PromptLogprob>& logprobs);

// The logprobs of a completion; one per choice, or one per chunk with the offset going on.
class CompletionLogprobs {
 public:
  // `offset`: characters of the text before the first token.
  CompletionLogprobs(const Tokenizer& tokenizer, bool as_token_ids, int64_t offset = 0)
      : tokenizer_(tokenizer), as_token_ids_(as_token_ids), offset_(offset) {}

  void add(const TokenEvent& event);
  // Of an echo: all tokens of the prompt, the first of which has none.
  void add_prompt(int32_t first, const std::vector<PromptLogprob>& rest);
  bool empty() const { return tokens_.empty(); }
  // {"text_offset", "token_logprobs", "tokens", "top_logprobs"}; the tokens are forgotten, the offset is not.
  std::string take();

 private:
  void add(int32_t id, std::optional<float> logprob, const std::vector<TokenLogprob>& tops);

  const Tokenizer& tokenizer_;
  const bool as_token_ids_;
  int64_t offset_;
  std::vector<int64_t> offsets_;
  std::vector<std::optional<double>> logprobs_;
  std::vector<std::string> tokens_;
  std::vector<std::string> tops_;  // JSON objects, or null
};

}  // namespace proa
