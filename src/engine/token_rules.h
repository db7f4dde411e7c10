// What a request says about single tokens: biases, bans, what is allowed, and where thinking has to end. The sampler
// takes it as a row of biases, which changes by a few entries from token to token, and a token that is forced.
//
//   TokenRules rules(params, eos_token_ids);
//   rules.fill(output, row);                                         // when the sequence gets its row
//   for (const TokenBias& change : rules.update(output)) ...          // before each token
//   row.forced = rules.forced();
//   rules.accept(token, piece);                                      // after each token, with its text
//
// Source: vLLM's logits processors; NVIDIA's logits processor for the thinking budget of Nemotron-3.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"

namespace proa {

class TokenRules {
 public:
  TokenRules() = default;
  TokenRules(const SamplingParams& params, std::span<const int32_t> eos_token_ids);

  bool has_biases() const { return !bias_.empty() || !allowed_.empty() || !ends_.empty() || !bad_words_.empty(); }

  // The whole row, [vocab_size], for the token that follows `output`, the tokens generated so far.
  void fill(std::span<const int32_t> output, std::span<float> row);
  // What has changed in the row since the last call of either; valid until the next.
  std::span<const TokenBias> update(std::span<const int32_t> output);

  // The token that has to come next, or -1.
  int32_t forced() const;
  void accept(int32_t token, std::string_view piece);

 private:
  void ban(std::span<const int32_t> output);
  float standing(int32_t token) const;  // whatever was generated

  std::vector<TokenBias> bias_;   // by token
  std::vector<int32_t> allowed_;  // ascending; empty: all
  std::vector<int32_t> ends_;     // banned below min_tokens
  int min_tokens_ = 0;
  std::vector<std::vector<int32_t>> bad_words_;
  std::vector<int32_t> banned_, banned_before_;  // ascending, for the next token
  std::vector<TokenBias> changes_;

  ThinkingBudget budget_;
  bool thinking_ = false;
  int thought_ = 0;       // tokens
  size_t end_given_ = 0;  // of budget_.end_token_ids
  bool at_line_end_ = true;
  std::string said_;  // the end of it, in which a closing text may have begun
};

}  // namespace proa
