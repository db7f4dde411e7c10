// Matrix times vector as a stage of a step (step.h): how one warp of a block fetches weights, and how the others
// multiply.
//
// Every block takes an equal share of the rows, so that all have as many bytes to fetch. A piece, rows by columns, goes
// to a place of the ring. Places, and so pieces, belong to teams of five warps in turn; a team's warps share a piece's
// columns, wait for nothing but its arrival, and leave their sums of its rows. In the end all of a block write the
// rows. A product of the tensor cores takes two groups of 32 columns: rows 0-7 of its left side are eight rows of the
// tile in the first group, rows 8-15 the same rows in the second; columns 0-3 of its right side are what makes the
// input of the first group (operands.cuh), columns 4-7 the second. Of the result the two corners count.
#pragma once

#include <type_traits>

#include "backends/cuda/operands.cuh"
#include "backends/cuda/step.h"

namespace proa::cuda {

constexpr int kSlots = 12;  // pieces in the ring at most
static_assert(kSlots % kTeams == 0);
constexpr int kMaxTileRows = 24;
constexpr int kMaxOctets = kMaxTileRows / 8;
constexpr int kRowsToWrite = 192;  // that wait to be written, at most
static_assert(kRowsToWrite >= kTeams * kMaxTileRows);

// What consumers need to know of a piece.
struct alignas(16) Piece {
  // Row r begins at r * pitch + first + r * step, but what its 16 bytes begin with counts only once: see row_at().
  uint32_t first, step, pitch;
  int rows;
  int groups;       // 0: nothing, so that the next piece is another team's
  int first_group;  // of the input
  int cols;         // of the row from here on
  int list;         // whose: matrices, then experts
  int first_row;
  int first_to_write;  // its rows' place among those that wait to be written
  int rows_to_write;   // that are written after this piece by all; -1: none yet
  uint32_t flags;
  uint32_t scales, scales_step, scales_pitch;  // likewise
  uint32_t room;                               // bytes of the ring
};
// Where row r lies that was fetched with its distance from 16 bytes kept.
__device__ __forceinline__ uint32_t row_at(uint32_t first, uint32_t step, uint32_t pitch, uint32_t r) {
  return (first & ~15u) + r * pitch + ((first + r * step) & 15);
}
constexpr int kListedExperts = 128;

constexpr uint32_t kLastPiece = 1;   // of its tile
constexpr uint32_t kFinalPiece = 2;  // of the stage

struct Shared {
  uint64_t full[kSlots], empty[kSlots];  // barriers
  Piece pieces[kSlots];
  uint32_t begin[kSlots];
  float room[2 * kWarp];
  float sums[kTeam][kRowsToWrite];
  uint32_t row_to_write[kRowsToWrite];  // list, 8 bits, and row
  float unscale;                        // what undoes the power of two of the input
  // Of the chosen experts, by the producer: of the product that widens and of the one that sums.
  const uint8_t* listed[2][kListedExperts];  // where all lie
  const uint8_t* data[2][kMaxExperts];
  const uint8_t* scales[2][kMaxExperts];
  float expert_scale[2][kMaxExperts];
  float expert_weight[kMaxExperts];
  int32_t expert_id[kMaxExperts];
  float choice[2 * kMaxRoutedExperts];
};

constexpr uint32_t kNoRow = ~0u;

struct Range {
  int begin, end;
};
// This block's share of `count` things in a row, of which there are fewer than 2^32 / blocks.
__device__ __forceinline__ Range share_of(int count) {
  const auto things = static_cast<uint32_t>(count);
  return {static_cast<int>(things * blockIdx.x / gridDim.x), static_cast<int>(things * (blockIdx.x + 1) / gridDim.x)};
}

// Where there are kMostCrews.
__device__ __forceinline__ int crew_of_block() {
  return static_cast<int>(blockIdx.x / (gridDim.x / static_cast<unsigned>(kMostCrews)));
}
// This block's share of `count` things of its crew.
__device__ __forceinline__ Range share_of_crew(int count) {
  const uint32_t size = gridDim.x / static_cast<unsigned>(kMostCrews), member = blockIdx.x % size;
  const auto things = static_cast<uint32_t>(count);
  return {static_cast<int>(things * member / size), static_cast<int>(things * (member + 1) / size)};
}

__device__ __forceinline__ bool narrow(const MatVec& a) { return a.mode == MatVec::Mode::narrow; }
// The place a ring piece has, and the turn it is in.
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void next(int step = 1) {
    slot += step;
    if (slot < kSlots) return;
    slot -= kSlots;
    parity ^= 1;
  }
};

