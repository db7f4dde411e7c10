#include <algorithm>

#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/route.cuh"

namespace proa::cuda {
namespace {

constexpr int kRouteThreads = 128;
constexpr int kFusedTokens = 16;

// Of token `token`.
__device__ void choose(const Route& op, const float* logits, int64_t token, float* room) {
  const int64_t first = token * op.num_experts_per_tok;
  cuda::choose(op, logits, op.topk_ids + first, op.topk_weights + first, true, room);
}

__global__ void __launch_bounds__(kWarp) choose_kernel(const __grid_constant__ Route op, const float* logits) {
  extern __shared__ float room[];
  wait_for_predecessor();
  start_successor();
  choose(op, logits + static_cast<int64_t>(blockIdx.x) * op.n_routed_experts, blockIdx.x, room);
}

// One block per expert and token; the last block of a token chooses. An F32 row stays in registers while the
// predecessor ends: kVectors of four values a thread.
template <int kVectors>
__global__ void __launch_bounds__(kRouteThreads)
    fused_kernel(const __grid_constant__ Route op, float* logits, uint32_t* tickets) {
  extern __shared__ float room[];
  __shared__ float reduce[2 * kWarp];
  __shared__ bool last;
  const int tid = static_cast<int>(threadIdx.x), expert = static_cast<int>(blockIdx.x);
  const int vectors = op.hidden_size / 4;
  const auto* row = reinterpret_cast<const float4*>(op.gate.data + expert * static_cast<int64_t>(op.gate.row_stride));
  const auto* norm = reinterpret_cast<const float4*>(op.norm);
  float4 w[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = i * kRouteThreads + tid;
    if (at < vectors) {
      const float4 g = row[at], n = norm[at];
      w[i] = {g.x * n.x, g.y * n.y, g.z * n.z, g.w * n.w};
    }
  }
  wait_for_predecessor();
  start_successor();
  const int64_t token = blockIdx.y;
  const auto* x = reinterpret_cast<const float4*>(op.x + token * op.hidden_size);
  float dot = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = i * kRouteThreads + tid;
    if (at < vectors) {
      const float4 v = __ldcg(x + at);
      dot += (v.x * w[i].x + v.y * w[i].y) + (v.z * w[i].z + v.w * w[i].w);
      squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    }
  }
  dot = warp_sum(dot);
  squares = warp_sum(squares);
  if (lane_id() == 0) reduce[warp_id()] = dot, reduce[kWarp + warp_id()] = squares;
  __syncthreads();
  if (tid == 0) {
    dot = squares = 0;
#pragma unroll
    for (int i = 0; i < kRouteThreads / kWarp; ++i) dot += reduce[i], squares += reduce[kWarp + i];
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(op.hidden_size) + op.eps);
    __stcg(logits + token * op.n_routed_experts + expert, dot * scale * op.gate.scale);
    __threadfence();
    last = atomicAdd(tickets + token, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || warp_id() > 0) return;
  __threadfence();
  if (lane_id() == 0) tickets[token] = 0;
  choose(op, logits + token * op.n_routed_experts, token, room);
}

// Logits of many tokens, in F32: a block has 128 tokens and 128 experts for a share of the columns, a thread eight of
// each, four next to each other and four 64 behind them.
constexpr int kTileThreads = 256;
constexpr int kTileTokens = 128;
constexpr int kTileExperts = 128;
constexpr int kTileStep = 16;  // columns at once
// Shares of the columns; of few tokens more, as there is little else to give to the SMs.
constexpr int max_shares(int num_tokens) { return num_tokens <= 128 ? 24 : 8; }

struct RouteShares {
  int count, cols;  // of columns
  float* dots;      // [count, num_tokens, n_routed_experts]
  float* squares;   // [count, num_tokens]
};

__global__ void __launch_bounds__(kTileThreads, 2)
    many_logits_kernel(const __grid_constant__ Route op, const RouteShares shares) {
  __shared__ __align__(16) float xs[kTileStep][kTileTokens + 4];
  __shared__ __align__(16) float ws[kTileStep][kTileExperts + 4];
  wait_for_predecessor();
  start_successor();
  const int tid = static_cast<int>(threadIdx.x), share = static_cast<int>(blockIdx.y);
  const int first_token = static_cast<int>(blockIdx.x) * kTileTokens;
  const int first_expert = static_cast<int>(blockIdx.z) * kTileExperts;
  const int begin = share * shares.cols, end = min(op.hidden_size, begin + shares.cols);
  const int row = tid / 4, part = tid % 4 * 4;
  const float *x[2], *w[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    x[i] = op.x + int64_t{min(first_token + row + 64 * i, op.num_tokens - 1)} * op.hidden_size;
    const int expert = min(first_expert + row + 64 * i, op.n_routed_experts - 1);
    w[i] = reinterpret_cast<const float*>(op.gate.data + expert * static_cast<int64_t>(op.gate.row_stride));
  }
  const float4 zero = {0, 0, 0, 0};
  float4 next_x[2] = {zero, zero}, next_n = zero, next_w[2] = {zero, zero};
  const auto load = [&](int k) {
    const bool there = k + part < end;
    next_n = there ? *reinterpret_cast<const float4*>(op.norm + k + part) : zero;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      next_x[i] = there ? __ldcg(reinterpret_cast<const float4*>(x[i] + k + part)) : zero;
      next_w[i] = there ? *reinterpret_cast<const float4*>(w[i] + k + part) : zero;
    }
  };
  const auto put = [&](float* to, int pitch, const float4& v) {
    to[0] = v.x, to[pitch] = v.y, to[2 * pitch] = v.z, to[3 * pitch] = v.w;
  };
  const int ty = tid / 16 * 4, tx = tid % 16 * 4;
  float sum[8][8] = {}, squares[2] = {};
  load(begin);
  for (int k = begin; k < end; k += kTileStep) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4& v = next_x[i];
      squares[i] += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
      put(&xs[part][row + 64 * i], kTileTokens + 4, {v.x * next_n.x, v.y * next_n.y, v.z * next_n.z, v.w * next_n.w});
      put(&ws[part][row + 64 * i], kTileExperts + 4, next_w[i]);
    }
    __syncthreads();
    if (k + kTileStep < end) load(k + kTileStep);
