// What the kernels of Mamba-2 share.
#pragma once

#include "backends/cuda/device.cuh"
#include "ops/mamba2.h"

namespace proa::cuda {

__device__ __forceinline__ float time_step(float v, const TimeStepLimit& limit) {
  const float delta = v > 20.0f ? v : log1pf(expf(v));
  return fminf(fmaxf(delta, limit.min), limit.max);
}

__device__ __forceinline__ float* head_state(const StateCacheView& cache, const Mamba2Shape& shape, int32_t slot,
                                             int head) {
  if (slot < 0) return nullptr;
  return cache.ssm + (static_cast<int64_t>(slot) * shape.num_heads + head) * shape.head_dim * shape.ssm_state_size;
}

}  // namespace proa::cuda
