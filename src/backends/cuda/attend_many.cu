// Attention of many queries on the tensor cores. A block has 128 rows, each a query of one head, all heads of a KV head
// before the next token, 64 for each of two warpgroups, and goes through the keys kKeys at a time, which a third
// warpgroup copies: scores, weights and the sums over values stay in registers. Queries and weights are two short
// floats each, so the products hold 16 bits (22 with an F16 cache); keys and values are used as the cache has them. One
// warpgroup's weights are worked out while the other's products are.
#include <algorithm>

#include "backends/cuda/barrier.cuh"
#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/wgmma.cuh"

namespace proa::cuda {
namespace {

constexpr int kWarpgroups = 2;
constexpr int kFetchThreads = 128;
constexpr int kThreads = kFetchThreads + kWarpgroups * 128;
constexpr int kRows = kWarpgroups * 64;
constexpr int kStages = 2;
constexpr int kManyKeys = 128, kFewKeys = 32;  // of a stage, where shared memory has room and where it has not
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

__device__ __forceinline__ void store_shared(uint32_t address, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// In shared memory: queries as high and low parts of 64 rows for each warpgroup, then the stages' keys and values. All
// are panels of 64 dims, in which a row is 128 bytes, swizzled().
template <int kDims, int kKeys>
struct Plan {
  static constexpr int kPanels = kDims / 64;
  static constexpr int kPartBytes = 64 * kDims * 2;
  static constexpr int kQueryBytes = kWarpgroups * 2 * kPartBytes;
  static constexpr int kPanelBytes = kKeys * 128;
  static constexpr int kMatrixBytes = kPanels * kPanelBytes;
  static constexpr int kStageBytes = 2 * kMatrixBytes;
  static constexpr int kShared = kQueryBytes + kStages * kStageBytes + 1024;
};

// c = queries · keys.
template <bool kBf16, int kDims, int kKeys>
__device__ __forceinline__ void multiply_keys(float (&c)[kKeys / 2], uint32_t queries, uint32_t keys) {
  using P = Plan<kDims, kKeys>;
#ifdef PROA_WGMMA
  if constexpr (kKeys == kManyKeys) {
#pragma unroll
    for (int k = 0; k < kDims / 16; ++k) {
      const uint64_t b = descriptor_of(keys + k / 4 * P::kPanelBytes + k % 4 * 32);
      const uint32_t a = queries + k / 4 * 64 * 128 + k % 4 * 32;
      warpgroup_multiply<kBf16>(c, descriptor_of(a + P::kPartBytes), b, k > 0);
      warpgroup_multiply<kBf16>(c, descriptor_of(a), b, 1);
    }
    return;
  }
#endif
  const int quad = lane_id() / 8, in_quad = lane_id() % 8;
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) c[i] = 0;
#pragma unroll
  for (int k = 0; k < kDims / 16; ++k) {
    const uint32_t a =
        queries + k / 4 * 64 * 128 + swizzled(warp_id() % 4 * 16 + quad % 2 * 8 + in_quad, k % 4 * 2 + quad / 2);
    const uint4 high = load_matrices(a), low = load_matrices(a + P::kPartBytes);
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      const uint4 b = load_matrices(keys + k / 4 * P::kPanelBytes +
                                    swizzled(16 * n + quad / 2 * 8 + in_quad, k % 4 * 2 + quad % 2));
      auto& first = reinterpret_cast<float(&)[4]>(c[8 * n]);
      auto& second = reinterpret_cast<float(&)[4]>(c[8 * n + 4]);
      multiply<kBf16>(first, low.x, low.y, low.z, low.w, b.x, b.y);
      multiply<kBf16>(second, low.x, low.y, low.z, low.w, b.z, b.w);
      multiply<kBf16>(first, high.x, high.y, high.z, high.w, b.x, b.y);
      multiply<kBf16>(second, high.x, high.y, high.z, high.w, b.z, b.w);
    }
  }
}

// c += (high + low) · values.
template <bool kBf16, int kDims, int kKeys>
__device__ __forceinline__ void multiply_values(float (&c)[kDims / 2], const uint32_t (&high)[kKeys / 16][4],
                                                const uint32_t (&low)[kKeys / 16][4], uint32_t values) {
  using P = Plan<kDims, kKeys>;
#ifdef PROA_WGMMA
  if constexpr (kKeys == kManyKeys) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint64_t b = transposed_descriptor_of(values + 16 * k * 128, P::kPanelBytes);
      warpgroup_multiply<kBf16, true>(c, low[k], b);
      warpgroup_multiply<kBf16, true>(c, high[k], b);
    }
    return;
  }
