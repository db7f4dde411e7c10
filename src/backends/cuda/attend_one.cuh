// attend for one token: the keys of a KV head are shared out among blocks, those of a share among warps.
//
// Four warps of a block take 16 keys at a time, each with one buffer for keys and one for values that it fills and
// waits for alone: 32 KiB of copies in flight on an SM, which is what the memory's latency asks for, and no barrier
// inside the loop. The keys of the next tile are asked for when those of this one have been multiplied, the
// values likewise. All query heads of the KV head (up to 16) are the rows of one product of the tensor cores.
//
// FP8 keys and values are fetched as bytes, twice as many at a time, and become F16 in registers. Four dims of a key
// that lie together are a lane's operand, and the queries' dims are in that order.
//
// Accuracy, with u = 2^-24. Cached values are bfloat16; queries (times scale · log2 e, off by 2 u) and weights are
// split into three bfloat16 each, which hold all 24 bits, so products are exact. The tensor cores cut the F32 sum that
// a product of 16 columns ends in and do not round it: off by at most 2 u of that sum. A score is 3 head_dim / 16 of
// these, so it is off by less than (3 head_dim / 8 + 2) u Σ|q k|; the sum of n keys, at most 3 n / 16 of these, by less
// than 3 n / 8 u; 2^x by 4 u. That is within the bound of attend_cases.h, which is for sums that are rounded. With FP8
// queries and weights are two F16 each, which hold 22 bits (attend_fp8_rounding()); of a query not below 2^-25, while
// weights are times 2^15.
//
// Three stages, for a kernel of its own (attend.cu) or as a part of another. The first `num_kv_heads * splits` blocks
// take part, each with the first kAttendThreads threads; Barrier is called without arguments and joins those.
//   begin   asks for the first keys and values; reads nothing of this step but positions, seq_lens, slot_mapping and
//           the block table. `memory` must be free.
//   finish  q, k and v must be there. Leaves the share's part in `partial`, or the result in `out` where a KV head
//           has one share. `memory` is free again after the next barrier.
//   join    from the parts of all blocks, which must have been seen to be complete.
#pragma once

#include "backends/cuda/attend_one.h"
#include "backends/cuda/device.cuh"
#include "core/half.h"

