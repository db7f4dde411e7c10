// The kernel of gemm.h. A block takes tile after tile: kRows rows of a matrix with kTokens vectors, kCols columns a
// stage. Stages of both are copied into shared memory while others are worked on, those of the next tile while this
// one's results are written. Weights are decoded from there into registers, which is where the tensor cores take their
// left operand from; vectors are the right one, in shared memory.
#pragma once

#include <algorithm>
#include <type_traits>

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
  static constexpr bool kNarrow = 128 * sizeof(typename F::Block) <= 144 * F::block_elements;
  static constexpr int kCols = kLongBlocks ? F::block_elements : kNarrow ? 128 : 64;
  static constexpr int kTiles = kLongBlocks ? 1 : 2;  // of 64 rows, of a warpgroup
  static constexpr int kTokens = kLongBlocks ? 64 : 128;
  static constexpr int kRows = kWarpgroups * kTiles * 64;
  static constexpr int kBytes = kCols / F::block_elements * static_cast<int>(sizeof(typename F::Block));  // of a row
  // Odd multiples of 16 keep rows out of each other's banks; 32 modulo 64 as well, see place_of_row(), where three
  // stages of one chunk more do not fit.
  static constexpr int kPitch = kBytes == 136 ? 160 : (chunks_of(kBytes) | 1) * 16;
  static constexpr int kScalesPitch = Fragment<F>::kGroupScales ? chunks_of(kCols / 16) * 16 : 0;
  static constexpr int kVectorBytes = kTokens * kCols * 2;
  static constexpr int kStageBytes = kVectorBytes + (kRows * (kPitch + kScalesPitch) + 1023) / 1024 * 1024;
  static constexpr int kStages = kSharedBytes / kStageBytes < 6 ? kSharedBytes / kStageBytes : 6;
  // Three: one is multiplied while the one before still is and the one behind arrives.
  static constexpr bool kFits = kStages >= 3;
  static constexpr int kShared = kStages * kStageBytes + 1024;
  // Rows of a warp: a lane has kLaneRows of them, next to each other, and lane 4 i those behind lane 4 (i - 1)'s.
  static constexpr int kLaneRows = 2 * kTiles, kWarpRows = 16 * kTiles;
};

// Where row `row` of a tile lies in a stage. Rows that a warp reads at once, kLaneRows apart, lie together, in an order
// that keeps them out of each other's banks: where lanes read 8 bytes, four rows two apart, or side by side if they are
// 32 modulo 64 bytes long; 16 bytes, two rows four apart.
template <class F>
constexpr int kRotate = Plan<F>::kPitch % 32 == 0        ? 0
                        : sizeof(typename F::Block) == 2 ? 2
                                                         : 1;
template <class F>
__device__ __forceinline__ int place_of_row(int row) {
  using P = Plan<F>;
  const int lane_row = row % P::kWarpRows / P::kLaneRows;
  const int at = (lane_row << kRotate<F> | lane_row >> (3 - kRotate<F>)) & 7;
  return row / P::kWarpRows * P::kWarpRows + row % P::kLaneRows * 8 + at;
}
template <class F>
__device__ __forceinline__ int row_of_place(int place) {
  using P = Plan<F>;
  const int lane_row = ((place & 7) >> kRotate<F> | (place & 7) << (3 - kRotate<F>)) & 7;
  return place / P::kWarpRows * P::kWarpRows + lane_row * P::kLaneRows + place % P::kWarpRows / 8;
}

// Eight bytes at any address, by reads of as many: half the bank conflicts of three words.
__device__ __forceinline__ void load_eight(uint32_t address, uint32_t& low, uint32_t& high) {
  // No branch: products must not be on one's way.
  const auto load = [](uint32_t at, uint32_t wanted) {
    uint2 v = {};
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p ld.shared.v2.u32 {%0, %1}, [%2]; }"
                 : "+r"(v.x), "+r"(v.y)
                 : "r"(at), "r"(wanted));
    return v;
  };
  const uint2 first = load(address & ~7u, 1), second = load((address & ~7u) + 8, address & 7u);
  const bool upper = (address & 4) != 0;
  const uint32_t middle = upper ? second.x : first.y;
  low = __funnelshift_r(upper ? first.y : first.x, middle, address * 8);
  high = __funnelshift_r(middle, upper ? second.y : second.x, address * 8);
}

// The same `past` bytes, an even number, behind a multiple of eight. Where `past` is known beforehand half of it is
// left.
__device__ __forceinline__ void load_eight_past(uint32_t eight, uint32_t past, uint32_t& low, uint32_t& high) {
  const auto two = [](uint32_t at, uint32_t& x, uint32_t& y) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(at));
  };
  uint32_t w[4] = {};
  two(eight, w[0], w[1]);
  if (past == 0) return low = w[0], high = w[1], void();
  if (past == 6) {
    two(eight + 8, w[2], w[3]);
  } else {
    w[2] = load_word(eight + 8);
  }
  low = past < 4 ? __funnelshift_r(w[0], w[1], 8 * past) : past == 4 ? w[1] : __funnelshift_r(w[1], w[2], 8 * past);
  high = past < 4 ? __funnelshift_r(w[1], w[2], 8 * past) : past == 4 ? w[2] : __funnelshift_r(w[2], w[3], 8 * past);
}

