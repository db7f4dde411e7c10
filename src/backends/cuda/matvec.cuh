// Matrix times vector as a stage of a step (step.h): how one warp of a block fetches weights, and how the others
// multiply.
//
// Every block takes an equal share of the rows, so that all have as many bytes to fetch. A piece, rows by columns, goes
// to a place of the ring; the warps share its columns, wait for nothing but its arrival, and leave their sums of a
// tile to the last of them, which writes it.
// A product of the tensor cores takes two groups of 32 columns: rows 0-7 of its left side are eight rows of the tile in
// the first group, rows 8-15 the same rows in the second; columns 0-3 of its right side are what makes the input of the
// first group (operands.cuh), columns 4-7 the second. Of the result the two corners count.
#pragma once

#include "backends/cuda/operands.cuh"
#include "backends/cuda/step.h"

namespace proa::cuda {

constexpr int kSlots = 12;  // pieces in the ring at most
constexpr int kMaxTileRows = 24;
constexpr int kMaxOctets = kMaxTileRows / 8;
constexpr int kSums = kSlots + 1;  // tiles whose sums may be open

// What consumers need to know of a piece.
struct Piece {
  uint32_t row[kMaxTileRows];     // where the row's first byte is in the ring
  uint32_t scales[kMaxTileRows];  // of its group scales
  int rows;
  int groups;       // -1: nothing; the block has no rows in this stage
  int first_group;  // of the input
  int cols;         // of the row from here on
  int list;         // whose: matrices, then experts
  int first_row;
  bool last;           // of its tile
  int tiles_of_stage;  // in the very last piece: how many this block has; else 0
};

struct Shared {
  uint64_t full[kSlots], empty[kSlots];  // barriers
  Piece pieces[kSlots];
  float room[2 * kWarp];
  float sums[kSums][kConsumers][kMaxTileRows];
  uint32_t arrived[kSums];
  int tiles_left;          // 0 when all tiles of the stage are written
  float old[kMaxOldRows];  // what the stage adds to
  float unscale;           // what undoes the power of two of the input
  // Of the chosen experts, by the producer: of the product that widens and of the one that sums.
  const uint8_t* data[2][kMaxExperts];
  const uint8_t* scales[2][kMaxExperts];
  float expert_scale[2][kMaxExperts];
  float expert_weight[kMaxExperts];
  int32_t expert_id[kMaxExperts];
  float choice[2 * kMaxRoutedExperts];
};

struct Range {
  int begin, end;
};
// This block's share of `count` things in a row.
__device__ __forceinline__ Range share_of(int count) {
  const auto blocks = static_cast<int64_t>(gridDim.x);
  return {static_cast<int>(count * static_cast<int64_t>(blockIdx.x) / blocks),
          static_cast<int>(count * (static_cast<int64_t>(blockIdx.x) + 1) / blocks)};
}

__device__ __forceinline__ bool narrow(const MatVec& a) { return a.mode == MatVec::Mode::narrow; }
// Rows of all matrices, one behind the other; of a sum, of the one result.
__device__ inline int matrix_rows(const MatVec& a) {
  if (narrow(a)) return a.num_matrices > 0 ? a.matrices[0].rows : a.experts.shape.rows;
  int rows = 0;
  for (int i = 0; i < a.num_matrices; ++i) rows += a.matrices[i].rows;
  return rows;
}

// The place a ring piece has, and the turn it is in.
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++slot < kSlots) return;
    slot = 0;
    parity ^= 1;
  }
};

// The warp that fetches. It keeps its state from stage to stage.
class Producer {
 public:
  __device__ Producer(Shared& shared, uint8_t* ring, int ring_bytes)
      : shared_(shared), ring_(ring), ring_bytes_(ring_bytes) {}