namespace proa::cuda {

constexpr int kAttendWarps = 15;
constexpr int kAttendThreads = kAttendWarps * kWarp;
constexpr int kAttendKeyWarps = 4;
constexpr int kAttendPiece = 8;  // values of a head that a warp joins at a time

// A block's share of the keys. Every warp has its own copy, in shared memory because registers are few.
struct AttendShare {
  int kv_head;
  int split;       // number of the share; not below `shares`: nothing to do
  int shares;      // of this KV head
  int begin, end;  // keys
  int fresh;       // position of the token where its key is not in the cache yet, or -1
  int slot;
  int row[2 * kAttendTile];  // of the cache, for the keys of this warp's next tile; -1: not there
};

// kSteps: products of 16 columns that head_dim takes; 4 or 8. Rows end in room that nobody uses, so that eight rows'
// chunks of 16 bytes, and four rows' pairs of sums, lie in different banks.
template <int kSteps, bool kFp8>
struct AttendShared {
  static constexpr int kKeys = kFp8 ? 2 * kAttendTile : kAttendTile;  // of a warp at a time
  static constexpr int kRound = kAttendKeyWarps * kKeys;              // of a block
  static constexpr int kParts = kFp8 ? 2 : 3;                         // of a query, and of a weight
  static constexpr int kRowBytes = kSteps * (kFp8 ? 16 : 32) + 16;
  union {
    uint8_t tile[2][kKeys][kRowBytes];          // keys, values: [kKeys, kSteps * 16]
    float sums[kAttendHeads][kSteps * 16 + 8];  // at the end
  } warp[kAttendKeyWarps];
  uint4 query[kParts][kSteps][kWarp];            // as operands
  float2 totals[kAttendKeyWarps][kAttendHeads];  // the largest score and the sum of weights
  AttendShare share[kAttendWarps];
};
static_assert(sizeof(AttendShared<8, false>) <= 96 * 1024 && sizeof(AttendShared<8, true>) <= 96 * 1024);

inline size_t attend_room(const AttendOne& a) {  // bytes of shared memory
  const bool fp8 = a.cache.format == Format::F8_E4M3;
  if (a.head_dim <= 64) return fp8 ? sizeof(AttendShared<4, true>) : sizeof(AttendShared<4, false>);
  return fp8 ? sizeof(AttendShared<8, true>) : sizeof(AttendShared<8, false>);
}

// How the keys of every KV head are shared out.
struct AttendShares {
  int begin, end;  // keys that the token sees
  int size;        // keys of a share
  int count;       // at least one
};

__device__ __forceinline__ AttendShares attend_shares(const AttendOne& a) {
  const int position = __ldcg(a.position);
  AttendShares s;
  s.end = min(position + 1, __ldcg(a.seq_len));
  s.begin = a.window > 0 ? max(0, position + 1 - a.window) : 0;
  const int keys = max(0, s.end - s.begin);
  s.size = max(kAttendKeyWarps * a.tile, ((keys + a.splits - 1) / a.splits + a.tile - 1) / a.tile * a.tile);
  s.count = max(1, (keys + s.size - 1) / s.size);
  return s;
}

namespace attend_one {

// Where chunk `chunk` (16 bytes) of a key lies in its tile.
template <int kSteps, bool kFp8>
__device__ __forceinline__ uint32_t place_of(int key, int chunk) {
  return static_cast<uint32_t>(key * AttendShared<kSteps, kFp8>::kRowBytes + chunk * 16);
}

// Looks up where the cache has the tile that begins at key `first`. Ends with the warp in step.
__device__ __forceinline__ void find_rows(const AttendOne& a, AttendShare& s, int first) {
  if (lane_id() < a.tile) {
    const int p = first + lane_id();
    int row = -1;
    if (p < s.end && p != s.fresh) {
      const auto size = static_cast<uint32_t>(a.cache.block_size);
      const uint32_t entry = static_cast<uint32_t>(p) / size;
      row = (__ldcg(a.block_table + entry) * a.num_kv_heads + s.kv_head) * a.cache.block_size +
            static_cast<int>(static_cast<uint32_t>(p) - entry * size);
    }
    s.row[lane_id()] = row;
  }
  __syncwarp();
}

// An address that the compiler computes anew in every round: it would keep one register for each of its offsets.
__device__ __forceinline__ uint32_t unfolded(uint32_t address) {
  asm volatile("" : "+r"(address));
  return address;
}

// Asks for the rows of a tile.
template <int kSteps, bool kFp8>
__device__ __forceinline__ void fetch(uint32_t tile, const std::byte* cached, int head_dim, const AttendShare& s) {
  constexpr int kChunks = kFp8 ? kSteps : 2 * kSteps, kKeys = AttendShared<kSteps, kFp8>::kKeys;
  const int chunk = lane_id() % kChunks, row_bytes = kFp8 ? head_dim : 2 * head_dim;
  const bool used = 16 * chunk < row_bytes;
  tile = unfolded(tile + place_of<kSteps, kFp8>(lane_id() / kChunks, chunk));
  cached += 16 * chunk;
#pragma unroll
  for (int i = 0; i < kKeys; i += kWarp / kChunks) {
    const int from = s.row[i + lane_id() / kChunks];
    const int64_t at = static_cast<int64_t>(max(from, 0)) * row_bytes;
    copy_async_or_zero(tile + place_of<kSteps, kFp8>(i, 0), cached + at, used && from >= 0);
  }
}

// This step's key or value, as the cache rounds it, into its place in a tile.
template <int kSteps, bool kFp8>
__device__ __forceinline__ void put(uint8_t* tile, int key, const float* values, float scale, int head_dim) {
#pragma unroll 1
  for (int d = lane_id(); d < head_dim; d += kWarp) {
    const float value = __ldcg(values + d) / scale;
    if constexpr (kFp8) {
      tile[place_of<kSteps, kFp8>(key, 0) + d] = float_to_e4m3(value);
    } else {
      *reinterpret_cast<uint16_t*>(tile + place_of<kSteps, kFp8>(key, 0) + d * 2) = float_to_bfloat16(value);
    }
  }
}

// The next bfloat16 of each, or F16; what is left stays. Three bfloat16 are all of a float.
template <bool kFp8>
__device__ __forceinline__ uint32_t next_part(float& x, float& y) {
  if constexpr (kFp8) {
    const __half2 pair = __floats2half2_rn(x, y);
    x -= __low2float(pair);
    y -= __high2float(pair);
    return bits_of(pair);
  }
  const uint32_t bits = bits_of(__floats2bfloat162_rn(x, y));
  x -= __uint_as_float(bits << 16);
  y -= __uint_as_float(bits & 0xffff0000u);
  return bits;
}

// The query heads of the KV head as left operands, by all threads.
template <int kSteps, bool kFp8>
__device__ __forceinline__ void load_query(const AttendOne& a, int kv_head, AttendShared<kSteps, kFp8>& shared) {
  // With BF16 the scale of the keys is a part of the queries; F16 has no room for that.
  const float scale = kFp8 ? a.scale : a.scale * a.k_scale;
  const int lane = lane_id(), group = a.num_heads / a.num_kv_heads;
#pragma unroll 1
  for (int item = warp_id(); item < 2 * kSteps; item += kAttendWarps) {
    const int step = item / 2, half = item % 2;
    const int column = 16 * step + (kFp8 ? lane % 4 * 4 + 2 * half : 8 * half + lane % 4 * 2);
    float2 value[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 4 + 8 * i;
      value[i] = make_float2(0, 0);
      if (row >= group || column >= a.head_dim) continue;
      value[i] = __ldcg(reinterpret_cast<const float2*>(a.q + (kv_head * group + row) * a.head_dim + column));
      value[i].x *= scale;
      value[i].y *= scale;
    }
#pragma unroll
    for (int part = 0; part < AttendShared<kSteps, kFp8>::kParts; ++part) {
      const uint2 bits = {next_part<kFp8>(value[0].x, value[0].y), next_part<kFp8>(value[1].x, value[1].y)};
      reinterpret_cast<uint2*>(&shared.query[part][step][lane])[half] = bits;
    }
  }
}

// Scores of a tile's keys: columns 8 t + lane % 4 * 2 and the next, of either row.
template <int kSteps, bool kFp8>
__device__ __forceinline__ void multiply_keys(const AttendShared<kSteps, kFp8>& shared, uint32_t tile, float k_scale,
                                              float (&score)[AttendShared<kSteps, kFp8>::kKeys / 8][4]) {
  constexpr int kParts = AttendShared<kSteps, kFp8>::kParts, kTiles = AttendShared<kSteps, kFp8>::kKeys / 8;
  const int lane = lane_id();
  // Matrices: keys 0-7 and 8-15 in two chunks each; FP8: 8 keys each of 32.
  const uint32_t keys = unfolded(
      tile + (kFp8 ? place_of<kSteps, kFp8>(lane, 0) : place_of<kSteps, kFp8>(lane % 8 + lane / 16 * 8, lane / 8 % 2)));
  const uint32_t query = unfolded(shared_address(&shared.query[0][0][lane]));
#pragma unroll
  for (int t = 0; t < kTiles; ++t) score[t][0] = score[t][1] = score[t][2] = score[t][3] = 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint4 b = load_matrices(keys + place_of<kSteps, kFp8>(0, kFp8 ? step : 2 * step));
    uint32_t dims[kTiles][2];
    if constexpr (kFp8) {
      const uint32_t words[] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        dims[t][0] = e4m3_to_halves(words[t]);
        dims[t][1] = e4m3_to_halves(words[t] >> 16);
      }
    }
#pragma unroll
    for (int part = kParts - 1; part >= 0; --part) {
      const uint4 q = load_shared(query + (part * kSteps + step) * sizeof(shared.query[0][0]));
      if constexpr (kFp8) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) multiply<false>(score[t], q.x, q.y, q.z, q.w, dims[t][0], dims[t][1]);
      } else {
        multiply<true>(score[0], q.x, q.y, q.z, q.w, b.x, b.y);
        multiply<true>(score[1], q.x, q.y, q.z, q.w, b.z, b.w);
      }
    }
  }
  if constexpr (kFp8) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (float& each : score[t]) each *= k_scale;
    }
  }
}