// Where rows begin, modulo eight bytes: the second of two next to each other kOdd behind the first, which is at 0; or
// anywhere.
constexpr int kAnywhere = -1;

// Eight values of a row as Fragment has them. kPast: where it begins, modulo eight bytes, or kAnywhere.
template <class F, int kPast>
__device__ __forceinline__ void decode_values(uint32_t row, uint32_t scales, int group, int j, int valid,
                                              uint32_t (&a)[4]) {
  if constexpr (std::is_same_v<F, Q8_0> || std::is_same_v<F, F8_E4M3>) {
    static_assert(Fragment<F>::kOrder == Order::bytes);
    constexpr int kBlock = sizeof(typename F::Block);
    uint32_t word[2];
    const uint32_t past = group * (F::block_elements == 32 ? kBlock : 32) + (F::block_elements == 32 ? 2 : 0);
    if constexpr (kPast == kAnywhere) {
      load_eight(row + past + 8 * j, word[0], word[1]);
    } else {
      load_eight_past(row - kPast + ((past + kPast) & ~7u) + 8 * j, (past + kPast) & 7u, word[0], word[1]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (std::is_same_v<F, Q8_0>) {
        const uint32_t biased = word[i] ^ 0x80808080u;
        a[2 * i] = bits_of(__hsub2(halves_of(__byte_perm(biased, 0x64646464u, 0x4240)), __float2half2_rn(1152.0f)));
        a[2 * i + 1] = bits_of(__hsub2(halves_of(__byte_perm(biased, 0x64646464u, 0x4341)), __float2half2_rn(1152.0f)));
      } else {
        a[2 * i] = e4m3_pair(word[i] << 8);
        a[2 * i + 1] = e4m3_pair(word[i]);
      }
    }
  } else {
    Fragment<F>::decode(row, scales, group, j, valid, 0, a);
  }
}

// The same, and halves, of rows that begin at 16 bytes and have whole stages of columns.
template <class F>
constexpr bool kHasAligned = std::is_same_v<F, BF16> || std::is_same_v<F, F8_E4M3>;
template <class F>
__device__ __forceinline__ void decode_aligned(uint32_t row, int group, int j, uint32_t (&a)[4]) {
  if constexpr (std::is_same_v<F, BF16>) {
    const uint4 words = load_shared(row + 64 * group + 16 * j);
    a[0] = words.x, a[1] = words.y, a[2] = words.z, a[3] = words.w;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = bits_of(__floats2half2_rn(__uint_as_float(a[i] << 16), __uint_as_float(a[i] & 0xffff0000u)));
    }
  } else {
    uint32_t word[2];
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "r"(row + 32 * group + 8 * j));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[2 * i] = e4m3_pair(word[i] << 8);
      a[2 * i + 1] = e4m3_pair(word[i]);
    }
  }
}

// Whether any bytes are numbers and a scale a half of its own, so that what lies behind the last column can be decoded
// like the rest.
template <class F>
constexpr bool kHalfScales = std::is_same_v<F, Q4_0> || std::is_same_v<F, Q8_0>;

