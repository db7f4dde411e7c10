// attend: a block takes 16 rows, a row being one query head of one token, over one KV head and a share of the keys.
// Keys and values are decoded to F32 in shared memory, 32 at a time. Where several blocks share the keys of a row, the
// last one to end joins their parts. One token a sequence with BF16 or FP8 keys and values is attend_one.cuh's, many
// tokens attend_many.cu's.
#include <algorithm>

#include "backends/cuda/attend_one.cuh"
#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"

namespace proa::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTileRows = 16;
constexpr int kWarpRows = kTileRows / kWarps;
constexpr int kKeys = 32;
constexpr int kMinSplitKeys = 64;
constexpr int kMaxSplits = 64;
constexpr int kRounds = 2;  // blocks of an SM, where sequences of other lengths share it

template <class F>
__device__ float read(const std::byte* base, int64_t element) {
  float value;
  F::decode(reinterpret_cast<const typename F::Block*>(base)[element], &value);
  return value;
}
__device__ void write(F32, std::byte* base, int64_t element, float value) {
  reinterpret_cast<float*>(base)[element] = value;
}
__device__ void write(F16, std::byte* base, int64_t element, float value) {
  reinterpret_cast<uint16_t*>(base)[element] = float_to_half(value);
}
__device__ void write(BF16, std::byte* base, int64_t element, float value) {
  reinterpret_cast<uint16_t*>(base)[element] = float_to_bfloat16(value);
}

__device__ void write(F8_E4M3, std::byte* base, int64_t element, float value) {
  reinterpret_cast<uint8_t*>(base)[element] = float_to_e4m3(value);
}

struct Args {
  Batch batch;
  int num_heads, num_kv_heads, head_dim, window;
  float scale, k_scale, v_scale;
  const float *q, *k, *v;
  KvCacheView cache;
  float* out;
  int splits;
  bool store;      // every token is the last of its sequence: its key and value are stored here
  float* partial;  // [tiles, kv heads, splits, 16, head_dim + 2]
  uint32_t* tickets;
};

template <class F>
__global__ void store_kernel(const __grid_constant__ Args a) {
  wait_for_predecessor();
  start_successor();
  const int64_t token = blockIdx.x;
  const int32_t slot = __ldcg(a.batch.slot_mapping + token);
  if (slot < 0) return;
  const int64_t block = slot / a.cache.block_size, offset = slot % a.cache.block_size;
  for (int i = static_cast<int>(threadIdx.x); i < a.num_kv_heads * a.head_dim; i += static_cast<int>(blockDim.x)) {
    const int head = i / a.head_dim, d = i % a.head_dim;
    const int64_t at = ((block * a.num_kv_heads + head) * a.cache.block_size + offset) * a.head_dim + d;
    write(F(), a.cache.k, at, over(__ldcg(a.k + token * a.num_kv_heads * a.head_dim + i), a.k_scale));
    write(F(), a.cache.v, at, over(__ldcg(a.v + token * a.num_kv_heads * a.head_dim + i), a.v_scale));
  }
}

