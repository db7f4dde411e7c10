#include "backends/cpu/elementwise.h"
#include "backends/cpu/linear.h"

namespace proa {

void CpuBackend::lm_head(const LmHead& op) {
  const int64_t rooms = threads().num_threads() * room_floats(op.hidden_size, op.num_rows);
  const Forms forms = forms_of(*this, {op.weight}, op.num_rows, true);  // logits decide
  const auto needed = Input::bytes(op.num_rows, op.hidden_size, forms) + Arena::padded<float>(rooms);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  const Input u(arena, op.num_rows, op.hidden_size, forms);
  float* room = arena.take<float>(rooms);

  rms_norm(*this, op.num_rows, op.hidden_size, op.x, op.rows, op.norm, op.eps, u);
  const Linear head =
      u.read_by({.weight = op.weight, .num_tokens = op.num_rows, .y = op.logits, .y_stride = op.weight.rows});
  linear(*this, {&head, 1}, room);
}

}  // namespace proa