// Eight values of a row as halves, scaled: columns as Fragment's Order has them. `valid` columns of the group are
// there.
template <class F, int kPast>
__device__ __forceinline__ void decode_row(uint32_t row, uint32_t scales, int group, int j, int valid,
                                           uint32_t (&a)[4]) {
  using Frag = Fragment<F>;
  decode_values<F, kPast>(row, scales, group, j, valid, a);
  if constexpr (Frag::kBf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = bits_of(__floats2half2_rn(__uint_as_float(a[i] << 16), __uint_as_float(a[i] & 0xffff0000u)));
    }
  }
  if constexpr (Frag::kScaleGroup != 0) {
    __half2 scale[2], least[2];
    if constexpr (kHalfScales<F>) {
      const uint32_t half = load_short(row + group * static_cast<int>(sizeof(typename F::Block)));
      scale[0] = halves_of(valid > 0 ? __byte_perm(half, 0, 0x1010) : 0u);
    } else {
      scale[0] = __float2half2_rn(Frag::scale(row, group, 0));
    }
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

// A tile, and how its sums become results.
struct Tile {
  const uint8_t *rows, *scales;  // of its first row
  const float* row_scales;       // the same
  float scale;
  int first, count;         // slots; none: the end
  int first_row, last_row;  // the last counts from the first
};

struct Ring {
  uint32_t stages;
  // A full barrier for each of kStages places, then an empty one for each; and for each of two tiles as well.
  uint32_t barriers, tile_barriers;
  Tile* tiles;     // [2]
  float* factors;  // [2][kTokens]
};

// Tiles by number: those that run at the same time share rows or vectors, which then come from the second-level cache.
// Of experts, the rows of one after the other; else kTogether vectors' tiles go through all rows.
constexpr int kTogether = 16;

template <class F, int kTokens = Plan<F>::kTokens>
__device__ __forceinline__ Tile tile_at(const Gemm& a, int tiles, int number) {
  using P = Plan<F>;
  const Matrix& m = a.matrix;
  const int row_tiles = (m.rows + P::kRows - 1) / P::kRows;
  Tile tile;
  int across, down;
  if (a.tile_expert) {
    across = number / row_tiles, down = number % row_tiles;
  } else {
    const int group = number / (row_tiles * kTogether), width = min(kTogether, tiles - group * kTogether);
    const int in_group = number - group * row_tiles * kTogether;
    across = group * kTogether + in_group % width, down = in_group / width;
  }
  tile.first = across * kTokens, tile.count = min(kTokens, a.slots - tile.first);
  tile.rows = m.data, tile.scales = m.group_scales, tile.row_scales = m.row_scales, tile.scale = m.scale;
  if (a.tile_expert) {
    const int expert = __ldcg(a.tile_expert + across);
    tile.count = expert < 0 ? 0 : __ldcg(a.tile_count + across);
    if (tile.count == 0) return tile;
    tile.first = __ldcg(a.tile_first + across);
    tile.rows = reinterpret_cast<const uint8_t*>(a.expert_data[expert]);
    if (a.expert_scales) {
      const std::byte* scales = a.expert_scales[expert];
      if (a.expert_row_scales) tile.row_scales = reinterpret_cast<const float*>(scales);
      if (!a.expert_row_scales) tile.scales = reinterpret_cast<const uint8_t*>(scales);
    }
    if (a.expert_scale) tile.scale = a.expert_scale[expert];
  }
  tile.first_row = down * P::kRows;
  tile.last_row = min(P::kRows, m.rows - tile.first_row) - 1;
  tile.rows += tile.first_row * m.stride;
  if (tile.row_scales) tile.row_scales += tile.first_row;
  if (Fragment<F>::kGroupScales) tile.scales += tile.first_row * m.scales_stride;
  return tile;
}

// Four warps ask for the stages of a block, each as soon as its place in the ring is free.
template <class F, bool kAligned>
__device__ __forceinline__ void fetch_all(const Gemm& a, int tiles, const Ring& ring) {
  using P = Plan<F>;
  using Frag = Fragment<F>;
  const Matrix& m = a.matrix;
  const int tid = static_cast<int>(threadIdx.x), stages = (m.cols + P::kCols - 1) / P::kCols;
  // Eight threads copy a row of vectors, and one of weights where it is a line of 128 bytes, else four.
  constexpr int kVectorRows = kFetchThreads / 8, kVectorPasses = P::kTokens / kVectorRows;
  constexpr bool kLines = P::kBytes == 128 && P::kWarpRows == 32;
  constexpr int kRowThreads = kLines ? 8 : 4, kPassBytes = 16 * kRowThreads;
  constexpr int kWeightRows = kFetchThreads / kRowThreads, kWeightPasses = P::kRows / kWeightRows;
  const uint32_t vector_at = swizzled(tid / 8, tid % 8);
  const __half* my_vectors = a.x.x + tid % 8 * 8;
  const auto vector_chunks = static_cast<uint32_t>(a.x.stride / 8);
  // Rows whose places are four apart, or two where they are 32 modulo 64 bytes long, are copied side by side: they meet
  // no bank conflicts.
  const int eighth = tid / 4 % 8;
  const int in_eight =
      P::kPitch % 32 == 0 ? (eighth & 4) | eighth % 2 << 1 | eighth / 2 % 2 : eighth / 2 | eighth % 2 << 2;
  const int row_place = kLines ? tid / 8 : tid / 4 / 8 * 8 + in_eight, my_row = row_of_place<F>(row_place);
  // Of pass i, whose places are kWeightRows behind those of the one before.
  const auto row_of_pass = [&](int i) { return my_row + (kLines ? i / 2 * 32 + i % 2 * 2 : i * kWeightRows); };
  const int my_chunk = tid % kRowThreads * 16;
  const uint32_t row_at = P::kVectorBytes + row_place * P::kPitch + my_chunk;
  const uint32_t scales_at = P::kVectorBytes + P::kRows * P::kPitch + row_place * P::kScalesPitch + my_chunk;
  // Of `bytes` from an address on, at most those of `most`, the chunks that are this thread's.
  const auto copy_run = [&](const uint8_t* from, int bytes, auto most, uint32_t to) {
    const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(from) & 15);
    const uint8_t* chunk = from - shift + my_chunk;
    const int end = shift + bytes - my_chunk;
    constexpr int kPasses = (chunks_of(decltype(most)::value) + kRowThreads - 1) / kRowThreads;
#pragma unroll
    for (int c = 0; c < kPasses; ++c) {
      if (kPassBytes * c < end) copy_async_or_zero(to + kPassBytes * c, chunk + kPassBytes * c, true);
    }
  };
  const int all = tiles * ((m.rows + P::kRows - 1) / P::kRows);
  int place = 0, turn = 0;
  uint32_t parity = 1;
#pragma unroll 1
  for (int number = static_cast<int>(blockIdx.x);; number += static_cast<int>(gridDim.x)) {
    Tile tile = {};
    if (number < all) {
      tile = tile_at<F>(a, tiles, number);
      if (tile.count == 0) continue;
    }
    const int at = turn % 2;
    wait_barrier(ring.tile_barriers + 8 * (2 + at), (turn / 2 % 2) ^ 1);
    if (tid == 0) ring.tiles[at] = tile;
    const auto row_of = [&](int token) { return a.rows ? __ldcg(a.rows + tile.first + token) : tile.first + token; };
    if (tid < tile.count) {
      ring.factors[at * P::kTokens + tid] = __ldcg(a.x.unscale + row_of(tid)) * Frag::kFactor * tile.scale;
    }
    arrive(ring.tile_barriers + 8 * at);
    if (tile.count == 0) break;
    ++turn;

    uint32_t vectors[kVectorPasses];  // in chunks of eight halves
#pragma unroll
    for (int i = 0; i < kVectorPasses; ++i) {
      vectors[i] = static_cast<uint32_t>(row_of(min(tid / 8 + i * kVectorRows, tile.count - 1))) * vector_chunks;
    }
    if (a.output == Output::add || a.output == Output::gate) {
      const float* before = a.output == Output::add ? a.y : a.gate;
      if (tid < tile.count) {
        before += (int64_t{tile.first} + tid) * a.y_stride + tile.first_row;
        for (int r = 0; r <= tile.last_row; r += 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(before + r));
      }
    }
    const uint8_t* weights = tile.rows + my_row * m.stride + my_chunk;  // where they are aligned
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage, weights += P::kBytes) {
      const uint32_t to = ring.stages + place * P::kStageBytes;
      wait_barrier(ring.barriers + 8 * (P::kStages + place), parity);
#pragma unroll
      for (int part = 0; part < P::kCols / 64; ++part) {
#pragma unroll
        for (int i = 0; i < kVectorPasses; ++i) {
          if (i * kVectorRows >= tile.count) break;
          copy_async_or_zero(to + vector_at + (part * P::kTokens + i * kVectorRows) * 128,
                             my_vectors + uint64_t{vectors[i]} * 8 + stage * P::kCols + part * 64, true);
        }
      }
      if constexpr (kAligned && kLines) {
        const bool there = stage * P::kBytes + my_chunk < m.cols * static_cast<int>(sizeof(typename F::Block));
#pragma unroll
        for (int i = 0; i < kWeightPasses; ++i) {
          if (row_of_pass(i) > tile.last_row) continue;  // what lies in the place of such a row is not looked at
          copy_async_or_zero(to + row_at + i * kWeightRows * P::kPitch, weights + (row_of_pass(i) - my_row) * m.stride,
                             there);
        }
      } else {
        const int cols = min(P::kCols, m.cols - stage * P::kCols);
        const int bytes =
            (cols + F::block_elements - 1) / F::block_elements * static_cast<int>(sizeof(typename F::Block));
#pragma unroll
        for (int i = 0; i < kWeightPasses; ++i) {
          if (i * kWeightRows / 32 * 32 > tile.last_row) break;
          const int r = min(row_of_pass(i), tile.last_row);
          copy_run(tile.rows + r * m.stride + stage * P::kBytes, bytes, Constant<P::kBytes>(),
                   to + row_at + i * kWeightRows * P::kPitch);
          if constexpr (Frag::kGroupScales) {
            copy_run(tile.scales + r * m.scales_stride + stage * (P::kCols / 16), (cols + 15) / 16,
                     Constant<P::kCols / 16>(), to + scales_at + i * kWeightRows * P::kScalesPitch);
          }
        }
      }
      arrive_after_copies(ring.barriers + 8 * place);
      if (++place == P::kStages) place = 0, parity ^= 1;
    }
  }
  close_copies();
  wait_for_copies<0>();
}