// Scores become weights, relative to the largest so far. `totals` is in shared memory: registers are few.
template <int kSteps, bool kFp8, int kTiles>
__device__ __forceinline__ void weigh(int keys, float2* totals, float (&score)[kTiles][4],
                                      float (&sum)[2 * kSteps][4]) {
  constexpr float kRaise = kFp8 ? 15 : 0;  // keeps small weights within F16
  if (keys < 8 * kTiles) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (8 * t + lane_id() % 4 * 2 + c % 2 >= keys) score[t][c] = -INFINITY;
      }
    }
  }
  float shrink[2];
  bool grew = false;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float2& row = totals[lane_id() / 4 + 8 * i];
    const float2 before = row;
    float best = fmaxf(score[0][2 * i], score[0][2 * i + 1]);
#pragma unroll
    for (int t = 1; t < kTiles; ++t) best = fmaxf(best, fmaxf(score[t][2 * i], score[t][2 * i + 1]));
    best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
    best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
    best = fmaxf(best, before.x);
    const float base = best == -INFINITY ? 0.0f : best;
    float total = 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float &first = score[t][2 * i], &second = score[t][2 * i + 1];
      first = power_of_two(first - base + kRaise);
      second = power_of_two(second - base + kRaise);
      total += first + second;
    }
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    shrink[i] = power_of_two(before.x - base);
    grew = grew || best != before.x;
    if (lane_id() % 4 == 0) row = make_float2(best, before.y * shrink[i] + total);
  }
  if (!__any_sync(~0u, grew)) return;
