// Attention layer: x += W_o · attend(W_q u, W_k u, W_v u), u = RMSNorm(x). Grouped queries; rotary positions only where
// a model has them, which Nemotron-H has not (reference nemotron-h 2.3; Ainslie et al. 2023 for grouped queries).
#pragma once

#include <optional>

#include "layers/forward.h"

namespace proa {

struct RotaryEmbedding {
  const float* inv_freq = nullptr;  // [rotary_dim / 2] on the device
  int rotary_dim = 0;
  float attention_factor = 1;
  RopePairs pairs = RopePairs::halves;
};

struct AttentionLayer {
  int hidden_size, num_heads, num_kv_heads, head_dim;
  int window = 0;  // tokens; 0: all
  float scale;     // of q · k
  float eps;
  const float* norm;              // [hidden_size]
  Weight q_proj, k_proj, v_proj;  // [heads · head_dim, hidden_size]
  Weight o_proj;                  // [hidden_size, num_heads · head_dim]
  std::optional<RotaryEmbedding> rope;
  float k_scale = 1, v_scale = 1;  // of an FP8 cache; other caches have 1

  CacheSpec cache_spec() const;
  size_t workspace_bytes(int num_tokens) const;
  void forward(const Forward& step, const LayerCache& cache) const;
};

}  // namespace proa