// kDims: head_dim / 32, rounded up.
template <class F, int kDims>
__global__ void __launch_bounds__(kThreads) attend_kernel(const __grid_constant__ Args a) {
  constexpr int kPitch = kDims * kWarp + 1;  // odd, so that lanes reading down a column meet no conflict
  extern __shared__ float memory[];
  float* q = memory;                            // [16, kDims * 32]
  float* keys = q + kTileRows * kDims * kWarp;  // [32, kPitch]
  float* values = keys + kKeys * kPitch;        // [32, kDims * 32]
  __shared__ bool last;
  // A decode finds all but its own key in the cache, and the arrays of the step are older than its predecessor.
  const bool early = a.store;
  if (!early) {
    wait_for_predecessor();
    start_successor();
  }

  const int tid = static_cast<int>(threadIdx.x), lane = lane_id(), warp = warp_id();
  const int group = a.num_heads / a.num_kv_heads, dim = a.head_dim;
  const int split = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  // Which sequence this tile of rows belongs to.
  int tile = static_cast<int>(blockIdx.z), seq = 0, first_token = 0, rows = 0;
  for (;; ++seq) {
    if (seq == a.batch.num_seqs) return;
    first_token = __ldcg(a.batch.query_start + seq);
    rows = (__ldcg(a.batch.query_start + seq + 1) - first_token) * group;
    const int tiles = (rows + kTileRows - 1) / kTileRows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  const int first_row = tile * kTileRows;
  const int used = min(kTileRows, rows - first_row);
  const int32_t* table = a.batch.block_table + static_cast<int64_t>(seq) * a.batch.block_table_stride;
  const int seq_len = __ldcg(a.batch.seq_lens + seq);
  const auto token_of = [&](int r) { return static_cast<int64_t>(first_token + (first_row + r) / group); };
  const auto head_of = [&](int r) { return kv_head * group + (first_row + r) % group; };

  // Keys that a row sees, and those that any row of the tile sees.
  int begin[kWarpRows], end[kWarpRows];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = warp * kWarpRows + r;
    begin[r] = end[r] = 0;
    if (row >= used) continue;
    const int position = __ldcg(a.batch.positions + token_of(row));
    end[r] = min(position + 1, seq_len);
    begin[r] = a.window > 0 ? max(0, position + 1 - a.window) : 0;
  }
  const int first_position = __ldcg(a.batch.positions + token_of(0));
  const int last_position = __ldcg(a.batch.positions + token_of(used - 1));
  int from = a.window > 0 ? max(0, first_position + 1 - a.window) : 0;
  const int to = min(last_position + 1, seq_len);
  // Shares of whole steps, as few as hold kMinSplitKeys each.
  const int all = max(0, to - from);
  int share = (all + a.splits - 1) / a.splits;
  share = max(kMinSplitKeys, (share + kKeys - 1) / kKeys * kKeys);
  const int active = a.splits == 1 ? 1 : max(1, (all + share - 1) / share);
  if (split >= active) return;
  const int share_begin = active == 1 ? from : from + split * share;
  const int share_end = active == 1 ? to : min(to, share_begin + share);

  const int current = a.store ? first_position : -1;  // whose key is not in the cache yet
  const int32_t current_slot = a.store ? __ldcg(a.batch.slot_mapping + token_of(0)) : -1;
  const auto fresh = [&](int p) { return p == current && current_slot >= 0; };
  const auto load_cached = [&](int first) {
#pragma unroll 4
    for (int k = warp; k < kKeys; k += kWarps) {
      const int p = first + k;
      const bool there = p < share_end && !fresh(p);
      int64_t at = 0;
      if (there) {
        const int64_t block = __ldcg(table + p / a.cache.block_size);
        at = ((block * a.num_kv_heads + kv_head) * a.cache.block_size + p % a.cache.block_size) * dim;
      }
#pragma unroll
      for (int i = 0; i < kDims; ++i) {
        const int d = lane + i * kWarp;
        const bool used_dim = there && d < dim;
        keys[k * kPitch + d] = used_dim ? read<F>(a.cache.k, at + d) : 0.0f;
        values[k * kDims * kWarp + d] = used_dim ? read<F>(a.cache.v, at + d) : 0.0f;
      }
    }
  };
  if (early) {
    if (share_begin < share_end) load_cached(share_begin);
    wait_for_predecessor();
    start_successor();
  }
  // This step's key and value, as the cache rounds them.
  const auto load_fresh = [&](int first) {
    const int k = current - first;
    if (k < 0 || k >= kKeys || current >= share_end || current_slot < 0) return;
    for (int d = tid; d < dim; d += kThreads) {
      typename F::Block stored[2];
      const int64_t in = (token_of(0) * a.num_kv_heads + kv_head) * dim + d;
      write(F(), reinterpret_cast<std::byte*>(stored), 0, over(__ldcg(a.k + in), a.k_scale));
      write(F(), reinterpret_cast<std::byte*>(stored), 1, over(__ldcg(a.v + in), a.v_scale));
      F::decode(stored[0], &keys[k * kPitch + d]);
      F::decode(stored[1], &values[k * kDims * kWarp + d]);
    }
  };
  if (a.store && current_slot >= 0 && tile == 0 && (split == active - 1)) {
    const int64_t block = current_slot / a.cache.block_size, offset = current_slot % a.cache.block_size;
    for (int d = tid; d < dim; d += kThreads) {
      const int64_t at = ((block * a.num_kv_heads + kv_head) * a.cache.block_size + offset) * dim + d;
      const int64_t in = (token_of(0) * a.num_kv_heads + kv_head) * dim + d;
      write(F(), a.cache.k, at, over(__ldcg(a.k + in), a.k_scale));
      write(F(), a.cache.v, at, over(__ldcg(a.v + in), a.v_scale));
    }
  }
  const float q_scale = a.scale * a.k_scale;
  for (int i = tid; i < kTileRows * kDims * kWarp; i += kThreads) {
    const int r = i / (kDims * kWarp), d = i % (kDims * kWarp);
    q[i] = r < used && d < dim ? __ldcg(a.q + (token_of(r) * a.num_heads + head_of(r)) * dim + d) * q_scale : 0.0f;
  }

  float best[kWarpRows], total[kWarpRows], sum[kWarpRows][kDims];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    best[r] = -INFINITY;
    total[r] = 0;
#pragma unroll
    for (int i = 0; i < kDims; ++i) sum[r][i] = 0;
  }
  for (int first = share_begin; first < share_end; first += kKeys) {
    __syncthreads();
    if (!early || first != share_begin) load_cached(first);
    if (early) {
      __syncthreads();  // the zeros in its place have been written
      load_fresh(first);
    }
    __syncthreads();
    float score[kWarpRows] = {};
    const float* key = keys + lane * kPitch;
    const float* my_q = q + warp * kWarpRows * kDims * kWarp;
#pragma unroll 4
    for (int d = 0; d < kDims * kWarp; d += 4) {
      const float k0 = key[d], k1 = key[d + 1], k2 = key[d + 2], k3 = key[d + 3];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        const float4 v = *reinterpret_cast<const float4*>(my_q + r * kDims * kWarp + d);
        score[r] += (v.x * k0 + v.y * k1) + (v.z * k2 + v.w * k3);
      }
    }
    const int p = first + lane;
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const bool seen = p >= begin[r] && p < end[r] && p < share_end;
      const float s = seen ? score[r] : -INFINITY;
      const float new_best = fmaxf(best[r], warp_max(s));
      const float weight = seen ? expf(s - new_best) : 0.0f;
      const float shrink = new_best == -INFINITY ? 1.0f : expf(best[r] - new_best);
      best[r] = new_best;
      total[r] = total[r] * shrink + warp_sum(weight);
      score[r] = weight;
