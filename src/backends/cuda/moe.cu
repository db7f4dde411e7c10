#include <algorithm>

#include "backends/cuda/device.cuh"
#include "backends/cuda/gemm.h"
#include "backends/cuda/kernels.h"
#include "backends/cuda/matmul.h"

namespace proa::cuda {
namespace {

constexpr int kSortThreads = 1024;

// Which slot of its expert a choice gets is left to chance: a product does not depend on it.
__global__ void __launch_bounds__(kSortThreads)
    sort_kernel(const int32_t* topk_ids, int choices, int per_token, int n_experts, int tile, int tiles,
                const SortedChoices out) {
  extern __shared__ int32_t next[];  // [n_experts] choices of an expert, then its next slot; behind them its first tile
  __shared__ int32_t used_tiles;
  int32_t* first_tile = next + n_experts;
  wait_for_predecessor();
  start_successor();
  const int tid = static_cast<int>(threadIdx.x), lane = lane_id();
  for (int e = tid; e < n_experts; e += kSortThreads) next[e] = 0;
  __syncthreads();
  // Choices of a thread, some at a time, so that they are awaited together.
  const auto each = [&](auto&& f) {
    constexpr int kAtOnce = 8;
    for (int begin = tid; begin < choices; begin += kAtOnce * kSortThreads) {
      int expert[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = begin + n * kSortThreads;
        if (i < choices) expert[n] = __ldcg(topk_ids + i);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = begin + n * kSortThreads;
        if (i < choices) f(i, expert[n]);
      }
    }
  };
  each([&](int, int expert) { atomicAdd(next + expert, 1); });
  __syncthreads();
  if (warp_id() == 0) {
    int slots = 0, done = 0;
    for (int first = 0; first < n_experts; first += kWarp) {
      const int e = first + lane, count = e < n_experts ? next[e] : 0, mine = (count + tile - 1) / tile;
      int slots_to = count, tiles_to = mine;
      for (int step = 1; step < kWarp; step *= 2) {
        const int below = __shfl_up_sync(~0u, slots_to, step), tiles_below = __shfl_up_sync(~0u, tiles_to, step);
        if (lane >= step) slots_to += below, tiles_to += tiles_below;
      }
      if (e < n_experts) next[e] = slots + slots_to - count, first_tile[e] = done + tiles_to - mine;
      slots += __shfl_sync(~0u, slots_to, kWarp - 1);
      done += __shfl_sync(~0u, tiles_to, kWarp - 1);
    }
    if (lane == 0) used_tiles = done;
  }
  __syncthreads();
  for (int e = tid; e < n_experts; e += kSortThreads) {
    const int first = next[e], end = e + 1 < n_experts ? next[e + 1] : choices;
    for (int at = first, t = first_tile[e]; at < end; at += tile, ++t) {
      out.tile_expert[t] = e;
      out.tile_first[t] = at;
      out.tile_count[t] = min(tile, end - at);
    }
  }
  for (int t = used_tiles + tid; t < tiles; t += kSortThreads) out.tile_expert[t] = -1;
  __syncthreads();
  each([&](int i, int expert) {
    const int slot = atomicAdd(next + expert, 1);
    out.token[slot] = i / per_token;
    out.slot[i] = slot;
  });
}

constexpr int kCombineThreads = 256;

__device__ __forceinline__ void widen(const float4& v, float (&to)[4]) {
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
__device__ __forceinline__ void widen(const float& v, float (&to)[1]) { to[0] = v; }
__device__ __forceinline__ void widen(const uint2& v, float (&to)[4]) {  // BF16
  to[0] = __uint_as_float(v.x << 16), to[1] = __uint_as_float(v.x & 0xffff0000u);
  to[2] = __uint_as_float(v.y << 16), to[3] = __uint_as_float(v.y & 0xffff0000u);
}
__device__ __forceinline__ void widen(const uint16_t& v, float (&to)[1]) {
  to[0] = __uint_as_float(static_cast<uint32_t>(v) << 16);
}

// A block takes a share of a token's columns, a thread kVector at a time, which are a Part of y and a Vector of x.
template <typename Part, typename Vector>
__global__ void __launch_bounds__(kCombineThreads)
    combine_kernel(const void* y, const int32_t* slot, const float* weights, int per_token, int width, bool add,
                   float* x) {
  constexpr int kVector = sizeof(Vector) / sizeof(float);
  extern __shared__ float chosen[];  // [per_token] weight, then slot
  wait_for_predecessor();
  start_successor();
  const int64_t token = blockIdx.x;
  for (int k = static_cast<int>(threadIdx.x); k < per_token; k += kCombineThreads) {
    chosen[k] = __ldcg(weights + token * per_token + k);
    chosen[per_token + k] = __int_as_float(__ldcg(slot + token * per_token + k));
  }
  __syncthreads();
  const int first = static_cast<int>(blockIdx.y * kCombineThreads + threadIdx.x) * kVector;
  for (int i = first; i < width; i += static_cast<int>(gridDim.y) * kCombineThreads * kVector) {
    float sum[kVector] = {};
#pragma unroll 6
    for (int k = 0; k < per_token; ++k) {
      const int64_t from = __float_as_int(chosen[per_token + k]);
      float part[kVector];
      widen(__ldcg(static_cast<const Part*>(y) + (from * width + i) / kVector), part);
#pragma unroll
      for (int n = 0; n < kVector; ++n) sum[n] += chosen[k] * part[n];
    }
    Vector* out = reinterpret_cast<Vector*>(x + token * width + i);
    Vector value = {};
    if (add) value = __ldcg(out);
#pragma unroll
    for (int n = 0; n < kVector; ++n) reinterpret_cast<float*>(&value)[n] += sum[n];
    *out = value;
  }
}

}  // namespace

void sort_choices(const int32_t* topk_ids, int choices, int per_token, int n_experts, int tile, int tiles,
                  const SortedChoices& sorted, const Launch& launch) {
  launch(sort_kernel, dim3(1), dim3(kSortThreads), 2 * sizeof(int32_t) * static_cast<size_t>(n_experts), topk_ids,
         choices, per_token, n_experts, tile, tiles, sorted);
}

// Shares of a token's columns, where there are few tokens.
static dim3 combine_blocks(int num_tokens, int width, bool vectors, const Launch& launch) {
  const int at_once = kCombineThreads * (vectors ? 4 : 1);
  return dim3(num_tokens, std::clamp(launch.num_sms() / num_tokens, 1, (width + at_once - 1) / at_once));
}

void combine_experts(const float* y, const int32_t* slot, const float* weights, int num_tokens, int per_token,
                     int width, bool add, float* x, const Launch& launch) {
  const size_t shared = 2 * sizeof(float) * static_cast<size_t>(per_token);
  const bool vectors = width % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  launch(vectors ? combine_kernel<float4, float4> : combine_kernel<float, float>,
         combine_blocks(num_tokens, width, vectors, launch), dim3(kCombineThreads), shared, y, slot, weights, per_token,
         width, add, x);
}

void combine_experts(const __nv_bfloat16* y, const int32_t* slot, const float* weights, int num_tokens, int per_token,
                     int width, bool add, float* x, const Launch& launch) {
  const size_t shared = 2 * sizeof(float) * static_cast<size_t>(per_token);
  const bool vectors = width % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  launch(vectors ? combine_kernel<uint2, float4> : combine_kernel<uint16_t, float>,
         combine_blocks(num_tokens, width, vectors, launch), dim3(kCombineThreads), shared, y, slot, weights, per_token,
         width, add, x);
}

}  // namespace proa::cuda
