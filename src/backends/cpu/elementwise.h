// Element-wise kernels between the matrices of an op.
#pragma once

#include <cstdint>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/linear.h"
#include "ops/activation.h"

namespace proa {

// y = norm · x / sqrt(mean(x²) + eps) for each token, and its digits, by all threads when there are many. y is zero from
// `size` to its stride. `x_rows` [num_tokens] chooses the rows of x; null: all, in order.
void rms_norm(CpuBackend& backend, int num_tokens, int size, const float* x, const int32_t* x_rows, const float* norm,
              float eps, const Input& y);

// h = act(gate) · h, or act(h) where gate is null, of `count` values. By the calling thread.
void activate(int64_t target, Activation activation, const float* gate, float* h, int64_t count);

}  // namespace proa
