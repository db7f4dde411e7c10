// rope: rotary positions on q and k, in place. Pair i is turned by position · inv_freq[i] and scaled by
// attention_factor. Pairs are (i, i + rotary_dim/2) as in Hugging Face checkpoints, or (2i, 2i + 1) as in GGUF files of
// Llama, whose rows the converter permuted to match.
#pragma once

#include <cstdint>

namespace proa {

enum class RopePairs : uint8_t { halves, adjacent };

struct Rope {
  int num_tokens;
  const int32_t* positions;  // [num_tokens]
  int num_heads;
  int num_kv_heads;
  int head_dim;
  int rotary_dim;          // even, <= head_dim; the rest of a head is left alone
  const float* inv_freq;   // [rotary_dim / 2]
  float attention_factor;  // 1 but for YaRN
  RopePairs pairs;
  float* q;  // [num_tokens, num_heads, head_dim] in and out
  float* k;  // [num_tokens, num_kv_heads, head_dim] in and out
};

void rope_reference(const Rope& op);

}  // namespace proa
