// The kernel of matmul.h. A warp multiplies sixteen rows, or a part of their columns, with up to 32 vectors: it fetches
// its rows piece by piece into shared memory, where the block's vectors are as well, decodes each group of 32 columns
// once and multiplies it with eight vectors at a time. Where there are few rows, warps take parts of the same rows'
// columns, and their sums are added at the end.
#pragma once

#include <algorithm>
#include <span>

#include "backends/cuda/fragment.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/matmul.h"

namespace proa::cuda::matmul {

constexpr int kWarps = 8;
constexpr int kWarpRows = 16;
constexpr int kMaxStages = 4;

struct Plan {
  int row_groups;    // warps side by side, 16 rows each
  int splits;        // of the columns: kWarps / row_groups
  int piece_groups;  // groups of 32 columns that a warp takes a stage
  int pitch, scales_pitch;
  int stages;
  int stage_bytes;
  int first_block, row_blocks;
};
struct Work {
  MatMul op[kMaxMatMuls];
  Plan plan[kMaxMatMuls];
  int count;
};

// 16-byte chunks that a run of bytes at any address may touch; an odd number of them between rows meets no bank twice.
__host__ __device__ constexpr int chunks_of(int bytes) { return bytes < 2 ? 2 : (bytes + 30) / 16; }

template <class F>
__host__ __device__ constexpr int bytes_of(int cols) {
  return (cols + F::block_elements - 1) / F::block_elements * static_cast<int>(sizeof(typename F::Block));
}

// Columns of a piece: at most 256 bytes of a row where the format's blocks let it.
template <class F>
constexpr int kShortPiece =
    bytes_of<F>(kUnit<F> > 128 ? kUnit<F> : 128) <= 300 ? (kUnit<F> > 128 ? kUnit<F> : 128) : kUnit<F>;
template <class F>
constexpr int kLongPiece = bytes_of<F>(2 * kShortPiece<F>) <= 200 ? 2 * kShortPiece<F> : kShortPiece<F>;

// Copies 16 bytes where `there`.
__device__ __forceinline__ void copy_if(bool there, uint32_t shared, const void* global) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p cp.async.cg.shared.global.L2::256B [%0], [%1], 16;\n}" ::"r"(shared),
      "l"(global), "r"(static_cast<int>(there))
      : "memory");
}

// Copies of one warp: sixteen runs of bytes, a row each, eight lanes to a row. `rows`: of this lane's first row, which
// is lane / 8; the next is `step` bytes on. kChunks: at most, of 16 bytes that a run touches.
template <int kChunks>
__device__ __forceinline__ void copy_rows(const uint8_t* row, int64_t step, int last_row, int bytes, int pitch,
                                          uint32_t to) {
  const int c = lane_id() % 8;
  to += lane_id() / 8 * pitch + 16 * c;
#pragma unroll
  for (int i = 0; i < kWarpRows / 4; ++i) {
    const auto address = reinterpret_cast<uintptr_t>(row);
    const int end = static_cast<int>(address & 15) + bytes - 16 * c;
    const auto* from = reinterpret_cast<const uint8_t*>(address & ~uintptr_t{15}) + 16 * c;
    const bool there = lane_id() / 8 + 4 * i <= last_row;
#pragma unroll
    for (int t = 0; t < (kChunks + 7) / 8; ++t) copy_if(there && 128 * t < end, to + 128 * t, from + 128 * t);
    row += step;
    to += 4 * pitch;
  }
}

// A function where the code is long: inlined twice it takes the compiler minutes.
template <class F>
__device__ __noinline__ uint4 decode_apart(uint32_t row, uint32_t scales, int group, int j, int valid, int pass) {
  uint32_t b[4];
  Fragment<F>::decode(row, scales, group, j, valid, pass, b);
  return {b[0], b[1], b[2], b[3]};
}
template <class F>
__device__ __noinline__ float scale_apart(uint32_t row, int group, int half) {
  return Fragment<F>::scale(row, group, half);
}
template <class F>
__device__ __noinline__ float minimum_apart(uint32_t row, int group, int half) {
  return Fragment<F>::minimum(row, group, half);
}

