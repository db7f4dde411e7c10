// The kernel of matvec.h, a template over the format.
//
// A block takes tiles of eight rows. One warp, the producer, fetches: stage after stage of a ring in shared memory, a
// stage being a tile's bytes, or a part of its columns where rows are long. Fifteen warps consume: they share the
// columns of each stage in turn, wait for nothing but its arrival, and leave their sums of a tile to the last of them,
// which writes it. Two groups of 32 columns go through one product of the tensor cores: rows 0-7 of its left side are
// the tile's rows in the first group, rows 8-15 the same rows in the second; columns 0-3 of its right side are the
// short parts of the input of the first group, columns 4-7 of the second. Of the result the two corners count.
#pragma once

#include "backends/cuda/fragment.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/matvec.h"

namespace proa::cuda {

constexpr int kConsumers = 15;  // warps
constexpr int kConsumerThreads = kConsumers * kWarp;
constexpr int kMatVecThreads = kConsumerThreads + kWarp;
constexpr int kTileRows = 8;
constexpr int kMaxStages = 7;
constexpr int kSums = 8;  // tiles whose sums may be open: more than stages

// How the ring is cut; made on the host by plan().
struct MatVecPlan {
  int stages = 0;
  int stage_bytes = 0;
  int total_groups = 0;  // of 32 columns, all parts of the input
  int matrix_tiles = 0;  // of all matrices
  int items = 0;         // tiles to do
  // 0: matrices, 1: experts
  int part_cols[2] = {};     // columns of a stage
  int parts[2] = {};         // stages of a row
  int part_bytes[2] = {};    // of a row
  int pitch[2] = {};         // bytes from row to row of a stage
  int scales_bytes[2] = {};  // of a row in a stage
  int scales_pitch[2] = {};  // 0: none
};

namespace matvec {

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// 16-byte chunks that a run of bytes at any address may touch.
__host__ __device__ constexpr int chunks_of(int bytes) { return bytes < 2 ? 2 : (bytes + 30) / 16; }

// What consumers need to know of a stage.
struct Stage {
  uint32_t row[kTileRows];     // where the row's first byte is in the ring
  uint32_t scales[kTileRows];  // of its group scales
  int groups;                  // -1: there are no more stages
  int first_group;             // of the input
  int cols;                    // of the row from here on
  int list, tile;              // whose
  int last;                    // of its tile
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kFullArrivals = kWarp;  // of the producer's lanes, once their copies are there
#else
constexpr int kFullArrivals = 1;
#endif

struct Shared {
  uint64_t full[kMaxStages], empty[kMaxStages];  // barriers
  Stage stages[kMaxStages];
  float room[2 * kWarp];
  float sums[kSums][kConsumers][kTileRows];
  uint32_t arrived[kSums];
  const uint8_t* data[kMaxExperts];
  const uint8_t* scales[kMaxExperts];
  float expert_scale[kMaxExperts];
  float unscale;  // what undoes the power of two of the input
};

__device__ __forceinline__ void init_barrier(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier))
               : "memory");
}
__device__ __forceinline__ void wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#endif
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  }
}
// A barrier among the consumers.
__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory"); }

// A stage of the sequence a block works through. Matrices and experts are counted on as one list of parts.
struct Position {
  int item = 0;   // tile, of all parts together; narrow: of each part
  int list = 0;   // number of the part: matrices first, then the experts
  int tile = 0;   // of that part
  int piece = 0;  // of the tile's columns
};

template <class F>
struct Kernel {
  using Frag = Fragment<F>;
  static constexpr int kS = kSplits<F>;

  const MatVec& a;
  const MatVecPlan& plan;
  Shared& shared;
  uint4* fragments;   // [total_groups, kS * 4]
  float* group_sums;  // [total_groups, 2] of the input, where the format has minima
  uint8_t* ring;

  __device__ bool narrow() const { return a.mode == MatVec::Mode::narrow; }
  __device__ int kind_of(const Position& at) const { return at.list >= a.num_matrices; }
  __device__ const Matrix& shape_of(const Position& at) const {
    return at.list < a.num_matrices ? a.matrices[at.list] : a.experts.shape;
  }
  __device__ const uint8_t* data_of(const Position& at) const {
    return at.list < a.num_matrices ? a.matrices[at.list].data : shared.data[at.list - a.num_matrices];
  }
  __device__ const uint8_t* scales_of(const Position& at) const {
    return at.list < a.num_matrices ? a.matrices[at.list].group_scales : shared.scales[at.list - a.num_matrices];
  }