  // `wait_for_experts` returns when ids and weights are in `shared`; called once between matrices and experts.
  template <typename F>
  __device__ void produce(const MatVec& a, const MatVecPlan& plan, bool group_scales, int unit_elements, int unit_bytes,
                          F&& wait_for_experts) {
    unit_elements_ = unit_elements, unit_bytes_ = unit_bytes, group_scales_ = group_scales;
    tiles_ = 0;
    if (narrow(a)) return produce_sum(a, plan);
    const bool experts = a.mode == MatVec::Mode::widen;
    const Range mine = share_of(matrix_rows(a));
    const Range mine_of_experts = experts ? share_of(a.experts.count * a.experts.shape.rows) : Range{0, 0};
    int first = 0;  // row of the first matrix in the list of all
    for (int i = 0; i < a.num_matrices; ++i) {
      const Matrix& m = a.matrices[i];
      tiles(m, m.data, m.group_scales, i, 0, max(mine.begin - first, 0), min(mine.end - first, m.rows), plan,
            !experts && mine.end <= first + m.rows);
      first += m.rows;
    }
    if (!experts) {
      if (mine.begin == mine.end) nothing();
      return;
    }
    wait_for_experts();
    const Matrix& shape = a.experts.shape;
    first = 0;
    for (int e = 0; e < a.experts.count; ++e, first += shape.rows) {
      if (first + shape.rows <= mine_of_experts.begin || first >= mine_of_experts.end) continue;
      tiles(shape, shared_.data[0][e], shared_.scales[0][e], a.num_matrices + e, 1,
            max(mine_of_experts.begin - first, 0), min(mine_of_experts.end - first, shape.rows), plan,
            mine_of_experts.end <= first + shape.rows);
    }
    if (mine_of_experts.begin == mine_of_experts.end) nothing();
  }

 private:
  // Rows [begin, end) of one matrix; `final`: the stage ends with them.
  __device__ void tiles(const Matrix& m, const uint8_t* data, const uint8_t* scales, int list, int kind, int begin,
                        int end, const MatVecPlan& plan, bool final) {
    for (int row = begin; row < end; row += plan.tile_rows) {
      const int rows = min(plan.tile_rows, end - row);
      ++tiles_;
      for (int part = 0; part < plan.parts[kind]; ++part) {
        const bool last = part + 1 == plan.parts[kind];
        piece(m, data, scales, list, kind, row, rows, part, part * (plan.part_cols[kind] / 32), plan, last,
              final && last && row + rows == end);
      }
    }
  }
  __device__ void produce_sum(const MatVec& a, const MatVecPlan& plan) {
    const Range mine = share_of(matrix_rows(a));
    if (mine.begin == mine.end) return nothing();
    const int lists = a.num_matrices + a.experts.count;
    const int matrix_groups = a.num_matrices > 0 ? (a.matrices[0].cols + 31) / 32 : 0;
    for (int row = mine.begin; row < mine.end; row += plan.tile_rows) {
      const int rows = min(plan.tile_rows, mine.end - row);
      ++tiles_;
      for (int list = 0; list < lists; ++list) {
        const int e = list - a.num_matrices, kind = e >= 0;
        const Matrix& m = kind ? a.experts.shape : a.matrices[0];
        const int first_group = kind ? matrix_groups + e * ((m.cols + 31) / 32) : 0;
        for (int part = 0; part < plan.parts[kind]; ++part) {
          const bool last = list + 1 == lists && part + 1 == plan.parts[kind];
          piece(m, kind ? shared_.data[1][e] : m.data, kind ? shared_.scales[1][e] : m.group_scales, list, kind, row,
                rows, part, first_group + part * (plan.part_cols[kind] / 32), plan, last,
                last && row + rows == mine.end);
        }
      }
    }
  }

  // Room for `bytes` in a row, given back in the order it was taken.
  __device__ uint32_t make_room(uint32_t bytes) {
    for (;;) {
      if (open_ == 0) {
        end_ = 0;
        break;
      }
      if (open_ < kSlots) {
        const uint32_t first = begin_of(tail_.slot);
        if (first > end_) {
          if (first - end_ >= bytes) break;
        } else if (first < end_) {
          if (ring_bytes_ - end_ >= bytes) break;
          if (first >= bytes) {
            end_ = 0;
            break;
          }
        }
      }
      wait_barrier(&shared_.empty[tail_.slot], tail_.parity);
      tail_.next();
      --open_;
    }
    const uint32_t begin = end_;
    if (lane_id() == head_.slot) begin_ = begin;
    end_ += bytes;
    return begin;
  }
  __device__ uint32_t begin_of(int slot) const { return __shfl_sync(~0u, begin_, slot); }

