// Attention of many queries on the tensor cores. A block has 128 rows, each a query of one head, all heads of a KV head
// before the next token, 64 for each of two warpgroups, and goes through the keys kKeys at a time, which a third
// warpgroup copies: scores, weights and the sums over values stay in registers. Queries and weights are two short
// floats each, so the products hold 16 bits (22 with an F16 cache); keys and values are used as the cache has them. One
// warpgroup's weights are worked out while the other's products are.
//
// FP8 keys and values become F16 between registers and shared memory, exactly. Their own rounding is 128 times coarser
// than that of F16, so queries and weights are one F16 each there (attend_fp8_rounding()), which halves the products.
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
constexpr int kFewestDims = 64;                // sums of fewer terms are held to more than 16 bits
constexpr float kLog2e = 1.44269504f;

struct Args {
  Batch batch;
  int num_heads, num_kv_heads, head_dim, window;
  float scale, k_scale, v_scale;
  const float* q;
  KvCacheView cache;
  float* out;
};

enum class Cached : uint8_t { bf16, f16, fp8 };
template <Cached kCached>
inline constexpr int kParts = kCached == Cached::fp8 ? 1 : 2;  // of a query, and of a weight

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
template <Cached kCached, int kDims, int kKeys>
struct Plan {
  static constexpr int kPanels = kDims / 64;
  static constexpr int kPartBytes = 64 * kDims * 2;
  static constexpr int kQueryBytes = kWarpgroups * kParts<kCached> * kPartBytes;
  static constexpr int kPanelBytes = kKeys * 128;
  static constexpr int kMatrixBytes = kPanels * kPanelBytes;
  static constexpr int kStageBytes = 2 * kMatrixBytes;
  static constexpr int kShared = kQueryBytes + kStages * kStageBytes + 1024;
};

// c = queries · keys.
template <Cached kCached, int kDims, int kKeys>
__device__ __forceinline__ void multiply_keys(float (&c)[kKeys / 2], uint32_t queries, uint32_t keys) {
  using P = Plan<kCached, kDims, kKeys>;
  constexpr bool kBf16 = kCached == Cached::bf16, kTwo = kParts<kCached> == 2;
#ifdef PROA_WGMMA
  if constexpr (kKeys == kManyKeys) {
#pragma unroll
    for (int k = 0; k < kDims / 16; ++k) {
      const uint64_t b = descriptor_of(keys + k / 4 * P::kPanelBytes + k % 4 * 32);
      const uint32_t a = queries + k / 4 * 64 * 128 + k % 4 * 32;
      if constexpr (kTwo) warpgroup_multiply<kBf16>(c, descriptor_of(a + P::kPartBytes), b, k > 0);
      warpgroup_multiply<kBf16>(c, descriptor_of(a), b, kTwo || k > 0);
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
    const uint4 high = load_matrices(a), low = kTwo ? load_matrices(a + P::kPartBytes) : uint4{};
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      const uint4 b = load_matrices(keys + k / 4 * P::kPanelBytes +
                                    swizzled(16 * n + quad / 2 * 8 + in_quad, k % 4 * 2 + quad % 2));
      auto& first = reinterpret_cast<float(&)[4]>(c[8 * n]);
      auto& second = reinterpret_cast<float(&)[4]>(c[8 * n + 4]);
      if constexpr (kTwo) {
        multiply<kBf16>(first, low.x, low.y, low.z, low.w, b.x, b.y);
        multiply<kBf16>(second, low.x, low.y, low.z, low.w, b.z, b.w);
      }
      multiply<kBf16>(first, high.x, high.y, high.z, high.w, b.x, b.y);
      multiply<kBf16>(second, high.x, high.y, high.z, high.w, b.z, b.w);
    }
  }
}

// c += (high + low) · values.
template <Cached kCached, int kDims, int kKeys>
__device__ __forceinline__ void multiply_values(float (&c)[kDims / 2], const uint32_t (&high)[kKeys / 16][4],
                                                const uint32_t (&low)[kKeys / 16][4], uint32_t values) {
  using P = Plan<kCached, kDims, kKeys>;
  constexpr bool kBf16 = kCached == Cached::bf16, kTwo = kParts<kCached> == 2;
#ifdef PROA_WGMMA
  if constexpr (kKeys == kManyKeys) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint64_t b = transposed_descriptor_of(values + 16 * k * 128, P::kPanelBytes);
      if constexpr (kTwo) warpgroup_multiply<kBf16, true>(c, low[k], b);
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
      if constexpr (kTwo) {
        multiply<kBf16>(first, low[k][0], low[k][1], low[k][2], low[k][3], b.x, b.y);
        multiply<kBf16>(second, low[k][0], low[k][1], low[k][2], low[k][3], b.z, b.w);
      }
      multiply<kBf16>(first, high[k][0], high[k][1], high[k][2], high[k][3], b.x, b.y);
      multiply<kBf16>(second, high[k][0], high[k][1], high[k][2], high[k][3], b.z, b.w);
    }
  }
}

