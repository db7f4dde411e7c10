#include "ops/gated_norm_linear_residual_cases.h"
#include "ops/mamba2.h"

namespace proa::testing {
namespace {

TEST(GatedNormLinearResidual, EveryBackend) {
  uint64_t seed = 1;
  for (const GatedNormCase& c : gated_norm_cases()) {
    Random random(seed++);
    const Floats y = random.normals(int64_t{c.num_tokens} * c.inner, c.y_scale, c.offset);
    const int64_t z_stride = c.inner + c.z_padding;
    const Floats z = random.normals(c.num_tokens * z_stride, c.z_scale, c.offset);
    const Floats norm = random.normals(c.inner, 1, c.offset);
    const TestWeight weight(random, c.format, c.hidden_size, c.inner, c.offset);
    const Floats residual = random.normals(int64_t{c.num_tokens} * c.hidden_size, 1, c.offset);
    const auto op = [&](Floats& out) -> GatedNormLinearResidual {
      return {.num_tokens = c.num_tokens,
              .inner = c.inner,
              .n_groups = c.n_groups,
              .y = y.data(),
              .z = z.data(),
              .z_stride = z_stride,
              .norm = norm.data(),
              .eps = c.eps,
              .weight = weight.weight,
              .residual = out.data()};
    };
    Floats expected = residual;
    gated_norm_linear_residual_reference(op(expected));
    on_all_backends(c.name, [&](Backend& backend) {
      Floats actual = residual;
      backend.gated_norm_linear_residual(op(actual));
      EXPECT_LE(relative_error(actual, expected),
                gated_norm_bound(c) + backend.product_rounding(c.format, c.num_tokens));
    });
  }
}

// By hand: two groups of two channels, the identity as weight. The other order (norm, then gate) gives other numbers.
TEST(GatedNormLinearResidual, GateComesBeforeNorm) {
  const float y[] = {3, -1, 2, 5}, z[] = {1, -2, 0.5f, 4}, norm[] = {1, 2, 3, 4};
  float identity[16] = {};
  for (int i = 0; i < 4; ++i) identity[i * 5] = 1;
  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  on_all_backends("by hand", [&](Backend& backend) {
    float residual[] = {10, 20, 30, 40};
    backend.gated_norm_linear_residual({.num_tokens = 1,
                                        .inner = 4,
                                        .n_groups = 2,
                                        .y = y,
                                        .z = z,
                                        .z_stride = 4,
                                        .norm = norm,
                                        .eps = 0.25f,
                                        .weight = {reinterpret_cast<const std::byte*>(identity), 4, 4, 16, Format::F32},
                                        .residual = residual});
    for (int g = 0; g < 2; ++g) {
      const double v0 = y[2 * g] * silu(z[2 * g]), v1 = y[2 * g + 1] * silu(z[2 * g + 1]);
      const double scale = 1 / std::sqrt((v0 * v0 + v1 * v1) / 2 + 0.25);
      EXPECT_NEAR(residual[2 * g], 10 + 20 * g + v0 * scale * norm[2 * g], 1e-5);
      EXPECT_NEAR(residual[2 * g + 1], 20 + 20 * g + v1 * scale * norm[2 * g + 1], 1e-5);
    }
  });
}

}  // namespace
}  // namespace proa::testing