// The warp that fetches. It keeps its state from stage to stage. Its lanes work out 32 pieces at a time; then one after
// the other is fetched, by instructions that all lanes go through with the same values, which is what the copy engine
// takes.
class Producer {
 public:
  __device__ Producer(Shared& shared, uint8_t* ring, int ring_bytes)
      : shared_(shared), ring_(ring), ring_bytes_(static_cast<uint32_t>(ring_bytes)) {}

  // `wait_for_experts` returns when the chosen ones are in `shared`; called before the first piece of one, or in the
  // end.
  template <typename F>
  __device__ __forceinline__ void produce(const MatVec& a, const MatVecPlan& plan, F&& wait_for_experts) {
    const bool widens = a.mode == MatVec::Mode::widen;
    const int num_matrices = a.num_matrices;
    bool known = !widens;
    // Whoever has no expert's rows to widen may have some to narrow.
    const int rows_of_crew = (plan.matrix_rows + plan.expert_rows) / kMostCrews;
    const bool needs = a.share == Share::blocks || crew_of_block() * rows_of_crew >= plan.matrix_rows;
    int count = kWarp;
#pragma unroll 1
    for (int first = 0; count == kWarp; first += kWarp) {
      Item item = item_of(a, plan, first + lane_id());
      if (known) find(item, num_matrices, narrow(a));
      count = __popc(__ballot_sync(~0u, item.there));
#pragma unroll 1
      for (int i = 0; i <= count; ++i) {
        if (!known && (i < count ? __shfl_sync(~0u, item.piece.list, i) >= num_matrices : count < kWarp && needs)) {
          wait_for_experts();
          known = true;
          find(item, num_matrices, false);
        }
        if (i < count) fetch(item, i);
      }
    }
  }

 private:
  // A piece and where it comes from.
  struct Item {
    Piece piece;
    uint64_t from, scales_from;  // where its first row lies; before an expert is known: from its data on
    uint32_t stride, scales_stride;
    int bytes, scales_bytes;  // of a row
    bool there, contiguous, scales_contiguous;
  };
  // Rows of this block.
  struct Rows {
    int begin, end;  // among those that are shared out
    int expert_begin, expert_end;
    int first_list, lists;
    int part_of_rows;  // crew_rows of a plain product: whose part of each list; else -1
    int first_byte;    // of each row
    bool sum;          // of all lists, for a few rows at a time
  };

  __device__ static Rows rows_of(const MatVec& a, const MatVecPlan& plan) {
    const bool in_parts = a.share == Share::crew_parts, in_rows = a.share == Share::crew_rows;
    const bool widens = a.mode == MatVec::Mode::widen;
    Rows rows = {0, 0, 0, 0, 0, a.num_matrices + a.experts.count, -1, 0, narrow(a) && !in_parts};
    Range all = share_of(plan.matrix_rows);
    Range of_experts = share_of(plan.expert_rows);
    if (in_rows && widens) {
      all = share_of(plan.matrix_rows + plan.expert_rows);
      of_experts = {max(0, all.begin - plan.matrix_rows), max(0, all.end - plan.matrix_rows)};
      all = {min(all.begin, plan.matrix_rows), min(all.end, plan.matrix_rows)};
    } else if (in_rows) {
      rows.part_of_rows = crew_of_block();
      all = share_of_crew(plan.matrix_rows / kMostCrews);
    } else if (in_parts) {
      const int crew = crew_of_block();
      all = share_of_crew(plan.matrix_rows);
      rows.first_list = crew < plan.matrix_crews ? 0 : a.num_matrices + crew - plan.matrix_crews;
      rows.lists = rows.first_list + 1;
      rows.first_byte = crew < plan.matrix_crews ? crew * plan.crew_bytes : 0;
    }
    rows.begin = all.begin, rows.end = all.end;
    rows.expert_begin = of_experts.begin, rows.expert_end = of_experts.end;
    return rows;
  }