// What a thread of those that copy holds of FP8 keys, or of values: 16 dims of every kPassKeys-th key.
template <int kDims, int kKeys>
struct Bytes {
  static constexpr int kKeyThreads = kDims / 16, kPassKeys = kFetchThreads / kKeyThreads, kPasses = kKeys / kPassKeys;
  uint4 raw[kPasses];

  __device__ __forceinline__ static int my_key() { return static_cast<int>(threadIdx.x) / kKeyThreads; }
  __device__ __forceinline__ static int my_dim() { return static_cast<int>(threadIdx.x) % kKeyThreads * 16; }

  __device__ __forceinline__ void load(const Args& a, const std::byte* cached, const int32_t (&blocks)[kPasses],
                                       int kv_head, int first, int to) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int p = first + my_key() + i * kPassKeys;
      raw[i] = {};
      if (p >= to || my_dim() >= a.head_dim) continue;
      const int64_t row =
          (static_cast<int64_t>(blocks[i]) * a.num_kv_heads + kv_head) * a.cache.block_size + p % a.cache.block_size;
      const std::byte* from = cached + row * a.head_dim + my_dim();
      if (a.head_dim % 16 == 0) {
        raw[i] = __ldcg(reinterpret_cast<const uint4*>(from));
        continue;
      }
      const auto* eights = reinterpret_cast<const uint2*>(from);
      const uint2 low = __ldcg(eights), high = my_dim() + 8 < a.head_dim ? __ldcg(eights + 1) : uint2{};
      raw[i] = {low.x, low.y, high.x, high.y};
    }
  }
  __device__ __forceinline__ void store(uint32_t matrix) const {
    const int panel = my_dim() / 64, chunk = my_dim() % 64 / 8;
    const uint32_t base = matrix + panel * kKeys * 128;
    const uint32_t at[] = {base + swizzled(my_key(), chunk), base + swizzled(my_key(), chunk + 1)};
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const uint32_t words[] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
      uint32_t halves[8];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        halves[2 * w] = e4m3_to_halves(words[w]);
        halves[2 * w + 1] = e4m3_to_halves(words[w] >> 16);
      }
      store_shared(at[0] + i * kPassKeys * 128, {halves[0], halves[1], halves[2], halves[3]});
      store_shared(at[1] + i * kPassKeys * 128, {halves[4], halves[5], halves[6], halves[7]});
    }
  }
};

// The copies of FP8 keys and values, a stage ahead in registers.
template <int kDims, int kKeys>
__device__ __forceinline__ void fetch_bytes(const Args& a, const int32_t* table, int kv_head, int from, int to,
                                            uint32_t stages, uint32_t full, uint32_t empty) {
  using P = Plan<Cached::fp8, kDims, kKeys>;
  using B = Bytes<kDims, kKeys>;
  B keys, values;
  int32_t blocks[B::kPasses];
  const auto find = [&](int first) {
#pragma unroll
    for (int i = 0; i < B::kPasses; ++i) {
      const int p = first + B::my_key() + i * B::kPassKeys;
      blocks[i] = p < to ? __ldcg(table + p / a.cache.block_size) : 0;
    }
  };
  find(from);
  keys.load(a, a.cache.k, blocks, kv_head, from, to);
  values.load(a, a.cache.v, blocks, kv_head, from, to);
  find(from + kKeys);
  int place = 0;
  uint32_t parity = 1;
#pragma unroll 1
  for (int first = from; first < to; first += kKeys) {
    wait_barrier(empty + 8 * place, parity);
    const uint32_t stage = stages + place * P::kStageBytes;
    keys.store(stage);
    keys.load(a, a.cache.k, blocks, kv_head, first + kKeys, to);
    values.store(stage + P::kMatrixBytes);
    values.load(a, a.cache.v, blocks, kv_head, first + kKeys, to);
    find(first + 2 * kKeys);
    see_copies();
    arrive(full + 8 * place);
    if (++place == kStages) place = 0, parity ^= 1;
  }
}