// Where a warpgroup is in the ring.
struct Position {
  int place = 0;
  uint32_t parity = 0;
};

// A tile's product with its first kTokens vectors.
template <class F, int kOdd, int kTokens, int kSums>
__device__ __forceinline__ void multiply_all(const Gemm& a, const Tile& tile, const Ring& ring, Position& at,
                                             float (&sum)[Plan<F>::kTiles][kSums]) {
  using P = Plan<F>;
  using Frag = Fragment<F>;
  constexpr int kTiles = P::kTiles, kGroups = P::kCols / 32;
  constexpr bool kAligned = kHasAligned<F> && kOdd == 0;
  const Matrix& m = a.matrix;
  const int tid = static_cast<int>(threadIdx.x) - kFetchThreads, lane = lane_id(), j = lane % 4;
  const int groups = (m.cols + 31) / 32, stages = (m.cols + P::kCols - 1) / P::kCols;
  const int warp_row = tid / kWarp * P::kWarpRows;
  const auto release = [&](int place) {
    if (lane == 0) arrive(ring.barriers + 8 * (P::kStages + place));
  };
  if (tid / 128 * 128 / kWarp * P::kWarpRows > tile.last_row) {  // no rows for this warpgroup
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      wait_barrier(ring.barriers + 8 * at.place, at.parity);
      __syncwarp();
      release(at.place);
      if (++at.place == P::kStages) at.place = 0, at.parity ^= 1;
    }
    return;
  }
  // Of rows of this lane: how their address ends. In a stage they are eight places apart. Behind the last row, in whose
  // places anything may lie, addresses go on: so that kOdd is true of them.
  const int first_row = warp_row + lane / 4 * P::kLaneRows;
  const uint32_t my_place = place_of_row<F>(first_row);
  uint32_t ending[kTiles][2], scales_ending[kTiles][2] = {};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = first_row + 2 * t + h;
      ending[t][h] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(tile.rows + r * m.stride));
      if constexpr (Frag::kGroupScales) {
        scales_ending[t][h] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(tile.scales + r * m.scales_stride));
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[t][i] = 0;
  }
  uint32_t left[2][kTiles][2][4];  // operands of two groups of 32 columns: one is decoded while one is multiplied