  // A run of bytes of one row into the ring, with its distance from 16 bytes kept: where it begins there.
  __device__ uint32_t fetch(const uint8_t* row, int bytes, uint32_t to, uint64_t* full) const {
    const auto shift = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row) & 15);
#if __CUDA_ARCH__ >= 900
    const uint32_t size = (shift + bytes + 15) / 16 * 16;
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(full)), "r"(size)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(ring_ + to)),
                 "l"(row - shift), "r"(size), "r"(shared_address(full))
                 : "memory");
#else
    for (int c = 0; 16 * c < static_cast<int>(shift) + bytes; ++c) {
      copy_async(ring_ + to + 16 * c, row - shift + 16 * c);
    }
#endif
    return to + shift;
  }

  __device__ void piece(const Matrix& m, const uint8_t* data, const uint8_t* scales, int list, int kind, int first_row,
                        int rows, int part, int first_group, const MatVecPlan& plan, bool last, bool final) {
    const int lane = lane_id();
    const auto pitch = static_cast<uint32_t>(plan.pitch[kind]);
    const auto scales_pitch = static_cast<uint32_t>(plan.scales_pitch[kind]);
    const uint32_t begin = make_room(rows * (pitch + scales_pitch));
    Piece& piece = shared_.pieces[head_.slot];
    uint64_t* full = &shared_.full[head_.slot];
    const int cols = m.cols - part * plan.part_cols[kind], here = min(cols, plan.part_cols[kind]);
    const int bytes = (here + unit_elements_ - 1) / unit_elements_ * unit_bytes_;
    if (lane < kMaxTileRows) {
      uint32_t at = begin, scales_at = 0;
      if (lane < rows) {
        const int64_t row = first_row + lane;
        at = fetch(data + row * m.stride + part * plan.part_bytes[kind], bytes, begin + lane * pitch, full);
        if (group_scales_) {
          scales_at = fetch(scales + row * m.scales_stride + part * plan.scales_bytes[kind], (here + 15) / 16,
                            begin + rows * pitch + lane * scales_pitch, full);
        }
      }
      piece.row[lane] = at, piece.scales[lane] = scales_at;
    }
    if (lane == 0) {
      piece.rows = rows, piece.groups = (here + 31) / 32, piece.first_group = first_group, piece.cols = cols;
      piece.list = list, piece.first_row = first_row, piece.last = last;
      piece.tiles_of_stage = final ? tiles_ : 0;
    }
    announce(full);
  }
  __device__ void nothing() {
    make_room(0);
    if (lane_id() == 0) {
      shared_.pieces[head_.slot].groups = -1;
      shared_.pieces[head_.slot].tiles_of_stage = tiles_;
    }
    announce(&shared_.full[head_.slot]);
  }
  // The piece is described and its copies are under way.
  __device__ void announce(uint64_t* full) {
    __syncwarp();
#if __CUDA_ARCH__ >= 900
    if (lane_id() == 0) arrive(full);
#else
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full)) : "memory");
#endif
    head_.next();
    ++open_;
  }

  Shared& shared_;
  uint8_t* ring_;
  uint32_t ring_bytes_;
  uint32_t end_ = 0;    // where the next piece may begin
  uint32_t begin_ = 0;  // in lane n: of slot n
  int open_ = 0;        // slots taken and not yet given back
  RingPosition head_, tail_;
  int tiles_ = 0;  // of this stage
  int unit_elements_ = 0, unit_bytes_ = 0;
  bool group_scales_ = false;
};