#pragma unroll
  for (int n = 0; n < 2 * kSteps; ++n) {
    sum[n][0] *= shrink[0];
    sum[n][1] *= shrink[0];
    sum[n][2] *= shrink[1];
    sum[n][3] *= shrink[1];
  }
}

// Sums are of columns 8 n + lane % 4 * 2 and the next; with FP8 sum 2 i has the even ones of 16 dims, sum 2 i + 1 the
// odd ones.
template <int kSteps, bool kFp8, int kTiles>
__device__ __forceinline__ void add_values(uint32_t tile, float (&weight)[kTiles][4], float (&sum)[2 * kSteps][4]) {
  constexpr int kParts = AttendShared<kSteps, kFp8>::kParts;
  const int lane = lane_id();
  uint32_t a[kTiles / 2][kParts][4];
#pragma unroll
  for (int half = 0; half < kTiles / 2; ++half) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float(&of)[4] = weight[2 * half + i / 2];
        a[half][part][i] = next_part<kFp8>(of[i % 2 * 2], of[i % 2 * 2 + 1]);
      }
    }
  }
  // Matrices: keys 0-7 and 8-15 of one chunk, then of the next; FP8: 8 keys each of 32, two dims in a 16-bit element.
  const uint32_t values =
      unfolded(tile + (kFp8 ? place_of<kSteps, kFp8>(lane, 0) : place_of<kSteps, kFp8>(lane % 16, lane / 16)));
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint4 b = load_matrices_transposed(values + place_of<kSteps, kFp8>(0, kFp8 ? step : 2 * step));
    if constexpr (kFp8) {
      const uint32_t words[] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t first = __byte_perm(words[2 * half], 0, 0x3120),
                       second = __byte_perm(words[2 * half + 1], 0, 0x3120);
        const uint32_t even[] = {e4m3_to_halves(first), e4m3_to_halves(second)};
        const uint32_t odd[] = {e4m3_to_halves(first >> 16), e4m3_to_halves(second >> 16)};
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const uint32_t(&w)[4] = a[half][part];
          multiply<false>(sum[2 * step], w[0], w[1], w[2], w[3], even[0], even[1]);
          multiply<false>(sum[2 * step + 1], w[0], w[1], w[2], w[3], odd[0], odd[1]);
        }
      }
    } else {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint32_t(&w)[4] = a[0][part];
        multiply<true>(sum[2 * step], w[0], w[1], w[2], w[3], b.x, b.y);
        multiply<true>(sum[2 * step + 1], w[0], w[1], w[2], w[3], b.z, b.w);
      }
    }
  }
}

