#include <algorithm>

#include "backends/cpu/elementwise.h"
#include "backends/cpu/linear.h"

namespace proa {

void CpuBackend::norm_linear(const NormLinear& op) {
  const int64_t rooms = threads().num_threads() * room_floats(op.hidden_size, op.num_tokens);
  Forms forms;
  for (const LinearOutput& output : op.outputs) {
    const Forms each = forms_of(*this, {output.weight}, op.num_tokens);
    forms.digits = forms.digits || each.digits;
    forms.halves = forms.halves || each.halves;
  }
  const auto needed = Input::bytes(op.num_tokens, op.hidden_size, forms) + Arena::padded<float>(rooms) +
                      Arena::padded<Linear>(static_cast<int64_t>(op.outputs.size()));
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  const Input u(arena, op.num_tokens, op.hidden_size, forms);
  float* room = arena.take<float>(rooms);
  auto* linears = arena.take<Linear>(static_cast<int64_t>(op.outputs.size()));

  rms_norm(*this, op.num_tokens, op.hidden_size, op.x, nullptr, op.norm, op.eps, u);
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    const LinearOutput& output = op.outputs[i];
    new (&linears[i]) Linear(u.read_by(
        {.weight = output.weight, .num_tokens = op.num_tokens, .y = output.y, .y_stride = output.weight.rows}));
  }
  linear(*this, {linears, op.outputs.size()}, room);
}

void CpuBackend::linear_residual(const LinearResidual& op) {
  const int64_t cols = op.weight.cols;
  const int64_t rooms = threads().num_threads() * room_floats(cols, op.num_tokens);
  const Forms forms = forms_of(*this, {op.weight}, op.num_tokens);
  const auto needed = Input::bytes(op.num_tokens, cols, forms) + Arena::padded<float>(rooms);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  Input padded(arena, op.num_tokens, cols, forms);
  float* room = arena.take<float>(rooms);

  float* const copy = padded.x;
  if (padded.stride == cols) padded.x = const_cast<float*>(op.x);  // only read
  threads().parallel_for(op.num_tokens, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (padded.x == copy) {
        std::copy_n(op.x + t * cols, cols, copy + t * padded.stride);
        std::fill_n(copy + t * padded.stride + cols, padded.stride - cols, 0.0f);
      }
      padded.round(t, 0, padded.stride, cols);
    }
  });
  const Linear down = padded.read_by(
      {.weight = op.weight, .num_tokens = op.num_tokens, .y = op.residual, .y_stride = op.weight.rows, .add = true});
  linear(*this, {&down, 1}, room);
}

}  // namespace proa