// What one warp does with a piece: its share of the columns, for all rows; the sums of octets of rows.
struct PieceWork {
  const Piece* piece;
  uint32_t operands, group_sums, ring;  // shared memory
  int turn;
};

template <class F, bool kAligned, int kOctets>
__device__ __forceinline__ void multiply_octets(const PieceWork& work, int octet, float* sum) {
  const Piece& piece = *work.piece;
  const int lane = lane_id(), j = lane % 4, second = lane / 16;
  uint32_t row[kOctets], scales[kOctets];
#pragma unroll
  for (int o = 0; o < kOctets; ++o) {
    row[o] = work.ring + piece.row[8 * (octet + o) + lane / 4];
    scales[o] = work.ring + piece.scales[8 * (octet + o) + lane / 4];
  }
  const int groups = piece.groups, pairs = (groups + 1) / 2;
  if constexpr (kHasCodes<F>) {
    using C = Codes<F>;
    for (int p = work.turn; p < pairs; p += kConsumers) {
      uint2 x = {};
      if (2 * p + second < groups) {
        x = load_two(work.operands + digits_at(piece.first_group + 2 * p + second, lane / 4 % 4, j));
      }
      const int mine = min(2 * p + (j >= 2), groups - 1);  // the group of this lane's corner
      float halves[2];
      if constexpr (C::kMin) {
        const uint32_t sums = work.group_sums + 8 * (piece.first_group + mine);
        halves[0] = __uint_as_float(load_word(sums)), halves[1] = __uint_as_float(load_word(sums + 4));
      }
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
        uint32_t u[2], v[2];
        C::template pair<kAligned>(row[o], p, j, u, v);
        if constexpr (C::kScaleGroup == 32) {
          int c[4] = {};
          multiply_int8(c, u[0], v[0], u[1], v[1], x.x, x.y);
          const int t = j < 2 ? c[0] * 256 + c[1] : c[2] * 256 + c[3];
          sum[o] += C::scale(row[o], scales[o], mine, 0) * static_cast<float>(t);
          if constexpr (C::kMin) {
            if (j % 2 == 1 && 2 * p + j / 2 < groups) sum[o] += C::minimum(row[o], mine, 0) * (halves[0] + halves[1]);
          }
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            int c[4] = {};
            multiply_int8(c, u[h], v[h], h ? x.y : x.x);
            const int t = j < 2 ? c[0] * 256 + c[1] : c[2] * 256 + c[3];
            sum[o] += C::scale(row[o], scales[o], mine, h) * static_cast<float>(t);
            if constexpr (C::kMin) {
              if (j % 2 == 1 && 2 * p + j / 2 < groups) sum[o] += C::minimum(row[o], mine, h) * halves[h];
            }
          }
        }
      }
    }
  } else {
    using Frag = Fragment<F>;
    constexpr int kS = kSplits<F>;
    const int part = lane / 4 % 4;
    const uint32_t input = work.operands + (piece.first_group * 4 * kS + part * 4 + j) * 16;
    float running[kOctets][4] = {};
    for (int p = work.turn; p < pairs; p += kConsumers) {
      const int g0 = min(2 * p, groups - 1), g1 = min(2 * p + 1, groups - 1);
      uint4 x = {};
      if (part < kS && 2 * p + second < groups) x = load_vector(input + (2 * p + second) * (64 * kS));
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
#pragma unroll
        for (int pass = 0; pass < Frag::kPasses; ++pass) {
          uint32_t u[4], v[4];
          Frag::decode(row[o], 0, g0, j, piece.cols - 32 * g0, pass, u);
          Frag::decode(row[o], 0, g1, j, piece.cols - 32 * g1, pass, v);
          multiply<Frag::kBf16>(running[o], u[0], v[0], u[1], v[1], x.x, x.y);
          multiply<Frag::kBf16>(running[o], u[2], v[2], u[3], v[3], x.z, x.w);
        }
      }
    }
#pragma unroll
    for (int o = 0; o < kOctets; ++o) sum[o] += j < 2 ? running[o][0] + running[o][1] : running[o][2] + running[o][3];
  }
}

