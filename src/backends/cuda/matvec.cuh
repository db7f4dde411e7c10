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
struct Piece {
  uint32_t row[kMaxTileRows];     // where the row's first byte is in the ring
  uint32_t scales[kMaxTileRows];  // of its group scales
  int rows;
  int groups;       // 0: nothing, so that the next piece is another team's
  int first_group;  // of the input
  int cols;         // of the row from here on
  int list;         // whose: matrices, then experts
  int first_row;
  bool last;           // of its tile
  int first_to_write;  // its rows' place among those that wait to be written
  int rows_to_write;   // that are written after this piece by all; -1: none yet
  bool final;          // of the stage
};

struct Shared {
  uint64_t full[kSlots], empty[kSlots];  // barriers
  Piece pieces[kSlots];
  float room[2 * kWarp];
  float sums[kTeam][kRowsToWrite];
  uint32_t row_to_write[kRowsToWrite];  // list, 8 bits, and row
  float unscale;                        // what undoes the power of two of the input
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
    to_write_ = 0;
    const bool in_parts = a.share == Share::crew_parts, in_rows = a.share == Share::crew_rows;
    const bool widens = a.mode == MatVec::Mode::widen;
    const bool sum = narrow(a) && !in_parts, of_sum = narrow(a);
    // In rows of crews each list has a part for this one, or this one has some of the lists.
    const int part_of_rows = in_rows && !widens ? crew_of_block() : -1;
    const int num_matrices = a.num_matrices, step = plan.tile_rows;
    int first_list = 0, lists = num_matrices + a.experts.count, first_byte = 0;
    const int expert_rows = plan.expert_rows;
    Range of_matrices = share_of(plan.matrix_rows);
    if (part_of_rows >= 0) of_matrices = share_of_crew(plan.matrix_rows / kMostCrews);
    if (in_rows && widens) of_matrices = share_of(plan.matrix_rows + expert_rows);
    if (in_parts) {
      const int crew = crew_of_block();
      of_matrices = share_of_crew(plan.matrix_rows);
      first_list = crew < plan.matrix_crews ? 0 : num_matrices + crew - plan.matrix_crews;
      lists = first_list + 1;
      first_byte = crew < plan.matrix_crews ? crew * plan.crew_bytes : 0;
    }
    bool ended = false;
    // Tiles go in groups of one for each team, so that all teams have something to do. A sum takes all lists for a
    // group; otherwise a list takes all its groups.
    const int group = step * kTeams;
#pragma unroll 1
    for (int outer = sum ? of_matrices.begin : 0; outer < (sum ? of_matrices.end : 1); outer += group) {
      Range mine = sum ? Range{outer, min(outer + group, of_matrices.end)} : of_matrices;
      int first = 0, first_group = 0;  // of the list, in what is shared out and in the input
#pragma unroll 1
      for (int list = first_list; list < lists; ++list) {
        const int e = list - num_matrices, kind = e >= 0;
        if (e == 0 && widens) {
          // A crew of the shared expert; its blocks without rows know nothing of experts either.
          if (in_rows && crew_of_block() * ((plan.matrix_rows + expert_rows) / kMostCrews) < plan.matrix_rows) break;
          wait_for_experts();
          if (!in_rows) {
            mine = share_of(expert_rows);
            first = 0;
          }
        }
        const Matrix& m = kind ? a.experts.shape : a.matrices[list];
        Rows rows;
        rows.data = kind ? shared_.data[of_sum][e] : m.data;
        rows.scales = kind ? shared_.scales[of_sum][e] : m.group_scales;
        rows.stride = static_cast<uint32_t>(m.stride), rows.scales_stride = static_cast<uint32_t>(m.scales_stride);
        rows.pitch = plan.pitch[kind], rows.scales_pitch = plan.scales_pitch[kind];
        rows.contiguous = plan.contiguous[kind];
        rows.list = list;
        const int cols = in_parts ? plan.crew_cols : m.cols, part_cols = plan.part_cols[kind];
        const int parts = plan.parts[kind], part_bytes = plan.part_bytes[kind], last_bytes = plan.last_bytes[kind];
        const int all_rows = part_of_rows >= 0 ? m.rows / kMostCrews : m.rows;
        const int row_of_first = part_of_rows >= 0 ? part_of_rows * all_rows - first : -first;
        const int begin = max(mine.begin, first) + row_of_first;
        const int end = min(mine.end, first + all_rows) + row_of_first;
        const bool ends = sum ? list + 1 == lists && mine.end == of_matrices.end
                              : (kind || !widens || in_rows) && mine.end <= first + all_rows;
        const bool last_list = !sum || list + 1 == lists;
#pragma unroll 1
        for (int group_begin = begin; group_begin < end; group_begin += group) {
          const int group_end = min(group_begin + group, end);
#pragma unroll 1
          for (int part = 0; part < parts; ++part) {
            const bool last = part + 1 == parts;
            rows.offset = first_byte + part * part_bytes, rows.bytes = last ? last_bytes : part_bytes;
            rows.cols = cols - part * part_cols, rows.cols_here = last ? rows.cols : part_cols;
            rows.first_group = first_group + part * (part_cols / 32);
            rows.last = last && last_list;
            rows.first_to_write = to_write_;
            ended = last && ends && group_end == end;
            const int left = to_write_ + group_end - group_begin;
            const bool full = rows.last && (ended || left + group > kRowsToWrite);
            rows.rows_to_write = full ? left : -1, rows.final = ended;
#pragma unroll 1
            for (int team = 0, row = group_begin; team < kTeams; ++team, row += step) {
              rows.row = row, rows.count = min(step, group_end - row);
              if (rows.count > 0) {
                piece(rows);
              } else {
                nothing(rows.rows_to_write, ended);
              }
              rows.first_to_write += rows.count;
            }
            if (rows.last) to_write_ = full ? 0 : left;
          }
        }
        if (sum) {
          first_group += (cols + 31) / 32;
        } else {
          first += all_rows;
        }
      }
    }
    if (ended) return;
    for (int team = 0; team < kTeams; ++team) nothing(to_write_, true);
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
    int first_to_write, rows_to_write;
    bool last, final;
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

