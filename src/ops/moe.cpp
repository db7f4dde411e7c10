#include "ops/moe.h"

#include "ops/reference.h"

namespace proa {
namespace {

// Down · act(Up · z) for one token.
std::vector<double> expert(const Weight& up, const Weight& down, Activation activation, const std::vector<double>& z) {
  std::vector<double> h = reference::linear(up, z, 1);
  for (double& value : h) value = activate(activation, value);
  return reference::linear(down, h, 1);
}

}  // namespace

void moe_reference(const Moe& op) {
  for (int t = 0; t < op.num_tokens; ++t) {
    float* x = op.x + int64_t{t} * op.hidden_size;
    const auto u = reference::rms_norm(x, op.norm, op.eps, 1, op.hidden_size);
    const auto z = op.latent_in ? reference::linear(op.latent_in, u, 1) : u;

    std::vector<double> r(z.size());
    for (int k = 0; k < op.num_experts_per_tok; ++k) {
      const int e = op.topk_ids[t * op.num_experts_per_tok + k];
      const auto y = expert(op.up.expert(e), op.down.expert(e), op.activation, z);
      for (size_t i = 0; i < r.size(); ++i) r[i] += op.topk_weights[t * op.num_experts_per_tok + k] * y[i];
    }
    if (op.latent_out) r = reference::linear(op.latent_out, r, 1);
    if (op.shared_up) {
      const auto y = expert(op.shared_up, op.shared_down, op.activation, u);
      for (size_t i = 0; i < r.size(); ++i) r[i] += y[i];
    }
    for (size_t i = 0; i < r.size(); ++i) x[i] = static_cast<float>(x[i] + r[i]);
  }
}

}  // namespace proa
