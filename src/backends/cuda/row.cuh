// A row of activations in shared memory, normed or gated, before a block puts it in the order of operands.
#pragma once

#include "backends/cuda/device.cuh"
#include "backends/cuda/matmul.h"

namespace proa::cuda {

// Groups of 32 lie 33 floats apart, for lanes that read one column of each.
__host__ __device__ constexpr int place_of(int k) { return k + k / 32; }
constexpr size_t row_bytes(int cols) { return sizeof(float) * static_cast<size_t>(place_of(cols) + 1); }

// Calls f(k, floats) for the floats of `from` at k, 4 * kAtOnce of them asked for before the first is used. Columns
// from begin + 4 * me on, in steps of 4 * all.
constexpr int kAtOnce = 4;
template <typename F>
__device__ __forceinline__ void for_fours(const float* from, int begin, int end, int me, int all, F&& f) {
  for (int first = begin + 4 * me; first < end; first += 4 * all * kAtOnce) {
    float4 v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int k = first + 4 * all * i;
      if (k < end) v[i] = __ldcg(reinterpret_cast<const float4*>(from + k));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int k = first + 4 * all * i;
      if (k < end) f(k, v[i]);
    }
  }
}

struct RowInShared {
  float norm;     // what values are still to be multiplied with
  float largest;  // magnitude, with it
};

// Row `slot` of what `a` says into values[place_of(k)], by all threads of a block. What is read by four floats must lie
// so, see reads_by_fours(). `room` holds 2 * 32 floats.
template <bool kFours>
__device__ __forceinline__ RowInShared load_row(const Prepare& a, int64_t slot, float* values, float* room) {
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), lane = lane_id();
  const int64_t row = a.rows ? __ldcg(a.rows + slot) : slot;
  const float* x = a.x + row * a.x_stride;
  float squares = 0, largest = 0;
  if (a.input == Input::gated) {
    const float* z = a.z + row * a.z_stride;
    const int width = a.cols / a.n_groups;
    for (int group = warp_id(); group < a.n_groups; group += threads / kWarp) {
      float sum = 0;
      const auto add = [&](int k, float y, float gate) {
        const float v = y * silu(gate);
        sum += v * v;
        values[place_of(k)] = v;
      };
      if constexpr (kFours) {
        // The gates first: they wait where the products will be.
        const auto each = [&](int k, const float4& v, auto&& f) {
          f(k, v.x), f(k + 1, v.y), f(k + 2, v.z), f(k + 3, v.w);
        };
        for_fours(z, group * width, (group + 1) * width, lane, kWarp, [&](int k, const float4& v) {
          each(k, v, [&](int at, float gate) { values[place_of(at)] = gate; });
        });
        for_fours(x, group * width, (group + 1) * width, lane, kWarp, [&](int k, const float4& v) {
          each(k, v, [&](int at, float y) { add(at, y, values[place_of(at)]); });
        });
        __syncwarp();
      } else {
        for (int k = group * width + lane; k < (group + 1) * width; k += kWarp) add(k, __ldcg(x + k), __ldcg(z + k));
      }
      const float r = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(width) + a.eps);
      for (int k = group * width + lane; k < (group + 1) * width; k += kWarp) {
        const float v = values[place_of(k)] * r * a.norm[k];
        largest = fmaxf(largest, fabsf(v));
        values[place_of(k)] = v;
      }
    }
  } else {
    const auto add = [&](int k, float v) {
      squares += v * v;
      if (a.input == Input::normed) v *= a.norm[k];
      largest = fmaxf(largest, fabsf(v));
      values[place_of(k)] = v;
    };
    if constexpr (kFours) {
      for_fours(x, 0, a.cols, tid, threads,
                [&](int k, const float4& v) { add(k, v.x), add(k + 1, v.y), add(k + 2, v.z), add(k + 3, v.w); });
    } else {
      for (int k = tid; k < a.cols; k += threads) add(k, __ldcg(x + k));
    }
  }
  const float2 all = block_sum_max(squares, largest, room);
  const float norm = a.input == Input::normed ? 1.0f / sqrtf(all.x / static_cast<float>(a.cols) + a.eps) : 1.0f;
  return {norm, all.y * norm};
}

inline bool reads_by_fours(const Prepare& op) {
  const auto lies_so = [](const float* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
  };
  return lies_so(op.x, op.x_stride) && op.cols % (4 * op.n_groups) == 0 &&
         (op.input != Input::gated || lies_so(op.z, op.z_stride));
}

}  // namespace proa::cuda
