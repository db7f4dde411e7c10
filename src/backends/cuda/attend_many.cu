// Attention of many queries on the tensor cores. A block has 128 rows, each a query of one head, all heads of a KV head
// before the next token, and goes through the keys 64 at a time: scores, weights and the sums over values stay in
// registers. Queries and weights are two short floats each, so the products hold 16 bits (22 with an F16 cache); keys
// and values are used as the cache has them.
#include <algorithm>

#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"

namespace proa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 128;
constexpr int kKeys = 64;
constexpr int kFewestTokens = 64;
constexpr int kFewestDims = 64;  // sums of fewer terms are held to more than 16 bits
constexpr float kLog2e = 1.44269504f;

struct Args {
  Batch batch;
  int num_heads, num_kv_heads, head_dim, window;
  float scale;
  const float* q;
  KvCacheView cache;
  float* out;
};

template <bool kBf16>
__device__ __forceinline__ void split(float a, float b, uint32_t& high, uint32_t& low) {
  if constexpr (kBf16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    high = bits_of(pair);
    low = bits_of(__floats2bfloat162_rn(a - __low2float(pair), b - __high2float(pair)));
  } else {
    const __half2 pair = __floats2half2_rn(a, b);
    high = bits_of(pair);
    low = bits_of(__floats2half2_rn(a - __low2float(pair), b - __high2float(pair)));
  }
}

template <int kDims>
struct Shared {
  static constexpr int kPitch = 2 * kDims + 16;  // bytes: eight rows' chunks of 16 bytes lie in all banks
  uint8_t keys[2][kKeys * kPitch], values[2][kKeys * kPitch];
};

template <bool kBf16, int kDims>
__global__ void __launch_bounds__(kThreads, 1) many_kernel(const __grid_constant__ Args a) {
  using S = Shared<kDims>;
  extern __shared__ __align__(128) uint8_t memory[];
  S& shared = *reinterpret_cast<S*>(memory);
  wait_for_predecessor();
  start_successor();
  const int tid = static_cast<int>(threadIdx.x), lane = lane_id(), j = lane % 4, quad = lane / 8, in_quad = lane % 8;
  const int group = a.num_heads / a.num_kv_heads, kv_head = static_cast<int>(blockIdx.y);
  // The last tiles have the most keys and go first.
  int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x), seq = 0, first_token = 0, rows = 0;
  for (;; ++seq) {
    if (seq == a.batch.num_seqs) return;
    first_token = __ldcg(a.batch.query_start + seq);
    rows = (__ldcg(a.batch.query_start + seq + 1) - first_token) * group;
    const int tiles = (rows + kRows - 1) / kRows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  const int first_row = tile * kRows, used = min(kRows, rows - first_row);
  const int32_t* table = a.batch.block_table + static_cast<int64_t>(seq) * a.batch.block_table_stride;
  const int seq_len = __ldcg(a.batch.seq_lens + seq);
  const auto token_of = [&](int r) { return static_cast<int64_t>(first_token + (first_row + r) / group); };
  const auto head_of = [&](int r) { return kv_head * group + (first_row + r) % group; };
  const auto begin_of = [&](int position) { return a.window > 0 ? max(0, position + 1 - a.window) : 0; };

  // Of this lane: rows lane / 4 and 8 more of its warp's 16.
  int begin[2], end[2];
  const float* q[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = warp_id() * 16 + 8 * h + lane / 4;
    begin[h] = end[h] = 0;
    q[h] = nullptr;
    if (row >= used) continue;
    const int position = __ldcg(a.batch.positions + token_of(row));
    begin[h] = begin_of(position);
    end[h] = min(position + 1, seq_len);
    q[h] = a.q + (token_of(row) * a.num_heads + head_of(row)) * a.head_dim;
  }
  const int from = begin_of(__ldcg(a.batch.positions + token_of(0)));
  const int to = min(__ldcg(a.batch.positions + token_of(used - 1)) + 1, seq_len);
  // Keys that all rows of the warp see need no mask.
  int all_begin = max(begin[0], begin[1]), all_end = min(end[0], end[1]);
#pragma unroll
  for (int step = 4; step < kWarp; step *= 2) {
    all_begin = max(all_begin, __shfl_xor_sync(~0u, all_begin, step));
    all_end = min(all_end, __shfl_xor_sync(~0u, all_end, step));
  }

  constexpr int kChunks = kDims / 8, kPassKeys = kThreads / kChunks, kPasses = kKeys / kPassKeys;
  const int my_key = tid / kChunks, my_chunk = tid % kChunks;
  int32_t blocks[kPasses];  // of the next keys to be fetched
  const auto look_up = [&](int first) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int p = first + my_key + i * kPassKeys;
      blocks[i] = p < to ? __ldcg(table + p / a.cache.block_size) : 0;
    }
  };
  const auto fetch = [&](int first, int buffer) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int k = my_key + i * kPassKeys, p = first + k;
      const bool there = p < to && 8 * my_chunk < a.head_dim;
      const int64_t at = there ? (((static_cast<int64_t>(blocks[i]) * a.num_kv_heads + kv_head) * a.cache.block_size +
                                   p % a.cache.block_size) *
                                      a.head_dim +
                                  8 * my_chunk) *
                                     2
                               : 0;
      const uint32_t to_shared = k * S::kPitch + 16 * my_chunk;
      copy_async_or_zero(shared_address(shared.keys[buffer]) + to_shared, a.cache.k + at, there);
      copy_async_or_zero(shared_address(shared.values[buffer]) + to_shared, a.cache.v + at, there);
    }
  };
  look_up(from);
  if (from < to) fetch(from, 0);
  close_copies();
  look_up(from + kKeys);

  uint32_t high[kDims / 16][4], low[kDims / 16][4];
