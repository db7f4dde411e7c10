// Compiled without fused multiply-add: decoding has one answer, that of the host.
#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"

namespace proa::cuda {
namespace {

template <class F>
__global__ void embed_kernel(const __grid_constant__ Embed op) {
  wait_for_predecessor();
  start_successor();
  const Weight& table = op.table;
  const int64_t row = __ldcg(op.token_ids + blockIdx.x);
  const auto* blocks =
      reinterpret_cast<const typename F::Block*>(table.data + row * static_cast<int64_t>(table.row_stride));
  float* x = op.x + static_cast<int64_t>(blockIdx.x) * table.cols;
  const std::byte* scales = table.scales.data + row * static_cast<int64_t>(table.scales.row_stride);
  for (int64_t b = threadIdx.x; b * F::block_elements < table.cols; b += blockDim.x) {
    float* y = x + b * F::block_elements;
    F::decode(blocks[b], y);
    if (table.scales.data == nullptr && table.scale == 1) continue;
    for (int i = 0; i < F::block_elements; ++i) {
      if (table.scales.data) {
        const int64_t group = (b * F::block_elements + i) / table.scales.group;
        y[i] *= table.scales.format == Format::F32
                    ? reinterpret_cast<const float*>(scales)[group]
                    : e4m3_to_float(static_cast<uint8_t>(reinterpret_cast<const uint8_t*>(scales)[group]));
      }
      if (table.scale != 1) y[i] *= table.scale;
    }
  }
}

}  // namespace

void embed(const Embed& op, const Launch& launch) {
  if (op.num_tokens == 0) return;
  visit_format(op.table.format,
               [&](auto f) { launch(embed_kernel<decltype(f)>, dim3(op.num_tokens), dim3(128), 0, op); });
}

}  // namespace proa::cuda