  // Moves `tile` on to the part it falls into.
  __device__ void settle(Position& at) const {
    const int parts = a.num_matrices + a.experts.count;
    while (at.list < parts) {
      const int tiles = ceil_div(shape_of(at).rows, kTileRows);
      if (at.tile < tiles) return;
      at.tile -= tiles;
      ++at.list;
    }
  }
  __device__ Position position(int item) const {
    Position at{item, 0, item, 0};
    if (!narrow()) settle(at);
    return at;
  }
  __device__ void advance(Position& at) const {
    if (++at.piece < plan.parts[kind_of(at)]) return;
    at.piece = 0;
    const int step = static_cast<int>(gridDim.x);
    if (narrow()) {
      if (++at.list < a.num_matrices + a.experts.count) return;
      at.list = 0;
      at.item = at.tile += step;
      return;
    }
    at.item += step;
    at.tile += step;
    settle(at);
  }

  // Rows past the last are the last once more: memory that is there.
  __device__ static int row_of(const Matrix& shape, int tile, int r) {
    return min(tile * kTileRows + r, shape.rows - 1);
  }

  // A run of bytes of one row into the ring, with its distance from 16 bytes kept: where it begins there. The warp's
  // lanes 0-7 fetch a row each.
  __device__ uint32_t fetch_row(const uint8_t* row, int bytes, uint32_t to, uint64_t* full) const {
    const auto shift = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row) & 15);
#if __CUDA_ARCH__ >= 900
    const uint32_t size = (shift + bytes + 15) / 16 * 16;
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(full)), "r"(size)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(ring + to)),
                 "l"(row - shift), "r"(size), "r"(shared_address(full))
                 : "memory");
#else
    for (int c = 0; 16 * c < static_cast<int>(shift) + bytes; ++c) {
      copy_async(ring + to + 16 * c, row - shift + 16 * c);
    }
