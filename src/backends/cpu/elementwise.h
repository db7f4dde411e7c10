// Element-wise kernels between the matrices of an op.
#pragma once

#include <cstdint>

#include "backends/cpu/cpu_backend.h"
#include "ops/activation.h"

namespace proa {

// y = norm · x / sqrt(mean(x²) + eps) for each token, by all threads when there are many. Rows of y are `y_stride`
// floats apart, zero from `size` on. `x_rows` [num_tokens] chooses the rows of x; null: all, in order.
void rms_norm(CpuBackend& backend, int num_tokens, int size, const float* x, const int32_t* x_rows, const float* norm,
              float eps, float* y, int64_t y_stride);

// h = act(gate) · h, or act(h) where gate is null, of `count` values. By the calling thread.
void activate(int64_t target, Activation activation, const float* gate, float* h, int64_t count);

}  // namespace proa
