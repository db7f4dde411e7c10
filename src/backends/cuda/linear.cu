#include <algorithm>

#include "backends/cuda/linear.h"
#include "backends/cuda/matmul.cuh"

namespace proa::cuda {

// Each format's kernels are compiled in a file of their own, so that builds run side by side: linear_formats_*.cu.
#define PROA_FORMAT(F) extern template void matmul::launch<F>(const MatMul&, int tiles, const Launch&);
PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT

void multiply_matrix(Format format, const MatMul& op, int tiles, const Launch& launch) {
  visit_format(format, [&](auto f) { matmul::launch<decltype(f)>(op, tiles, launch); });
}

OperandForm operand_form(Format format) {
  return visit_format(format, [](auto f) -> OperandForm {
    using Frag = Fragment<decltype(f)>;
    return {Frag::kBf16, static_cast<uint8_t>(Frag::kOrder)};
  });
}

namespace {

// A block takes eight tokens, a warp one of them; then all put operands in order.
__global__ void __launch_bounds__(256) prepare_kernel(const __grid_constant__ Prepare a) {
  extern __shared__ float rms_of[];  // [8, n_groups]
  __shared__ float factor_of[kTokenStep];
  __shared__ int row_of[kTokenStep];
  wait_for_predecessor();
  start_successor();
  const int lane = lane_id(), warp = warp_id(), step = static_cast<int>(blockIdx.x);
  if (a.tile_count && step % (kTokenTile / kTokenStep) * kTokenStep >= __ldcg(a.tile_count + step / 4)) return;

  const int slot = step * kTokenStep + warp;
  int row = slot < a.slots ? slot : -1;
  if (a.rows && row >= 0) row = __ldcg(a.rows + slot);
  float squares = 0, largest = 0, norm_scale = 1;
  const int width = a.cols / a.n_groups;
  if (row >= 0) {
    const float* x = a.x + row * a.x_stride;
    if (a.input == Input::gated) {
      const float* z = a.z + row * a.z_stride;
      for (int group = 0; group < a.n_groups; ++group) {
        float sum = 0, most = 0;
        for (int i = lane; i < width; i += kWarp) {
          const int k = group * width + i;
          const float v = __ldcg(x + k) * silu(__ldcg(z + k));
          sum += v * v;
          most = fmaxf(most, fabsf(v * a.norm[k]));
        }
        const float r = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(width) + a.eps);
        if (lane == 0) rms_of[warp * a.n_groups + group] = r;
        largest = fmaxf(largest, most * r);
      }
    } else {
      for (int k = lane; k < a.cols; k += kWarp) {
        const float v = __ldcg(x + k);
        squares += v * v;
        largest = fmaxf(largest, fabsf(a.input == Input::normed ? v * a.norm[k] : v));
      }
    }
  }
  squares = warp_sum(squares);
  largest = warp_max(largest);
  if (a.input == Input::normed) norm_scale = 1.0f / sqrtf(squares / static_cast<float>(a.cols) + a.eps);
  const float power = a.bf16 ? 1.0f : half_scale(largest * norm_scale);
  if (lane == 0) {
    row_of[warp] = row;
    factor_of[warp] = norm_scale * power;
    if (slot < a.slots) a.out.unscale[slot] = 1.0f / power;
  }
  __syncthreads();

  const int token = lane / 4, j = lane % 4;
  const int groups = (a.cols + 31) / 32;
  const int my_row = row_of[token];
  const float* x = a.x + (my_row < 0 ? 0 : my_row * a.x_stride);
  const float* z = a.z + (my_row < 0 ? 0 : my_row * a.z_stride);
  for (int group = warp; group < groups; group += kTokenStep) {
    float v[8];
    float halves[2] = {};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int k = 32 * group + column_of(static_cast<Order>(a.order), j, n);
      v[n] = 0;
      if (my_row >= 0 && k < a.cols) {
        v[n] = __ldcg(x + k);
        if (a.input == Input::normed) v[n] *= a.norm[k];
        if (a.input == Input::gated) {
          v[n] = v[n] * silu(__ldcg(z + k)) * rms_of[token * a.n_groups + k / width] * a.norm[k];
        }
        v[n] *= factor_of[token];
      }
      halves[n / 4] += v[n];
    }
    uint4* out = a.out.fragments + (static_cast<int64_t>(step) * groups + group) * (a.bf16 ? 4 : 2) * kWarp + lane;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (a.bf16) {
        uint32_t first[3], second[3];
        split_pair<true>(v[4 * half], v[4 * half + 1], first);
        split_pair<true>(v[4 * half + 2], v[4 * half + 3], second);
        out[half * kWarp] = {first[0], first[1], second[0], second[1]};
        out[(2 + half) * kWarp] = {first[2], 0, second[2], 0};
      } else {
        uint32_t first[2], second[2];
        split_pair<false>(v[4 * half], v[4 * half + 1], first);
        split_pair<false>(v[4 * half + 2], v[4 * half + 3], second);
        out[half * kWarp] = {first[0], first[1], second[0], second[1]};
      }
      halves[half] += __shfl_xor_sync(~0u, halves[half], 1);
      halves[half] += __shfl_xor_sync(~0u, halves[half], 2);
      if (j == 0) {
        a.out.group_sums[((static_cast<int64_t>(step) * groups + group) * 2 + half) * kTokenStep + token] =
            halves[half];
      }
    }
  }
}

}  // namespace

void prepare(const Prepare& op, const Launch& launch) {
  if (op.slots == 0) return;
  const size_t shared = op.input == Input::gated ? sizeof(float) * kTokenStep * static_cast<size_t>(op.n_groups) : 0;
  launch(prepare_kernel, dim3((op.slots + kTokenStep - 1) / kTokenStep), dim3(256), shared, op);
}

}  // namespace proa::cuda