#pragma unroll
      for (int i = 0; i < kDims; ++i) sum[r][i] *= shrink;
    }
#pragma unroll 4
    for (int k = 0; k < kKeys; ++k) {
      float v[kDims];
#pragma unroll
      for (int i = 0; i < kDims; ++i) v[i] = values[(k * kDims + i) * kWarp + lane];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        const float weight = __shfl_sync(~0u, score[r], k);
#pragma unroll
        for (int i = 0; i < kDims; ++i) sum[r][i] += weight * v[i];
      }
    }
  }

  const int64_t place = static_cast<int64_t>(blockIdx.z) * a.num_kv_heads + kv_head;
  const int width = dim + 2;
  if (active > 1) {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      float* part = a.partial + ((place * a.splits + split) * kTileRows + warp * kWarpRows + r) * width;
#pragma unroll
      for (int i = 0; i < kDims; ++i) {
        if (lane + i * kWarp < dim) __stcg(part + lane + i * kWarp, sum[r][i]);
      }
      if (lane == 0) __stcg(part + dim, best[r]), __stcg(part + dim + 1, total[r]);
    }
    __threadfence();
    __syncthreads();
    if (tid == 0) {
      last = atomicAdd(a.tickets + place, 1u) == static_cast<uint32_t>(active - 1);
      if (last) a.tickets[place] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      best[r] = -INFINITY;
      total[r] = 0;
#pragma unroll
      for (int i = 0; i < kDims; ++i) sum[r][i] = 0;
      const float* parts = a.partial + (place * a.splits * kTileRows + warp * kWarpRows + r) * width;
      for (int s = lane; s < active; s += kWarp) {
        best[r] = fmaxf(best[r], __ldcg(parts + static_cast<int64_t>(s) * kTileRows * width + dim));
      }
      best[r] = warp_max(best[r]);
      if (best[r] == -INFINITY) continue;
#pragma unroll 4
      for (int s = 0; s < active; ++s) {
        const float* part = parts + static_cast<int64_t>(s) * kTileRows * width;
        const float weight = expf(__ldcg(part + dim) - best[r]);
        total[r] += weight * __ldcg(part + dim + 1);
#pragma unroll
        for (int i = 0; i < kDims; ++i) {
          if (lane + i * kWarp < dim) sum[r][i] += weight * __ldcg(part + lane + i * kWarp);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = warp * kWarpRows + r;
    if (row >= used) continue;
    float* out = a.out + (token_of(row) * a.num_heads + head_of(row)) * dim;
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int d = lane + i * kWarp;
      if (d < dim) out[d] = total[r] > 0 ? sum[r][i] / total[r] * a.v_scale : 0.0f;
    }
  }
}

