#include "ops/mlp.h"

#include "ops/reference.h"

namespace proa {

void mlp_reference(const Mlp& op) {
  const auto u = reference::rms_norm(op.x, op.norm, op.eps, op.num_tokens, op.hidden_size);
  auto h = reference::linear(op.up, u, op.num_tokens);
  if (op.gate) {
    const auto gate = reference::linear(op.gate, u, op.num_tokens);
    for (size_t i = 0; i < h.size(); ++i) h[i] *= activate(op.activation, gate[i]);
  } else {
    for (double& value : h) value = activate(op.activation, value);
  }
  const auto y = reference::linear(op.down, h, op.num_tokens);
  for (size_t i = 0; i < y.size(); ++i) op.x[i] = static_cast<float>(op.x[i] + y[i]);
}

}  // namespace proa