template <class F, int kSteps>
__global__ void __launch_bounds__(kWarps* kWarp, 2) kernel(const __grid_constant__ Work work) {
  using Frag = Fragment<F>;
  constexpr int kS = Frag::kBf16 ? 2 : 1;
  constexpr int kUnits = 2 * kS;  // 512 bytes each: operands of eight vectors for a group
  extern __shared__ uint4 memory[];
  __shared__ float factors[8 * kSteps];
  int index = 0;
  while (index + 1 < work.count && static_cast<int>(blockIdx.x) >= work.plan[index + 1].first_block) ++index;
  const MatMul& a = work.op[index];
  const Plan& p = work.plan[index];
  const Matrix& m = a.matrix;
  const int local = static_cast<int>(blockIdx.x) - p.first_block;
  const int tile = local / p.row_blocks, row_block = local % p.row_blocks;
  const int lane = lane_id(), warp = warp_id(), j = lane % 4;
  const int row_group = warp & (p.row_groups - 1), slice = warp / p.row_groups;
  const int first_row = (row_block * p.row_groups + row_group) * kWarpRows;
  const int last_row = m.rows - 1 - first_row;  // negative: nothing to do
  const int groups = (m.cols + 31) / 32, pieces = (groups + p.piece_groups - 1) / p.piece_groups;
  const int stages = (pieces + p.splits - 1) / p.splits;

  int first_slot = tile * 8 * kSteps, count = min(8 * kSteps, a.slots - first_slot);
  const auto* data = m.data;
  const auto* group_scales = m.group_scales;
  const float* row_scales = m.row_scales;
  float scale = m.scale;
  if (a.tile_expert) {
    wait_for_predecessor();
    const int expert = __ldcg(a.tile_expert + tile);
    if (expert < 0) return;
    first_slot = __ldcg(a.tile_first + tile);
    count = __ldcg(a.tile_count + tile);
    data = reinterpret_cast<const uint8_t*>(a.expert_data[expert]);
    if (a.expert_scales && a.expert_row_scales) row_scales = reinterpret_cast<const float*>(a.expert_scales[expert]);
    if (a.expert_scales && !a.expert_row_scales) {
      group_scales = reinterpret_cast<const uint8_t*>(a.expert_scales[expert]);
    }
    if (a.expert_scale) scale = a.expert_scale[expert];
  }

  const uint32_t ring = shared_address(memory);
  const uint32_t my_rows = static_cast<uint32_t>(warp * kWarpRows * (p.pitch + p.scales_pitch));
  const uint32_t vectors = static_cast<uint32_t>(kWarps * kWarpRows * (p.pitch + p.scales_pitch));
  const int stage_units = p.splits * p.piece_groups * kUnits;
  const uint8_t* rows = data + first_row * m.stride;
  const uint8_t* scales = Frag::kGroupScales ? group_scales + first_row * m.scales_stride : nullptr;
  const uint8_t* fetched_rows = rows + lane / 8 * m.stride;
  const int piece_bytes = p.piece_groups * 32 / F::block_elements * static_cast<int>(sizeof(typename F::Block));

  const auto fetch_rows = [&](int stage, uint32_t slot) {
    const int piece = stage * p.splits + slice;
    if (piece >= pieces || last_row < 0) return;
    const int cols = min(32 * p.piece_groups, m.cols - 32 * piece * p.piece_groups);
    const uint32_t to = ring + slot * p.stage_bytes + my_rows;
    copy_rows<chunks_of(bytes_of<F>(kLongPiece<F>))>(fetched_rows + piece * piece_bytes, 4 * m.stride, last_row,
                                                     bytes_of<F>(cols), p.pitch, to);
    if constexpr (Frag::kGroupScales) {
      copy_rows<chunks_of(kLongPiece<F> / 16)>(scales + lane / 8 * m.scales_stride + piece * p.piece_groups * 2,
                                               4 * m.scales_stride, last_row, (cols + 15) / 16, p.scales_pitch,
                                               to + kWarpRows * p.pitch);
    }
  };
  for (int s = 0; s + 1 < p.stages; ++s) fetch_rows(s, s);
  if (!a.tile_expert) wait_for_predecessor();
  start_successor();

  const int steps = (count + 7) / 8;
  const uint4* from[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int in_tile = 8 * s + lane / 4;
    from[s] = a.x.fragments;
    if (in_tile >= count) continue;
    const int slot = first_slot + in_tile, vector = a.rows ? __ldcg(a.rows + slot) : slot;
    from[s] = a.x.fragments + static_cast<int64_t>(vector / 8) * groups * kUnits * kWarp + vector % 8 * 4 + j;
    if (warp == 0 && j == 0) factors[in_tile] = __ldcg(a.x.unscale + vector) * Frag::kFactor * scale;
  }
  const auto fetch_vectors = [&](int stage, uint32_t slot) {
    const int begin = stage * stage_units, end = min(stage_units, groups * kUnits - begin);
    const uint32_t to = ring + slot * p.stage_bytes + vectors + (warp * kWarp + lane) * 16;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s > 0 && s >= steps) continue;
      const uint4* unit = from[s] + static_cast<int64_t>(begin + warp) * kWarp;
      uint32_t place = to + s * stage_units * 512;
      for (int u = warp; u < end; u += kWarps) {
        copy_if(8 * s + lane / 4 < count, place, unit);
        unit += kWarps * kWarp;
        place += kWarps * 512;
      }
    }
  };
  for (int s = 0; s + 1 < p.stages; ++s) {
    if (s < stages) fetch_vectors(s, s);
    close_copies();
  }

  const auto shift_of = [](const uint8_t* first, int64_t stride, int row, int offset) {
    return static_cast<int>((reinterpret_cast<uintptr_t>(first) + row * stride + offset) & 15);
  };
  float sum[kSteps][2][2] = {};  // [step, row, vector]: rows lane / 4 and 8 more, vectors 2 j and 2 j + 1
  uint32_t slot = 0, next_slot = static_cast<uint32_t>(p.stages - 1);
  for (int stage = 0; stage < stages; ++stage) {
    if (p.stages == 4) wait_for_copies<2>();
    if (p.stages == 3) wait_for_copies<1>();
    if (p.stages == 2) wait_for_copies<0>();
    __syncthreads();
    if (stage + p.stages - 1 < stages) {
      fetch_rows(stage + p.stages - 1, next_slot);
      fetch_vectors(stage + p.stages - 1, next_slot);
    }
    close_copies();
    next_slot = next_slot + 1 == p.stages ? 0 : next_slot + 1;
    const uint32_t base = ring + slot * p.stage_bytes;
    slot = slot + 1 == p.stages ? 0 : slot + 1;
    const int piece = stage * p.splits + slice;
    if (piece >= pieces || last_row < 0) continue;

    const int64_t offset = static_cast<int64_t>(piece) * piece_bytes;
    const auto row_in_stage = [&](int r) {
      return base + my_rows + r * p.pitch + shift_of(rows, m.stride, min(r, last_row), static_cast<int>(offset));
    };
    const int piece_groups = min(p.piece_groups, groups - piece * p.piece_groups);
    uint32_t row[2], row_group_scales[2] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      row[h] = row_in_stage(8 * h + lane / 4);
      if constexpr (Frag::kGroupScales) {
        const int r = 8 * h + lane / 4;
        row_group_scales[h] = base + my_rows + kWarpRows * p.pitch + r * p.scales_pitch +
                              shift_of(scales, m.scales_stride, min(r, last_row), piece * p.piece_groups * 2);
      }
    }
    const uint32_t operands = base + vectors + slice * p.piece_groups * kUnits * 512 + lane * 16;
    float running[kSteps][4] = {};