// One token of each sequence; `op` is that of the first.
template <int kSteps, bool kFp8>
__global__ void __launch_bounds__(kAttendThreads)
    attend_one_kernel(const __grid_constant__ AttendOne op, int table_stride, int64_t partial_size, uint32_t* tickets) {
  extern __shared__ __align__(128) uint8_t one_memory[];
  __shared__ bool last;
  const int64_t seq = blockIdx.y;
  AttendOne a = op;
  a.q += seq * op.num_heads * op.head_dim;
  a.k += seq * op.num_kv_heads * op.head_dim;
  a.v += seq * op.num_kv_heads * op.head_dim;
  a.position += seq;
  a.seq_len += seq;
  a.slot += seq;
  a.block_table += seq * table_stride;
  a.out += seq * op.num_heads * op.head_dim;
  a.partial += seq * partial_size;
  tickets += seq * op.num_kv_heads;
  const auto barrier = [] { __syncthreads(); };
  attend_begin<kSteps, kFp8>(a, static_cast<int>(blockIdx.x), one_memory);
  wait_for_predecessor();
  start_successor();
  attend_finish<kSteps, kFp8>(a, one_memory, barrier);
  const AttendShare& share = reinterpret_cast<AttendShared<kSteps, kFp8>*>(one_memory)->share[warp_id()];
  if (share.shares == 1 || share.split >= share.shares) return;
  __threadfence();
  barrier();
  if (threadIdx.x == 0) {
    last = atomicAdd(tickets + share.kv_head, 1u) == static_cast<uint32_t>(share.shares - 1);
    if (last) tickets[share.kv_head] = 0;
  }
  barrier();
  if (!last) return;
  __threadfence();
  const int group = a.num_heads / a.num_kv_heads, pieces = a.head_dim / kAttendPiece;
  for (int item = warp_id(); item < group * pieces; item += kAttendWarps) {
    attend_join_piece(a, share.shares, share.kv_head * group + item / pieces, item % pieces);
  }
}

template <int kSteps, bool kFp8>
void launch_one(const Attend& op, const AttendOne& one, uint32_t* tickets, const Launch& launch) {
  launch(attend_one_kernel<kSteps, kFp8>, dim3(one.num_kv_heads * one.splits, op.batch->num_seqs), dim3(kAttendThreads),
         sizeof(AttendShared<kSteps, kFp8>), one, op.batch->block_table_stride,
         static_cast<int64_t>(attend_partial_size(one)), tickets);
}

