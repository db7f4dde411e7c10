// The other kernel of matmul.h, for at most eight vectors that fit into shared memory: weights stream past them. A
// block takes a run of tiles, sixteen whole rows each, one behind the other in memory. One warp fetches them into a
// ring, twelve multiply, each the columns that it has the vectors of, and one adds the sums of the twelve. So memory is
// read in long runs, without a pause between tiles or experts, by SMs that have all the same share of it.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "backends/cuda/barrier.cuh"
#include "backends/cuda/fragment.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/matmul.h"

namespace proa::cuda::matmul_stream {

constexpr int kMultipliers = 12;  // warps; 2,688 columns are 84 groups, seven each
constexpr int kThreads = (kMultipliers + 2) * kWarp;
constexpr int kRows = 16;
constexpr int kVectors = 8;
constexpr int kMaxStages = 8;
constexpr int kBarrierBytes = 256;
constexpr int kSumBytes = kRows * kVectors * static_cast<int>(sizeof(float));  // of a warp
constexpr int kSumsBytes = 2 * kMultipliers * kSumBytes;
constexpr int kFewestStages = 3;
constexpr int kMaxTiles = 64;  // of tokens, that a block meets

template <class F>
constexpr bool kStreams = !Fragment<F>::kLong && Fragment<F>::kPasses == 1 && Fragment<F>::kScaleGroup != 16 &&
                          kMultipliers * 32 % F::block_elements == 0;

// 512 bytes each: operands of eight vectors for a group.
template <class F>
constexpr int kUnits = Fragment<F>::kBf16 ? 4 : 2;

struct Plan {
  int row_tiles;
  int groups;        // of 32 columns
  int piece_groups;  // that a stage holds: a multiple of kMultipliers
};
struct Work {
  MatMul op[kMaxMatMuls];
  Plan plan[kMaxMatMuls];
  int count;
  int pitch, scales_pitch;  // of a row in a stage
  int stages, stage_bytes;
  int operand_bytes;
};

// A block's tiles of an operation: [begin, end), row tiles of a token tile following one another.
struct Range {
  int begin, end;
};

// By one warp. Costs are groups; of experts only those that somebody chose count.
__device__ __forceinline__ void share_out(const Work& work, Range* ranges) {
  int64_t first[kMaxMatMuls + 1] = {};
  int tiles[kMaxMatMuls];
#pragma unroll
  for (int i = 0; i < kMaxMatMuls; ++i) {
    int used = 0;
    if (i < work.count) {
      const MatMul& a = work.op[i];
      used = 1;
      if (a.tile_expert) {
        used = 0;
        for (int t = lane_id(); t < a.tiles; t += kWarp) used += __ldcg(a.tile_expert + t) >= 0;
        used = __reduce_add_sync(~0u, used);
      }
    }
    tiles[i] = i < work.count ? used * work.plan[i].row_tiles : 0;
    first[i + 1] = first[i] + static_cast<int64_t>(tiles[i]) * (i < work.count ? work.plan[i].groups : 0);
  }
  const int64_t all = first[kMaxMatMuls];
  const int64_t begin = all * blockIdx.x / gridDim.x, end = all * (blockIdx.x + 1) / gridDim.x;
#pragma unroll
  for (int i = 0; i < kMaxMatMuls; ++i) {
    if (i >= work.count) continue;
    const auto tile_of = [&](int64_t cost) {
      const int64_t groups = work.plan[i].groups;
      const int64_t tile = (cost - first[i] + groups - 1) / groups;
      return static_cast<int>(cost <= first[i] ? 0 : tile < tiles[i] ? tile : tiles[i]);
    };
    if (lane_id() == 0) ranges[i] = {tile_of(begin), tile_of(end)};
  }
}

// A tile of vectors as a block's warps need it. Its vectors lie in columns from `column` on of the eight that operands
// have room for; where those of the tile before leave enough free, they are fetched while it is multiplied (`early`).
struct Tile {
  const uint8_t* data;
  const uint8_t* group_scales;
  const float* row_scales;
  float scale;
  int op;
  int first, count;  // slots
  int column;
  bool early;
  int vector[kVectors];
};
constexpr int kTilesBytes = kMaxTiles * static_cast<int>(sizeof(Tile));

// By all warps of a block: how many there are. Choices were sorted before the vectors were put in order, so these are
// known before the predecessor ends.
__device__ __forceinline__ int list_tiles(const Work& work, const Range* ranges, Tile* tiles) {
  int t = 0;
  for (int i = 0; i < work.count; ++i) {
    const MatMul& a = work.op[i];
    const int row_tiles = work.plan[i].row_tiles;
    if (ranges[i].begin == ranges[i].end) continue;
    for (int tile = ranges[i].begin / row_tiles; tile <= (ranges[i].end - 1) / row_tiles; ++tile, ++t) {
      if (t % (kThreads / kWarp) != warp_id()) continue;
      int first = 0, count = a.slots;
      Tile& to = tiles[t];
      if (a.tile_expert) {
        first = __ldcg(a.tile_first + tile);
        count = __ldcg(a.tile_count + tile);
      }
      if (lane_id() < count) {
        const int slot = first + lane_id();
        to.vector[lane_id()] = a.rows ? __ldcg(a.rows + slot) : slot;
      }
      if (lane_id() > 0) continue;
      to.op = i;
      to.first = first;
      to.count = count;
      to.data = a.matrix.data;
      to.group_scales = a.matrix.group_scales;
      to.row_scales = a.matrix.row_scales;
      to.scale = a.matrix.scale;
      if (!a.tile_expert) continue;
      const int expert = __ldcg(a.tile_expert + tile);
      to.data = reinterpret_cast<const uint8_t*>(a.expert_data[expert]);
      if (a.expert_scale) to.scale = a.expert_scale[expert];
      if (!a.expert_scales) continue;
      if (a.expert_row_scales) to.row_scales = reinterpret_cast<const float*>(a.expert_scales[expert]);
      if (!a.expert_row_scales) to.group_scales = reinterpret_cast<const uint8_t*>(a.expert_scales[expert]);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int n = 0, column = 0, end = 0; n < t; ++n) {
      const int count = tiles[n].count;
      const bool behind = end + count <= kVectors, before = count <= column;
      tiles[n].early = n > 0 && (behind || before);
      column = n > 0 && behind ? end : 0;
      end = column + count;
      tiles[n].column = column;
    }
  }
  __syncthreads();
  return t;
}

// Calls f(op, row_tile, t, new_tile) for a block's tiles of rows in turn, with the t-th tile of vectors.
template <typename Function>
__device__ __forceinline__ void for_tiles(const Work& work, const Range* ranges, Function&& f) {
  int t = 0;
#pragma unroll 1
  for (int i = 0; i < work.count; ++i) {
    const int row_tiles = work.plan[i].row_tiles, end = ranges[i].end;
    int at = ranges[i].begin, row_tile = at % row_tiles;
    bool new_tile = true;
#pragma unroll 1
    for (; at < end; ++at) {
      f(i, row_tile, t, new_tile);
      new_tile = ++row_tile == row_tiles;
      if (new_tile) row_tile = 0;
      if (new_tile || at + 1 == end) ++t;
    }
  }
}

// A ring's place and how often it was gone round.
struct Cursor {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void next(int slots) {
    if (++slot == slots) slot = 0, parity ^= 1;
  }
};

template <class F>
__host__ __device__ constexpr int bytes_of(int groups) {
  return groups * 32 / F::block_elements * static_cast<int>(sizeof(typename F::Block));
}

template <class F>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Work work) {
  using Frag = Fragment<F>;
  extern __shared__ uint4 memory[];
  __shared__ Range ranges[kMaxMatMuls];
  const int lane = lane_id(), warp = warp_id();
  const uint32_t barriers = shared_address(memory), operands = barriers + kBarrierBytes;
  const uint32_t all_sums = operands + work.operand_bytes, ring = all_sums + kSumsBytes + kTilesBytes;
  Tile* const tiles = reinterpret_cast<Tile*>(reinterpret_cast<char*>(memory) + (ring - barriers - kTilesBytes));
  const auto full = [&](int slot) { return barriers + 8 * slot; };
  const auto empty = [&](int slot) { return barriers + 64 + 8 * slot; };
  const auto sums_full = [&](int slot) { return barriers + 128 + 8 * slot; };
  const auto sums_empty = [&](int slot) { return barriers + 144 + 8 * slot; };
  if (threadIdx.x == 0) {
    for (int s = 0; s < work.stages; ++s) {
#if __CUDA_ARCH__ >= 900
      init_barrier(full(s), 1);
#else
      init_barrier(full(s), kWarp);
#endif
      init_barrier(empty(s), kMultipliers);
    }
    for (int s = 0; s < 2; ++s) {
      init_barrier(sums_full(s), kMultipliers);
      init_barrier(sums_empty(s), 1);
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }
  if (warp == 0) share_out(work, ranges);
  __syncthreads();
  const int num_tiles = list_tiles(work, ranges, tiles);

  if (warp == kMultipliers) {  // fetches
    Cursor at;
    for_tiles(work, ranges, [&](int i, int row_tile, int t, bool) {
      const MatMul& a = work.op[i];
      const Plan& p = work.plan[i];
      const Tile& tile = tiles[t];
      const int r = lane % kRows, row = row_tile * kRows + r;
      const bool of_scales = lane >= kRows;
      const bool there = row < a.matrix.rows && (Frag::kGroupScales || !of_scales);
      const int64_t stride = of_scales ? a.matrix.scales_stride : a.matrix.stride;
      const auto row_begin = reinterpret_cast<uint64_t>(of_scales ? tile.group_scales : tile.data) + row * stride;
#pragma unroll 1
      for (int group = 0; group < p.groups; group += p.piece_groups) {
        const int groups = min(p.piece_groups, p.groups - group);
        const int valid = min(32 * groups, a.matrix.cols - 32 * group);
        const uint64_t from = row_begin + (of_scales ? 2 * group : bytes_of<F>(group));
        constexpr int kBlock = F::block_elements;
        const int bytes =
            of_scales ? (valid + 15) / 16 : (valid + kBlock - 1) / kBlock * static_cast<int>(sizeof(typename F::Block));
        const uint32_t shift = static_cast<uint32_t>(from) & 15;
        const uint32_t size = there ? (shift + static_cast<uint32_t>(bytes) + 15) & ~15u : 0;
        const uint32_t to = ring + at.slot * work.stage_bytes +
                            (of_scales ? kRows * work.pitch + r * work.scales_pitch : r * work.pitch);
        wait_barrier(empty(at.slot), at.parity ^ 1);
#if __CUDA_ARCH__ >= 900
        const uint32_t total = __reduce_add_sync(~0u, size);
        if (lane == 0) {
          asm volatile(
              "{ .reg .b64 state; mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 state, [%0], %1; }" ::"r"(
                  full(at.slot)),
              "r"(total)
              : "memory");
        }
        __syncwarp();
        if (size > 0) {
          asm volatile(
              "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
              "l"(from - shift), "r"(size), "r"(full(at.slot))
              : "memory");
        }
#else
        for (int l = 0; l < kWarp; ++l) {
          const uint64_t begin = __shfl_sync(~0u, from - shift, l);
          const uint32_t place = __shfl_sync(~0u, to, l), end = __shfl_sync(~0u, size, l);
          for (uint32_t c = 16 * lane; c < end; c += 16 * kWarp) {
            copy_async_to(place + c, reinterpret_cast<const uint8_t*>(begin) + c);
          }
        }
        arrive_after_copies(full(at.slot));
#endif
        at.next(work.stages);
      }
    });
    return;
  }

  wait_for_predecessor();
  start_successor();
  if (warp > kMultipliers) {  // adds
    Cursor at;
    float factor[4];
    bool wanted[4];
    const int r = lane % kRows, first_column = lane / kRows * 4;
    for_tiles(work, ranges, [&](int i, int row_tile, int t, bool new_tile) {
      const MatMul& a = work.op[i];
      const Tile& tile = tiles[t];
      const int v = first_column - tile.column;  // of four vectors the first; some may be another tile's or nobody's
      if (new_tile) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          wanted[k] = v + k >= 0 && v + k < tile.count;
          factor[k] = wanted[k] ? __ldcg(a.x.unscale + tile.vector[v + k]) * Frag::kFactor * tile.scale : 0;
        }
      }
      const int row = row_tile * kRows + r;
      const bool there = row < a.matrix.rows;
      const float row_scale = there && tile.row_scales ? tile.row_scales[row] : 1;
      const int64_t at_first = (tile.first + v) * a.y_stride + row;
      const float* const before = a.output == Output::gate ? a.gate : a.y;
      float other[4] = {};
      if (a.output == Output::add || a.output == Output::gate) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (there && wanted[k]) other[k] = __ldcg(before + at_first + k * a.y_stride);
        }
      }
      wait_barrier(sums_full(at.slot), at.parity);
      float sum[4] = {};
      const uint32_t from =
          all_sums + at.slot * kMultipliers * kSumBytes + (r * kVectors + first_column) * sizeof(float);
#pragma unroll
      for (int w = 0; w < kMultipliers; ++w) {
        const uint4 part = load_shared(from + w * kSumBytes);
        sum[0] += __uint_as_float(part.x);
        sum[1] += __uint_as_float(part.y);
        sum[2] += __uint_as_float(part.z);
        sum[3] += __uint_as_float(part.w);
      }
      __syncwarp();
      if (lane == 0) arrive(sums_empty(at.slot));
      at.next(2);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (!there || !wanted[k]) continue;
        float value = sum[k] * factor[k] * row_scale;
        if (a.output == Output::add) value += other[k];
        if (a.output == Output::activate) value = activated(a.relu2, value);
        if (a.output == Output::gate) value *= activated(a.relu2, other[k]);
        a.y[at_first + k * a.y_stride] = value;
      }
    });
    return;
  }

  Cursor at, sums_at;
  uint32_t my_operands = 0, data_begin = 0, scales_begin = 0;
  const int j = lane % 4;
  constexpr int kSize = kUnits<F> * 512;
  // This warp's columns of the vectors of a tile.
  const auto fetch_vectors = [&](const MatMul& a, const Plan& p, const Tile& tile) {
    const int n = lane / 4 - tile.column;
    if (n < 0 || n >= tile.count) return;
    const int vector = tile.vector[n];
    const uint4* from =
        a.x.fragments + (static_cast<int64_t>(vector / 8) * p.groups + warp) * kUnits<F> * kWarp + vector % 8 * 4 + j;
    uint32_t to = operands + warp * kSize + lane * 16;
    for (int g = warp; g < p.groups; g += kMultipliers) {
#pragma unroll
      for (int u = 0; u < kUnits<F>; ++u) copy_async_to(to + u * 512, from + u * kWarp);
      from += kMultipliers * kUnits<F> * kWarp;
      to += kMultipliers * kSize;
    }
  };
  for_tiles(work, ranges, [&](int i, int row_tile, int t, bool new_tile) {
    const MatMul& a = work.op[i];
    const Matrix& m = a.matrix;
    const Plan& p = work.plan[i];
    const Tile& tile = tiles[t];
    if (new_tile) {
      data_begin = static_cast<uint32_t>(reinterpret_cast<uint64_t>(tile.data));
      scales_begin = static_cast<uint32_t>(reinterpret_cast<uint64_t>(tile.group_scales));
      if (!tile.early) fetch_vectors(a, p, tile);
      close_copies();
      wait_for_copies<0>();
      __syncwarp();
      // Lanes without a vector multiply the first one's once more, for nobody.
      const int n = lane / 4 - tile.column;
      my_operands = operands + (n >= 0 && n < tile.count ? lane : tile.column * 4 + j) * 16;
      if (t + 1 < num_tiles && tiles[t + 1].early) {
        const Tile& next = tiles[t + 1];
        fetch_vectors(work.op[next.op], work.plan[next.op], next);
      }
    }
    // Where rows lane / 4 and 8 more begin, as far as it matters for their place in a stage. Rows past the last are
    // computed from whatever lies there, and nobody takes their sums.
    const int row = row_tile * kRows + lane / 4;
    const uint32_t begin[2] = {data_begin + static_cast<uint32_t>(row * m.stride),
                               data_begin + static_cast<uint32_t>((row + 8) * m.stride)};
    const uint32_t scales_row[2] = {scales_begin + static_cast<uint32_t>(row * m.scales_stride),
                                    scales_begin + static_cast<uint32_t>((row + 8) * m.scales_stride)};
    float sum[2][2] = {};  // [row, vector]
    float running[4] = {};
#pragma unroll 1
    for (int first = 0; first < p.groups; first += p.piece_groups) {
      const uint32_t stage = ring + at.slot * work.stage_bytes;
      const uint32_t offset = bytes_of<F>(first);
      uint32_t rows[2], scales[2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        rows[h] = stage + (lane / 4 + 8 * h) * work.pitch + ((begin[h] + offset) & 15);
        if constexpr (Frag::kGroupScales) {
          scales[h] =
              stage + kRows * work.pitch + (lane / 4 + 8 * h) * work.scales_pitch + ((scales_row[h] + 2 * first) & 15);
        }
      }
      wait_barrier(full(at.slot), at.parity);
      // Groups kMultipliers apart, from `begin` on: constants where the compiler adds them to addresses.
      const auto multiply_groups = [&]<int kCount>(std::integral_constant<int, kCount>, int begin) {
        constexpr int kBlockGroups = F::block_elements > 32 ? F::block_elements / 32 : 1;
        const uint32_t first_row = rows[0] + bytes_of<F>(begin / kBlockGroups * kBlockGroups);
        const uint32_t second_row = first_row + (rows[1] - rows[0]);
        const uint32_t operand = my_operands + (first + begin) * kSize;
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
          const int g = begin % kBlockGroups + n * kMultipliers, group = first + begin + n * kMultipliers;
          uint32_t b[2][4];
          Frag::decode(first_row, scales[0] + 2 * begin, g, j, m.cols - 32 * group, 0, b[0]);
          Frag::decode(second_row, scales[1] + 2 * begin, g, j, m.cols - 32 * group, 0, b[1]);
          float c[4] = {};
          float(&to)[4] = Frag::kScaleGroup == 0 ? running : c;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            multiply_parts<Frag::kBf16>(to, b[0], b[1], half, operand + n * kMultipliers * kSize + half * 512);
          }
          if constexpr (Frag::kScaleGroup == 32) {
            add_scaled(sum, Frag::scale(first_row, g, 0), Frag::scale(second_row, g, 0), c);
          }
          if constexpr (Frag::kMin) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int n_th = 2 * j + e - tile.column;
              if (n_th < 0 || n_th >= tile.count) continue;
              const int64_t vector = tile.vector[n_th];
              const float2 total = __ldcg(reinterpret_cast<const float2*>(a.x.group_sums) + vector * p.groups + group);
              sum[0][e] += Frag::minimum(first_row, g, 0) * (total.x + total.y);
              sum[1][e] += Frag::minimum(second_row, g, 0) * (total.x + total.y);
            }
          }
        }
      };
      const int groups = min(p.piece_groups, p.groups - first);
      int g = warp;
