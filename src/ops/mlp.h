// mlp: x += Down · act(Up · RMSNorm(x)), or gated: x += Down · (act(Gate · RMSNorm(x)) ⊙ (Up · RMSNorm(x))).
#pragma once

#include "ops/activation.h"
#include "ops/weight.h"

namespace proa {

struct Mlp {
  int num_tokens;
  int hidden_size;
  float* x;           // [num_tokens, hidden_size] the residual stream, in and out
  const float* norm;  // [hidden_size]
  float eps;
  Weight gate;  // [intermediate_size, hidden_size], or empty: not gated
  Weight up;    // [intermediate_size, hidden_size]
  Weight down;  // [hidden_size, intermediate_size]
  Activation activation;
};

void mlp_reference(const Mlp& op);

}  // namespace proa
