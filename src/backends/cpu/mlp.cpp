#include <algorithm>

#include "backends/cpu/elementwise.h"
#include "backends/cpu/linear.h"

namespace proa {

void CpuBackend::mlp(const Mlp& op) {
  const int64_t intermediate = op.up.rows;
  const int64_t u_stride = padded_cols(op.hidden_size);
  const int64_t h_stride = padded_cols(intermediate);
  const int num_threads = threads().num_threads();
  const int64_t panel_size = std::max(panel_floats(op.hidden_size), panel_floats(intermediate));
  const auto needed = Arena::padded<float>(op.num_tokens * u_stride) +
                      2 * Arena::padded<float>(op.num_tokens * h_stride) +
                      Arena::padded<float>(num_threads * panel_size);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  float* u = arena.take<float>(op.num_tokens * u_stride);     // [num_tokens, u_stride]
  float* h = arena.take<float>(op.num_tokens * h_stride);     // [num_tokens, h_stride]
  float* gate = arena.take<float>(op.num_tokens * h_stride);  // [num_tokens, h_stride]
  float* panels = arena.take<float>(num_threads * panel_size);

  rms_norm(*this, op.num_tokens, op.hidden_size, op.x, nullptr, op.norm, op.eps, u, u_stride);

  Linear up{.weight = op.up, .num_tokens = op.num_tokens, .x = u, .x_stride = u_stride, .y = h, .y_stride = h_stride};
  Linear gated = up;
  gated.weight = op.gate;
  gated.y = gate;
  threads().parallel_for(kRowShares, 1, [&](int64_t begin, int64_t end, int thread) {
    const RowRange range = shares_of(intermediate, begin, end);
    if (range.begin == range.end) return;
    float* panel = panels + thread * panel_size;
    linear_rows(target(), up, range.begin, range.end, panel);
    if (op.gate) linear_rows(target(), gated, range.begin, range.end, panel);
    for (int64_t t = 0; t < op.num_tokens; ++t) {
      const int64_t first = t * h_stride + range.begin;
      activate(target(), op.activation, op.gate ? gate + first : nullptr, h + first, range.end - range.begin);
      if (range.end == intermediate) std::fill(h + t * h_stride + intermediate, h + (t + 1) * h_stride, 0.0f);
    }
  });

  const Linear down{.weight = op.down,
                    .num_tokens = op.num_tokens,
                    .x = h,
                    .x_stride = h_stride,
                    .y = op.x,
                    .y_stride = op.hidden_size,
                    .add = true};
  linear(*this, {&down, 1}, panels);
}

}  // namespace proa