template <Cached kCached, int kDims, int kKeys>
__global__ void __launch_bounds__(kThreads, 1) many_kernel(const __grid_constant__ Args a) {
  using P = Plan<kCached, kDims, kKeys>;
  constexpr bool kBf16 = kCached == Cached::bf16, kFp8 = kCached == Cached::fp8;
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
    set_registers<kFp8 ? 104 : 40, false>();
    const int32_t* table = a.batch.block_table + static_cast<int64_t>(seq) * a.batch.block_table_stride;
    if constexpr (kFp8) return fetch_bytes<kDims, kKeys>(a, table, kv_head, from, to, stages, full, empty);
    // Eight threads copy 64 dims of a key.
    constexpr int kPassKeys = kFetchThreads / 8, kPasses = kKeys / kPassKeys;
    const int my_key = tid / 8, my_dim = tid % 8 * 8;
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

  set_registers<kFp8 ? 200 : 232, true>();
  const int warpgroup = warp_id() / 4 - kFetchThreads / 128;
  const uint32_t my_queries = queries + warpgroup * kParts<kCached> * P::kPartBytes;
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
    if constexpr (!kFp8) store_shared(at + P::kPartBytes, {low[0], low[1], low[2], low[3]});
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

  const float exponent = kLog2e * a.k_scale;
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
    multiply_keys<kCached, kDims, kKeys>(score, my_queries, keys);
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
      const float shrink = power_of_two((best[h] - base) * exponent);
      best[h] = most;
      total[h] *= shrink;
#pragma unroll
      for (int i = 0; i < kDims / 4; ++i) sum[i / 2 * 4 + 2 * h + i % 2] *= shrink;
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) {
        // Small weights stay within F16.
        of_row(i) = power_of_two(kFp8 ? of_row(i) * exponent + (15 - base * exponent) : (of_row(i) - base) * exponent);
        total[h] += of_row(i);
      }
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) split<kBf16>(score[8 * k + 2 * i], score[8 * k + 2 * i + 1], high[k][i], low[k][i]);
    }
    begin_products();
    multiply_values<kCached, kDims, kKeys>(sum, high, low, keys + P::kMatrixBytes);
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
    const float factor = total[h] > 0 ? a.v_scale / total[h] : 0.0f;
    float* out = a.out + (token_of(row) * a.num_heads + head_of(row)) * a.head_dim;
#pragma unroll
    for (int i = 0; i < kDims / 4; ++i) {
      const int d = i / 2 * 8 + 2 * j + i % 2;
      if (d < a.head_dim) out[d] = sum[i / 2 * 4 + 2 * h + i % 2] * factor;
    }
  }
}

template <Cached kCached, int kDims, int kKeys>
void launch_as(const Attend& op, const Args& args, const Launch& launch) {
  const int64_t rows = static_cast<int64_t>(op.batch->num_tokens) * (op.num_heads / op.num_kv_heads);
  const int tiles = static_cast<int>((rows + kRows - 1) / kRows) + op.batch->num_seqs;
  launch(many_kernel<kCached, kDims, kKeys>, dim3(tiles, op.num_kv_heads), dim3(kThreads),
         Plan<kCached, kDims, kKeys>::kShared, args);
}
template <Cached kCached>
void launch_as(const Attend& op, const Args& args, const Launch& launch) {
  const auto with = [&](auto dims) {
    constexpr int kDims = decltype(dims)::value;
    if (launch.shared_limit() >= Plan<kCached, kDims, kManyKeys>::kShared) {
      return launch_as<kCached, kDims, kManyKeys>(op, args, launch);
    }
    return launch_as<kCached, kDims, kFewKeys>(op, args, launch);
  };
  op.head_dim <= 64 ? with(std::integral_constant<int, 64>()) : with(std::integral_constant<int, 128>());
}

}  // namespace

bool takes_attend_many(const Attend& op, const Launch& launch) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return op.batch->num_tokens >= std::max(kManyQueries, 4 * op.batch->num_seqs) && op.head_dim % 8 == 0 &&
         op.head_dim >= kFewestDims && op.head_dim <= 128 && op.cache.format != Format::F32 && aligned(op.cache.k) &&
         aligned(op.cache.v) && launch.shared_limit() >= Plan<Cached::bf16, 128, kFewKeys>::kShared;
}

void attend_many(const Attend& op, const Launch& launch) {
  const Args args{*op.batch,  op.num_heads, op.num_kv_heads, op.head_dim, op.window, op.scale, op.k_scale,
                  op.v_scale, op.q,         op.cache,        op.out};
  if (op.cache.format == Format::BF16) return launch_as<Cached::bf16>(op, args, launch);
  if (op.cache.format == Format::F16) return launch_as<Cached::f16>(op, args, launch);
  launch_as<Cached::fp8>(op, args, launch);
}

}  // namespace proa::cuda
