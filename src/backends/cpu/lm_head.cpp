#include "backends/cpu/elementwise.h"
#include "backends/cpu/linear.h"

namespace proa {

void CpuBackend::lm_head(const LmHead& op) {
  const int64_t stride = padded_cols(op.hidden_size);
  const int64_t panels = threads().num_threads() * panel_floats(op.hidden_size);
  const auto needed = Arena::padded<float>(op.num_rows * stride) + Arena::padded<float>(panels);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  float* u = arena.take<float>(op.num_rows * stride);  // [num_rows, stride]
  float* panel = arena.take<float>(panels);

  rms_norm(*this, op.num_rows, op.hidden_size, op.x, op.rows, op.norm, op.eps, u, stride);
  const Linear head{.weight = op.weight,
                    .num_tokens = op.num_rows,
                    .x = u,
                    .x_stride = stride,
                    .y = op.logits,
                    .y_stride = op.weight.rows};
  linear(*this, {&head, 1}, panel);
}

}  // namespace proa
