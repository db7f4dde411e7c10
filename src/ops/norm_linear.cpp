#include "ops/norm_linear.h"

#include "ops/reference.h"

namespace proa {

void norm_linear_reference(const NormLinear& op) {
  const auto u = reference::rms_norm(op.x, op.norm, op.eps, op.num_tokens, op.hidden_size);
  for (const LinearOutput& output : op.outputs) {
    const auto y = reference::linear(output.weight, u, op.num_tokens);
    for (size_t i = 0; i < y.size(); ++i) output.y[i] = static_cast<float>(y[i]);
  }
}

void linear_residual_reference(const LinearResidual& op) {
  const std::vector<double> x(op.x, op.x + op.num_tokens * op.weight.cols);
  const auto y = reference::linear(op.weight, x, op.num_tokens);
  for (size_t i = 0; i < y.size(); ++i) op.residual[i] = static_cast<float>(op.residual[i] + y[i]);
}

}  // namespace proa