bool is_one(const Attend& op, const Launch& launch) {
  return takes_attend_one(op) && launch.shared_limit() >= static_cast<int>(std::max(sizeof(AttendShared<8, false>),
                                                                                    sizeof(AttendShared<8, true>)));
}

int tiles_of(const Attend& op) {
  const int group = op.num_heads / op.num_kv_heads;
  const int64_t rows = static_cast<int64_t>(op.batch->num_tokens) * group;
  return static_cast<int>((rows + kTileRows - 1) / kTileRows) + op.batch->num_seqs;
}

template <class F, int kDims>
void launch_as(const Attend& op, const Args& args, const Launch& launch) {
  const bool many = takes_attend_many(op, launch);
  if (many || !args.store) launch(store_kernel<F>, dim3(op.batch->num_tokens), dim3(128), 0, args);
  if (many) return attend_many(op, launch);
  const size_t shared = sizeof(float) * (kTileRows * kDims * kWarp + kKeys * (2 * kDims * kWarp + 1));
  launch(attend_kernel<F, kDims>, dim3(args.splits, op.num_kv_heads, tiles_of(op)), dim3(kThreads), shared, args);
}

template <class F>
void launch_format(const Attend& op, const Args& args, const Launch& launch) {
  if (op.head_dim <= 64) return launch_as<F, 2>(op, args, launch);
  if (op.head_dim <= 128) return launch_as<F, 4>(op, args, launch);
  launch_as<F, 8>(op, args, launch);
}

}  // namespace

int attend_splits(const Attend& op, const Launch& launch) {
  if (is_one(op, launch)) {
    const int one = op.num_kv_heads * op.batch->num_seqs;
    return std::max(1, (op.batch->num_seqs > 1 ? kRounds : 1) * launch.num_sms() / one);
  }
  if (takes_attend_many(op, launch)) return 1;
  const int64_t blocks = static_cast<int64_t>(tiles_of(op)) * op.num_kv_heads;
  if (blocks == 0) return 1;
  const int64_t wanted = 2 * launch.num_sms() / blocks;
  return static_cast<int>(wanted < 1 ? 1 : wanted > kMaxSplits ? kMaxSplits : wanted);
}
size_t attend_tickets(const Attend& op) {
  return static_cast<size_t>(tiles_of(op)) * static_cast<size_t>(op.num_kv_heads);
}
size_t attend_partial_floats(const Attend& op, int splits) {
  if (splits == 1) return 0;
  if (takes_attend_one(op)) {
    return static_cast<size_t>(op.batch->num_seqs) * attend_partial_size(make_attend_one(op, splits, nullptr));
  }
  return attend_tickets(op) * static_cast<size_t>(splits * kTileRows * (op.head_dim + 2));
}

void attend(const Attend& op, int splits, float* partial, uint32_t* tickets, const Launch& launch) {
  if (op.batch->num_tokens == 0) return;
  if (is_one(op, launch)) {
    const AttendOne one = make_attend_one(op, splits, partial);
    const auto with = [&](auto steps) {
      constexpr int kSteps = decltype(steps)::value;
      if (op.cache.format == Format::BF16) return launch_one<kSteps, false>(op, one, tickets, launch);
      return launch_one<kSteps, true>(op, one, tickets, launch);
    };
    return op.head_dim <= 64 ? with(std::integral_constant<int, 4>()) : with(std::integral_constant<int, 8>());
  }
  const Args args{*op.batch, op.num_heads, op.num_kv_heads, op.head_dim, op.window,
                  op.scale,  op.k_scale,   op.v_scale,      op.q,        op.k,
                  op.v,      op.cache,     op.out,          splits,      op.batch->num_tokens == op.batch->num_seqs,
                  partial,   tickets};
  switch (op.cache.format) {
    case Format::F32:
      return launch_format<F32>(op, args, launch);
    case Format::F16:
      return launch_format<F16>(op, args, launch);
    case Format::F8_E4M3:
      return launch_format<F8_E4M3>(op, args, launch);
    default:
      return launch_format<BF16>(op, args, launch);
  }
}

}  // namespace proa::cuda