#pragma unroll
  for (int k = 0; k < kDims / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int h = i % 2, d = 16 * k + i / 2 * 8 + 2 * j;
      const float first = q[h] && d < a.head_dim ? __ldcg(q[h] + d) * a.scale : 0.0f;
      const float second = q[h] && d + 1 < a.head_dim ? __ldcg(q[h] + d + 1) * a.scale : 0.0f;
      split<kBf16>(first, second, high[k][i], low[k][i]);
    }
  }
  float best[2] = {-INFINITY, -INFINITY}, total[2] = {}, sum[kDims / 8][4] = {};
  int buffer = 0;
#pragma unroll 1
  for (int first = from; first < to; first += kKeys, buffer ^= 1) {
    wait_for_copies<0>();
    __syncthreads();
    if (first + kKeys < to) {
      fetch(first + kKeys, buffer ^ 1);
      look_up(first + 2 * kKeys);
    }
    close_copies();
    const uint32_t keys = shared_address(shared.keys[buffer]) + (quad / 2 * 8 + in_quad) * S::kPitch + quad % 2 * 16;
    const uint32_t values =
        shared_address(shared.values[buffer]) + (quad % 2 * 8 + in_quad) * S::kPitch + quad / 2 * 16;
    float score[kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDims / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        const uint4 b = load_matrices(keys + 16 * n * S::kPitch + 32 * k);
        multiply<kBf16>(score[2 * n], low[k][0], low[k][1], low[k][2], low[k][3], b.x, b.y);
        multiply<kBf16>(score[2 * n + 1], low[k][0], low[k][1], low[k][2], low[k][3], b.z, b.w);
        multiply<kBf16>(score[2 * n], high[k][0], high[k][1], high[k][2], high[k][3], b.x, b.y);
        multiply<kBf16>(score[2 * n + 1], high[k][0], high[k][1], high[k][2], high[k][3], b.z, b.w);
      }
    }
    if (first < all_begin || first + kKeys > all_end) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int p = first + 8 * n + 2 * j + e % 2;
          if (p < begin[e / 2] || p >= end[e / 2]) score[n][e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = best[h];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) most = fmaxf(most, fmaxf(score[n][2 * h], score[n][2 * h + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float base = most == -INFINITY ? 0.0f : most;
      const float shrink = power_of_two((best[h] - base) * kLog2e);
      best[h] = most;
      total[h] *= shrink;
#pragma unroll
      for (int n = 0; n < kDims / 8; ++n) sum[n][2 * h] *= shrink, sum[n][2 * h + 1] *= shrink;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          score[n][e] = power_of_two((score[n][e] - base) * kLog2e);
          total[h] += score[n][e];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t w[4], w_low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        split<kBf16>(score[2 * k + i / 2][i % 2 * 2], score[2 * k + i / 2][i % 2 * 2 + 1], w[i], w_low[i]);
      }
#pragma unroll
      for (int n = 0; n < kDims / 16; ++n) {
        const uint4 b = load_matrices_transposed(values + 16 * k * S::kPitch + 32 * n);
        multiply<kBf16>(sum[2 * n], w_low[0], w_low[1], w_low[2], w_low[3], b.x, b.y);
        multiply<kBf16>(sum[2 * n + 1], w_low[0], w_low[1], w_low[2], w_low[3], b.z, b.w);
        multiply<kBf16>(sum[2 * n], w[0], w[1], w[2], w[3], b.x, b.y);
        multiply<kBf16>(sum[2 * n + 1], w[0], w[1], w[2], w[3], b.z, b.w);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(~0u, total[h], 1);
    total[h] += __shfl_xor_sync(~0u, total[h], 2);
    const int row = warp_id() * 16 + 8 * h + lane / 4;
    if (row >= used) continue;
    const float factor = total[h] > 0 ? 1.0f / total[h] : 0.0f;
    float* out = a.out + (token_of(row) * a.num_heads + head_of(row)) * a.head_dim;
#pragma unroll
    for (int n = 0; n < kDims / 8; ++n) {
      const int d = 8 * n + 2 * j;
      if (d < a.head_dim) out[d] = sum[n][2 * h] * factor;
      if (d + 1 < a.head_dim) out[d + 1] = sum[n][2 * h + 1] * factor;
    }
  }
}

template <bool kBf16, int kDims>
void launch_as(const Attend& op, const Args& args, const Launch& launch) {
  const int64_t rows = static_cast<int64_t>(op.batch->num_tokens) * (op.num_heads / op.num_kv_heads);
  const int tiles = static_cast<int>((rows + kRows - 1) / kRows) + op.batch->num_seqs;
  launch(many_kernel<kBf16, kDims>, dim3(tiles, op.num_kv_heads), dim3(kThreads), sizeof(Shared<kDims>), args);
}

}  // namespace

bool takes_attend_many(const Attend& op, const Launch& launch) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return op.batch->num_tokens >= std::max(kFewestTokens, 4 * op.batch->num_seqs) && op.head_dim % 8 == 0 &&
         op.head_dim >= kFewestDims && op.head_dim <= 128 &&
         (op.cache.format == Format::BF16 || op.cache.format == Format::F16) && aligned(op.cache.k) &&
         aligned(op.cache.v) && launch.shared_limit() >= static_cast<int>(sizeof(Shared<128>));
}

void attend_many(const Attend& op, const Launch& launch) {
  const Args args{*op.batch, op.num_heads, op.num_kv_heads, op.head_dim, op.window, op.scale, op.q, op.cache, op.out};
  const bool bf16 = op.cache.format == Format::BF16;
  if (op.head_dim <= 64) return bf16 ? launch_as<true, 64>(op, args, launch) : launch_as<false, 64>(op, args, launch);
  return bf16 ? launch_as<true, 128>(op, args, launch) : launch_as<false, 128>(op, args, launch);
}

}  // namespace proa::cuda
