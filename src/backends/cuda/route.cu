#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/route.cuh"

namespace proa::cuda {
namespace {

constexpr int kRouteThreads = 128;

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

}  // namespace

bool route_fused(const Route& op, float* logits, uint32_t* tickets, const Launch& launch) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (op.gate.format != Format::F32 || op.gate.scales || op.hidden_size % 4 != 0 || op.gate.row_stride % 16 != 0 ||
      !aligned(op.gate.data) || !aligned(op.x) || !aligned(op.norm) || op.hidden_size > 16 * 4 * kRouteThreads ||
      op.num_tokens > 16) {
    return false;
  }
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