#pragma unroll(Frag::kLong ? 1 : 4)
    for (int g = 0; g < piece_groups; ++g) {
      const int group = piece * p.piece_groups + g;
      const auto scale_of = [&](int h, int half) {
        if constexpr (Frag::kLong) return scale_apart<F>(row[h], g, half);
        if constexpr (!Frag::kLong) return Frag::scale(row[h], g, half);
      };
      const auto minimum_of = [&](int h, int half) {
        if constexpr (Frag::kLong) return minimum_apart<F>(row[h], g, half);
        if constexpr (!Frag::kLong) return Frag::minimum(row[h], g, half);
      };
      // Of this lane's two rows and of 16 columns, or of 32.
      constexpr int kScales = Frag::kScaleGroup == 0 ? 0 : 32 / Frag::kScaleGroup;
      float scales_of[2][2] = {}, minimums[2][2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int half = 0; half < kScales; ++half) {
          scales_of[h][half] = scale_of(h, half);
          if constexpr (Frag::kMin) minimums[h][half] = minimum_of(h, half);
        }
      }
#pragma unroll
      for (int pass = 0; pass < Frag::kPasses; ++pass) {
        uint32_t b[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if constexpr (Frag::kLong) {
            const uint4 v = decode_apart<F>(row[h], row_group_scales[h], g, j, m.cols - 32 * group, pass);
            b[h][0] = v.x, b[h][1] = v.y, b[h][2] = v.z, b[h][3] = v.w;
          } else {
            Frag::decode(row[h], row_group_scales[h], g, j, m.cols - 32 * group, pass, b[h]);
          }
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {  // also where there are fewer vectors: products side by side take no longer
          const uint32_t operand = operands + (s * stage_units + g * kUnits) * 512;
          float c[4] = {};
          float(&to)[4] = Frag::kScaleGroup == 0 ? running[s] : c;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            multiply_parts<Frag::kBf16>(to, b[0], b[1], half, operand + half * 512);
            if constexpr (Frag::kScaleGroup == 16) add_scaled(sum[s], scales_of[0][half], scales_of[1][half], c);
            if constexpr (Frag::kScaleGroup == 16) c[0] = c[1] = c[2] = c[3] = 0;
          }
          if constexpr (Frag::kScaleGroup == 32) add_scaled(sum[s], scales_of[0][0], scales_of[1][0], c);
          if constexpr (Frag::kMin) {
            if (pass > 0) continue;
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int in_tile = 8 * s + 2 * j + e;
              if (in_tile >= count) continue;
              const int at = first_slot + in_tile, vector = a.rows ? __ldcg(a.rows + at) : at;
              const float2 total = __ldcg(reinterpret_cast<const float2*>(a.x.group_sums) +
                                          static_cast<int64_t>(vector) * groups + group);
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                sum[s][h][e] += kScales == 2 ? minimums[h][0] * total.x + minimums[h][1] * total.y
                                             : minimums[h][0] * (total.x + total.y);
              }
            }
          }
        }
      }
    }
    if constexpr (Frag::kScaleGroup == 0) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) add_scaled(sum[s], 1, 1, running[s]);
    }
  }

  // Sums to shared memory, where parts of the same rows meet: [slice, vector, row].
  wait_for_copies<0>();
  __syncthreads();
  const int block_rows = p.row_groups * kWarpRows, pitch = block_rows + 8;
  auto* sums = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    float* to = sums + ((slice * kSteps + s) * 8 + 2 * j) * pitch + row_group * kWarpRows + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) to[8 * h] = sum[s][h][0], to[pitch + 8 * h] = sum[s][h][1];
  }
  __syncthreads();
  const int rows_here = min(block_rows, m.rows - row_block * block_rows);
  for (int i = static_cast<int>(threadIdx.x); i < count * block_rows; i += kWarps * kWarp) {
    const int in_tile = i / block_rows, r = i & (block_rows - 1);
    if (r >= rows_here) continue;
    float value = 0;
    for (int k = 0; k < p.splits; ++k) value += sums[(k * kSteps * 8 + in_tile) * pitch + r];
    value *= factors[in_tile];
    const int row_number = row_block * block_rows + r;
    if (row_scales) value *= row_scales[row_number];
    const int64_t at = (first_slot + in_tile) * a.y_stride + row_number;
    if (a.output == Output::add) value += __ldcg(a.y + at);
    if (a.output == Output::activate) value = activated(a.relu2, value);
    if (a.output == Output::gate) value *= activated(a.relu2, __ldcg(a.gate + at));
    a.y[at] = value;
  }
}

