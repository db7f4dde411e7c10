// lm_head: logits = W · RMSNorm(x) for the chosen rows of the residual stream.
#pragma once

#include "ops/weight.h"

namespace proa {

struct LmHead {
  int num_rows;
  int hidden_size;
  const int32_t* rows;  // [num_rows] tokens of the batch
  const float* x;       // [num_tokens, hidden_size]
  const float* norm;    // [hidden_size]
  float eps;
  Weight weight;  // [vocab_size, hidden_size]
  float* logits;  // [num_rows, vocab_size] out
};

void lm_head_reference(const LmHead& op);

}  // namespace proa