// Formats that decode speed has been measured for; the others take one octet at a time.
template <class F>
inline constexpr bool kTuned = false;
template <>
inline constexpr bool kTuned<Q4_0> = true;
template <>
inline constexpr bool kTuned<Q5_0> = true;
template <>
inline constexpr bool kTuned<Q8_0> = true;
template <>
inline constexpr bool kTuned<MXFP4> = true;
template <>
inline constexpr bool kTuned<E2M1> = true;

// A function of its own for each format: one after the other the compiler can manage them.
template <class F, bool kAligned>
__device__ __noinline__ float3 sums_of_piece(PieceWork work) {
  float sum[kMaxOctets] = {};
  const int octets = (work.piece->rows + 7) / 8;
  if constexpr (kTuned<F>) {
    if (octets == 1) {
      multiply_octets<F, kAligned, 1>(work, 0, sum);
    } else if (octets == 2) {
      multiply_octets<F, kAligned, 2>(work, 0, sum);
    } else {
      multiply_octets<F, kAligned, 3>(work, 0, sum);
    }
  } else {
#pragma unroll
    for (int o = 0; o < kMaxOctets; ++o) {
      if (o < octets) multiply_octets<F, kAligned, 1>(work, o, sum + o);
    }
  }
  return {sum[0], sum[1], sum[2]};
}

// The warps that multiply.
struct Consumer {
  Shared& shared;
  const uint8_t* operands;
  const uint8_t* group_sums;  // floats, [total_groups, 2]
  const uint8_t* ring;
  RingPosition at;
  int turn;             // pairs of groups go round among the warps, on from piece to piece
  int tile_number = 0;  // modulo kSums

  // One stage. `done` is called by one warp of the block, after the last tile is written.
  template <typename F>
  __device__ void multiply_stage(const Stage& stage, F&& done) {
    const MatVec& a = stage.matvec;
    float sum[kMaxOctets] = {};
    for (;;) {
      wait_barrier(&shared.full[at.slot], at.parity);
      const Piece& piece = shared.pieces[at.slot];
      if (piece.groups < 0) {
        if (warp_id() == 0) tiles_written(-piece.tiles_of_stage, done);
        release();
        return;
      }
      const bool final = piece.tiles_of_stage > 0;
      if (narrow(a) && (a.experts.row_scales || (a.num_matrices > 0 && a.matrices[0].row_scales))) {
        float part[kMaxOctets] = {};
        multiply_piece(stage, piece, part);
#pragma unroll
        for (int o = 0; o < kMaxOctets; ++o) sum[o] += part[o] * row_scale(a, piece, o);
      } else {
        multiply_piece(stage, piece, sum);
      }
      const int pairs = (piece.groups + 1) / 2;
      turn = (turn + kConsumers - pairs % kConsumers) % kConsumers;
      if (piece.last) finish(stage, piece, sum, done);
      release();
      if (final) return;
    }
  }

 private:
  __device__ void release() {
    __syncwarp();
    if (lane_id() == 0) arrive(&shared.empty[at.slot]);
    at.next();
  }

  __device__ void multiply_piece(const Stage& stage, const Piece& piece, float (&sum)[kMaxOctets]) const {
    const PieceWork work = {&piece, shared_address(operands), shared_address(group_sums), shared_address(ring), turn};
    const bool aligned = stage.aligned;
    float3 more = {};
    switch (stage.format) {
#define PROA_FORMAT(F)                                                                         \
  case Format::F:                                                                              \
    more = aligned ? sums_of_piece<F, kPairsOfWords<F>>(work) : sums_of_piece<F, false>(work); \
    break;
      PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT
    }
    sum[0] += more.x, sum[1] += more.y, sum[2] += more.z;
  }