// What warps know of one head: the weight of one warp's sums is 2^(best - the best of all).
__device__ __forceinline__ float weight_of(float best, float best_of_all) {
  return best == -INFINITY ? 0.0f : power_of_two(best - best_of_all);
}

// A token that sees no key has no weights.
__device__ __forceinline__ float4 divided(float4 sum, float total, float v_scale) {
  const float factor = total == 0 ? 0.0f : v_scale / total;
  return make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
}

__device__ __forceinline__ float2* totals_of(const AttendOne& a, int kv_head, int row) {
  const int64_t sums = static_cast<int64_t>(a.num_kv_heads) * a.splits * kAttendHeads * a.head_dim;
  return reinterpret_cast<float2*>(a.partial + sums) + static_cast<int64_t>(kv_head * kAttendHeads + row) * a.splits;
}
__device__ __forceinline__ float* sums_of(const AttendOne& a, int kv_head, int split, int row) {
  return a.partial +
         (static_cast<int64_t>(kv_head * a.splits + split) * kAttendHeads + row) * static_cast<int64_t>(a.head_dim);
}

}  // namespace attend_one

template <int kSteps, bool kFp8>
__device__ __forceinline__ void attend_begin(const AttendOne& a, int block, uint8_t* memory) {
  using S = AttendShared<kSteps, kFp8>;
  auto& shared = *reinterpret_cast<S*>(memory);
  const int warp = warp_id();
  AttendShare& s = shared.share[warp];
  if (lane_id() == 0) {
    const AttendShares all = attend_shares(a);
    s.kv_head = block % a.num_kv_heads;
    s.split = block / a.num_kv_heads;
    s.shares = all.count;
    s.begin = all.begin + s.split * all.size;
    s.end = min(all.end, s.begin + all.size);
    s.slot = __ldcg(a.slot);
    s.fresh = s.slot >= 0 ? __ldcg(a.position) : -1;
  }
  __syncwarp();
  const int first = s.begin + warp * S::kKeys;
  if (s.split >= s.shares || warp >= kAttendKeyWarps || first >= s.end) return;
  attend_one::find_rows(a, s, first);
  const uint32_t tile = shared_address(shared.warp[warp].tile);
  attend_one::fetch<kSteps, kFp8>(tile, a.cache.k, a.head_dim, s);
  close_copies();
  attend_one::fetch<kSteps, kFp8>(tile + sizeof(shared.warp[0].tile[0]), a.cache.v, a.head_dim, s);
  close_copies();
  __syncwarp();
  attend_one::find_rows(a, s, first + S::kRound);
}