  // Pieces go round among the teams, so that all have something to do: each group of tiles is one for each team, and
  // all parts of their columns. A sum takes all lists for a group; otherwise a list takes all its groups.
  __device__ Item item_of(const MatVec& a, const MatVecPlan& plan, int number) const {
    const Rows rows = rows_of(a, plan);
    const int step = plan.tile_rows, group = step * kTeams, num_matrices = a.num_matrices;
    const int groups_to_write = kRowsToWrite / group;
    const int team = number % kTeams;
    int left = number / kTeams, group_number = 0, list = 0, row = 0, end = 0, part = 0, first_group = 0;
    bool there = false, final = false, last_list = true;
    if (rows.sum) {
      const int of_matrices = num_matrices * plan.parts[0], each = of_matrices + a.experts.count * plan.parts[1];
      group_number = left / each;
      left -= group_number * each;
      const int kind = left >= of_matrices;
      left -= kind ? of_matrices : 0;
      list = left / plan.parts[kind];
      part = left - list * plan.parts[kind];
      first_group = kind ? num_matrices * ((plan.matrix_cols + 31) / 32) + list * ((plan.expert_cols + 31) / 32) : 0;
      list += kind ? num_matrices : 0;
      row = rows.begin + group_number * group, end = rows.end;
      there = row < end;
      last_list = list + 1 == rows.lists;
      final = end - row <= group;
    } else {
      int first = 0;  // of the list, in what is shared out
#pragma unroll 1
      for (list = rows.first_list; list < rows.lists; ++list) {
        const int kind = list >= num_matrices;
        const bool of_experts = kind && a.mode == MatVec::Mode::widen;
        if (of_experts && list == num_matrices) first = 0;
        const int begin = of_experts ? rows.expert_begin : rows.begin;
        const int stop = of_experts ? rows.expert_end : rows.end;
        const int all = kind ? a.experts.shape.rows : a.matrices[list].rows;
        const int mine = rows.part_of_rows >= 0 ? all / kMostCrews : all;
        const int from = max(begin - first, 0), to = min(stop - first, mine);
        const int groups = to > from ? (to - from + group - 1) / group : 0, pieces = groups * plan.parts[kind];
        first += mine;
        if (left >= pieces) {
          left -= pieces;
          group_number += groups;
          continue;
        }
        const int here = left / plan.parts[kind];
        part = left - here * plan.parts[kind];
        group_number += here;
        const int base = rows.part_of_rows >= 0 ? rows.part_of_rows * mine : 0;
        row = base + from + here * group, end = base + to;
        there = true;
        // Rows of lists that follow, or none.
        const bool experts_follow = a.mode == MatVec::Mode::widen && !kind && rows.expert_end > rows.expert_begin;
        final = end - row <= group && stop <= first && !experts_follow;
        break;
      }
    }
    Item item = {};
    item.there = there;
    Piece& piece = item.piece;
    // A block without rows is done at once.
    const bool none = !there && number < kTeams;
    if (none) {
      item.there = true;
      piece.rows_to_write = 0;
      piece.flags = kLastPiece | kFinalPiece;
      return item;
    }
    if (!there) return item;
    const int kind = list >= num_matrices;
    const Matrix& m = kind ? a.experts.shape : a.matrices[list];
    const bool last_part = part + 1 == plan.parts[kind], last = last_part && last_list;
    const int place = group_number % groups_to_write * group;
    const bool full = place + 2 * group > kRowsToWrite;
    row += team * step;
    piece.first_to_write = place + team * step;
    piece.rows_to_write = last && (final || full) ? place + group : -1;
    piece.flags = (last ? kLastPiece : 0) | (last && final ? kFinalPiece : 0);
    piece.rows = max(0, min(step, end - row));
    if (piece.rows == 0) return item;
    const int cols = a.share == Share::crew_parts ? plan.crew_cols : m.cols, part_cols = plan.part_cols[kind];
    const int offset = rows.first_byte + part * plan.part_bytes[kind];
    item.stride = static_cast<uint32_t>(m.stride), item.scales_stride = static_cast<uint32_t>(m.scales_stride);
    item.contiguous = plan.contiguous[kind];
    item.bytes = last_part ? plan.last_bytes[kind] : plan.part_bytes[kind];
    item.from = reinterpret_cast<uint64_t>(kind ? nullptr : m.data) + static_cast<uint64_t>(row) * item.stride + offset;
    piece.cols = cols - part * part_cols;
    const int cols_here = last_part ? piece.cols : part_cols;
    piece.groups = (cols_here + 31) / 32;
    piece.first_group = first_group + part * (part_cols / 32);
    piece.list = list;
    piece.first_row = row;
    piece.pitch = item.contiguous ? item.stride : static_cast<uint32_t>(plan.pitch[kind]);
    piece.step = item.contiguous ? 0 : item.stride % 16;
    piece.scales_pitch = static_cast<uint32_t>(plan.scales_pitch[kind]);
    piece.room = (piece.rows * piece.pitch + 30) / 16 * 16;
    if (piece.scales_pitch > 0) {
      piece.scales = piece.room;
      item.scales_bytes = (cols_here + 15) / 16;
      item.scales_from = reinterpret_cast<uint64_t>(kind ? nullptr : m.group_scales) +
                         static_cast<uint64_t>(row) * item.scales_stride + offset / 8;
      item.scales_contiguous = plan.parts[kind] == 1 && item.scales_stride == static_cast<uint32_t>(item.scales_bytes);
      if (item.scales_contiguous) piece.scales_pitch = item.scales_stride;
      piece.scales_step = item.scales_contiguous ? 0 : item.scales_stride % 16;
      piece.room += (piece.rows * piece.scales_pitch + 30) / 16 * 16;
    }
    return item;
  }