  __device__ __forceinline__ void piece(const Rows& rows) {
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
      piece.cols = rows.cols, piece.list = rows.list, piece.first_row = rows.row, piece.last = rows.last;
      piece.first_to_write = rows.first_to_write, piece.rows_to_write = rows.rows_to_write;
      piece.final = rows.final;
    }
    announce(full);
  }
  __device__ void nothing(int rows_to_write, bool final) {
    make_room(0);
    if (lane_id() == 0) {
      Piece& piece = shared_.pieces[head_.slot];
      piece.groups = 0, piece.rows_to_write = rows_to_write, piece.final = final;
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
  int to_write_ = 0;  // rows of this stage that wait to be written
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
      wait_barrier(&shared.full[at.slot], at.parity);
      const Piece& piece = shared.pieces[at.slot];
      const int groups = piece.groups, rows = piece.rows, rows_to_write = piece.rows_to_write;
      const bool final = piece.final;
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
        if (piece.last) leave(piece, rows, sum);
      }
      __syncwarp();
      if (lane_id() == 0) arrive(&shared.empty[at.slot]);
      at.next(kTeams);
      if (rows_to_write < 0) continue;
      consumers_sync();
      for (int r = static_cast<int>(threadIdx.x); r < rows_to_write; r += kConsumerThreads) write(a, r);
      consumers_sync();
      if (!final) continue;
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

  // This warp's sums of a tile, for write().
  __device__ __forceinline__ void leave(const Piece& piece, int rows, float (&sum)[kMaxOctets]) const {
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
    if (warp_id() % kTeam == 0 && lane < rows) {
      shared.row_to_write[first + lane] = static_cast<uint32_t>(piece.list) << 24 | (piece.first_row + lane);
    }
  }

  __device__ static void add_to_sum(int64_t* sum, float value) {
    const float scaled = value * static_cast<float>(int64_t{1} << kResidualBits);
    const int64_t whole = fabsf(scaled) < static_cast<float>(kNoNumber) / 4 ? __float2ll_rn(scaled) : kNoNumber;
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(sum), "l"(whole) : "memory");
  }

  // Row r of those that have been left.
  __device__ __forceinline__ void write(const MatVec& a, int r) const {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kTeam; ++w) total += shared.sums[w][r];
    total *= shared.unscale * factor_as<F>();
    const uint32_t which = shared.row_to_write[r];
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
