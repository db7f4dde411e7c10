// Matrix times vector as a stage of a step (step.h): how one warp of a block fetches weights, and how the others
// multiply.
//
// Every block takes an equal share of the rows, so that all have as many bytes to fetch. A piece, rows by columns, goes
// to a place of the ring; five warps share its columns, wait for nothing but its arrival, and leave their sums of a
// tile to the last of them, which writes it.
// A product of the tensor cores takes two groups of 32 columns: rows 0-7 of its left side are eight rows of the tile in
// the first group, rows 8-15 the same rows in the second; columns 0-3 of its right side are what makes the input of the
// first group (operands.cuh), columns 4-7 the second. Of the result the two corners count.
#pragma once

#include <type_traits>

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
  int team;            // that takes it
  int tiles_of_stage;  // in the very last piece: how many this block has; else 0
};

struct Shared {
  uint64_t full[kSlots], empty[kSlots];  // barriers
  Piece pieces[kSlots];
  float room[2 * kWarp];
  float sums[kSums][kTeam][kMaxTileRows];
  uint32_t arrived[kSums];
  uint32_t tiles_left;     // 0 when all tiles of the stage are written
  float old[kMaxOldRows];  // what the stage adds to, from row old_begin on
  int old_begin;
  float unscale;  // what undoes the power of two of the input
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
// This block's share of `count` things in a row, of which there are fewer than 2^32 / blocks.
__device__ __forceinline__ Range share_of(int count) {
  const auto things = static_cast<uint32_t>(count);
  return {static_cast<int>(things * blockIdx.x / gridDim.x), static_cast<int>(things * (blockIdx.x + 1) / gridDim.x)};
}

__device__ __forceinline__ bool narrow(const MatVec& a) { return a.mode == MatVec::Mode::narrow; }
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
  // Asks for `most_in_flight` bytes at a time: what the memory's latency takes to hide. Asking for more would make all
  // other loads wait behind them.
  __device__ Producer(Shared& shared, uint8_t* ring, int ring_bytes, int most_in_flight)
      : shared_(shared), ring_(ring), ring_bytes_(ring_bytes), most_in_flight_(most_in_flight) {}

  // `wait_for_experts` returns when the chosen ones are in `shared`; called once between matrices and experts. The
  // loops have one body, since all code of a step together should stay in the caches for instructions, and what they
  // need is read before them: a piece should cost no more than its copies.
  template <typename F>
  __device__ __forceinline__ void produce(const MatVec& a, const MatVecPlan& plan, F&& wait_for_experts) {
    tiles_ = 0;
    const bool sum = narrow(a), widens = a.mode == MatVec::Mode::widen;
    const int num_matrices = a.num_matrices, lists = num_matrices + a.experts.count, step = plan.tile_rows;
    const int expert_rows = plan.expert_rows;
    const Range of_matrices = share_of(plan.matrix_rows);
    bool ended = false;
    // Tiles go in groups of one for each team, so that all teams have something to do. A sum takes all lists for a
    // group; otherwise a list takes all its groups.
    const int group = step * kTeams;
#pragma unroll 1
    for (int outer = sum ? of_matrices.begin : 0; outer < (sum ? of_matrices.end : 1); outer += group) {
      Range mine = sum ? Range{outer, min(outer + group, of_matrices.end)} : of_matrices;
      int first = 0, first_group = 0;  // of the list, in what is shared out and in the input
#pragma unroll 1
      for (int list = 0; list < lists; ++list) {
        const int e = list - num_matrices, kind = e >= 0;
        if (e == 0 && widens) {
          wait_for_experts();
          mine = share_of(expert_rows);
          first = 0;
        }
        const Matrix& m = kind ? a.experts.shape : a.matrices[list];
        Rows rows;
        rows.data = kind ? shared_.data[sum][e] : m.data;
        rows.scales = kind ? shared_.scales[sum][e] : m.group_scales;
        rows.stride = static_cast<uint32_t>(m.stride), rows.scales_stride = static_cast<uint32_t>(m.scales_stride);
        rows.pitch = plan.pitch[kind], rows.scales_pitch = plan.scales_pitch[kind];
        rows.contiguous = plan.contiguous[kind];
        rows.list = list;
        const int cols = m.cols, part_cols = plan.part_cols[kind], parts = plan.parts[kind], all_rows = m.rows;
        const int part_bytes = plan.part_bytes[kind], last_bytes = plan.last_bytes[kind];
        const int begin = max(mine.begin - first, 0), end = min(mine.end - first, all_rows);
        const bool ends =
            sum ? list + 1 == lists && mine.end == of_matrices.end : (kind || !widens) && mine.end <= first + all_rows;
        const bool last_list = !sum || list + 1 == lists;
#pragma unroll 1
        for (int group_begin = begin; group_begin < end; group_begin += group) {
          const int group_end = min(group_begin + group, end);
          if (!sum || list == 0) {
            first_tile_ = tiles_;
            tiles_ += (group_end - group_begin + step - 1) / step;
          }
#pragma unroll 1
          for (int part = 0; part < parts; ++part) {
            const bool last = part + 1 == parts;
            rows.offset = part * part_bytes, rows.bytes = last ? last_bytes : part_bytes;
            rows.cols = cols - part * part_cols, rows.cols_here = last ? rows.cols : part_cols;
            rows.first_group = first_group + part * (part_cols / 32);
            rows.team = first_tile_ % kTeams;
#pragma unroll 1
            for (int row = group_begin; row < group_end; row += step) {
              rows.row = row, rows.count = min(step, group_end - row);
              ended = last && ends && row + rows.count == end;
              piece(rows, last && last_list, ended);
              rows.team = rows.team + 1 == kTeams ? 0 : rows.team + 1;
            }
          }
        }
        if (sum) {
          first_group += (cols + 31) / 32;
        } else {
          first += all_rows;
        }
      }
    }
    if (!ended) nothing();
  }