#endif
  const int quad = lane_id() / 8, in_quad = lane_id() % 8;
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kDims / 16; ++n) {
      const uint4 b = load_matrices_transposed(values + n / 4 * P::kPanelBytes +
                                               swizzled(16 * k + quad % 2 * 8 + in_quad, n % 4 * 2 + quad / 2));
      auto& first = reinterpret_cast<float(&)[4]>(c[8 * n]);
      auto& second = reinterpret_cast<float(&)[4]>(c[8 * n + 4]);
      multiply<kBf16>(first, low[k][0], low[k][1], low[k][2], low[k][3], b.x, b.y);
      multiply<kBf16>(second, low[k][0], low[k][1], low[k][2], low[k][3], b.z, b.w);
      multiply<kBf16>(first, high[k][0], high[k][1], high[k][2], high[k][3], b.x, b.y);
      multiply<kBf16>(second, high[k][0], high[k][1], high[k][2], high[k][3], b.z, b.w);
    }
  }
}

template <bool kBf16, int kDims, int kKeys>
__global__ void __launch_bounds__(kThreads, 1) many_kernel(const __grid_constant__ Args a) {
  using P = Plan<kDims, kKeys>;
  extern __shared__ uint8_t memory[];
  __shared__ uint64_t barriers[2 * kStages];  // full, empty
  const int tid = static_cast<int>(threadIdx.x), lane = lane_id(), j = lane % 4;
  const uint32_t queries = (shared_address(memory) + 1023) & ~1023u, stages = queries + P::kQueryBytes;
  const uint32_t full = shared_address(barriers), empty = full + 8 * kStages;
  if (tid < kStages) {
    init_barrier(full + 8 * tid, kFetchThreads);
    init_barrier(empty + 8 * tid, kWarpgroups * 4);
  }
  __syncthreads();
  wait_for_predecessor();
  start_successor();
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
  const int seq_len = __ldcg(a.batch.seq_lens + seq);
  const auto token_of = [&](int r) { return static_cast<int64_t>(first_token + (first_row + r) / group); };
  const auto head_of = [&](int r) { return kv_head * group + (first_row + r) % group; };
  const auto begin_of = [&](int position) { return a.window > 0 ? max(0, position + 1 - a.window) : 0; };
  const int from = begin_of(__ldcg(a.batch.positions + token_of(0)));
  const int to = min(__ldcg(a.batch.positions + token_of(used - 1)) + 1, seq_len);

  if (warp_id() < kFetchThreads / kWarp) {
    set_registers<40, false>();
    // Eight threads copy 64 dims of a key.
    constexpr int kPassKeys = kFetchThreads / 8, kPasses = kKeys / kPassKeys;
    const int my_key = tid / 8, my_dim = tid % 8 * 8;
    const int32_t* table = a.batch.block_table + static_cast<int64_t>(seq) * a.batch.block_table_stride;
    const uint32_t at = swizzled(my_key, tid % 8);
    int place = 0;
    uint32_t parity = 1;
#pragma unroll 1
    for (int first = from; first < to; first += kKeys) {
      int32_t blocks[kPasses];
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const int p = first + my_key + i * kPassKeys;
        blocks[i] = p < to ? __ldcg(table + p / a.cache.block_size) : 0;
      }
      wait_barrier(empty + 8 * place, parity);
      const uint32_t keys = stages + place * P::kStageBytes + at;
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const int p = first + my_key + i * kPassKeys;
        const int64_t row =
            (static_cast<int64_t>(blocks[i]) * a.num_kv_heads + kv_head) * a.cache.block_size + p % a.cache.block_size;
#pragma unroll
        for (int panel = 0; panel < P::kPanels; ++panel) {
          const int dim = panel * 64 + my_dim;
          const bool there = p < to && dim < a.head_dim;
          const int64_t offset = there ? (row * a.head_dim + dim) * 2 : 0;
          const uint32_t to_shared = keys + panel * P::kPanelBytes + i * kPassKeys * 128;
          copy_async_or_zero(to_shared, a.cache.k + offset, there);
          copy_async_or_zero(to_shared + P::kMatrixBytes, a.cache.v + offset, there);
        }
      }
      arrive_after_copies(full + 8 * place);
      if (++place == kStages) place = 0, parity ^= 1;
    }
    close_copies();
    wait_for_copies<0>();
    return;
  }

  set_registers<232, true>();
  const int warpgroup = warp_id() / 4 - kFetchThreads / 128;
  const uint32_t my_queries = queries + warpgroup * 2 * P::kPartBytes;