template <int kSteps, bool kFp8, class Barrier>
__device__ __forceinline__ void attend_finish(const AttendOne& a, uint8_t* memory, const Barrier& barrier) {
  using S = AttendShared<kSteps, kFp8>;
  auto& shared = *reinterpret_cast<S*>(memory);
  const int warp = warp_id(), lane = lane_id();
  AttendShare& s = shared.share[warp];
  if (s.split >= s.shares) return;
  attend_one::load_query(a, s.kv_head, shared);
  barrier();

  if (warp < kAttendKeyWarps) {
    auto& mine = shared.warp[warp];
    const uint32_t keys = shared_address(mine.tile[0]), values = shared_address(mine.tile[1]);
    float2* totals = shared.totals[warp];
    float sum[2 * kSteps][4] = {};  // of rows lane / 4 and lane / 4 + 8, see add_values()
    if (lane < kAttendHeads) totals[lane] = make_float2(-INFINITY, 0);
    for (int first = s.begin + warp * S::kKeys; first < s.end; first += S::kRound) {
      const bool more = first + S::kRound < s.end;
      const int fresh = s.fresh - first;  // which of these keys is this step's
      float score[S::kKeys / 8][4];
      wait_for_copies<1>();
      __syncwarp();
      if (fresh >= 0 && fresh < S::kKeys) {
        attend_one::put<kSteps, kFp8>(mine.tile[0][0], fresh, a.k + s.kv_head * a.head_dim, a.k_scale, a.head_dim);
        __syncwarp();
      }
      attend_one::multiply_keys<kSteps, kFp8>(shared, keys, a.k_scale, score);
      __syncwarp();
      if (more) attend_one::fetch<kSteps, kFp8>(keys, a.cache.k, a.head_dim, s);
      close_copies();

      attend_one::weigh<kSteps, kFp8>(s.end - first, totals, score, sum);
      wait_for_copies<1>();
      __syncwarp();
      if (fresh >= 0 && fresh < S::kKeys) {
        attend_one::put<kSteps, kFp8>(mine.tile[1][0], fresh, a.v + s.kv_head * a.head_dim, a.v_scale, a.head_dim);
        __syncwarp();
      }
      attend_one::add_values<kSteps, kFp8>(values, score, sum);
      __syncwarp();
      if (more) {
        attend_one::fetch<kSteps, kFp8>(values, a.cache.v, a.head_dim, s);
        __syncwarp();
        attend_one::find_rows(a, s, first + 2 * S::kRound);
      }
      close_copies();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = lane / 4 + 8 * i;
#pragma unroll
      for (int n = 0; n < 2 * kSteps; n += kFp8 ? 2 : 1) {
        const float first = sum[n][2 * i], second = sum[n][2 * i + 1];
        if constexpr (kFp8) {
          *reinterpret_cast<float4*>(&mine.sums[r][8 * n + lane % 4 * 4]) =
              make_float4(first, sum[n + 1][2 * i], second, sum[n + 1][2 * i + 1]);
        } else {
          *reinterpret_cast<float2*>(&mine.sums[r][8 * n + lane % 4 * 2]) = make_float2(first, second);
        }
      }
    }
  } else if (s.split == s.shares - 1 && s.slot >= 0) {
    const int size = a.cache.block_size, block = s.slot / size;
    const int64_t to = static_cast<int64_t>((block * a.num_kv_heads + s.kv_head) * size + s.slot % size) * a.head_dim;
#pragma unroll 1
    for (int d = (warp - kAttendKeyWarps) * kWarp + lane; d < a.head_dim;
         d += (kAttendWarps - kAttendKeyWarps) * kWarp) {
      const int from = s.kv_head * a.head_dim + d;
      const float k = over(__ldcg(a.k + from), a.k_scale), v = over(__ldcg(a.v + from), a.v_scale);
      if constexpr (kFp8) {
        reinterpret_cast<uint8_t*>(a.cache.k)[to + d] = float_to_e4m3(k);
        reinterpret_cast<uint8_t*>(a.cache.v)[to + d] = float_to_e4m3(v);
      } else {
        reinterpret_cast<uint16_t*>(a.cache.k)[to + d] = float_to_bfloat16(k);
        reinterpret_cast<uint16_t*>(a.cache.v)[to + d] = float_to_bfloat16(v);
      }
    }
  }
  barrier();

  const int group = a.num_heads / a.num_kv_heads;
#pragma unroll 1
  for (int head = warp; head < group; head += kAttendWarps) {  // of the KV head
    float best = -INFINITY;
#pragma unroll
    for (int w = 0; w < kAttendKeyWarps; ++w) best = fmaxf(best, shared.totals[w][head].x);
    float total = 0;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < kAttendKeyWarps; ++w) {
      const float2 part = shared.totals[w][head];
      const float weight = attend_one::weight_of(part.x, best);
      total += weight * part.y;
      if (lane >= 4 * kSteps) continue;
      const float4 v = *reinterpret_cast<const float4*>(&shared.warp[w].sums[head][4 * lane]);
      sum.x += weight * v.x;
      sum.y += weight * v.y;
      sum.z += weight * v.z;
      sum.w += weight * v.w;
    }
    const bool used = 4 * lane < a.head_dim;
    if (s.shares == 1) {
      float4* out = reinterpret_cast<float4*>(a.out + (s.kv_head * group + head) * a.head_dim);
      if (used) __stcg(out + lane, attend_one::divided(sum, total, a.v_scale));
      continue;
    }
    if (used) __stcg(reinterpret_cast<float4*>(attend_one::sums_of(a, s.kv_head, s.split, head)) + lane, sum);
    if (lane == 0) __stcg(attend_one::totals_of(a, s.kv_head, head) + s.split, make_float2(best, total));
  }
}