 private:
  struct Rows {
    const uint8_t *data, *scales;
    uint32_t stride, scales_stride;  // bytes
    int pitch, scales_pitch;
    int list, row, count;
    int offset, bytes;    // of each row
    int cols, cols_here;  // from the first of the piece on, and of the piece
    int first_group;
    int team;
    bool contiguous;
  };

  // Room for `bytes` in a row, given back in the order it was taken.
  __device__ __forceinline__ uint32_t make_room(uint32_t bytes) {
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
      if (flying_ == open_) land();
      tail_.next();
      --open_;
    }
    while (flying_ > 0 && bytes_in_flight_ + bytes > most_in_flight_) {
      wait_barrier(&shared_.full[landing_.slot], landing_.parity);
      land();
    }
    const uint32_t begin = end_;
    if (lane_id() == head_.slot) begin_ = begin, size_ = bytes;
    end_ += bytes;
    bytes_in_flight_ += bytes;
    return begin;
  }
  // The oldest piece that was in flight has come.
  __device__ void land() {
    bytes_in_flight_ -= __shfl_sync(~0u, size_, landing_.slot);
    landing_.next();
    --flying_;
  }
  __device__ uint32_t begin_of(int slot) const { return __shfl_sync(~0u, begin_, slot); }

  // A run of bytes into the ring, with its distance from 16 bytes kept.
  __device__ __forceinline__ void copy(const uint8_t* from, uint32_t size, uint32_t to, uint64_t* full) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(ring_ + to)),
                 "l"(from), "r"(size), "r"(shared_address(full))
                 : "memory");
#else
    for (uint32_t c = 0; c < size; c += 16) copy_async(ring_ + to + c, from + c);
#endif
  }

  __device__ __forceinline__ void piece(const Rows& rows, bool last, bool final) {
    const int lane = lane_id(), count = rows.count;
    const uint32_t pitch = rows.contiguous ? rows.stride : static_cast<uint32_t>(rows.pitch);
    const uint32_t room = rows.contiguous ? (count * pitch + 30) / 16 * 16
                                          : static_cast<uint32_t>(count * (rows.pitch + rows.scales_pitch));
    const uint32_t begin = make_room(room);
    Piece& piece = shared_.pieces[head_.slot];
    uint64_t* full = &shared_.full[head_.slot];
    // Rows that lie one behind the other come as one run.
    const int runs = rows.contiguous ? 1 : count;
    const uint32_t row = rows.row + min(lane, count - 1);
    const uint8_t* from = rows.data + static_cast<uint64_t>(row) * rows.stride + rows.offset;
    const auto shift = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(from) & 15);
    const uint32_t bytes = rows.contiguous ? count * pitch : static_cast<uint32_t>(rows.bytes);
    const uint32_t size = lane < runs ? (shift + bytes + 15) & ~15u : 0;
    const uint8_t* scales_from = nullptr;
    uint32_t scales_shift = 0, scales_size = 0, scales_to = 0;
    if (rows.scales_pitch > 0) {
      scales_from = rows.scales + static_cast<uint64_t>(row) * rows.scales_stride + rows.offset / 8;
      scales_shift = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(scales_from) & 15);
      scales_size = lane < count ? (scales_shift + (rows.cols_here + 15) / 16 + 15) & ~15u : 0;
      scales_to = begin + count * rows.pitch + min(lane, count - 1) * rows.scales_pitch;
    }