// `row_groups`: of a block.
template <class F>
Plan plan_of(const MatMul& op, int steps, int row_groups, const Launch& launch) {
  constexpr int kUnits = Fragment<F>::kBf16 ? 4 : 2;
  const int piece = row_groups == kWarps && steps == 1 ? kLongPiece<F> : kShortPiece<F>;
  Plan p = {};
  p.row_groups = row_groups;
  p.splits = kWarps / row_groups;
  p.piece_groups = piece / 32;
  p.pitch = (chunks_of(bytes_of<F>(piece)) | 1) * 16;
  p.scales_pitch = Fragment<F>::kGroupScales ? chunks_of(piece / 16) * 16 : 0;
  p.stage_bytes = kWarps * kWarpRows * (p.pitch + p.scales_pitch) + steps * p.splits * p.piece_groups * kUnits * 512;
  p.stages = std::clamp(launch.shared_limit() / 2 / p.stage_bytes, 2, kMaxStages);
  p.row_blocks = (op.matrix.rows + row_groups * kWarpRows - 1) / (row_groups * kWarpRows);
  return p;
}

template <class F>
void launch(std::span<const MatMul> ops, const Launch& launch) {
  int steps = 1;
  for (const MatMul& op : ops) {
    const int most = op.tile_expert ? op.token_tile : op.slots;
    steps = std::max(steps, most > 16 ? 4 : most > 8 ? 2 : 1);
  }
  Work work = {};
  int blocks = 0;
  size_t shared = 0;
  // Where there are too few rows to keep all SMs busy, more warps share them.
  for (int row_groups = kWarps; row_groups >= 2; row_groups /= 2) {
    Work fewer = {};
    int more_blocks = 0;
    size_t more_shared = sizeof(float) * 8 * static_cast<size_t>(steps) * (kWarps * kWarpRows + 8 * kWarps);
    for (const MatMul& op : ops) {
      if (op.matrix.rows == 0 || op.slots == 0) continue;
      Plan& p = fewer.plan[fewer.count];
      fewer.op[fewer.count++] = op;
      p = plan_of<F>(op, steps, row_groups, launch);
      p.first_block = more_blocks;
      more_blocks += p.row_blocks * (op.tile_expert ? op.tiles : (op.slots + 8 * steps - 1) / (8 * steps));
      more_shared = std::max(more_shared, static_cast<size_t>(p.stages) * static_cast<size_t>(p.stage_bytes));
    }
    if (row_groups < kWarps && more_shared > static_cast<size_t>(launch.shared_limit())) break;
    work = fewer, blocks = more_blocks, shared = more_shared;
    if (blocks >= launch.num_sms()) break;
  }
  if (blocks == 0) return;
  if (steps == 1) launch(kernel<F, 1>, dim3(blocks), dim3(kWarps * kWarp), shared, work);
  if (steps == 2) launch(kernel<F, 2>, dim3(blocks), dim3(kWarps * kWarp), shared, work);
  if (steps == 4) launch(kernel<F, 4>, dim3(blocks), dim3(kWarps * kWarp), shared, work);
}

}  // namespace proa::cuda::matmul