#pragma unroll 1
      for (; g + 3 * kMultipliers < groups; g += 4 * kMultipliers) multiply_groups(std::integral_constant<int, 4>{}, g);
      if (g + 2 * kMultipliers < groups) {
        multiply_groups(std::integral_constant<int, 3>{}, g);
      } else if (g + kMultipliers < groups) {
        multiply_groups(std::integral_constant<int, 2>{}, g);
      } else if (g < groups) {
        multiply_groups(std::integral_constant<int, 1>{}, g);
      }
      __syncwarp();
      if (lane == 0) arrive(empty(at.slot));
      at.next(work.stages);
    }
    wait_barrier(sums_empty(sums_at.slot), sums_at.parity ^ 1);
    const uint32_t to = all_sums + (sums_at.slot * kMultipliers + warp) * kSumBytes + lane * 8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to + h * 256), "f"(sum[h][0] + running[2 * h]),
                   "f"(sum[h][1] + running[2 * h + 1])
                   : "memory");
    }
    __syncwarp();
    if (lane == 0) arrive(sums_full(sums_at.slot));
    sums_at.next(2);
  });
}

struct Layout {
  int operand_bytes, room;  // of the ring
};
template <class F>
Layout layout_of(int groups, const Launch& launch) {
  const int operands = groups * kUnits<F> * 512;
  return {operands, launch.shared_limit() - kBarrierBytes - kSumsBytes - kTilesBytes - operands};
}
template <class F>
int stage_bytes_of(int rounds) {
  const int pitch = ((bytes_of<F>(rounds * kMultipliers) + 30) / 16 | 1) * 16;
  const int scales = Fragment<F>::kGroupScales ? (2 * rounds * kMultipliers + 30) / 16 * 16 : 0;
  return kRows * (pitch + scales);
}

