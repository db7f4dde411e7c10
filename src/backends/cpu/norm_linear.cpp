#include <algorithm>

#include "backends/cpu/elementwise.h"
#include "backends/cpu/linear.h"

namespace proa {

void CpuBackend::norm_linear(const NormLinear& op) {
  const int64_t stride = padded_cols(op.hidden_size);
  const int64_t panels = threads().num_threads() * panel_floats(op.hidden_size);
  const auto needed = Arena::padded<float>(op.num_tokens * stride) + Arena::padded<float>(panels) +
                      Arena::padded<Linear>(static_cast<int64_t>(op.outputs.size()));
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  float* u = arena.take<float>(op.num_tokens * stride);  // [num_tokens, stride]
  float* panel = arena.take<float>(panels);
  auto* linears = arena.take<Linear>(static_cast<int64_t>(op.outputs.size()));

  rms_norm(*this, op.num_tokens, op.hidden_size, op.x, nullptr, op.norm, op.eps, u, stride);
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    const LinearOutput& output = op.outputs[i];
    new (&linears[i]) Linear{.weight = output.weight,
                             .num_tokens = op.num_tokens,
                             .x = u,
                             .x_stride = stride,
                             .y = output.y,
                             .y_stride = output.weight.rows};
  }
  linear(*this, {linears, op.outputs.size()}, panel);
}

void CpuBackend::linear_residual(const LinearResidual& op) {
  const int64_t cols = op.weight.cols;
  const int64_t stride = padded_cols(cols);
  const int64_t panels = threads().num_threads() * panel_floats(cols);
  const int64_t copied = stride == cols ? 0 : op.num_tokens * stride;
  const auto needed = Arena::padded<float>(copied) + Arena::padded<float>(panels);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  float* padded = arena.take<float>(copied);
  float* panel = arena.take<float>(panels);

  for (int64_t t = 0; t < op.num_tokens && copied != 0; ++t) {
    std::copy_n(op.x + t * cols, cols, padded + t * stride);
    std::fill_n(padded + t * stride + cols, stride - cols, 0.0f);
  }
  const Linear down{.weight = op.weight,
                    .num_tokens = op.num_tokens,
                    .x = copied != 0 ? padded : op.x,
                    .x_stride = stride,
                    .y = op.residual,
                    .y_stride = op.weight.rows,
                    .add = true};
  linear(*this, {&down, 1}, panel);
}

}  // namespace proa