  __device__ static const float* row_scales_of(const MatVec& a, const Shared& shared, int list) {
    if (list < a.num_matrices) return a.matrices[list].row_scales;
    return a.experts.row_scales ? reinterpret_cast<const float*>(shared.scales[narrow(a)][list - a.num_matrices])
                                : nullptr;
  }
  // Of a part that is one of a sum, for this lane's row of octet o.
  __device__ float row_scale(const MatVec& a, const Piece& piece, int o) const {
    const float* scales = row_scales_of(a, shared, piece.list);
    const int r = 8 * o + lane_id() / 4;
    return scales && r < piece.rows ? scales[piece.first_row + r] : 1.0f;
  }

  // The last warp to leave its sums of a tile writes it.
  template <typename F>
  __device__ void finish(const Stage& stage, const Piece& piece, float (&sum)[kMaxOctets], F&& done) {
    const int lane = lane_id(), j = lane % 4;
    // The sums of four lanes, of octet 0 to lane 0, 1 to lane 2, 2 to lane 1.
    const float weight = has_codes(stage.format) && j % 2 == 0 ? kHighDigits : 1.0f;
    const float first = sum[0] * weight, second = sum[1] * weight;
    float a = j < 2 ? first : second, b = sum[2] * weight;
    a += __shfl_xor_sync(~0u, j < 2 ? second : first, 2);
    b += __shfl_xor_sync(~0u, b, 2);
    float mine = j % 2 ? b : a;
    mine += __shfl_xor_sync(~0u, j % 2 ? a : b, 1);
#pragma unroll
    for (int o = 0; o < kMaxOctets; ++o) sum[o] = 0;
    const int octet = j % 2 * 2 + j / 2;
    if (octet < kMaxOctets) shared.sums[tile_number][warp_id()][8 * octet + lane / 4] = mine;
    __syncwarp();
    uint32_t before = 0;
    if (lane == 0) {
      __threadfence_block();
      before = atomicAdd(&shared.arrived[tile_number], 1u);
      if (before == kConsumers - 1) shared.arrived[tile_number] = 0;
      __threadfence_block();
    }
    const bool last = __shfl_sync(~0u, before, 0) == kConsumers - 1;
    if (last) {
      write(stage, piece);
      __syncwarp();
      tiles_written(1 - piece.tiles_of_stage, done);
    }
    tile_number = tile_number + 1 == kSums ? 0 : tile_number + 1;
  }

  // The count goes up with each tile, and down by all of them with the last piece.
  template <typename F>
  __device__ void tiles_written(int change, F&& done) {
    int left = 0;
    if (lane_id() == 0) {
      __threadfence_block();
      left = atomicAdd(&shared.tiles_left, change) + change;
      __threadfence_block();
    }
    if (__shfl_sync(~0u, left, 0) == 0) done();
  }

  __device__ void write(const Stage& stage, const Piece& piece) const {
    const MatVec& a = stage.matvec;
    const int r = lane_id();
    if (r >= piece.rows) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kConsumers; ++w) total += shared.sums[tile_number][w][r];
    total *= shared.unscale * factor_of(stage.format);
    const int row = piece.first_row + r, expert = piece.list - a.num_matrices;
    float* y = a.experts.shape.y + row;
    if (narrow(a)) {
      if (a.num_matrices > 0) y = a.matrices[0].y + row;
    } else {
      if (const float* scales = row_scales_of(a, shared, piece.list)) total *= scales[row];
      if (expert >= 0) {
        total *= shared.expert_scale[0][expert];
        y += static_cast<int64_t>(expert) * a.experts.shape.rows;
      } else {
        total *= a.matrices[piece.list].scale;
        y = a.matrices[piece.list].y + row;
      }
    }
    switch (a.output) {
      case Output::store:
        *y = total;
        break;
      case Output::add: {
        const int in_share = row - share_of(matrix_rows(a)).begin;
        *y = (in_share < kMaxOldRows ? shared.old[in_share] : __ldcg(y)) + total;
        break;
      }
      case Output::activate:
        *y = activated(a.relu2, total);
        break;
      case Output::gate:
        *y = activated(a.relu2, __ldcg(a.gate + row)) * total;
        break;
    }
  }
};

}  // namespace proa::cuda