#pragma unroll
    for (int i = 0; i < kTileStep; ++i) {
      const float4 a[2] = {*reinterpret_cast<const float4*>(&xs[i][ty]),
                           *reinterpret_cast<const float4*>(&xs[i][ty + 64])};
      const float4 b[2] = {*reinterpret_cast<const float4*>(&ws[i][tx]),
                           *reinterpret_cast<const float4*>(&ws[i][tx + 64])};
      const float left[8] = {a[0].x, a[0].y, a[0].z, a[0].w, a[1].x, a[1].y, a[1].z, a[1].w};
      const float right[8] = {b[0].x, b[0].y, b[0].z, b[0].w, b[1].x, b[1].y, b[1].z, b[1].w};
#pragma unroll
      for (int t = 0; t < 8; ++t) {
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[t][e] += left[t] * right[e];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    squares[i] += __shfl_xor_sync(~0u, squares[i], 1);
    squares[i] += __shfl_xor_sync(~0u, squares[i], 2);
    const int token = first_token + row + 64 * i;
    if (part == 0 && blockIdx.z == 0 && token < op.num_tokens) {
      shares.squares[int64_t{share} * op.num_tokens + token] = squares[i];
    }
  }
#pragma unroll
  for (int t = 0; t < 8; ++t) {
    const int token = first_token + ty + t / 4 * 64 + t % 4;
    if (token >= op.num_tokens) continue;
    float* out = shares.dots + (int64_t{share} * op.num_tokens + token) * op.n_routed_experts + first_expert + tx;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (first_expert + tx + e / 4 * 64 + e % 4 < op.n_routed_experts) out[e / 4 * 64 + e % 4] = sum[t][e];
    }
  }
}