// Values 8 · piece to 8 · piece + 7 of a head, by one warp: two lanes take a share's.
__device__ __forceinline__ void attend_join_piece(const AttendOne& a, int shares, int head, int piece) {
  constexpr int kLanes = kAttendPiece / 4;
  constexpr int kAtOnce = 5;  // 80 shares in one round trip
  const int lane = lane_id(), column = kAttendPiece * piece + lane % kLanes * 4;
  const int group = a.num_heads / a.num_kv_heads, kv_head = head / group, row = head % group;
  const float2* totals = attend_one::totals_of(a, kv_head, row);
  const float* sums = attend_one::sums_of(a, kv_head, 0, row) + column;
  float best = -INFINITY, total = 0;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int first = lane / kLanes; first < shares; first += kAtOnce * (kWarp / kLanes)) {
    float2 part[kAtOnce];
    float4 value[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int split = first + i * (kWarp / kLanes);
      part[i] = make_float2(-INFINITY, 0);
      value[i] = make_float4(0, 0, 0, 0);
      if (split >= shares) continue;
      part[i] = __ldcg(totals + split);
      value[i] =
          __ldcg(reinterpret_cast<const float4*>(sums + static_cast<int64_t>(split) * kAttendHeads * a.head_dim));
    }
    float new_best = best;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) new_best = fmaxf(new_best, part[i].x);
    const float shrink = attend_one::weight_of(best, new_best);
    best = new_best;
    total *= shrink;
    sum = make_float4(sum.x * shrink, sum.y * shrink, sum.z * shrink, sum.w * shrink);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float weight = attend_one::weight_of(part[i].x, best);
      total += weight * part[i].y;
      sum.x += weight * value[i].x;
      sum.y += weight * value[i].y;
      sum.z += weight * value[i].z;
      sum.w += weight * value[i].w;
    }
  }
  float best_of_all = best;
#pragma unroll
  for (int step = kWarp / 2; step >= kLanes; step /= 2) {
    best_of_all = fmaxf(best_of_all, __shfl_xor_sync(~0u, best_of_all, step));
  }
  const float weight = attend_one::weight_of(best, best_of_all);
  float values[5] = {total * weight, sum.x * weight, sum.y * weight, sum.z * weight, sum.w * weight};
#pragma unroll
  for (int step = kWarp / 2; step >= kLanes; step /= 2) {
#pragma unroll
    for (float& value : values) value += __shfl_xor_sync(~0u, value, step);
  }
  if (lane >= kLanes) return;
  const float4 all = make_float4(values[1], values[2], values[3], values[4]);
  *reinterpret_cast<float4*>(a.out + head * a.head_dim + column) = attend_one::divided(all, values[0], a.v_scale);
}

// All heads, shared out among warps; to be called by whole warps.
__device__ __forceinline__ void attend_join(const AttendOne& a, int worker, int num_workers) {
  const int shares = attend_shares(a).count;
  if (shares == 1) return;  // finish has written it
  const int pieces = a.head_dim / kAttendPiece;
  for (int item = worker; item < a.num_heads * pieces; item += num_workers) {
    attend_join_piece(a, shares, item / pieces, item % pieces);
  }
}

}  // namespace proa::cuda