  // Where experts lie is known.
  __device__ void find(Item& item, int num_matrices, bool of_sum) const {
    const int e = item.piece.list - num_matrices;
    if (item.piece.rows == 0 || e < 0) return;
    item.from += reinterpret_cast<uint64_t>(shared_.data[of_sum][e]);
    if (item.piece.scales_pitch > 0) item.scales_from += reinterpret_cast<uint64_t>(shared_.scales[of_sum][e]);
  }

  // Runs of bytes to the ring, each with its distance from 16 bytes kept.
  struct Runs {
    uint64_t from;
    uint32_t to, stride, pitch, bytes;
    int count;

    __device__ uint32_t size(int r) const {
      return (static_cast<uint32_t>(from + static_cast<uint64_t>(r) * stride) % 16 + bytes + 15) & ~15u;
    }
    // For all lanes the sum of sizes.
    __device__ uint32_t all() const { return __reduce_add_sync(~0u, lane_id() < count ? size(lane_id()) : 0u); }
    // By one lane on sm_90, which all have entered; else by all.
    __device__ __forceinline__ void copy(uint32_t full) const {
      uint64_t at = from;
      uint32_t place = to;
#if __CUDA_ARCH__ >= 900
#pragma unroll 4
      for (int r = 0; r < count; ++r, at += stride, place += pitch) {
        const auto shift = static_cast<uint32_t>(at) & 15;
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(place),
            "l"(at - shift), "r"((shift + bytes + 15) & ~15u), "r"(full)
            : "memory");
      }
#else
#pragma unroll 1
      for (int r = 0; r < count; ++r, at += stride, place += pitch) {
        const auto shift = static_cast<uint32_t>(at) & 15;
        for (uint32_t c = 16 * lane_id(); c < shift + bytes; c += 16 * kWarp) {
          copy_async_to(place + c, reinterpret_cast<const uint8_t*>(at - shift) + c);
        }
      }
#endif
    }
  };

  __device__ __forceinline__ void fetch(const Item& item, int lane) {
    const uint32_t begin = make_room(__shfl_sync(~0u, item.piece.room, lane));
    const uint32_t slot = shared_address(ring_) + begin;
    const uint32_t full = shared_address(&shared_.full[at_.slot]);
    // Of whoever has it, for all; as the compiler should know.
    const int rows = __shfl_sync(~0u, item.piece.rows, lane);
    const bool contiguous = __shfl_sync(~0u, item.contiguous, lane);
    const auto bytes = static_cast<uint32_t>(__shfl_sync(~0u, item.bytes, lane));
    const uint32_t pitch = __shfl_sync(~0u, item.piece.pitch, lane), stride = __shfl_sync(~0u, item.stride, lane);
    const Runs weights = {__shfl_sync(~0u, item.from, lane), slot, stride, pitch, contiguous ? rows * pitch : bytes,
                          contiguous && rows > 0 ? 1 : rows};
    const uint32_t scales_pitch = __shfl_sync(~0u, item.piece.scales_pitch, lane);
    Runs scales = {};
    if (scales_pitch > 0 && rows > 0) {
      const bool together = __shfl_sync(~0u, item.scales_contiguous, lane);
      const auto scales_bytes = static_cast<uint32_t>(__shfl_sync(~0u, item.scales_bytes, lane));
      scales = {__shfl_sync(~0u, item.scales_from, lane),      slot + __shfl_sync(~0u, item.piece.scales, lane),
                __shfl_sync(~0u, item.scales_stride, lane),    scales_pitch,
                together ? rows * scales_pitch : scales_bytes, together ? 1 : rows};
    }
    if (lane_id() == lane) {
      Piece piece = item.piece;
      piece.first = begin + (static_cast<uint32_t>(weights.from) & 15);
      piece.scales += begin + (static_cast<uint32_t>(scales.from) & 15);
      shared_.pieces[at_.slot] = piece;
    }
#if __CUDA_ARCH__ >= 900
    const uint32_t all = weights.all() + scales.all();
    if (elected()) {
      asm volatile(
          "{ .reg .b64 state; mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 state, [%0], %1; }" ::"r"(full),
          "r"(all)
          : "memory");
      weights.copy(full);
      scales.copy(full);
    }
    __syncwarp();
#else
    weights.copy(full);
    scales.copy(full);
    arrive_after_copies(full);
#endif
    at_.next();
    ++open_;
  }

  // Room for a piece, behind the one before or at the front; given back in the order it was taken. `end_` and where
  // pieces begin go on and on, and are modulo 2^32.
  __device__ __forceinline__ uint32_t make_room(uint32_t bytes) {
    if (end_in_ring_ + bytes > ring_bytes_) {
      end_ += ring_bytes_ - end_in_ring_;
      end_in_ring_ = 0;
    }
    while (open_ > 0 && (open_ == kSlots || end_ + bytes - shared_.begin[tail_.slot] > ring_bytes_)) {
      wait_barrier(shared_address(&shared_.empty[tail_.slot]), tail_.parity);
      tail_.next();
      --open_;
    }
    __syncwarp();
    shared_.begin[at_.slot] = end_;  // all lanes the same
    __syncwarp();
    const uint32_t begin = end_in_ring_;
    end_ += bytes;
    end_in_ring_ += bytes;
    return begin;
  }

  Shared& shared_;
  uint8_t* ring_;
  uint32_t ring_bytes_;
  uint32_t end_ = 0, end_in_ring_ = 0;
  int open_ = 0;  // pieces not given back yet
  RingPosition at_, tail_;
};

