// The kernel of matmul.h. A warp owns eight rows and multiplies them with up to 32 tokens: it fetches its rows piece by
// piece into shared memory of its own, decodes each group of 32 columns once, and takes the tokens' operands from L1.
#pragma once

#include "backends/cuda/fragment.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/matmul.h"

namespace proa::cuda::matmul {

constexpr int kWarps = 8;
constexpr int kStages = 3;
constexpr int kSteps = kTokenTile / kTokenStep;

// 16-byte chunks that a run of bytes at any address may touch.
constexpr int chunks_of(int bytes) { return bytes < 2 ? 2 : (bytes + 30) / 16; }

template <class F>
constexpr int kPieceCols = kUnit<F> > 128 ? kUnit<F> : 128;
template <class F>
constexpr int kPieceBytes = kPieceCols<F> / F::block_elements * static_cast<int>(sizeof(typename F::Block));
template <class F>
constexpr int kPitch = (chunks_of(kPieceBytes<F>) | 1) * 16;
template <class F>
constexpr int kScalesPitch = Fragment<F>::kGroupScales ? chunks_of(kPieceCols<F> / 16) * 16 : 0;
template <class F>
constexpr int kStageBytes = 8 * (kPitch<F> + kScalesPitch<F>);

// Copies of one warp: eight runs of bytes, a row each.
__device__ __forceinline__ void copy_rows(const uint8_t* first, int64_t stride, int last_row, int bytes, int pitch,
                                          uint8_t* to) {
  const int r = lane_id() / 4;
  const uint8_t* row = first + min(r, last_row) * stride;
  const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(row) & 15);
  for (int c = lane_id() % 4; 16 * c < shift + bytes; c += 4) copy_async(to + r * pitch + 16 * c, row - shift + 16 * c);
}