// A thread sums the shares of an expert, then one warp chooses.
__global__ void __launch_bounds__(kRouteThreads)
    choose_of_shares_kernel(const __grid_constant__ Route op, const RouteShares shares, float* logits) {
  extern __shared__ float room[];
  wait_for_predecessor();
  start_successor();
  const int64_t token = blockIdx.x;
  float squares = 0;
#pragma unroll 8
  for (int i = 0; i < shares.count; ++i) squares += __ldcg(shares.squares + i * op.num_tokens + token);
  const float scale = op.gate.scale / sqrtf(squares / static_cast<float>(op.hidden_size) + op.eps);
  logits += token * op.n_routed_experts;
  for (int e = static_cast<int>(threadIdx.x); e < op.n_routed_experts; e += kRouteThreads) {
    float dot = 0;
#pragma unroll 8
    for (int i = 0; i < shares.count; ++i) {
      dot += __ldcg(shares.dots + (i * int64_t{op.num_tokens} + token) * op.n_routed_experts + e);
    }
    __stcg(logits + e, dot * scale);
  }
  __threadfence();
  __syncthreads();
  if (warp_id() == 0) choose(op, logits, token, room);
}

bool is_plain(const Route& op) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return op.gate.format == Format::F32 && !op.gate.scales && op.hidden_size % 4 == 0 && op.gate.row_stride % 16 == 0 &&
         aligned(op.gate.data) && aligned(op.x) && aligned(op.norm);
}

}  // namespace

size_t route_many_floats(const Route& op) {
  if (op.num_tokens <= kFusedTokens || !is_plain(op)) return 0;
  return static_cast<size_t>(op.num_tokens) * static_cast<size_t>(op.n_routed_experts + 1) *
         static_cast<size_t>(max_shares(op.num_tokens));
}

void route_many(const Route& op, float* logits, float* memory, const Launch& launch) {
  const int tiles = (op.num_tokens + kTileTokens - 1) / kTileTokens;
  const int expert_tiles = (op.n_routed_experts + kTileExperts - 1) / kTileExperts;
  const int wanted = std::clamp(2 * launch.num_sms() / (tiles * expert_tiles), 1, max_shares(op.num_tokens));
  RouteShares shares;
  shares.cols = (op.hidden_size / wanted + kTileStep) / kTileStep * kTileStep;
  shares.count = (op.hidden_size + shares.cols - 1) / shares.cols;
  shares.dots = memory;
  shares.squares = memory + int64_t{shares.count} * op.num_tokens * op.n_routed_experts;
  launch(many_logits_kernel, dim3(tiles, shares.count, expert_tiles), dim3(kTileThreads), 0, op, shares);
  const size_t room = 2 * sizeof(float) * static_cast<size_t>(op.n_routed_experts);
  launch(choose_of_shares_kernel, dim3(op.num_tokens), dim3(kRouteThreads), room, op, shares, logits);
}

bool route_fused(const Route& op, float* logits, uint32_t* tickets, const Launch& launch) {
  if (!is_plain(op) || op.hidden_size > 16 * 4 * kRouteThreads || op.num_tokens > kFusedTokens) return false;
  const dim3 blocks(op.n_routed_experts, op.num_tokens);
  const size_t room = 2 * sizeof(float) * static_cast<size_t>(op.n_routed_experts);
  const int vectors = (op.hidden_size / 4 + kRouteThreads - 1) / kRouteThreads;
  if (vectors <= 6) {
    launch(fused_kernel<6>, blocks, dim3(kRouteThreads), room, op, logits, tickets);
  } else {
    launch(fused_kernel<16>, blocks, dim3(kRouteThreads), room, op, logits, tickets);
  }
  return true;
}

void choose_experts(const Route& op, const float* logits, const Launch& launch) {
  const size_t room = 2 * sizeof(float) * static_cast<size_t>(op.n_routed_experts);
  launch(choose_kernel, dim3(op.num_tokens), dim3(kWarp), room, op, logits);
}

}  // namespace proa::cuda
