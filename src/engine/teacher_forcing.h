// Logits of a given text: the tokens are forced, nothing is sampled. For goldens, perplexity and KL.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "models/model.h"
#include "ops/backend.h"

namespace proa {

struct ForcingOptions {
  // Lengths of successive steps, each at least 1. The last one repeats until all tokens are done; empty means all
  // tokens in one step. {} prefill at once, {7} chunks of 7, {5, 1} 5 tokens and then one by one.
  std::vector<int> chunks = {};
  // A step of one token runs as a decode, as generation does. Off: as a prefill of one token.
  bool decode_single_tokens = true;
  Format kv_cache_dtype = Format::F32;  // F32, F16, BF16 or F8_E4M3
  int block_size = 16;                  // tokens
};

// Runs `token_ids` through one fresh sequence and returns the logits after each token named by `rows` (positions, in
// any order, repeats allowed): [rows.size(), vocab_size]. Memory is allocated and freed by the call. Errors: no tokens,
// a token outside the vocabulary, a row outside the tokens, a chunk below 1, no memory.
Result<std::vector<float>> forced_logits(const Model& model, Backend& backend, std::span<const int32_t> token_ids,
                                         std::span<const int32_t> rows, const ForcingOptions& options = {});

}  // namespace proa