#endif
    return to + shift;
  }

  __device__ void fetch(const Position& at, int slot) const {
    const Matrix& shape = shape_of(at);
    const int kind = kind_of(at), lane = lane_id();
    Stage& stage = shared.stages[slot];
    uint64_t* full = &shared.full[slot];
    const int cols = shape.cols - at.piece * plan.part_cols[kind];
    const int here = min(cols, plan.part_cols[kind]);
    if (lane < kTileRows) {
      const int bytes =
          (here + F::block_elements - 1) / F::block_elements * static_cast<int>(sizeof(typename F::Block));
      const int64_t row = row_of(shape, at.tile, lane);
      stage.row[lane] = fetch_row(data_of(at) + row * shape.stride + at.piece * plan.part_bytes[kind], bytes,
                                  slot * plan.stage_bytes + lane * plan.pitch[kind], full);
      if constexpr (Frag::kGroupScales) {
        stage.scales[lane] = fetch_row(
            scales_of(at) + row * shape.scales_stride + at.piece * plan.scales_bytes[kind], ceil_div(here, 16),
            slot * plan.stage_bytes + kTileRows * plan.pitch[kind] + lane * plan.scales_pitch[kind], full);
      }
    }
    if (lane == 0) {
      int first_group = at.piece * (plan.part_cols[kind] / 32);
      if (kind && narrow()) {
        if (a.num_matrices > 0) first_group += ceil_div(a.matrices[0].cols, 32);
        first_group += (at.list - a.num_matrices) * ceil_div(shape.cols, 32);
      }
      stage.groups = ceil_div(here, 32);
      stage.first_group = first_group;
      stage.cols = cols;
      stage.list = at.list;
      stage.tile = at.tile;
      stage.last = at.piece + 1 == plan.parts[kind] && (!narrow() || at.list + 1 == a.num_matrices + a.experts.count);
    }
    announce(full);
  }

  // The stage's descriptor is written and its copies are under way.
  __device__ void announce(uint64_t* full) const {
    __syncwarp();
#if __CUDA_ARCH__ >= 900
    if (lane_id() == 0) arrive(full);
#else
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full)) : "memory");
#endif
  }

  struct Ring {
    int slot = 0;
    uint32_t parity = 0;
    __device__ void next(int stages) {
      if (++slot < stages) return;
      slot = 0;
      parity ^= 1;
    }
  };

  // Tiles first, first + grid, ... below `end`; returns the tile after.
  __device__ int produce(int first, int end, Ring& ring_at) const {
    Position at = position(first);
    while (at.item < end) {
      wait(&shared.empty[ring_at.slot], ring_at.parity ^ 1);
      fetch(at, ring_at.slot);
      advance(at);
      ring_at.next(plan.stages);
    }
    return at.item;
  }
  __device__ void end_production(Ring& ring_at) const {
    wait(&shared.empty[ring_at.slot], ring_at.parity ^ 1);
    if (lane_id() == 0) shared.stages[ring_at.slot].groups = -1;
    announce(&shared.full[ring_at.slot]);
#if __CUDA_ARCH__ < 900
    wait_for_copies<0>();
#endif
  }

  // One pair of groups for this warp; beyond the last it repeats that one with an input of zeros.
  __device__ __forceinline__ void multiply_pair(uint32_t row, uint32_t scales, uint32_t input, const Stage& stage,
                                                int p, int groups, int cols, float (&running)[4], float& sum) const {
    const int lane = lane_id(), j = lane % 4, part = lane / 4 % 4, second = lane / 16;
    const int g0 = min(2 * p, groups - 1), g1 = min(2 * p + 1, groups - 1);
    const int mine = j < 2 ? g0 : g1;  // the group of this lane's corner of the result
    uint4 x = {};
    if (part < kS && 2 * p + second < groups) x = load_vector(input + (2 * p + second) * (64 * kS));
    if constexpr (Frag::kScaleGroup == 0) {
#pragma unroll
      for (int pass = 0; pass < Frag::kPasses; ++pass) {
        uint32_t u[4], v[4];
        Frag::decode(row, scales, g0, j, cols - 32 * g0, pass, u);
        Frag::decode(row, scales, g1, j, cols - 32 * g1, pass, v);
        multiply<Frag::kBf16>(running, u[0], v[0], u[1], v[1], x.x, x.y);
        multiply<Frag::kBf16>(running, u[2], v[2], u[3], v[3], x.z, x.w);
      }
    } else {
      uint32_t u[4], v[4];
      Frag::decode(row, scales, g0, j, cols - 32 * g0, 0, u);
      Frag::decode(row, scales, g1, j, cols - 32 * g1, 0, v);
      float c[4] = {};
      multiply<Frag::kBf16>(c, u[0], v[0], u[1], v[1], x.x, x.y);
      if constexpr (Frag::kScaleGroup == 16) {
        sum += Frag::scale(row, mine, 0) * (j < 2 ? c[0] + c[1] : c[2] + c[3]);
        c[0] = c[1] = c[2] = c[3] = 0;
      }
      multiply<Frag::kBf16>(c, u[2], v[2], u[3], v[3], x.z, x.w);
      sum += Frag::scale(row, mine, 1) * (j < 2 ? c[0] + c[1] : c[2] + c[3]);
      if constexpr (Frag::kMin) {
        if ((j == 0 && 2 * p < groups) || (j == 2 && 2 * p + 1 < groups)) {
          const float* halves = group_sums + 2 * (stage.first_group + mine);
          if constexpr (Frag::kScaleGroup == 16) {
            sum += Frag::minimum(row, mine, 0) * halves[0] + Frag::minimum(row, mine, 1) * halves[1];
          } else {
            sum += Frag::minimum(row, mine, 0) * (halves[0] + halves[1]);
          }
        }
      }
    }
  }

  __device__ void consume(const Stage& stage, int first_pair, float& sum) const {
    const int lane = lane_id(), j = lane % 4, part = lane / 4 % 4;
    const uint32_t ring_address = shared_address(ring);
    const uint32_t row = ring_address + stage.row[lane / 4];
    const uint32_t scales = Frag::kGroupScales ? ring_address + stage.scales[lane / 4] : 0;
    const int groups = stage.groups, cols = stage.cols;
    const uint32_t input = shared_address(fragments) + (stage.first_group * 4 * kS + part * 4 + j) * 16;
    const int pairs = (groups + 1) / 2;
    float running[4] = {};
    // Two at once, so that one's loads go on while the other's products are formed.
    for (int p = first_pair; p < pairs; p += 2 * kConsumers) {
      multiply_pair(row, scales, input, stage, p, groups, cols, running, sum);
      if (p + kConsumers < pairs) multiply_pair(row, scales, input, stage, p + kConsumers, groups, cols, running, sum);
    }
    if constexpr (Frag::kScaleGroup == 0) sum += j < 2 ? running[0] + running[1] : running[2] + running[3];
  }

  // Row scales of a part that is one of a sum.
  __device__ float row_scale(const Stage& stage) const {
    const Position at{0, stage.list, stage.tile, 0};
    const Matrix& shape = shape_of(at);
    const float* scales = kind_of(at) ? (a.experts.row_scales ? reinterpret_cast<const float*>(scales_of(at)) : nullptr)
                                      : shape.row_scales;
    return scales ? scales[row_of(shape, stage.tile, lane_id() / 4)] : 1.0f;
  }

  // The last warp to leave its sums of a tile writes it.
  __device__ void finish(const Stage& stage, float& sum, int tile_number) const {
    const int lane = lane_id(), warp = warp_id(), buffer = tile_number % kSums;
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (lane % 4 == 0) shared.sums[buffer][warp][lane / 4] = sum;
    sum = 0;
    __syncwarp();
    uint32_t before = 0;
    if (lane == 0) {
      __threadfence_block();
      before = atomicAdd(&shared.arrived[buffer], 1u);
      if (before == kConsumers - 1) shared.arrived[buffer] = 0;
      __threadfence_block();
    }
    if (__shfl_sync(~0u, before, 0) != kConsumers - 1) return;
    __syncwarp();
    write(stage, buffer);
  }

  __device__ void write(const Stage& stage, int buffer) const {
    const int r = lane_id() % kTileRows, quarter = lane_id() / kTileRows;
    float total = 0;
#pragma unroll
    for (int w = 0; w < (kConsumers + 3) / 4; ++w) {
      if (4 * w + quarter < kConsumers) total += shared.sums[buffer][4 * w + quarter][r];
    }
    total += __shfl_xor_sync(~0u, total, 8);
    total += __shfl_xor_sync(~0u, total, 16);
    const Position at{0, stage.list, stage.tile, 0};
    const Matrix& shape = shape_of(at);
    const int row = stage.tile * kTileRows + r;
    if (quarter > 0 || row >= shape.rows) return;
    total *= shared.unscale * Frag::kFactor;
    float* y = shape.y + row;
    if (!narrow()) {
      if (kind_of(at)) {
        const int expert = at.list - a.num_matrices;
        total *= shared.expert_scale[expert];
        if (a.experts.row_scales) total *= reinterpret_cast<const float*>(scales_of(at))[row];
        y += static_cast<int64_t>(expert) * shape.rows;
      } else {
        total *= shape.scale;
        if (shape.row_scales) total *= shape.row_scales[row];
      }
    }
    switch (a.output) {
      case Output::store:
        *y = total;
        break;
      case Output::add:
        *y = __ldcg(y) + total;
        break;
      case Output::activate:
        *y = activated(a.relu2, total);
        break;
      case Output::gate:
        *y = activated(a.relu2, __ldcg(a.gate + row)) * total;
        break;
    }
  }

  __device__ float input_value(const float* x, const float* rms, int k) const {
    float v = __ldcg(x + k);
    if (a.input == Input::normed) v *= a.norm[k];
    if (a.input == Input::gated) {
      const int width = a.matrices[0].cols / a.n_groups;
      v = v * silu(__ldcg(a.z + k)) * rms[k / width] * a.norm[k];
    }
    return v;
  }

  // The factor of part k of a narrow product: 1 for the matrix, the router's weight for an expert.
  __device__ float part_factor(int part) const {
    const int skip = a.num_matrices > 0;
    if (part < skip) return a.matrices[0].scale;
    return __ldcg(a.experts.weights + part - skip) * shared.expert_scale[part - skip];
  }

  __device__ float2 consumers_sum_max(float sum, float most) const {
    sum = warp_sum(sum);
    most = warp_max(most);
    if (lane_id() == 0) {
      shared.room[warp_id()] = sum;
      shared.room[kWarp + warp_id()] = most;
    }
    consumers_sync();
    const bool there = lane_id() < kConsumers;
    return {warp_sum(there ? shared.room[lane_id()] : 0.0f), warp_max(there ? shared.room[kWarp + lane_id()] : 0.0f)};
  }

  // An item is the eight values of one lane j of one group of 32 columns, in the order of the format.
  __device__ static void load_item(const float* values, int j, float (&v)[8], bool old) {
    const auto four = [&](int k) {
      const auto* p = reinterpret_cast<const float4*>(values + k);
      return old ? __ldg(p) : __ldcg(p);
    };
    constexpr Order kOrder = Frag::kOrder;
    if constexpr (kOrder == Order::nvfp4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto* p = reinterpret_cast<const float2*>(values + 8 * i + 2 * j);
        const float2 two = old ? __ldg(p) : __ldcg(p);
        v[i / 2 * 4 + i % 2] = two.x;
        v[i / 2 * 4 + i % 2 + 2] = two.y;
      }
    } else {
      constexpr bool kApart = kOrder == Order::nibbles || kOrder == Order::parts;
      constexpr int kSecond = kApart ? 16 : 4;
      const int first = kApart ? 4 * j : 8 * j;
      const float4 a = four(first), b = four(first + kSecond);
      const float both[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int k = column_of(kOrder, 0, i);
        v[i] = both[k < kSecond ? k : k - kSecond + 4];
      }
    }
  }
  __device__ void put_item(int item, float (&v)[8], float factor) const {
    const int group = item / 4, j = item % 4;
    uint32_t packed[4][kS];
#pragma unroll
    for (int n = 0; n < 4; ++n) split_pair<Frag::kBf16>(v[2 * n] * factor, v[2 * n + 1] * factor, packed[n]);
#pragma unroll
    for (int p = 0; p < kS; ++p) {
      fragments[(group * kS + p) * 4 + j] = {packed[0][p], packed[1][p], packed[2][p], packed[3][p]};
    }
    if constexpr (Frag::kMin) {
      const uint32_t mask = __activemask();
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float half = ((v[4 * h] + v[4 * h + 1]) + (v[4 * h + 2] + v[4 * h + 3])) * factor;
        half += __shfl_xor_sync(mask, half, 1);
        half += __shfl_xor_sync(mask, half, 2);
        if (j == 0) group_sums[2 * group + h] = half;
      }
    }
  }

  __device__ void begin_after_predecessor() const {
    if (a.input_is_old) return;
    wait_for_predecessor();
    if (a.mode != MatVec::Mode::widen && threadIdx.x == 0) start_successor();
  }

  // The input of sizes as models have them: kItems items a thread, all of them loaded at once.
  template <int kItems, Input kInput>
  __device__ void load_whole_input(float* rms) const {
    const int tid = static_cast<int>(threadIdx.x), items = plan.total_groups * 4;
    const int matrix_cols = a.num_matrices > 0 ? a.matrices[0].cols : narrow() ? 0 : a.experts.shape.cols;
    const int matrix_groups = matrix_cols / 32, expert_groups = narrow() ? a.experts.shape.cols / 32 : 0;
    float v[kItems][8];
    float norm[kInput == Input::plain ? 1 : kItems][8];
    if constexpr (kInput != Input::plain) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int item = tid + i * kConsumerThreads;
        if (item < items) load_item(a.norm + item / 4 * 32, item % 4, norm[i], true);
      }
    }
    begin_after_predecessor();
    const float* x = a.x + (a.x_row ? static_cast<int64_t>(__ldcg(a.x_row)) * matrix_cols : 0);
    float squares = 0, largest = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = tid + i * kConsumerThreads;
