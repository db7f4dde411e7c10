// Mamba-2 layer: x += W_out · norm(y · silu(z)), y from convolution and selective state space over W_in · RMSNorm(x)
// (reference nemotron-h 2.4 and 2.6; Dao & Gu 2024, "Transformers are SSMs").
#pragma once

#include "layers/forward.h"

namespace proa {

struct Mamba2Layer {
  int hidden_size;
  Mamba2Shape shape;
  TimeStepLimit limit;
  int chunk_size;  // tokens
  float eps;
  const float* norm;        // [hidden_size]
  Weight in_proj;           // [shape.projected(), hidden_size] z | x | B | C | dt
  Mamba2Weights weights;    // convolution, dt_bias, A, D
  const float* gated_norm;  // [shape.inner()]
  Weight out_proj;          // [hidden_size, shape.inner()]

  CacheSpec cache_spec() const;
  size_t workspace_bytes(int num_tokens) const;
  void forward(const Forward& step, const LayerCache& cache) const;
};

}  // namespace proa