// The warps that multiply by weights of one format; kAligned as in Codes.
template <class F, bool kAligned>
struct Consumer {
  Shared& shared;
  uint32_t operands, group_sums, ring;  // shared memory
  int64_t* sums;                        // that the stage adds to
  RingPosition at;
  int turn;  // pairs of groups go round among a team's warps, on from piece to piece

  // One stage. done() is called by one warp of the block, after the last row is written.
  template <class Gate>
  __device__ __forceinline__ void multiply_stage(const Stage& stage, const Gate& gate) {
    const MatVec& a = stage.matvec;
    const bool scaled = narrow(a) && (a.experts.row_scales || (a.num_matrices > 0 && a.matrices[0].row_scales));
    float sum[kMaxOctets] = {};
#pragma unroll 1
    for (;;) {
      wait_barrier(shared_address(&shared.full[at.slot]), at.parity);
      const Piece& piece = shared.pieces[at.slot];
      const int groups = piece.groups, rows = piece.rows, rows_to_write = piece.rows_to_write;
      const uint32_t flags = piece.flags;
      if (groups > 0) {
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
      }
      if (flags & kLastPiece) leave(stage.plan.tile_rows, piece, rows, sum);
      __syncwarp();
      if (lane_id() == 0) arrive(shared_address(&shared.empty[at.slot]));
      at.next(kTeams);
      if (rows_to_write < 0) continue;
      consumers_sync();
      for (int r = static_cast<int>(threadIdx.x); r < rows_to_write; r += kConsumerThreads) write(a, r);
      consumers_sync();
      if (!(flags & kFinalPiece)) continue;
      if (warp_id() == 0) gate.done();
      return;
    }
  }

