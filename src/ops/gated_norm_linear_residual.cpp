// The reference of gated_norm_linear_residual is the sequence it replaces.
#include <cmath>
#include <vector>

#include "ops/mamba2.h"
#include "ops/norm_linear.h"

namespace proa {

void gated_norm_linear_residual_reference(const GatedNormLinearResidual& op) {
  const int width = op.inner / op.n_groups;
  std::vector<float> normed(static_cast<size_t>(op.num_tokens) * op.inner);
  std::vector<double> gated(width);
  for (int t = 0; t < op.num_tokens; ++t) {
    for (int g = 0; g < op.n_groups; ++g) {
      double squares = 0;
      for (int i = 0; i < width; ++i) {
        const int c = g * width + i;
        const double z = op.z[t * op.z_stride + c];
        gated[i] = op.y[int64_t{t} * op.inner + c] * (z / (1 + std::exp(-z)));
        squares += gated[i] * gated[i];
      }
      const double scale = 1 / std::sqrt(squares / width + op.eps);
      for (int i = 0; i < width; ++i) {
        const int c = g * width + i;
        normed[int64_t{t} * op.inner + c] = static_cast<float>(gated[i] * scale * op.norm[c]);
      }
    }
  }
  linear_residual_reference({op.num_tokens, normed.data(), op.weight, op.residual});
}

}  // namespace proa
