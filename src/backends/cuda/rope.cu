#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"

namespace proa::cuda {
namespace {

// A block takes a token, a thread a pair of channels of all heads. Angles are double: positions go to a million.
__global__ void rope_kernel(const __grid_constant__ Rope op) {
  wait_for_predecessor();
  start_successor();
  const int64_t token = blockIdx.x;
  const int half = op.rotary_dim / 2;
  const int heads = op.num_heads + op.num_kv_heads;
  for (int i = static_cast<int>(threadIdx.x); i < half; i += static_cast<int>(blockDim.x)) {
    const double angle = static_cast<double>(op.inv_freq[i]) * __ldcg(op.positions + token);
    const auto c = static_cast<float>(cos(angle) * op.attention_factor);
    const auto s = static_cast<float>(sin(angle) * op.attention_factor);
    const int first = op.pairs == RopePairs::halves ? i : 2 * i;
    const int second = op.pairs == RopePairs::halves ? i + half : 2 * i + 1;
    for (int h = static_cast<int>(threadIdx.y); h < heads; h += static_cast<int>(blockDim.y)) {
      float* head = h < op.num_heads ? op.q + (token * op.num_heads + h) * op.head_dim
                                     : op.k + (token * op.num_kv_heads + h - op.num_heads) * op.head_dim;
      const float a = __ldcg(head + first), b = __ldcg(head + second);
      head[first] = a * c - b * s;
      head[second] = b * c + a * s;
    }
  }
}

}  // namespace

void rope(const Rope& op, const Launch& launch) {
  if (op.num_tokens == 0 || op.rotary_dim == 0) return;
  launch(rope_kernel, dim3(op.num_tokens), dim3(32, 8), 0, op);
}

}  // namespace proa::cuda