#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    const uint32_t vectors_at = ring.stages + at.place * P::kStageBytes, weights_at = vectors_at + P::kVectorBytes;
    wait_barrier(ring.barriers + 8 * at.place, at.parity);
    see_copies();
    uint32_t row_at[kTiles][2], row_scales_at[kTiles][2] = {};
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t place = my_place + 8 * (2 * t + h);
        row_at[t][h] = weights_at + place * P::kPitch;
        if constexpr (!kAligned) row_at[t][h] += ending[t][h] + stage * P::kBytes & 15u;
        if constexpr (Frag::kGroupScales) {
          row_scales_at[t][h] = weights_at + P::kRows * P::kPitch + place * P::kScalesPitch +
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
        if constexpr (kAligned) {
          decode_aligned<F>(row_at[t][0], g, j, upper);
          decode_aligned<F>(row_at[t][1], g, j, lower);
        } else if (Frag::kScaleGroup == 0 || kHalfScales<F> || group < groups) {
          constexpr int kPast = kOdd == kAnywhere ? kAnywhere : 0;
          decode_row<F, kPast>(row_at[t][0], row_scales_at[t][0], g, j, m.cols - 32 * group, upper);
          decode_row<F, kOdd>(row_at[t][1], row_scales_at[t][1], g, j, m.cols - 32 * group, lower);
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
          multiply_tile<kTokens>(reinterpret_cast<float(&)[kTokens / 2]>(sum[t]), operands[t][s],
                                 vectors_at + g / 2 * P::kTokens * 128, g % 2 * 2 + s);
        }
      }
      close_products();
      wait_for_products<1>();
      // Now the products of the stage before are done as well.
      if (g == 0 && stage > 0) release((at.place == 0 ? P::kStages : at.place) - 1);
    }
    if (++at.place == P::kStages) at.place = 0, at.parity ^= 1;
  }
  wait_for_products<0>();
#pragma unroll
  for (int t = 0; t < kTiles; ++t) keep_in_registers(sum[t]);
  release((at.place == 0 ? P::kStages : at.place) - 1);
}

// 2^power, or the least float.
__device__ __forceinline__ float power_of(int power) {
  return __uint_as_float(static_cast<uint32_t>(max(power, -126) + 127) << 23);
}
__device__ __forceinline__ int exponent_of(float power) { return static_cast<int>(__float_as_uint(power) >> 23) - 127; }

