// ssd_chunk on the tensor cores: 64 tokens at a time instead of one by one.
#pragma once

#include "backends/cuda/launch.h"
#include "ops/mamba2.h"

namespace proa::cuda {

// What the convolution leaves: x as it is, B and C each as two bfloat16 that hold 16 bits of it.
struct SsdInputs {
  float* x;              // [num_tokens, inner]
  uint16_t *high, *low;  // [num_tokens, B | C] of n_groups · ssm_state_size each
  float* pairs;          // [chunks, n_groups] C · B
};

// Whether this op's shape is one that ssd() takes, and long enough to be worth it.
bool takes_ssd(const SsdChunk& op, const Launch& launch);
// After it the state of the convolution is still to be written. `activated`: ssd_floats() of scratch memory.
int64_t ssd_floats(const SsdChunk& op);
void ssd(const SsdChunk& op, float* activated, const Launch& launch);

}  // namespace proa::cuda
