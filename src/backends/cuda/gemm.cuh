// The kernel of gemm.h. A block multiplies kRows rows of a matrix with kTokens vectors, kCols columns a stage: stages
// of both are copied into shared memory while others are worked on. Weights are decoded from there into registers,
// which is where the tensor cores take their left operand from; vectors are the right one, in shared memory.
#pragma once

#include "backends/cuda/barrier.cuh"
#include "backends/cuda/fragment.cuh"
#include "backends/cuda/gemm.h"
#include "backends/cuda/wgmma.cuh"

namespace proa::cuda::gemm {

constexpr int kWarpgroups = 2;
constexpr int kFetchThreads = 128;
constexpr int kThreads = kFetchThreads + kWarpgroups * 128;
constexpr int kSharedBytes = 223 << 10;  // that a block may use; devices with less have matmul.h

// 16-byte chunks that a run of bytes at any address may touch.
__host__ __device__ constexpr int chunks_of(int bytes) { return bytes < 2 ? 2 : (bytes + 30) / 16; }

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

template <class F>
struct Plan {
  static constexpr bool kLongBlocks = F::block_elements > 64;
  // Of a stage. Rows in short pieces cost more requests than their bytes are worth.
  static constexpr bool kNarrow = 128 * sizeof(typename F::Block) <= 96 * F::block_elements;
  static constexpr int kCols = kLongBlocks ? F::block_elements : kNarrow ? 128 : 64;
  static constexpr int kTiles = kLongBlocks ? 1 : 2;  // of 64 rows, of a warpgroup
  static constexpr int kTokens = kLongBlocks ? 64 : 128;
  static constexpr int kRows = kWarpgroups * kTiles * 64;
  static constexpr int kBytes = kCols / F::block_elements * static_cast<int>(sizeof(typename F::Block));  // of a row
  static constexpr int kPitch = (chunks_of(kBytes) | 1) * 16;
  static constexpr int kScalesPitch = Fragment<F>::kGroupScales ? chunks_of(kCols / 16) * 16 : 0;
  static constexpr int kVectorBytes = kTokens * kCols * 2;
  static constexpr int kStageBytes = kVectorBytes + (kRows * (kPitch + kScalesPitch) + 1023) / 1024 * 1024;
  static constexpr int kStages = kSharedBytes / kStageBytes < 6 ? kSharedBytes / kStageBytes : 6;
  // Three: one is multiplied while the one before still is and the one behind arrives.
  static constexpr bool kFits = kStages >= 3;
  static constexpr int kShared = kStages * kStageBytes + 1024;
  static constexpr int kSumPitch = kRows + 4;  // floats: four tokens' eight rows lie in all banks
  static_assert(!kFits || kTokens * kSumPitch * 4 <= kStages * kStageBytes);
};

// Eight values of a row as halves, scaled: columns as Fragment's Order has them.
template <class F>
__device__ __forceinline__ void decode_row(uint32_t row, uint32_t scales, int group, int j, int valid,
                                           uint32_t (&a)[4]) {
  using Frag = Fragment<F>;
  Frag::decode(row, scales, group, j, valid, 0, a);
  if constexpr (Frag::kBf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = bits_of(__floats2half2_rn(__uint_as_float(a[i] << 16), __uint_as_float(a[i] & 0xffff0000u)));
    }
  }
  if constexpr (Frag::kScaleGroup != 0) {
    __half2 scale[2], least[2];
    scale[0] = __float2half2_rn(Frag::scale(row, group, 0));
    scale[1] = Frag::kScaleGroup == 16 ? __float2half2_rn(Frag::scale(row, group, 1)) : scale[0];
    if constexpr (Frag::kMin) {
      least[0] = __float2half2_rn(Frag::minimum(row, group, 0));
      least[1] = Frag::kScaleGroup == 16 ? __float2half2_rn(Frag::minimum(row, group, 1)) : least[0];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 value = halves_of(a[i]);
      a[i] = bits_of(Frag::kMin ? __hfma2(value, scale[i / 2], least[i / 2]) : __hmul2(value, scale[i / 2]));
    }
  }
}

__device__ __forceinline__ void consumers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kWarpgroups * 128) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

// What a block multiplies.
template <class F>
struct Share {
  const uint8_t *rows, *scales;  // of the block's first row
  const float* row_scales;
  float scale;
  int first, count;         // slots
  int first_row, last_row;  // the last counts from the first
};

