// The kernel of matvec.h, a template over the format.
//
// A block takes tiles of eight rows, and the twelve warps share the columns of a tile. A tile's bytes come in one stage
// of the ring, or several where rows are long: rows of a model are contiguous, so that a stage is a run of memory. The
// sums of the warps meet in shared memory once per tile.
#pragma once

#include "backends/cuda/fragment.cuh"
#include "backends/cuda/launch.h"
#include "backends/cuda/matvec.h"

namespace proa::cuda {

constexpr int kMatVecWarps = 12;
constexpr int kMatVecThreads = kMatVecWarps * kWarp;
constexpr int kTileRows = 8;

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
  uint32_t chunks_inverse[2] = {};
  uint32_t scales_chunks_inverse[2] = {};
};

namespace matvec {

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// 16-byte chunks that a run of bytes at any address may touch.
__host__ __device__ constexpr int chunks_of(int bytes) { return bytes < 2 ? 2 : (bytes + 30) / 16; }

struct Shared {
  float room[2 * kWarp];
  float sums[2][kMatVecWarps][kTileRows];
  const uint8_t* data[kMaxExperts];
  const uint8_t* scales[kMaxExperts];
  float expert_scale[kMaxExperts];
  float unscale;  // what undoes the power of two of the input
};

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

  // Bytes of a row that part `part` has.
  __device__ int bytes_of(int kind, int part, int cols) const {
    const int left = cols - part * plan.part_cols[kind];
    const int here = min(left, plan.part_cols[kind]);
    return (here + F::block_elements - 1) / F::block_elements * static_cast<int>(sizeof(typename F::Block));
  }