#pragma unroll 1
  for (int i = tid % 128; i < 64 * kDims / 8; i += 128) {
    const int r = i / (kDims / 8), chunk = i % (kDims / 8), row = warpgroup * 64 + r;
    const bool there = row < used && 8 * chunk < a.head_dim;
    const float* q = a.q + (there ? (token_of(row) * a.num_heads + head_of(row)) * a.head_dim + 8 * chunk : 0);
    uint32_t high[4], low[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float first = there ? __ldcg(q + 2 * n) * a.scale : 0.0f;
      const float second = there ? __ldcg(q + 2 * n + 1) * a.scale : 0.0f;
      split<kBf16>(first, second, high[n], low[n]);
    }
    const uint32_t at = my_queries + chunk / 8 * 64 * 128 + swizzled(r, chunk % 8);
    store_shared(at, {high[0], high[1], high[2], high[3]});
    store_shared(at + P::kPartBytes, {low[0], low[1], low[2], low[3]});
  }
  see_copies();
  asm volatile("bar.sync %0, 128;" ::"r"(1 + warpgroup) : "memory");

  // Of this lane: rows lane / 4 and 8 more of its warp's 16.
  const int my_row = (warp_id() - kFetchThreads / kWarp) * 16 + lane / 4;
  int begin[2], end[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    begin[h] = end[h] = 0;
    if (my_row + 8 * h >= used) continue;
    const int position = __ldcg(a.batch.positions + token_of(my_row + 8 * h));
    begin[h] = begin_of(position);
    end[h] = min(position + 1, seq_len);
  }
  // Keys that all rows of the warp see need no mask.
  int all_begin = max(begin[0], begin[1]), all_end = min(end[0], end[1]);