#pragma unroll
      for (int n = 0; n < 8; ++n) v[i][n] = 0;
      if (item < items) load_item(x + item / 4 * 32, item % 4, v[i], false);
    }
    if constexpr (kInput == Input::plain) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int item = tid + i * kConsumerThreads, group = item / 4;
        float factor = 1;
        if (narrow() && item < items) {
          const int expert = group < matrix_groups ? -1 : (group - matrix_groups) / expert_groups;
          factor = part_factor(expert < 0 ? 0 : expert + (a.num_matrices > 0));
        }
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          v[i][n] *= factor;
          largest = fmaxf(largest, fabsf(v[i][n]));
        }
      }
    }
    if constexpr (kInput == Input::gated) {
      const int groups_of_norm = matrix_groups / a.n_groups;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int item = tid + i * kConsumerThreads;
        float z[8] = {};
        if (item < items) load_item(a.z + item / 4 * 32, item % 4, z, false);
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          v[i][n] *= silu(z[n]);
          sum += v[i][n] * v[i][n];
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (item < items && item % 4 == 0) rms[item / 4] = sum;
      }
      consumers_sync();
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int item = tid + i * kConsumerThreads;
        if (item >= items) continue;
        const float* sums = rms + item / 4 / groups_of_norm * groups_of_norm;
        float sum = 0;
        for (int g = 0; g < groups_of_norm; ++g) sum += sums[g];
        const float scale = 1.0f / sqrtf(sum / static_cast<float>(32 * groups_of_norm) + a.eps);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          v[i][n] = v[i][n] * scale * norm[i][n];
          largest = fmaxf(largest, fabsf(v[i][n]));
        }
      }
    }
    if constexpr (kInput == Input::normed) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (tid + i * kConsumerThreads >= items) continue;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          squares += v[i][n] * v[i][n];
          v[i][n] *= norm[i][n];
          largest = fmaxf(largest, fabsf(v[i][n]));
        }
      }
    }
    const float2 total = consumers_sum_max(squares, largest);
    const float scale =
        kInput == Input::normed ? 1.0f / sqrtf(total.x / static_cast<float>(matrix_cols) + a.eps) : 1.0f;
    const float power = Frag::kBf16 ? 1.0f : half_scale(total.y * scale);
    if (tid == 0) shared.unscale = 1.0f / power;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = tid + i * kConsumerThreads;
      if (item < items) put_item(item, v[i], scale * power);
    }
  }

  __device__ void load_input(float* rms) const {
    const auto vectors = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    const int matrix_cols = a.num_matrices > 0 ? a.matrices[0].cols : narrow() ? 0 : a.experts.shape.cols;
    const int expert_cols = narrow() ? a.experts.shape.cols : 0;
    const bool whole =
        matrix_cols % 32 == 0 && expert_cols % 32 == 0 && vectors(a.x) && vectors(a.z) && vectors(a.norm);
    const int items = plan.total_groups * 4;
    if (whole && a.input == Input::normed && items <= 2 * kConsumerThreads) {
      load_whole_input<2, Input::normed>(rms);
    } else if (whole && a.input == Input::gated && items <= 2 * kConsumerThreads &&
               matrix_cols / 32 % a.n_groups == 0) {
      load_whole_input<2, Input::gated>(rms);
    } else if (whole && a.input == Input::plain && items <= 4 * kConsumerThreads) {
      load_whole_input<4, Input::plain>(rms);
    } else {
      begin_after_predecessor();
      load_any_input(rms);
    }
  }

  // The input as operands: for each group of 32 columns and each lane j, four registers of either short part.
  __device__ void load_any_input(float* rms) const {
    const bool sum_of_parts = narrow();
    const int tid = static_cast<int>(threadIdx.x);
    const int matrix_cols = a.num_matrices > 0 ? a.matrices[0].cols : sum_of_parts ? 0 : a.experts.shape.cols;
    const int cols = matrix_cols;  // of the first part
    const int expert_cols = sum_of_parts ? a.experts.shape.cols : 0;
    const float* x = a.x + (a.x_row ? static_cast<int64_t>(__ldcg(a.x_row)) * cols : 0);

    float squares = 0, largest = 0, norm_scale = 1;
    if (a.input == Input::gated) {
      const int width = cols / a.n_groups;
      for (int group = warp_id(); group < a.n_groups; group += kConsumers) {
        float sum = 0, most = 0;
        for (int i = lane_id(); i < width; i += kWarp) {
          const int k = group * width + i;
          const float v = __ldcg(x + k) * silu(__ldcg(a.z + k));
          sum += v * v;
          most = fmaxf(most, fabsf(v * a.norm[k]));
        }
        sum = warp_sum(sum);
        const float r = 1.0f / sqrtf(sum / static_cast<float>(width) + a.eps);
        if (lane_id() == 0) rms[group] = r;
        largest = fmaxf(largest, most * r);
      }
    } else {
      for (int k = tid; k < cols; k += kConsumerThreads) {
        const float v = __ldcg(x + k);
        squares += v * v;
        largest = fmaxf(largest, fabsf(a.input == Input::normed ? v * a.norm[k]
                                       : sum_of_parts           ? v * part_factor(0)
                                                                : v));
      }
      for (int e = 0; sum_of_parts && e < a.experts.count; ++e) {
        const float factor = part_factor(e + (a.num_matrices > 0));
        const float* part = x + matrix_cols + static_cast<int64_t>(e) * expert_cols;
        for (int k = tid; k < expert_cols; k += kConsumerThreads)
          largest = fmaxf(largest, fabsf(__ldcg(part + k) * factor));
      }
    }
    const float2 total = consumers_sum_max(squares, largest);
    if (a.input == Input::normed) norm_scale = 1.0f / sqrtf(total.x / static_cast<float>(cols) + a.eps);
    const float power = Frag::kBf16 ? 1.0f : half_scale(total.y * norm_scale);
    if (tid == 0) shared.unscale = 1.0f / power;

    const int matrix_groups = ceil_div(matrix_cols, 32), expert_groups = ceil_div(expert_cols, 32);
    for (int i = tid; i < plan.total_groups * 4; i += kConsumerThreads) {
      const int group = i / 4, j = i % 4;
      int in_part = group, part = 0, part_cols = cols;
      const float* values = x;
      if (group >= matrix_groups) {
        part = (group - matrix_groups) / expert_groups;
        in_part = (group - matrix_groups) % expert_groups;
        values = x + matrix_cols + static_cast<int64_t>(part) * expert_cols;
        part += a.num_matrices > 0;
        part_cols = expert_cols;
      }
      const float factor = sum_of_parts ? part_factor(part) : 1.0f;
      float v[8];
      float halves[2] = {};
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int k = 32 * in_part + column_of(Frag::kOrder, j, n);
        v[n] = k < part_cols ? input_value(values, rms, k) * norm_scale * factor * power : 0.0f;
        halves[n / 4] += v[n];
      }
      uint32_t packed[4][kS];
#pragma unroll
      for (int n = 0; n < 4; ++n) split_pair<Frag::kBf16>(v[2 * n], v[2 * n + 1], packed[n]);
#pragma unroll
      for (int p = 0; p < kS; ++p) {
        fragments[(group * kS + p) * 4 + j] = {packed[0][p], packed[1][p], packed[2][p], packed[3][p]};
      }
      if constexpr (Frag::kMin) {  // the four lanes of a group stand side by side; whole groups leave the loop together
        const uint32_t mask = __activemask();
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          halves[h] += __shfl_xor_sync(mask, halves[h], 1);
          halves[h] += __shfl_xor_sync(mask, halves[h], 2);
          if (j == 0) group_sums[2 * group + h] = halves[h];
        }
      }
    }
  }

  // By the producer.
  __device__ void load_experts() const {
    for (int k = lane_id(); k < a.experts.count; k += kWarp) {
      const int id = __ldcg(a.experts.ids + k);
      shared.data[k] = reinterpret_cast<const uint8_t*>(a.experts.data[id]);
      shared.scales[k] = a.experts.scales ? reinterpret_cast<const uint8_t*>(a.experts.scales[id]) : nullptr;
      shared.expert_scale[k] = a.experts.scale ? a.experts.scale[id] : 1.0f;
    }
    __syncwarp();
  }

  __device__ void producer() const {
    const int first = static_cast<int>(blockIdx.x);
    Ring at;
    if (a.mode == MatVec::Mode::widen) {
      // Tiles of the matrix do not depend on the router, which is the predecessor.
      const int next = produce(first, plan.matrix_tiles, at);
      wait_for_predecessor();
      if (lane_id() == 0) start_successor();
      load_experts();
      produce(next, plan.items, at);
    } else {
      produce(first, plan.items, at);
    }
    end_production(at);
  }

  __device__ void consumer(float* rms) const {
    load_input(rms);
    consumers_sync();
    Ring at;
    float sum = 0;
    int tile_number = 0, turn = warp_id();  // pairs of columns go round among the warps, on from stage to stage
    for (;;) {
      wait(&shared.full[at.slot], at.parity);
      const Stage& stage = shared.stages[at.slot];
      if (stage.groups < 0) return;
      if (narrow()) {
        float part = 0;
        consume(stage, turn, part);
        sum += part * row_scale(stage);
      } else {
        consume(stage, turn, sum);
      }
      const int pairs = (stage.groups + 1) / 2;
      turn = (turn + kConsumers - pairs % kConsumers) % kConsumers;
      if (stage.last) finish(stage, sum, tile_number++);
      __syncwarp();
      if (lane_id() == 0) arrive(&shared.empty[at.slot]);
      at.next(plan.stages);
    }
  }
};