#if __CUDA_ARCH__ >= 900
    const uint32_t all = __reduce_add_sync(~0u, size + scales_size);
    if (lane == 0) {
      asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(full)), "r"(all)
                   : "memory");
    }
    __syncwarp();
#endif
    if (lane < runs) copy(from - shift, size, begin + lane * pitch, full);
    if (scales_size > 0) copy(scales_from - scales_shift, scales_size, scales_to, full);
    if (lane < kMaxTileRows) {
      // Rows past the last are it once more: memory that is there.
      const uint32_t first_shift = __shfl_sync((1u << kMaxTileRows) - 1, shift, 0);
      piece.row[lane] = begin + min(lane, count - 1) * pitch + (rows.contiguous ? first_shift : shift);
      piece.scales[lane] = scales_to + scales_shift;
    }
    if (lane == 0) {
      piece.rows = count, piece.groups = (rows.cols_here + 31) / 32, piece.first_group = rows.first_group;
      piece.cols = rows.cols, piece.list = rows.list, piece.first_row = rows.row, piece.last = last;
      piece.team = rows.team;
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
    ++flying_;
  }

  Shared& shared_;
  uint8_t* ring_;
  uint32_t ring_bytes_, most_in_flight_;
  uint32_t end_ = 0;               // where the next piece may begin
  uint32_t begin_ = 0, size_ = 0;  // in lane n: of slot n
  uint32_t bytes_in_flight_ = 0;
  int open_ = 0;    // slots taken and not yet given back
  int flying_ = 0;  // of these, the last ones: not yet there
  RingPosition head_, tail_, landing_;
  int tiles_ = 0;       // of this stage
  int first_tile_ = 0;  // of this group
};

// The warps that multiply by weights of one format; kAligned as in Codes.
template <class F, bool kAligned>
struct Consumer {
  Shared& shared;
  uint32_t operands, group_sums, ring;  // shared memory
  RingPosition at;
  int turn;             // pairs of groups go round among a team's warps, on from piece to piece
  int tile_number = 0;  // modulo kSums

  // One stage. done() is called by one warp of the block, after the last tile is written.
  template <class Gate>
  __device__ __forceinline__ void multiply_stage(const Stage& stage, const Gate& gate) {
    const MatVec& a = stage.matvec;
    const bool scaled = narrow(a) && (a.experts.row_scales || (a.num_matrices > 0 && a.matrices[0].row_scales));
    float sum[kMaxOctets] = {};
#pragma unroll 1
    for (;;) {
      wait_barrier(&shared.full[at.slot], at.parity);
      const Piece& piece = shared.pieces[at.slot];
      const int groups = piece.groups, rows = piece.rows, tiles_of_stage = piece.tiles_of_stage;
      if (groups < 0) {
        if (warp_id() == 0) tiles_written(-tiles_of_stage, gate);
        release();
        return;
      }
      const bool last = piece.last;
      if (piece.team != warp_id() / kTeam) {
        release();
        if (last) tile_number = tile_number + 1 == kSums ? 0 : tile_number + 1;
        if (tiles_of_stage > 0) return;
        continue;
      }
      if (scaled) {
        float part[kMaxOctets] = {};
        multiply_piece(piece, groups, rows, part);
#pragma unroll
        for (int o = 0; o < kMaxOctets; ++o) sum[o] += part[o] * row_scale(a, piece, o);
      } else {
        multiply_piece(piece, groups, rows, sum);
      }
      turn -= (groups + 1) / 2 % kTeam;
      if (turn < 0) turn += kTeam;
      if (last) finish(stage, piece, sum, tiles_of_stage, gate);
      release();
      if (tiles_of_stage > 0) return;
    }
  }