// Four warps ask for the stages of a block, each as soon as its place in the ring is free. `barriers`: a full one for
// each place, then an empty one for each.
template <class F>
__device__ __forceinline__ void fetch_all(const Gemm& a, const Share<F>& share, uint32_t barriers, uint32_t ring) {
  using P = Plan<F>;
  using Frag = Fragment<F>;
  const Matrix& m = a.matrix;
  const int tid = static_cast<int>(threadIdx.x), stages = (m.cols + P::kCols - 1) / P::kCols;
  // Eight threads copy a row of vectors, four a row of weights.
  constexpr int kVectorRows = kFetchThreads / 8, kVectorPasses = P::kTokens / kVectorRows;
  constexpr int kWeightRows = kFetchThreads / 4, kWeightPasses = P::kRows / kWeightRows;
  const __half* vectors[kVectorPasses];
#pragma unroll
  for (int i = 0; i < kVectorPasses; ++i) {
    const int slot = share.first + min(tid / 8 + i * kVectorRows, share.count - 1);
    const int64_t row = a.rows ? __ldcg(a.rows + slot) : slot;
    vectors[i] = a.x.x + row * a.x.stride + tid % 8 * 8;
  }
  const uint32_t vector_at = swizzled(tid / 8, tid % 8);
  const uint32_t row_at = P::kVectorBytes + tid / 4 * P::kPitch + tid % 4 * 16;
  const uint32_t scales_at = P::kVectorBytes + P::kRows * P::kPitch + tid / 4 * P::kScalesPitch + tid % 4 * 16;
  // Of `bytes` from an address on, at most those of `most`, the chunks that are this thread's.
  const auto copy_run = [&](const uint8_t* from, int bytes, auto most, uint32_t to) {
    const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(from) & 15);
    const uint8_t* chunk = from - shift + tid % 4 * 16;
    const int end = shift + bytes - tid % 4 * 16;
    constexpr int kPasses = (chunks_of(decltype(most)::value) + 3) / 4;
#pragma unroll
    for (int c = 0; c < kPasses; ++c) {
      if (64 * c < end) copy_async_or_zero(to + 64 * c, chunk + 64 * c, true);
    }
  };
  int place = 0;
  uint32_t parity = 1;
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    const uint32_t to = ring + place * P::kStageBytes;
    wait_barrier(barriers + 8 * (P::kStages + place), parity);
#pragma unroll
    for (int part = 0; part < P::kCols / 64; ++part) {
#pragma unroll
      for (int i = 0; i < kVectorPasses; ++i) {
        copy_async_or_zero(to + vector_at + (part * P::kTokens + i * kVectorRows) * 128,
                           vectors[i] + stage * P::kCols + part * 64, true);
      }
    }
    const int cols = min(P::kCols, m.cols - stage * P::kCols);
    const int bytes = (cols + F::block_elements - 1) / F::block_elements * static_cast<int>(sizeof(typename F::Block));
#pragma unroll
    for (int i = 0; i < kWeightPasses; ++i) {
      const int r = min(tid / 4 + i * kWeightRows, share.last_row);
      copy_run(share.rows + r * m.stride + stage * P::kBytes, bytes, Constant<P::kBytes>(),
               to + row_at + i * kWeightRows * P::kPitch);
      if constexpr (Frag::kGroupScales) {
        copy_run(share.scales + r * m.scales_stride + stage * (P::kCols / 16), (cols + 15) / 16,
                 Constant<P::kCols / 16>(), to + scales_at + i * kWeightRows * P::kScalesPitch);
      }
    }
    arrive_after_copies(barriers + 8 * place);
    if (++place == P::kStages) place = 0, parity ^= 1;
  }
  close_copies();
  wait_for_copies<0>();
}