// Whether this kernel has room for the vectors of `op` and a ring.
template <class F>
bool takes(const MatMul& op, const Launch& launch) {
  if constexpr (!kStreams<F>) return false;
  if ((op.tile_expert ? op.token_tile : op.slots) > kVectors) return false;
  return layout_of<F>((op.matrix.cols + 31) / 32, launch).room >= kFewestStages * stage_bytes_of<F>(1);
}

// All of them taken.
template <class F>
void launch(std::span<const MatMul> ops, const Launch& launch) {
  if constexpr (kStreams<F>) {
    Work work = {};
    int groups = 0;
    for (const MatMul& op : ops) {
      if (op.matrix.rows == 0 || op.slots == 0) continue;
      work.plan[work.count] = {(op.matrix.rows + kRows - 1) / kRows, (op.matrix.cols + 31) / 32, 0};
      groups = std::max(groups, work.plan[work.count].groups);
      work.op[work.count++] = op;
    }
    if (work.count == 0) return;
    const Layout layout = layout_of<F>(groups, launch);
    // Pieces of equal size, as few as leave the ring four stages.
    const auto rounds_of = [](int some) { return (some + kMultipliers - 1) / kMultipliers; };
    const int rounds = rounds_of(groups);
    int piece_rounds = rounds;
    for (int pieces = 2; piece_rounds > 1 && 4 * stage_bytes_of<F>(piece_rounds) > layout.room; ++pieces) {
      piece_rounds = (rounds + pieces - 1) / pieces;
    }
    for (int i = 0; i < work.count; ++i) {
      const int own = rounds_of(work.plan[i].groups), pieces = (own + piece_rounds - 1) / piece_rounds;
      work.plan[i].piece_groups = (own + pieces - 1) / pieces * kMultipliers;
    }
    // So many that none meets more than kMaxTiles.
    int tiles = 0;
    for (int i = 0; i < work.count; ++i) tiles += work.op[i].tile_expert ? work.op[i].tiles : 1;
    const int blocks = std::max(launch.num_sms(), tiles / (kMaxTiles - 2 * kMaxMatMuls) + 1);
    work.operand_bytes = layout.operand_bytes;
    work.stage_bytes = stage_bytes_of<F>(piece_rounds);
    work.scales_pitch = Fragment<F>::kGroupScales ? (2 * piece_rounds * kMultipliers + 30) / 16 * 16 : 0;
    work.pitch = work.stage_bytes / kRows - work.scales_pitch;
    work.stages = std::min(kMaxStages, layout.room / work.stage_bytes);
    // The limit of a kernel's shared memory is the kernel's, not the launch's: one for all.
    launch(kernel<F>, dim3(blocks), dim3(kThreads), static_cast<size_t>(launch.shared_limit()), work);
  }
}

}  // namespace proa::cuda::matmul_stream