  __device__ void copy_rows(const uint8_t* data, int64_t stride, const Matrix& shape, int tile, int offset, int bytes,
                            int pitch, int chunks, uint32_t inverse, uint8_t* to) const {
    for (int i = static_cast<int>(threadIdx.x); i < kTileRows * chunks; i += kMatVecThreads) {
      const int r = static_cast<int>(__umulhi(static_cast<uint32_t>(i), inverse));
      const int c = i - r * chunks;
      const uint8_t* row = data + row_of(shape, tile, r) * stride + offset;
      const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(row) & 15);
      if (16 * c < shift + bytes) copy_async(to + r * pitch + 16 * c, row - shift + 16 * c);
    }
  }

  __device__ void fetch(const Position& at, int slot) const {
    const Matrix& shape = shape_of(at);
    const int kind = kind_of(at);
    uint8_t* to = ring + slot * plan.stage_bytes;
    copy_rows(data_of(at), shape.stride, shape, at.tile, at.piece * plan.part_bytes[kind],
              bytes_of(kind, at.piece, shape.cols), plan.pitch[kind], chunks_of(plan.part_bytes[kind]),
              plan.chunks_inverse[kind], to);
    if constexpr (Frag::kGroupScales) {
      const int left = ceil_div(shape.cols - at.piece * plan.part_cols[kind], 16);
      copy_rows(scales_of(at), shape.scales_stride, shape, at.tile, at.piece * plan.scales_bytes[kind],
                min(plan.scales_bytes[kind], left), plan.scales_pitch[kind], chunks_of(plan.scales_bytes[kind]),
                plan.scales_chunks_inverse[kind], to + kTileRows * plan.pitch[kind]);
    }
  }

  // Where the first byte of a row of a stage is: at the distance from 16 bytes that it has in memory.
  __device__ static const uint8_t* in_ring(const uint8_t* stage, int pitch, const uint8_t* data, int64_t stride,
                                           const Matrix& shape, int tile, int r, int offset) {
    const auto low = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(data)) +
                     static_cast<uint32_t>(row_of(shape, tile, r)) * static_cast<uint32_t>(stride) +
                     static_cast<uint32_t>(offset);
    return stage + r * pitch + (low & 15);
  }

  // Adds this warp's share of a stage to the sums of rows 2j and 2j + 1.
  __device__ void consume(const Position& at, int slot, float (&sum)[2]) const {
    const Matrix& shape = shape_of(at);
    const int kind = kind_of(at), lane = lane_id(), j = lane % 4, pitch = plan.pitch[kind];
    const uint8_t* stage = ring + slot * plan.stage_bytes;
    const uint8_t* data = data_of(at);
    const auto row_in_ring = [&](int r) {
      return in_ring(stage, pitch, data, shape.stride, shape, at.tile, r, at.piece * plan.part_bytes[kind]);
    };
    const uint8_t* row = row_in_ring(lane / 4);
    const uint8_t* scales = nullptr;
    if constexpr (Frag::kGroupScales) {
      scales = in_ring(stage + kTileRows * pitch, plan.scales_pitch[kind], scales_of(at), shape.scales_stride, shape,
                       at.tile, lane / 4, at.piece * plan.scales_bytes[kind]);
    }
    const uint8_t* row0 = Frag::kScaleGroup ? row_in_ring(2 * j) : nullptr;
    const uint8_t* row1 = Frag::kScaleGroup ? row_in_ring(2 * j + 1) : nullptr;

    const int cols = shape.cols - at.piece * plan.part_cols[kind];
    const int groups = ceil_div(min(cols, plan.part_cols[kind]), 32);
    int first_group = at.piece * (plan.part_cols[kind] / 32);
    if (kind && narrow()) {
      if (a.num_matrices > 0) first_group += ceil_div(a.matrices[0].cols, 32);
      first_group += (at.list - a.num_matrices) * ceil_div(shape.cols, 32);
    }

    float running[4] = {};
#pragma unroll 2
    for (int g = warp_id(); g < groups; g += kMatVecWarps) {
      uint4 x = {};
      if (lane < 4 * kS) x = fragments[(first_group + g) * 4 * kS + lane];
      if constexpr (Frag::kScaleGroup == 0) {
#pragma unroll
        for (int pass = 0; pass < Frag::kPasses; ++pass) {
          uint32_t b[4];
          Frag::decode(row, scales, g, j, cols - 32 * g, pass, b);
          multiply<Frag::kBf16>(running, x.x, 0, x.y, 0, b[0], b[1]);
          multiply<Frag::kBf16>(running, x.z, 0, x.w, 0, b[2], b[3]);
        }
      } else {
        uint32_t b[4];
        Frag::decode(row, scales, g, j, cols - 32 * g, 0, b);
        if constexpr (Frag::kScaleGroup == 32) {
          float c[4] = {};
          multiply<Frag::kBf16>(c, x.x, 0, x.y, 0, b[0], b[1]);
          multiply<Frag::kBf16>(c, x.z, 0, x.w, 0, b[2], b[3]);
          sum[0] += Frag::scale(row0, g, 0) * c[0];
          sum[1] += Frag::scale(row1, g, 0) * c[1];
          if constexpr (Frag::kMin) {
            const float total = group_sums[2 * (first_group + g)] + group_sums[2 * (first_group + g) + 1];
            if (lane < 4) {
              sum[0] += Frag::minimum(row0, g, 0) * total;
              sum[1] += Frag::minimum(row1, g, 0) * total;
            }
          }
        } else {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float c[4] = {};
            multiply<Frag::kBf16>(c, half ? x.z : x.x, 0, half ? x.w : x.y, 0, b[2 * half], b[2 * half + 1]);
            sum[0] += Frag::scale(row0, g, half) * c[0];
            sum[1] += Frag::scale(row1, g, half) * c[1];
            if constexpr (Frag::kMin) {
              if (lane < 4) {
                sum[0] += Frag::minimum(row0, g, half) * group_sums[2 * (first_group + g) + half];
                sum[1] += Frag::minimum(row1, g, half) * group_sums[2 * (first_group + g) + half];
              }
            }
          }
        }
      }
    }
    sum[0] += running[0];
    sum[1] += running[1];
  }

  // Parts of the input lie in rows 0 to kS - 1 of the product, which lanes 4 apart hold.
  __device__ void put_sums(float (&sum)[2], int parity) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float total = sum[i];
      total += __shfl_down_sync(~0u, sum[i], 4);
      if constexpr (kS == 3) total += __shfl_down_sync(~0u, sum[i], 8);
      if (lane_id() < 4) shared.sums[parity][warp_id()][2 * lane_id() + i] = total;
      sum[i] = 0;
    }
  }

  // Row scales of a part that is one of a sum.
  __device__ void scale_rows(const Position& at, float (&sum)[2]) const {
    const Matrix& shape = shape_of(at);
    const float* scales = kind_of(at) ? (a.experts.row_scales ? reinterpret_cast<const float*>(scales_of(at)) : nullptr)
                                      : shape.row_scales;
    if (!scales) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] *= scales[row_of(shape, at.tile, 2 * (lane_id() % 4) + i)];
  }

  // Once all warps have put theirs: the first eight threads write the tile.
  __device__ void write(const Position& at, int parity) const {
    const int r = static_cast<int>(threadIdx.x);
    const Matrix& shape = shape_of(at);
    const int row = at.tile * kTileRows + r;
    if (r >= kTileRows || row >= shape.rows) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kMatVecWarps; ++w) total += shared.sums[parity][w][r];
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

  // The input as operands: for each group of 32 columns and each lane j, four registers of either short part.
  __device__ void load_input(float* rms) const {
    const bool sum_of_parts = narrow();
    const int tid = static_cast<int>(threadIdx.x);
    const int matrix_cols = a.num_matrices > 0 ? a.matrices[0].cols : sum_of_parts ? 0 : a.experts.shape.cols;
    const int cols = matrix_cols;  // of the first part
    const int expert_cols = sum_of_parts ? a.experts.shape.cols : 0;
    const float* x = a.x + (a.x_row ? static_cast<int64_t>(__ldcg(a.x_row)) * cols : 0);

    float squares = 0, largest = 0, norm_scale = 1;
    if (a.input == Input::gated) {
      const int width = cols / a.n_groups;
      for (int group = warp_id(); group < a.n_groups; group += kMatVecWarps) {
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
      for (int k = tid; k < cols; k += kMatVecThreads) {
        const float v = __ldcg(x + k);
        squares += v * v;
        largest = fmaxf(largest, fabsf(a.input == Input::normed ? v * a.norm[k]
                                       : sum_of_parts           ? v * part_factor(0)
                                                                : v));
      }
      for (int e = 0; sum_of_parts && e < a.experts.count; ++e) {
        const float factor = part_factor(e + (a.num_matrices > 0));
        const float* part = x + matrix_cols + static_cast<int64_t>(e) * expert_cols;
        for (int k = tid; k < expert_cols; k += kMatVecThreads)
          largest = fmaxf(largest, fabsf(__ldcg(part + k) * factor));
      }
    }
    const float2 total = block_sum_max(squares, largest, shared.room);
    if (a.input == Input::normed) norm_scale = 1.0f / sqrtf(total.x / static_cast<float>(cols) + a.eps);
    const float power = Frag::kBf16 ? 1.0f : half_scale(total.y * norm_scale);
    if (tid == 0) shared.unscale = 1.0f / power;

    const int matrix_groups = ceil_div(matrix_cols, 32), expert_groups = ceil_div(expert_cols, 32);
    for (int i = tid; i < plan.total_groups * 4; i += kMatVecThreads) {
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

  __device__ void load_experts() const {
    for (int k = static_cast<int>(threadIdx.x); k < a.experts.count; k += kMatVecThreads) {
      const int id = __ldcg(a.experts.ids + k);
      shared.data[k] = reinterpret_cast<const uint8_t*>(a.experts.data[id]);
      shared.scales[k] = a.experts.scales ? reinterpret_cast<const uint8_t*>(a.experts.scales[id]) : nullptr;
      shared.expert_scale[k] = a.experts.scale ? a.experts.scale[id] : 1.0f;
    }
    __syncthreads();
  }

  struct Pipeline {
    Position next;  // to fetch
    int slot = 0;   // of `next`
  };

  __device__ void fetch_next(Pipeline& p, int end) const {
    if (p.next.item < end) {
      fetch(p.next, p.slot);
      advance(p.next);
    }
    close_copies();
    p.slot = p.slot + 1 == plan.stages ? 0 : p.slot + 1;
  }

  // Fills the ring from tile `begin` on.
  __device__ Pipeline start(int begin, int end) const {
    Pipeline p{position(begin)};
    for (int i = 0; i + 1 < plan.stages; ++i) fetch_next(p, end);
    return p;
  }

  // Waits for the copies of all but the last stages - 2 closed groups.
  __device__ void wait_for_stage() const {
    switch (plan.stages) {
      case 2:
        return wait_for_copies<0>();
      case 3:
        return wait_for_copies<1>();
      case 4:
        return wait_for_copies<2>();
      case 5:
        return wait_for_copies<3>();
      case 6:
        return wait_for_copies<4>();
      case 7:
        return wait_for_copies<5>();
      default:
        return wait_for_copies<6>();
    }
  }

  // Tiles begin, begin + grid, ... below `end`, which start() has begun to fetch.
  __device__ void work(int begin, int end, Pipeline p) const {
    Position at = position(begin), done{-1};
    float sum[2] = {};
    int slot = 0, parity = 0;
    while (at.item < end) {
      wait_for_stage();
      __syncthreads();
      fetch_next(p, end);
      if (done.item >= 0) write(done, parity ^ 1), done.item = -1;
      if (narrow()) {
        float part[2] = {};
        consume(at, slot, part);
        scale_rows(at, part);
        sum[0] += part[0];
        sum[1] += part[1];
      } else {
        consume(at, slot, sum);
      }
      const Position before = at;
      advance(at);
      if (at.item != before.item) {
        put_sums(sum, parity);
        parity ^= 1;
        done = before;
      }
      slot = slot + 1 == plan.stages ? 0 : slot + 1;
    }
    wait_for_copies<0>();
    __syncthreads();
    if (done.item >= 0) write(done, parity ^ 1);
    __syncthreads();
  }
};

template <class F>
__global__ void __launch_bounds__(kMatVecThreads, 2)
    matvec_kernel(const __grid_constant__ MatVec a, const __grid_constant__ MatVecPlan plan) {
  extern __shared__ uint4 memory[];
  __shared__ Shared shared;
  constexpr bool kMin = Fragment<F>::kMin;
  uint4* fragments = memory;
  auto* group_sums = reinterpret_cast<float*>(fragments + plan.total_groups * 4 * kSplits<F>);
  auto* rms = group_sums + (kMin ? (2 * plan.total_groups + 3) / 4 * 4 : 0);
  auto* ring = reinterpret_cast<uint8_t*>(rms + (a.input == Input::gated ? (a.n_groups + 3) / 4 * 4 : 0));
  const Kernel<F> kernel{a, plan, shared, fragments, group_sums, ring};

  const int first = static_cast<int>(blockIdx.x), grid = static_cast<int>(gridDim.x);
  if (a.mode == MatVec::Mode::widen) {
    // Tiles of the matrix do not depend on the router, which is the predecessor.
    if (!a.input_is_old) wait_for_predecessor();
    const auto early = kernel.start(first, plan.matrix_tiles);
    kernel.load_input(rms);
    __syncthreads();
    kernel.work(first, plan.matrix_tiles, early);
    if (a.input_is_old) wait_for_predecessor();
    start_successor();
    kernel.load_experts();
    int begin = first;
    while (begin < plan.matrix_tiles) begin += grid;
    kernel.work(begin, plan.items, kernel.start(begin, plan.items));
    return;
  }
  // The router is not the predecessor of a narrow product, so its choice is known.
  if (a.mode == MatVec::Mode::narrow) kernel.load_experts();
  const auto pipeline = kernel.start(first, plan.items);
  wait_for_predecessor();
  start_successor();
  kernel.load_input(rms);
  __syncthreads();
  kernel.work(first, plan.items, pipeline);
}

inline uint32_t inverse_of(int divisor) {
  return static_cast<uint32_t>((uint64_t{1} << 32) / static_cast<uint64_t>(divisor) + 1);
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
    plan.chunks_inverse[kind] = inverse_of(chunks_of(plan.part_bytes[kind]));
    plan.scales_chunks_inverse[kind] = inverse_of(chunks_of(plan.scales_bytes[kind]));
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
  const int input_bytes = plan.total_groups * (64 * kSplits<F> + (Fragment<F>::kMin ? 8 : 0)) + 16 +
                          (op.input == Input::gated ? (op.n_groups + 3) / 4 * 16 : 0);
  // Half of an SM's shared memory, so that the successor can fill its own ring meanwhile.
  int ring = 112 * 1024 - input_bytes;
  ring = ring < 40 * 1024 ? 40 * 1024 : ring > 80 * 1024 ? 80 * 1024 : ring;
  plan.stages = ring / plan.stage_bytes < 2 ? 2 : ring / plan.stage_bytes > 8 ? 8 : ring / plan.stage_bytes;
  while (plan.stages > 2 && input_bytes + plan.stages * plan.stage_bytes + 16 > launch.shared_limit()) --plan.stages;
  const int blocks = plan.items < launch.num_sms() ? plan.items : launch.num_sms();
  launch(matvec_kernel<F>, dim3(blocks), dim3(kMatVecThreads), input_bytes + plan.stages * plan.stage_bytes + 16, op,
         plan);
}

}  // namespace matvec
}  // namespace proa::cuda