// The same as halves, squared where they are positive: zeros behind the last row, up to the vectors' stride.
template <int kTokens, int kSums>
__device__ __forceinline__ void put_halves(const Gemm& a, const Tile& tile, int row, float (&sum)[2][kSums]) {
  constexpr int kCount = kTokens / 4;  // vectors of a lane
  const int lane = lane_id(), j = lane % 4, part = lane / 4, here = tile.last_row + 1 - row;
  const int count = tile.count - 2 * j, column = tile.first_row + row;
  const auto value = [&](int i, int r) -> float& { return sum[r / 2][i / 2 * 4 + r % 2 * 2 + i % 2]; };
  const auto token = [&](int i) { return i / 2 * 8 + i % 2; };  // from 2 j on
  // The largest of 32 columns, which are those of eight lanes: lanes halve the vectors that they know of thrice, so
  // each comes to know kCount / 8 of them.
  float most[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    most[i] = 0;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      value(i, r) = r < here ? activated(true, value(i, r)) : 0.0f;
      most[i] = fmaxf(most[i], value(i, r));
    }
  }
  const auto halve = [&](auto left, int step) {
    constexpr int kLeft = decltype(left)::value;
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const float mine = upper ? most[i + kLeft] : most[i], theirs = upper ? most[i] : most[i + kLeft];
      most[i] = fmaxf(mine, __shfl_xor_sync(~0u, theirs, step));
    }
  };
  halve(Constant<kCount / 2>(), 16);
  halve(Constant<kCount / 4>(), 8);
  halve(Constant<kCount / 8>(), 4);
  constexpr int kMine = kCount / 8;
  const int mine = (lane / 16 * 4 + lane / 8 % 2 * 2 + lane / 4 % 2) * kMine;
  int powers[kMine];
  bool units = true;
  int8_t* to_powers = a.halves.powers + column / 32;
  const int64_t groups = a.halves.to.stride / 32;
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    // Below 2^-10 rounding would show; from 2^15 on there is no half.
    const bool unit = most[i] >= 0x1p-10f && most[i] < 0x1p15f;
    powers[i] = most[i] == 0 || unit ? 0 : exponent_of(half_scale(most[i]));
    units = units && powers[i] == 0;
    if (token(mine + i) < count) {
      to_powers[(int64_t{tile.first} + 2 * j + token(mine + i)) * groups] =
          static_cast<int8_t>(most[i] == 0 ? kNoPower : powers[i]);
    }
  }
  if (!__all_sync(~0u, units)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int owner = j | i / kMine / 4 << 4 | i / kMine / 2 % 2 << 3 | i / kMine % 2 << 2;
      const float factor = power_of(__shfl_sync(~0u, powers[i % kMine], owner));
#pragma unroll
      for (int r = 0; r < 4; ++r) value(i, r) *= factor;
    }
  }
  // column_of() the other way round: where the two pairs of a lane's four columns go, of 32.
  const auto order = static_cast<Order>(a.halves.order);
  int at = part % 2 * 16 + part / 2 * 2, second = 8;
  if (order == Order::nibbles) at = 2 * part, second = 16;
  if (order == Order::parts) at = part / 4 * 16 + part % 4 * 2;
  const bool every_other = order == Order::nibbles || order == Order::bytes, far = order == Order::nvfp4;
  const bool upper = part / 2 % 2 != 0;
  if (far) at = part / 4 * 16 + part % 2 * 4 + (upper ? 2 : 0);
  __half* to = a.halves.to.x + (int64_t{tile.first} + 2 * j) * a.halves.to.stride + column / 32 * 32 + at;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float v[4] = {value(i, 0), value(i, 1), value(i, 2), value(i, 3)};
    if (far) {  // pairs are eight columns apart, which another lane has
      const float first = __shfl_xor_sync(~0u, upper ? v[0] : v[2], 8);
      const float other = __shfl_xor_sync(~0u, upper ? v[1] : v[3], 8);
      const float pairs[4] = {upper ? first : v[0], upper ? v[2] : first, upper ? other : v[1], upper ? v[3] : other};
#pragma unroll
      for (int r = 0; r < 4; ++r) v[r] = pairs[r];
    } else if (every_other) {
      const float third = v[2];
      v[2] = v[1], v[1] = third;
    }
    if (token(i) >= count) continue;
    auto* words = reinterpret_cast<uint32_t*>(to + token(i) * a.halves.to.stride);
    words[0] = bits_of(__floats2half2_rn(v[0], v[1]));
    words[second / 2] = bits_of(__floats2half2_rn(v[2], v[3]));
  }
}

// Four E4M3, the first in the lowest byte: the nearest, at most 448; NaN stays NaN. From sm_89 on.
__device__ __forceinline__ uint32_t as_e4m3(float a, float b, float c, float d) {
  uint32_t word = 0;
#if __CUDA_ARCH__ >= 890
  asm("{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, %2, %1; cvt.rn.satfinite.e4m3x2.f32 high, %4, %3; "
      "mov.b32 %0, {low, high}; }"
      : "=r"(word)
      : "f"(a), "f"(b), "f"(c), "f"(d));
#endif
  return word;
}

// The same as E4M3 of the scale that they have in common, or as BF16: eight lanes write 32 or 64 bytes.
template <Vectors kKind, int kTokens, int kSums>
__device__ __forceinline__ void put_same_kind(const Gemm& a, const Tile& tile, int row, float (&sum)[2][kSums]) {
  const int j = lane_id() % 4, here = tile.last_row + 1 - row, count = tile.count - 2 * j;
  const int64_t stride = a.halves.to.stride;
  constexpr bool kE4m3 = kKind == Vectors::e4m3;
  const float inverse = kE4m3 ? 1.0f / a.halves.to.scale : 1.0f;
  const int64_t at = (int64_t{tile.first} + 2 * j) * stride + tile.first_row + row;
  auto* to = reinterpret_cast<uint8_t*>(a.halves.to.x) + (kE4m3 ? at : 2 * at);
#pragma unroll
  for (int i = 0; i < kTokens / 4; ++i) {
    const int token = i / 2 * 8 + i % 2;
    if (token >= count) continue;
    float v[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      v[r] = r < here ? activated(true, sum[r / 2][i / 2 * 4 + r % 2 * 2 + i % 2]) * inverse : 0.0f;
    }
    if constexpr (kE4m3) {
      *reinterpret_cast<uint32_t*>(to + token * stride) = as_e4m3(v[0], v[1], v[2], v[3]);
    } else {
      *reinterpret_cast<uint2*>(to + 2 * token * stride) = {bits_of(__floats2bfloat162_rn(v[0], v[1])),
                                                            bits_of(__floats2bfloat162_rn(v[2], v[3]))};
    }
  }
}