// Room for sums of a gated norm: of each group of 32 columns, or of each group of the norm.
__host__ __device__ inline int rms_floats(const MatVec& a, const MatVecPlan& plan) {
  if (a.input != Input::gated) return 0;
  const int most = a.n_groups > plan.total_groups ? a.n_groups : plan.total_groups;
  return (most + 3) / 4 * 4;
}

template <class F>
__global__ void __launch_bounds__(kMatVecThreads, 2)
    matvec_kernel(const __grid_constant__ MatVec a, const __grid_constant__ MatVecPlan plan) {
  extern __shared__ uint4 memory[];
  __shared__ Shared shared;
  constexpr bool kMin = Fragment<F>::kMin;
  uint4* fragments = memory;
  auto* group_sums = reinterpret_cast<float*>(fragments + plan.total_groups * 4 * kSplits<F>);
  auto* rms = group_sums + (kMin ? (2 * plan.total_groups + 3) / 4 * 4 : 0);
  auto* ring = reinterpret_cast<uint8_t*>(rms + rms_floats(a, plan));
  const Kernel<F> kernel{a, plan, shared, fragments, group_sums, ring};

  const bool produces = warp_id() == kConsumers;
  if (threadIdx.x == kConsumerThreads) {
    for (int i = 0; i < plan.stages; ++i) {
      init_barrier(&shared.full[i], kFullArrivals);
      init_barrier(&shared.empty[i], kConsumers);
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  if (threadIdx.x < kSums) shared.arrived[threadIdx.x] = 0;
  // The router is not the predecessor of a narrow product, so its choice is known, and consumers need it too.
  if (produces && a.mode == MatVec::Mode::narrow) kernel.load_experts();
  __syncthreads();
  if (produces) {
    kernel.producer();
  } else {
    kernel.consumer(rms);
  }
}

// A row pitch at which eight rows fall into different banks.
template <class F>
int pitch_of(int bytes) {
  int units = chunks_of(bytes);
  const bool wide = sizeof(typename F::Block) * 32 / F::block_elements >= 64;  // lanes read 16 bytes
  while (wide ? units % 8 != 4 : units % 2 == 0) ++units;
  return units * 16;
}

constexpr int kStageBytes = 25600;  // at most, unless the least part of a row is larger

template <class F>
MatVecPlan plan_of(const MatVec& op) {
  MatVecPlan plan;
  const bool narrow = op.mode == MatVec::Mode::narrow;
  const int expert_count = op.mode == MatVec::Mode::plain ? 0 : op.experts.count;
  const int cols[2] = {op.num_matrices > 0 ? op.matrices[0].cols : 0, expert_count > 0 ? op.experts.shape.cols : 0};
  for (int kind = 0; kind < 2; ++kind) {
    if (cols[kind] == 0) continue;
    int bytes = 0;
    for (int parts = 1;; ++parts) {
      const int part = ceil_div(ceil_div(cols[kind], parts), kUnit<F>) * kUnit<F>;
      plan.part_cols[kind] = part;
      plan.parts[kind] = ceil_div(cols[kind], part);
      plan.part_bytes[kind] = part / F::block_elements * static_cast<int>(sizeof(typename F::Block));
      plan.pitch[kind] = pitch_of<F>(plan.part_bytes[kind]);
      if (Fragment<F>::kGroupScales) {
        plan.scales_bytes[kind] = part / 16;
        plan.scales_pitch[kind] = (chunks_of(part / 16) | 1) * 16;
      }
      bytes = kTileRows * (plan.pitch[kind] + plan.scales_pitch[kind]);
      if (bytes <= kStageBytes || part == kUnit<F>) break;
    }
    plan.stage_bytes = bytes > plan.stage_bytes ? bytes : plan.stage_bytes;
  }
  const auto tiles = [](const Matrix& matrix) { return ceil_div(matrix.rows, kTileRows); };
  for (int i = 0; i < op.num_matrices; ++i) plan.matrix_tiles += tiles(op.matrices[i]);
  plan.items = narrow ? tiles(op.num_matrices > 0 ? op.matrices[0] : op.experts.shape)
                      : plan.matrix_tiles + expert_count * (expert_count > 0 ? tiles(op.experts.shape) : 0);
  plan.total_groups = narrow ? ceil_div(cols[0], 32) + expert_count * ceil_div(cols[1], 32)
                             : ceil_div(op.num_matrices > 0 ? cols[0] : cols[1], 32);
  return plan;
}

template <class F>
void launch(const MatVec& op, const Launch& launch) {
  MatVecPlan plan = plan_of<F>(op);
  if (plan.items == 0) return;
  const int input_bytes =
      plan.total_groups * (64 * kSplits<F> + (Fragment<F>::kMin ? 8 : 0)) + 16 + 4 * rms_floats(op, plan);
  // Half of an SM's shared memory, so that the successor can fill its own ring meanwhile.
  int ring = 112 * 1024 - input_bytes;
  ring = ring < 40 * 1024 ? 40 * 1024 : ring > 80 * 1024 ? 80 * 1024 : ring;
  plan.stages = ring / plan.stage_bytes < 2            ? 2
                : ring / plan.stage_bytes > kMaxStages ? kMaxStages
                                                       : ring / plan.stage_bytes;
  while (plan.stages > 2 && input_bytes + plan.stages * plan.stage_bytes + 16 > launch.shared_limit()) --plan.stages;
  const int blocks = plan.items < launch.num_sms() ? plan.items : launch.num_sms();
  launch(matvec_kernel<F>, dim3(blocks), dim3(kMatVecThreads), input_bytes + plan.stages * plan.stage_bytes + 16, op,
         plan);
}

}  // namespace matvec
}  // namespace proa::cuda