template <class F>
__global__ void __launch_bounds__(kWarps* kWarp) kernel(const __grid_constant__ MatMul a) {
  using Frag = Fragment<F>;
  constexpr int kS = Frag::kBf16 ? 2 : 1;  // operand fragments of a token step
  extern __shared__ uint4 memory[];
  wait_for_predecessor();
  start_successor();

  const Matrix& m = a.matrix;
  const int tile = static_cast<int>(blockIdx.y), lane = lane_id(), j = lane % 4;
  int count = min(kTokenTile, a.slots - tile * kTokenTile);
  const auto* data = m.data;
  const auto* group_scales = m.group_scales;
  const float* row_scales = m.row_scales;
  float scale = m.scale;
  if (a.tile_expert) {
    const int expert = __ldcg(a.tile_expert + tile);
    if (expert < 0) return;
    count = __ldcg(a.tile_count + tile);
    data = reinterpret_cast<const uint8_t*>(a.expert_data[expert]);
    if (a.expert_scales && a.expert_row_scales) row_scales = reinterpret_cast<const float*>(a.expert_scales[expert]);
    if (a.expert_scales && !a.expert_row_scales) {
      group_scales = reinterpret_cast<const uint8_t*>(a.expert_scales[expert]);
    }
    if (a.expert_scale) scale = a.expert_scale[expert];
  }
  const int steps = (count + kTokenStep - 1) / kTokenStep;
  const int first_row = (static_cast<int>(blockIdx.x) * kWarps + warp_id()) * 8;
  if (first_row >= m.rows) return;
  const int last_row = m.rows - 1 - first_row;
  const int groups = (m.cols + 31) / 32;
  const int pieces = (m.cols + kPieceCols<F> - 1) / kPieceCols<F>;
  uint8_t* ring = reinterpret_cast<uint8_t*>(memory) + warp_id() * kStages * kStageBytes<F>;
  const uint8_t* rows = data + first_row * m.stride;
  const uint8_t* scales = Frag::kGroupScales ? group_scales + first_row * m.scales_stride : nullptr;

  const auto fetch = [&](int piece) {
    if (piece < pieces) {
      uint8_t* to = ring + piece % kStages * kStageBytes<F>;
      const int cols = min(kPieceCols<F>, m.cols - piece * kPieceCols<F>);
      const int bytes =
          (cols + F::block_elements - 1) / F::block_elements * static_cast<int>(sizeof(typename F::Block));
      copy_rows(rows + piece * kPieceBytes<F>, m.stride, last_row, bytes, kPitch<F>, to);
      if constexpr (Frag::kGroupScales) {
        copy_rows(scales + piece * (kPieceCols<F> / 16), m.scales_stride, last_row, (cols + 15) / 16, kScalesPitch<F>,
                  to + 8 * kPitch<F>);
      }
    }
    close_copies();
  };
  const auto shift_of = [](const uint8_t* first, int64_t stride, int row, int offset) {
    return static_cast<int>((reinterpret_cast<uintptr_t>(first) + row * stride + offset) & 15);
  };

  float sum[kSteps][2] = {};
  const uint4* x = a.x.fragments + static_cast<int64_t>(tile) * kSteps * groups * kS * 2 * kWarp + lane;
  const int64_t step_stride = static_cast<int64_t>(groups) * kS * 2 * kWarp;
  const float* group_sums = a.x.group_sums + static_cast<int64_t>(tile) * kSteps * groups * 16;
#pragma unroll
  for (int i = 0; i + 1 < kStages; ++i) fetch(i);
  for (int piece = 0; piece < pieces; ++piece) {
    wait_for_copies<kStages - 2>();
    __syncwarp();
    fetch(piece + kStages - 1);
    const uint32_t stage = shared_address(ring + piece % kStages * kStageBytes<F>);
    const auto row_in_stage = [&](int r) {
      return stage + r * kPitch<F> + shift_of(rows, m.stride, min(r, last_row), piece * kPieceBytes<F>);
    };
    const uint32_t row = row_in_stage(lane / 4);
    const uint32_t row0 = Frag::kScaleGroup ? row_in_stage(2 * j) : 0;
    const uint32_t row1 = Frag::kScaleGroup ? row_in_stage(2 * j + 1) : 0;
    uint32_t row_group_scales = 0;
    if constexpr (Frag::kGroupScales) {
      row_group_scales = stage + 8 * kPitch<F> + lane / 4 * kScalesPitch<F> +
                         shift_of(scales, m.scales_stride, min(lane / 4, last_row), piece * (kPieceCols<F> / 16));
    }
    float running[kSteps][4] = {};
    const int piece_groups = min(kPieceCols<F> / 32, groups - piece * (kPieceCols<F> / 32));
    for (int g = 0; g < piece_groups; ++g) {
      const int group = piece * (kPieceCols<F> / 32) + g;
      float scale_of[2][2] = {}, min_of[2][2] = {};
      if constexpr (Frag::kScaleGroup != 0) {
#pragma unroll
        for (int h = 0; h < (Frag::kScaleGroup == 16 ? 2 : 1); ++h) {
          scale_of[h][0] = Frag::scale(row0, g, h), scale_of[h][1] = Frag::scale(row1, g, h);
          if constexpr (Frag::kMin) {
            min_of[h][0] = Frag::minimum(row0, g, h), min_of[h][1] = Frag::minimum(row1, g, h);
          }
        }
        if constexpr (Frag::kScaleGroup == 32) {
          scale_of[1][0] = scale_of[0][0], scale_of[1][1] = scale_of[0][1];
          min_of[1][0] = min_of[0][0], min_of[1][1] = min_of[0][1];
        }
      }
#pragma unroll
      for (int pass = 0; pass < Frag::kPasses; ++pass) {
        uint32_t b[4];
        Frag::decode(row, row_group_scales, g, j, m.cols - 32 * group, pass, b);
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          if (s >= steps) continue;
          const uint4* operand = x + s * step_stride + group * kS * 2 * kWarp;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float c[4] = {};
            float(&target)[4] = Frag::kScaleGroup == 0 ? running[s] : c;
#pragma unroll
            for (int f = 0; f < kS; ++f) {
              const uint4 o = __ldcg(operand + (f * 2 + half) * kWarp);
              multiply<Frag::kBf16>(target, o.x, o.y, o.z, o.w, b[2 * half], b[2 * half + 1]);
            }
            if constexpr (Frag::kScaleGroup != 0) {
              sum[s][0] += scale_of[half][0] * (c[0] + c[2]);
              sum[s][1] += scale_of[half][1] * (c[1] + c[3]);
              if constexpr (Frag::kMin) {
                const float total =
                    __ldcg(group_sums + (static_cast<int64_t>(s) * groups + group) * 16 + half * 8 + lane / 4);
                sum[s][0] += min_of[half][0] * total;
                sum[s][1] += min_of[half][1] * total;
              }
            }
          }
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      sum[s][0] += running[s][0] + running[s][2];
      sum[s][1] += running[s][1] + running[s][3];
    }
  }

#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int in_tile = s * kTokenStep + lane / 4;
    if (in_tile >= count) continue;
    const int64_t slot = static_cast<int64_t>(tile) * kTokenTile + in_tile;
    const float factor = __ldcg(a.x.unscale + slot) * Frag::kFactor * scale;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row_number = first_row + 2 * j + i;
      if (row_number >= m.rows) continue;
      float value = sum[s][i] * factor;
      if (row_scales) value *= row_scales[row_number];
      float* y = a.y + slot * a.y_stride + row_number;
      if (a.output == Output::add) value += __ldcg(y);
      if (a.output == Output::activate) value = activated(a.relu2, value);
      if (a.output == Output::gate) value *= activated(a.relu2, __ldcg(a.gate + slot * a.y_stride + row_number));
      *y = value;
    }
  }
}

template <class F>
void launch(const MatMul& op, int tiles, const Launch& launch) {
  if (op.matrix.rows == 0 || tiles == 0) return;
  const dim3 blocks((op.matrix.rows + 8 * kWarps - 1) / (8 * kWarps), tiles);
  launch(kernel<F>, blocks, dim3(kWarps * kWarp), kWarps * kStages * kStageBytes<F> + 16, op);
}

}  // namespace proa::cuda::matmul
