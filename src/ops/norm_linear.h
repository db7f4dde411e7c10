// norm_linear: y_i = W_i · RMSNorm(x), for one or several matrices that read the same normed input (q, k, v).
//   RMSNorm(x) = norm · x / sqrt(mean(x²) + eps), in F32            (reference nemotron-h 2.2)
// linear_residual: residual += W · x, the second half of a mixer.
#pragma once

#include <span>

#include "ops/weight.h"

namespace proa {

struct LinearOutput {
  Weight weight;  // [rows, hidden_size]
  float* y;       // [num_tokens, rows] out
};

struct NormLinear {
  int num_tokens;
  int hidden_size;
  const float* x;     // [num_tokens, hidden_size]
  const float* norm;  // [hidden_size]
  float eps;
  std::span<const LinearOutput> outputs;
};

struct LinearResidual {
  int num_tokens;
  const float* x;   // [num_tokens, weight.cols]
  Weight weight;    // [rows, cols]
  float* residual;  // [num_tokens, rows] in and out
};

void norm_linear_reference(const NormLinear& op);
void linear_residual_reference(const LinearResidual& op);

}  // namespace proa