template <int kTokens, int kSums>
__device__ __forceinline__ void put_bf16(const Gemm& a, const Tile& tile, int row, float (&sum)[2][kSums]) {
  const int j = lane_id() % 4, here = tile.last_row + 1 - row, count = tile.count - 2 * j;
  __nv_bfloat16* to = a.y_bf16 + (int64_t{tile.first} + 2 * j) * a.y_stride + tile.first_row + row;
  const bool whole = here >= 4 && a.y_stride % 4 == 0;
#pragma unroll
  for (int i = 0; i < kTokens / 4; ++i) {
    const int token = i / 2 * 8 + i % 2;
    if (token >= count) continue;
    const auto value = [&](int r) { return sum[r / 2][i / 2 * 4 + r % 2 * 2 + i % 2]; };
    if (whole) {
      *reinterpret_cast<uint2*>(to + token * a.y_stride) = {bits_of(__floats2bfloat162_rn(value(0), value(1))),
                                                            bits_of(__floats2bfloat162_rn(value(2), value(3)))};
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (r < here) to[token * a.y_stride + r] = __float2bfloat16_rn(value(r));
      }
    }
  }
}

// y of a tile's first kTokens vectors. A lane has kLaneRows rows next to each other, so that eight lanes write a line.
template <class F, int kTokens, Vectors kKind = Vectors::halves, int kSums>
__device__ __forceinline__ void put_out(const Gemm& a, const Tile& tile, const float* factors,
                                        float (&sum)[Plan<F>::kTiles][kSums]) {
  using P = Plan<F>;
  constexpr int kRows = P::kLaneRows;
  using Rows = std::conditional_t<kRows == 4, float4, float2>;
  const int warp = warp_id() - kFetchThreads / kWarp, lane = lane_id(), j = lane % 4;
  const int row = warp * P::kWarpRows + lane / 4 * kRows, here = tile.last_row + 1 - row;
  if (here <= 0 && !a.halves.powers) return;
  const float* before = a.output == Output::add ? a.y : a.output == Output::gate ? a.gate : nullptr;
  const auto floats_of = [](Rows& rows) { return reinterpret_cast<float*>(&rows); };
  const auto at_once = [&](const float* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Rows) == 0; };
  const bool whole = here >= kRows && a.y_stride % kRows == 0 && at_once(a.y) && at_once(before);
  if (tile.row_scales) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float scale = tile.row_scales[min(row + r, tile.last_row)];
#pragma unroll
      for (int i = 0; i < kTokens / 4; ++i) sum[r / 2][i / 2 * 4 + r % 2 * 2 + i % 2] *= scale;
    }
  }
#pragma unroll
  for (int i = 0; i < kTokens / 4; ++i) {
    const float factor = factors[i / 2 * 8 + 2 * j + i % 2];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r / 2][i / 2 * 4 + r % 2 * 2 + i % 2] *= factor;
  }
  if constexpr (kKind != Vectors::halves) {
    if (a.halves.powers) return put_same_kind<kKind, kTokens>(a, tile, row, sum);
    if (a.y_bf16) return put_bf16<kTokens>(a, tile, row, sum);
  } else if constexpr (kRows == 4) {
    if (a.halves.powers) return put_halves<kTokens>(a, tile, row, sum);
  }
  float* y = a.y + (int64_t{tile.first} + 2 * j) * a.y_stride + tile.first_row + row;
  const int64_t to_before = before ? before - a.y : 0;
  const auto value = [&](int i, int r) -> float& { return sum[r / 2][i / 2 * 4 + r % 2 * 2 + i % 2]; };
  const auto token = [&](int i) { return i / 2 * 8 + i % 2; };  // from 2 j on
  const int count = tile.count - 2 * j;
  const bool gated = a.output == Output::gate;
  constexpr int kAtOnce = 4;  // vectors of which `before` is asked for before it is used
#pragma unroll
  for (int batch = 0; batch < kTokens / 4; batch += kAtOnce) {
    Rows there[kAtOnce] = {};
    if (before) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float* from = y + token(batch + i) * a.y_stride + to_before;
        if (token(batch + i) >= count) continue;
        if (whole) {
          there[i] = __ldcg(reinterpret_cast<const Rows*>(from));
        } else {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (r < here) floats_of(there[i])[r] = __ldcg(from + r);
          }
        }
      }
    }
    const auto each = [&](auto&& f) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) f(value(batch + i, r), floats_of(there[i])[r]);
      }
    };
    const auto activate = [&](float& v, float other, auto relu2) {
      const float x = activated(relu2.value, gated ? other : v);
      v = gated ? v * x : x;
    };
    if (a.output == Output::add) {
      each([&](float& v, float other) { v += other; });
    } else if (a.output != Output::store && a.relu2) {
      each([&](float& v, float other) { activate(v, other, std::true_type()); });
    } else if (a.output != Output::store) {
      each([&](float& v, float other) { activate(v, other, std::false_type()); });
    }