// Of a warpgroup's tiles those that have rows: kTiles. Tiles go to warpgroups by turns.
template <class F, int kTiles>
__device__ __forceinline__ void multiply_all(const Gemm& a, const Share<F>& share, uint32_t barriers, uint32_t ring) {
  using P = Plan<F>;
  using Frag = Fragment<F>;
  constexpr int kGroups = P::kCols / 32;
  const Matrix& m = a.matrix;
  const int tid = static_cast<int>(threadIdx.x) - kFetchThreads, lane = lane_id(), j = lane % 4;
  const int groups = (m.cols + 31) / 32, stages = (m.cols + P::kCols - 1) / P::kCols;
  // Two rows of each tile are this lane's, eight apart: where they are in a stage, and how their address ends.
  uint32_t my_row[kTiles][2], ending[kTiles][2], scales_ending[kTiles][2] = {};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      my_row[t][h] = (t * kWarpgroups + tid / 128) * 64 + warp_id() % 4 * 16 + h * 8 + lane / 4;
      const int r = min(static_cast<int>(my_row[t][h]), share.last_row);
      ending[t][h] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(share.rows + r * m.stride));
      if constexpr (Frag::kGroupScales) {
        scales_ending[t][h] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(share.scales + r * m.scales_stride));
      }
    }
  }
  float sum[kTiles][P::kTokens / 2] = {};
  uint32_t left[2][kTiles][2][4];  // operands of two groups of 32 columns: one is decoded while one is multiplied

  int place = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    const uint32_t vectors_at = ring + place * P::kStageBytes, weights_at = vectors_at + P::kVectorBytes;
    wait_barrier(barriers + 8 * place, parity);
    see_copies();
    uint32_t row_at[kTiles][2], row_scales_at[kTiles][2] = {};
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        row_at[t][h] = weights_at + my_row[t][h] * P::kPitch + (ending[t][h] + stage * P::kBytes & 15u);
        if constexpr (Frag::kGroupScales) {
          row_scales_at[t][h] = weights_at + P::kRows * P::kPitch + my_row[t][h] * P::kScalesPitch +
                                (scales_ending[t][h] + stage * (P::kCols / 16) & 15u);
        }
      }
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int group = stage * kGroups + g;
      auto& operands = left[g % 2];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t upper[4] = {}, lower[4] = {};
        // Behind the last column lies anything, which a scale among it could make NaN.
        if (Frag::kScaleGroup == 0 || group < groups) {
          decode_row<F>(row_at[t][0], row_scales_at[t][0], g, j, m.cols - 32 * group, upper);
          decode_row<F>(row_at[t][1], row_scales_at[t][1], g, j, m.cols - 32 * group, lower);
        }
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          operands[t][s][0] = upper[2 * s];
          operands[t][s][1] = lower[2 * s];
          operands[t][s][2] = upper[2 * s + 1];
          operands[t][s][3] = lower[2 * s + 1];
        }
      }
      begin_products();
#pragma unroll
      for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply_tile<P::kTokens>(sum[t], operands[t][s], vectors_at + g / 2 * P::kTokens * 128, g % 2 * 2 + s);
        }
      }
      close_products();
      wait_for_products<1>();
      // Now the products of the stage before are done as well.
      if (g == 0 && stage > 0 && lane == 0) {
        arrive(barriers + 8 * (P::kStages + (place == 0 ? P::kStages : place) - 1));
      }
    }
    if (++place == P::kStages) place = 0, parity ^= 1;
  }
  wait_for_products<0>();
#pragma unroll
  for (int t = 0; t < kTiles; ++t) keep_in_registers(sum[t]);

  // Through shared memory, where rows are next to each other: [kTokens, kSumPitch] in place of the ring.
  consumers_sync();
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < P::kTokens / 2; ++i) {
      const int token = i / 4 * 8 + 2 * j + i % 2;
      store_shared(ring + 4 * (token * P::kSumPitch + static_cast<int>(my_row[t][i / 2 % 2])), sum[t][i]);
    }
  }
}