#pragma unroll
  for (int step = 4; step < kWarp; step *= 2) {
    all_begin = max(all_begin, __shfl_xor_sync(~0u, all_begin, step));
    all_end = min(all_end, __shfl_xor_sync(~0u, all_end, step));
  }

  float best[2] = {-INFINITY, -INFINITY}, total[2] = {}, sum[kDims / 2] = {};
  uint32_t high[kKeys / 16][4], low[kKeys / 16][4];
  int place = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int first = from; first < to; first += kKeys) {
    const uint32_t keys = stages + place * P::kStageBytes;
    wait_barrier(full + 8 * place, parity);
    see_copies();
    float score[kKeys / 2];
    begin_products();
    multiply_keys<kBf16, kDims, kKeys>(score, my_queries, keys);
    close_products();
    wait_for_products<0>();
    keep_in_registers(score);
    if (first < all_begin || first + kKeys > all_end) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int p = first + i / 4 * 8 + 2 * j + i % 2, h = i / 2 % 2;
        if (p < begin[h] || p >= end[h]) score[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto of_row = [&](int i) -> float& { return score[i / 2 * 4 + 2 * h + i % 2]; };
      float most = best[h];
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) most = fmaxf(most, of_row(i));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float base = most == -INFINITY ? 0.0f : most;
      const float shrink = power_of_two((best[h] - base) * kLog2e);
      best[h] = most;
      total[h] *= shrink;
#pragma unroll
      for (int i = 0; i < kDims / 4; ++i) sum[i / 2 * 4 + 2 * h + i % 2] *= shrink;
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) {
        of_row(i) = power_of_two((of_row(i) - base) * kLog2e);
        total[h] += of_row(i);
      }
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) split<kBf16>(score[8 * k + 2 * i], score[8 * k + 2 * i + 1], high[k][i], low[k][i]);
    }
    begin_products();
    multiply_values<kBf16, kDims, kKeys>(sum, high, low, keys + P::kMatrixBytes);
    close_products();
    wait_for_products<0>();
    keep_in_registers(sum);
    __syncwarp();
    if (lane == 0) arrive(empty + 8 * place);
    if (++place == kStages) place = 0, parity ^= 1;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(~0u, total[h], 1);
    total[h] += __shfl_xor_sync(~0u, total[h], 2);
    const int row = my_row + 8 * h;
    if (row >= used) continue;
    const float factor = total[h] > 0 ? 1.0f / total[h] : 0.0f;
    float* out = a.out + (token_of(row) * a.num_heads + head_of(row)) * a.head_dim;
#pragma unroll
    for (int i = 0; i < kDims / 4; ++i) {
      const int d = i / 2 * 8 + 2 * j + i % 2;
      if (d < a.head_dim) out[d] = sum[i / 2 * 4 + 2 * h + i % 2] * factor;
    }
  }
}

template <bool kBf16, int kDims, int kKeys>
void launch_as(const Attend& op, const Args& args, const Launch& launch) {
  const int64_t rows = static_cast<int64_t>(op.batch->num_tokens) * (op.num_heads / op.num_kv_heads);
  const int tiles = static_cast<int>((rows + kRows - 1) / kRows) + op.batch->num_seqs;
  launch(many_kernel<kBf16, kDims, kKeys>, dim3(tiles, op.num_kv_heads), dim3(kThreads), Plan<kDims, kKeys>::kShared,
         args);
}
template <bool kBf16, int kDims>
void launch_as(const Attend& op, const Args& args, const Launch& launch) {
  if (launch.shared_limit() >= Plan<kDims, kManyKeys>::kShared) {
    return launch_as<kBf16, kDims, kManyKeys>(op, args, launch);
  }
  return launch_as<kBf16, kDims, kFewKeys>(op, args, launch);
}

}  // namespace

bool takes_attend_many(const Attend& op, const Launch& launch) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return op.batch->num_tokens >= std::max(kFewestTokens, 4 * op.batch->num_seqs) && op.head_dim % 8 == 0 &&
         op.head_dim >= kFewestDims && op.head_dim <= 128 &&
         (op.cache.format == Format::BF16 || op.cache.format == Format::F16) && aligned(op.cache.k) &&
         aligned(op.cache.v) && launch.shared_limit() >= Plan<128, kFewKeys>::kShared;
}

void attend_many(const Attend& op, const Launch& launch) {
  const Args args{*op.batch, op.num_heads, op.num_kv_heads, op.head_dim, op.window, op.scale, op.q, op.cache, op.out};
  const bool bf16 = op.cache.format == Format::BF16;
  if (op.head_dim <= 64) return bf16 ? launch_as<true, 64>(op, args, launch) : launch_as<false, 64>(op, args, launch);
  return bf16 ? launch_as<true, 128>(op, args, launch) : launch_as<false, 128>(op, args, launch);
}

}  // namespace proa::cuda