 private:
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane_id() == 0) arrive(&shared.empty[at.slot]);
    at.next();
  }

  // This warp's share of the columns, for all rows.
  __device__ __forceinline__ void multiply_piece(const Piece& piece, int groups, int rows,
                                                 float (&sum)[kMaxOctets]) const {
    if (rows <= 8) {
      multiply_octets<1>(piece, groups, sum);
    } else if (rows <= 16) {
      multiply_octets<2>(piece, groups, sum);
    } else {
      multiply_octets<3>(piece, groups, sum);
    }
  }

  template <int kOctets>
  __device__ __forceinline__ void multiply_octets(const Piece& piece, int groups, float (&sum)[kMaxOctets]) const {
    const int lane = lane_id(), j = lane % 4, second = lane / 16, pairs = (groups + 1) / 2;
    const int first_group = piece.first_group;
    uint32_t row[kOctets], scales[kOctets];
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      row[o] = ring + piece.row[8 * o + lane / 4];
      scales[o] = std::is_same_v<F, E2M1> ? ring + piece.scales[8 * o + lane / 4] : 0;
    }
    if constexpr (kHasCodes<F>) {
      using C = Codes<F>;
      const bool odd = groups % 2 != 0;
      uint32_t input = operands + digits_at(first_group + 2 * turn + second, lane / 4 % 4, j);
#pragma unroll(kOctets == 1 ? 2 : 1)
      for (int p = turn; p < pairs; p += kTeam) {
        uint2 x = load_two(input);
        // Ten groups on, whose parts are turned by two more.
        static_assert(2 * kTeam % 4 == 2);
        input = (input ^ 64u) + 2 * kTeam * kDigitsBytes;
        int mine = 2 * p + (j >= 2);  // the group of this lane's corner
        if (odd) {
          if (2 * p + second >= groups) x = {};
          mine = min(mine, groups - 1);
        }
        float halves[2];
        if constexpr (C::kMin) {
          const uint32_t sums = group_sums + 8 * (first_group + mine);
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
      const int part = lane / 4 % 4, cols = piece.cols;
      const uint32_t input = operands + (first_group * 4 * kS + part * 4 + j) * 16;
      float running[kOctets][4] = {};
#pragma unroll 1
      for (int p = turn; p < pairs; p += kTeam) {
        const int g0 = min(2 * p, groups - 1), g1 = min(2 * p + 1, groups - 1);
        uint4 x = {};
        if (part < kS && 2 * p + second < groups) x = load_shared(input + (2 * p + second) * (64 * kS));
#pragma unroll
        for (int o = 0; o < kOctets; ++o) {
#pragma unroll
          for (int pass = 0; pass < Frag::kPasses; ++pass) {
            uint32_t u[4], v[4];
            Frag::decode(row[o], 0, g0, j, cols - 32 * g0, pass, u);
            Frag::decode(row[o], 0, g1, j, cols - 32 * g1, pass, v);
            multiply<Frag::kBf16>(running[o], u[0], v[0], u[1], v[1], x.x, x.y);
            multiply<Frag::kBf16>(running[o], u[2], v[2], u[3], v[3], x.z, x.w);
          }
        }
      }
#pragma unroll
      for (int o = 0; o < kOctets; ++o) sum[o] += j < 2 ? running[o][0] + running[o][1] : running[o][2] + running[o][3];
    }
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
  template <class Gate>
  __device__ __forceinline__ void finish(const Stage& stage, const Piece& piece, float (&sum)[kMaxOctets],
                                         int tiles_of_stage, const Gate& gate) {
    const int lane = lane_id(), j = lane % 4;
    // The sums of four lanes, of octet 0 to lane 0, 1 to lane 2, 2 to lane 1.
    const float weight = kHasCodes<F> && j % 2 == 0 ? kHighDigits : 1.0f;
    const float first = sum[0] * weight, second = sum[1] * weight;
    float a = j < 2 ? first : second, b = sum[2] * weight;
    a += __shfl_xor_sync(~0u, j < 2 ? second : first, 2);
    b += __shfl_xor_sync(~0u, b, 2);
    float mine = j % 2 ? b : a;
    mine += __shfl_xor_sync(~0u, j % 2 ? a : b, 1);
#pragma unroll
    for (int o = 0; o < kMaxOctets; ++o) sum[o] = 0;
    const int octet = j % 2 * 2 + j / 2;
    if (octet < kMaxOctets) shared.sums[tile_number][warp_id() % kTeam][8 * octet + lane / 4] = mine;
    __syncwarp();
    uint32_t before = 0;
    if (lane == 0) {
      before = add_in_block(&shared.arrived[tile_number], 1u);
      if (before == kTeam - 1) shared.arrived[tile_number] = 0;
    }
    const bool last = __shfl_sync(~0u, before, 0) == kTeam - 1;
    if (last) {
      write(stage, piece);
      __syncwarp();
      tiles_written(1 - tiles_of_stage, gate);
    }
    tile_number = tile_number + 1 == kSums ? 0 : tile_number + 1;
  }

  // The count goes up with each tile, and down by all of them with the last piece.
  template <class Gate>
  __device__ __forceinline__ void tiles_written(int change, const Gate& gate) {
    int left = 0;
    if (lane_id() == 0)
      left = static_cast<int>(add_in_block(&shared.tiles_left, static_cast<uint32_t>(change))) + change;
    if (__shfl_sync(~0u, left, 0) == 0) gate.done();
  }

  __device__ __forceinline__ void write(const Stage& stage, const Piece& piece) const {
    const MatVec& a = stage.matvec;
    const int r = lane_id();
    if (r >= piece.rows) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kTeam; ++w) total += shared.sums[tile_number][w][r];
    total *= shared.unscale * factor_as<F>();
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
        const int in_share = row - shared.old_begin;
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
