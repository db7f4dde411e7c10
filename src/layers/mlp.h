// MLP layer: x += Down · act(Up · RMSNorm(x)), gated where the model has a gate projection.
#pragma once

#include "layers/forward.h"

namespace proa {

struct MlpLayer {
  int hidden_size;
  Activation activation;
  float eps;
  const float* norm;          // [hidden_size]
  Weight gate_proj;           // [intermediate_size, hidden_size], or empty
  Weight up_proj, down_proj;  // [intermediate_size, hidden_size], [hidden_size, intermediate_size]

  void forward(const Forward& step) const {
    step.backend.mlp(
        {step.batch.num_tokens, hidden_size, step.x, norm, eps, gate_proj, up_proj, down_proj, activation});
    step.backend.all_reduce(step.x, int64_t{step.batch.num_tokens} * hidden_size);
  }
};

}  // namespace proa