// The last part: y of the block's tokens, by all that have multiplied.
template <class F>
__device__ __forceinline__ void put_out(const Gemm& a, const Share<F>& share, const float* factors, uint32_t ring) {
  using P = Plan<F>;
  constexpr int kWarps = kWarpgroups * 4, kPasses = P::kRows / kWarp;
  const int warp = warp_id() - kFetchThreads / kWarp, lane = lane_id();
  const int rows = min(P::kRows, share.last_row + 1);
  const float* before = a.output == Output::add ? a.y : a.output == Output::gate ? a.gate : nullptr;
  float row_scale[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int r = lane + kWarp * i;
    row_scale[i] = share.row_scales && r < rows ? share.row_scales[share.first_row + r] : 1.0f;
  }
#pragma unroll 2
  for (int token = warp; token < share.count; token += kWarps) {
    const int64_t at = (int64_t{share.first} + token) * a.y_stride + share.first_row + lane;
    const float factor = factors[token];
    float there[kPasses];
    if (before) {
#pragma unroll
      for (int i = 0; i < kPasses; ++i) there[i] = lane + kWarp * i < rows ? __ldcg(before + at + kWarp * i) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (lane + kWarp * i >= rows) break;
      float value = __uint_as_float(load_word(ring + 4 * (token * P::kSumPitch + lane + kWarp * i)));
      value *= factor * row_scale[i];
      if (a.output == Output::add) value += there[i];
      if (a.output == Output::activate) value = activated(a.relu2, value);
      if (a.output == Output::gate) value *= activated(a.relu2, there[i]);
      a.y[at + kWarp * i] = value;
    }
  }
}

template <class F>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Gemm a) {
  using P = Plan<F>;
  extern __shared__ uint8_t memory[];
  __shared__ float factors[P::kTokens];
  __shared__ uint64_t barriers[2 * P::kStages];  // full, empty
  const int tid = static_cast<int>(threadIdx.x);
  const uint32_t ring = (shared_address(memory) + 1023) & ~1023u;
  if (tid < P::kStages) {
    init_barrier(shared_address(barriers + tid), kFetchThreads);
    init_barrier(shared_address(barriers + P::kStages + tid), kWarpgroups * 4);
  }
  wait_for_predecessor();
  start_successor();

  const Matrix& m = a.matrix;
  Share<F> share;
  share.first = static_cast<int>(blockIdx.y) * P::kTokens, share.count = min(P::kTokens, a.slots - share.first);
  share.rows = m.data, share.scales = m.group_scales, share.row_scales = m.row_scales, share.scale = m.scale;
  if (a.tile_expert) {
    const int expert = __ldcg(a.tile_expert + blockIdx.y);
    if (expert < 0) return;
    share.first = __ldcg(a.tile_first + blockIdx.y);
    share.count = __ldcg(a.tile_count + blockIdx.y);
    share.rows = reinterpret_cast<const uint8_t*>(a.expert_data[expert]);
    if (a.expert_scales) {
      const std::byte* scales = a.expert_scales[expert];
      if (a.expert_row_scales) share.row_scales = reinterpret_cast<const float*>(scales);
      if (!a.expert_row_scales) share.scales = reinterpret_cast<const uint8_t*>(scales);
    }
    if (a.expert_scale) share.scale = a.expert_scale[expert];
  }
  share.first_row = static_cast<int>(blockIdx.x) * P::kRows;
  share.last_row = m.rows - 1 - share.first_row;
  share.rows += share.first_row * m.stride;
  if (Fragment<F>::kGroupScales) share.scales += share.first_row * m.scales_stride;
  for (int i = tid; i < share.count; i += kThreads) {
    const int slot = share.first + i;
    factors[i] = __ldcg(a.x.unscale + (a.rows ? __ldcg(a.rows + slot) : slot)) * Fragment<F>::kFactor * share.scale;
  }
  __syncthreads();
  if (warp_id() < kFetchThreads / kWarp) {
    set_registers<56, false>();
    fetch_all<F>(a, share, shared_address(barriers), ring);
  } else {
    set_registers<224, true>();
    const int tiles = (share.last_row / 64 - (tid - kFetchThreads) / 128) / kWarpgroups + 1;
    if (P::kTiles == 1 || tiles > 1) {
      multiply_all<F, P::kTiles>(a, share, shared_address(barriers), ring);
    } else {
      multiply_all<F, 1>(a, share, shared_address(barriers), ring);
    }
    consumers_sync();
    put_out<F>(a, share, factors, ring);
  }
}

template <class F>
void launch(const Gemm& op, int tiles, const Launch& launch) {
  using P = Plan<F>;
  if (op.matrix.rows == 0 || op.slots == 0) return;
  if (!op.tile_expert) tiles = (op.slots + P::kTokens - 1) / P::kTokens;
  launch(kernel<F>, dim3((op.matrix.rows + P::kRows - 1) / P::kRows, tiles), dim3(kThreads), P::kShared, op);
}

}  // namespace proa::cuda::gemm