 private:
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
    uint32_t row[kOctets], scales[kOctets] = {};
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      // Rows past the last are it once more: memory that is there.
      const auto r = static_cast<uint32_t>(min(8 * o + lane / 4, piece.rows - 1));
      row[o] = ring + row_at(piece.first, piece.step, piece.pitch, r);
      if constexpr (std::is_same_v<F, E2M1>) {
        scales[o] = ring + row_at(piece.scales, piece.scales_step, piece.scales_pitch, r);
      }
    }
    if constexpr (kHasCodes<F>) {
      using C = Codes<F>;
      const bool odd = groups % 2 != 0;
      uint32_t input = operands + digits_at(first_group + 2 * turn + second, lane / 4 % 4, j);
#pragma unroll 2
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

  // This warp's sums of a tile, for write().
  __device__ __forceinline__ void leave(int tile_rows, const Piece& piece, int rows, float (&sum)[kMaxOctets]) const {
    const int lane = lane_id(), j = lane % 4, first = piece.first_to_write;
    // The sums of four lanes, of octet 0 to lane 0, 1 to lane 2, 2 to lane 1.
    const float weight = kHasCodes<F> && j % 2 == 0 ? kHighDigits : 1.0f;
    const float zeroth = sum[0] * weight, second = sum[1] * weight;
    float a = j < 2 ? zeroth : second, b = sum[2] * weight;
    a += __shfl_xor_sync(~0u, j < 2 ? second : zeroth, 2);
    b += __shfl_xor_sync(~0u, b, 2);
    float mine = j % 2 ? b : a;
    mine += __shfl_xor_sync(~0u, j % 2 ? a : b, 1);
#pragma unroll
    for (int o = 0; o < kMaxOctets; ++o) sum[o] = 0;
    const int row = (j % 2 * 2 + j / 2) * 8 + lane / 4;
    if (row < rows) shared.sums[warp_id() % kTeam][first + row] = mine;
    if (warp_id() % kTeam == 0 && lane < tile_rows) {
      shared.row_to_write[first + lane] =
          lane < rows ? static_cast<uint32_t>(piece.list) << 24 | (piece.first_row + lane) : kNoRow;
    }
  }

  __device__ static void add_to_sum(int64_t* sum, float value) {
    const float scaled = value * static_cast<float>(int64_t{1} << kResidualBits);
    const int64_t whole = fabsf(scaled) < static_cast<float>(kNoNumber) / 4 ? __float2ll_rn(scaled) : kNoNumber;
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(sum), "l"(whole) : "memory");
  }

  // Row r of those that have been left.
  __device__ __forceinline__ void write(const MatVec& a, int r) const {
    const uint32_t which = shared.row_to_write[r];
    if (which == kNoRow) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kTeam; ++w) total += shared.sums[w][r];
    total *= shared.unscale * factor_as<F>();
    const int row = static_cast<int>(which & 0xffffffu), list = static_cast<int>(which >> 24);
    const int expert = list - a.num_matrices;
    float* y = a.experts.shape.y + row;
    if (narrow(a)) {
      if (a.num_matrices > 0) y = a.matrices[0].y + row;
    } else {
      if (const float* scales = row_scales_of(a, shared, list)) total *= scales[row];
      if (expert >= 0) {
        total *= shared.expert_scale[0][expert];
        y += static_cast<int64_t>(expert) * a.experts.shape.rows;
      } else {
        total *= a.matrices[list].scale;
        y = a.matrices[list].y + row;
      }
    }
    switch (a.output) {
      case Output::store:
        *y = total;
        break;
      case Output::add:
        add_to_sum(sums + row, total);
        break;
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