#pragma unroll
    for (int i = batch; i < batch + kAtOnce; ++i) {
      if (token(i) >= count) continue;
      float* to = y + token(i) * a.y_stride;
      if (whole) {
        Rows out;
#pragma unroll
        for (int r = 0; r < kRows; ++r) floats_of(out)[r] = value(i, r);
        *reinterpret_cast<Rows*>(to) = out;
      } else {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r < here) to[r] = value(i, r);
        }
      }
    }
  }
}

template <class F, int kOdd>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Gemm a, int tiles) {
  using P = Plan<F>;
  extern __shared__ uint8_t memory[];
  __shared__ Tile shared_tiles[2];
  __shared__ float factors[2 * P::kTokens];
  __shared__ uint64_t barriers[2 * P::kStages + 4];  // of stages: full, empty; of tiles: full, empty
  const int tid = static_cast<int>(threadIdx.x);
  Ring ring;
  ring.stages = (shared_address(memory) + 1023) & ~1023u;
  ring.barriers = shared_address(barriers);
  ring.tile_barriers = ring.barriers + 8 * 2 * P::kStages;
  ring.tiles = shared_tiles;
  ring.factors = factors;
  if (tid < P::kStages) {
    init_barrier(ring.barriers + 8 * tid, kFetchThreads);
    init_barrier(ring.barriers + 8 * (P::kStages + tid), kWarpgroups * 4);
  }
  if (tid < 2) {
    init_barrier(ring.tile_barriers + 8 * tid, kFetchThreads);
    init_barrier(ring.tile_barriers + 8 * (2 + tid), kWarpgroups * 4);
  }
  __syncthreads();
  wait_for_predecessor();
  start_successor();

  if (warp_id() < kFetchThreads / kWarp) {
    set_registers<56, false>();
    fetch_all<F, kHasAligned<F> && kOdd == 0>(a, tiles, ring);
  } else {
    set_registers<224, true>();
    float sum[P::kTiles][P::kTokens / 2];
    Position at;
#pragma unroll 1
    for (int turn = 0;; ++turn) {
      wait_barrier(ring.tile_barriers + 8 * (turn % 2), turn / 2 % 2);
      const Tile tile = ring.tiles[turn % 2];
      if (tile.count == 0) break;
      const float* mine = factors + turn % 2 * P::kTokens;
      constexpr int kHalf = P::kTokens / 2;
      if (kHalf >= 64 && tile.count <= kHalf) {
        multiply_all<F, kOdd, (kHalf >= 64 ? kHalf : 64)>(a, tile, ring, at, sum);
        put_out<F, (kHalf >= 64 ? kHalf : 64)>(a, tile, mine, sum);
      } else {
        multiply_all<F, kOdd, P::kTokens>(a, tile, ring, at, sum);
        put_out<F, P::kTokens>(a, tile, mine, sum);
      }
      __syncwarp();
      if (lane_id() == 0) arrive(ring.tile_barriers + 8 * (2 + turn % 2));
    }
  }
}

template <class F>
void launch(const Gemm& op, int tiles, const Launch& launch) {
  using P = Plan<F>;
  if (op.matrix.rows == 0 || op.slots == 0) return;
  if (!op.tile_expert) tiles = (op.slots + P::kTokens - 1) / P::kTokens;
  if (op.halves.powers && P::kRows != 256) return launch.keep(cudaErrorInvalidValue);
  const int all = tiles * ((op.matrix.rows + P::kRows - 1) / P::kRows);
  const auto start = [&](auto chosen) {
    launch(chosen, dim3(std::min(all, launch.num_sms())), dim3(kThreads), P::kShared, op, tiles);
  };
  // Of experts, all begin where CudaBackend places them, or the first of them, one right behind the other.
  const Matrix& m = op.matrix;
  if constexpr (std::is_same_v<F, Q8_0>) {
    if (reinterpret_cast<uintptr_t>(m.data) % 8 == 0 && m.stride % 8 == 0) return start(kernel<F, 0>);
    if (reinterpret_cast<uintptr_t>(m.data) % 8 == 0 && m.stride % 8 == 4 && m.rows % 2 == 0) {
      return start(kernel<F, 4>);
    }
  }
  if constexpr (kHasAligned<F>) {
    if (reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.stride % 16 == 0 && m.cols % 64 == 0) {
      return start(kernel<F, 0>);
    }
  }
  start(kernel<F, kAnywhere>);
}

}  // namespace proa::cuda::gemm
