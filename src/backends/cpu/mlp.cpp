#include <algorithm>

#include "backends/cpu/elementwise.h"
#include "backends/cpu/linear.h"

namespace proa {

void CpuBackend::mlp(const Mlp& op) {
  const int64_t intermediate = op.up.rows;
  const int num_threads = threads().num_threads();
  const int64_t room_size =
      std::max(room_floats(op.hidden_size, op.num_tokens), room_floats(intermediate, op.num_tokens));
  const Forms u_forms = forms_of(*this, {op.up, op.gate}, op.num_tokens);
  const Forms h_forms = forms_of(*this, {op.down}, op.num_tokens);
  const int64_t gate_floats = op.gate ? op.num_tokens * padded_cols(intermediate) : 0;
  const auto needed = Input::bytes(op.num_tokens, op.hidden_size, u_forms) +
                      Input::bytes(op.num_tokens, intermediate, h_forms) + Arena::padded<float>(gate_floats) +
                      Arena::padded<float>(num_threads * room_size);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  const Input u(arena, op.num_tokens, op.hidden_size, u_forms);
  const Input h(arena, op.num_tokens, intermediate, h_forms);
  float* gate = arena.take<float>(gate_floats);  // [num_tokens, h.stride]
  float* rooms = arena.take<float>(num_threads * room_size);

  rms_norm(*this, op.num_tokens, op.hidden_size, op.x, nullptr, op.norm, op.eps, u);

  const Linear up = u.read_by({.weight = op.up, .num_tokens = op.num_tokens, .y = h.x, .y_stride = h.stride});
  Linear gated = up;
  gated.weight = op.gate;
  gated.y = gate;
  threads().parallel_for(h.stride, kBlockRows, [&](int64_t begin, int64_t end, int thread) {
    const int64_t last = std::min(end, intermediate);
    float* room = rooms + thread * room_size;
    linear_rows(*this, up, begin, last, room);
    if (op.gate) linear_rows(*this, gated, begin, last, room);
    for (int64_t t = 0; t < op.num_tokens; ++t) {
      const int64_t first = t * h.stride + begin;
      activate(target(), op.activation, op.gate ? gate + first : nullptr, h.x + first, last - begin);
      std::fill(h.x + t * h.stride + last, h.x + t * h.stride + end, 0.0f);
      h.round(t, begin, end, intermediate);
    }
  });

  const Linear down =
      h.read_by({.weight = op.down, .num_tokens = op.num_tokens, .y = op.x, .y_stride = op.hidden_size, .add = true});
  linear(*this, {&down, 1}, rooms);
}

}  // namespace proa
