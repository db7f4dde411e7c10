#include "ops/norm_linear.h"

#include "ops/norm_linear_cases.h"

namespace proa::testing {
namespace {

TEST(NormLinear, ReferenceByHand) {
  const float x[] = {3, 4};  // mean square 12.5
  const float norm[] = {1, 2};
  const float matrix[] = {1, 0, 0, 1, 1, 1};  // [3, 2]
  float y[3];
  const LinearOutput output{{reinterpret_cast<const std::byte*>(matrix), 3, 2, 8, Format::F32}, y};
  norm_linear_reference(
      {.num_tokens = 1, .hidden_size = 2, .x = x, .norm = norm, .eps = 3.5f, .outputs = {&output, 1}});
  EXPECT_FLOAT_EQ(y[0], 0.75f);  // 3 / sqrt(12.5 + 3.5)
  EXPECT_FLOAT_EQ(y[1], 2.0f);   // 2 · 4 / 4
  EXPECT_FLOAT_EQ(y[2], 2.75f);
}

TEST(LinearResidual, ReferenceByHand) {
  const float x[] = {3, 4};
  const float matrix[] = {1, 0, 2, 1};  // [2, 2]
  float residual[] = {100, 200};
  linear_residual_reference({.num_tokens = 1,
                             .x = x,
                             .weight = {reinterpret_cast<const std::byte*>(matrix), 2, 2, 8, Format::F32},
                             .residual = residual});
  EXPECT_EQ(residual[0], 103);
  EXPECT_EQ(residual[1], 210);
}

// Inputs of a case; `op` runs once per output array.
struct Inputs {
  Floats x;
  Floats norm;
  std::vector<TestWeight> weights;

  explicit Inputs(const NormLinearCase& c) {
    Random random(2);
    x = random.normals(int64_t{c.num_tokens} * c.hidden_size, c.scale, c.offset);
    norm = random.normals(c.hidden_size, 1, c.offset);
    for (int rows : c.rows) weights.emplace_back(random, c.format, rows, c.hidden_size, c.offset, c.padding);
  }
  std::vector<Floats> outputs(const NormLinearCase& c) const {
    std::vector<Floats> y;
    for (int rows : c.rows) y.push_back(poisoned(int64_t{c.num_tokens} * rows, c.offset));
    return y;
  }
  // Tokens [begin, begin + count) of the case, into the same rows of y.
  template <typename F>
  void with_op(const NormLinearCase& c, std::vector<Floats>& y, int begin, int count, F&& f) const {
    std::vector<LinearOutput> outputs;
    for (size_t i = 0; i < y.size(); ++i) {
      outputs.push_back({weights[i].weight, y[i].data() + int64_t{begin} * c.rows[i]});
    }
    f(NormLinear{.num_tokens = count,
                 .hidden_size = c.hidden_size,
                 .x = x.data() + int64_t{begin} * c.hidden_size,
                 .norm = norm.data(),
                 .eps = c.eps,
                 .outputs = outputs});
  }
};

// One sum for the norm, one for the product.
double bound(const NormLinearCase& c, const Backend& backend) {
  return 2 * sum_bound(c.hidden_size) + backend.product_rounding(c.format, c.num_tokens);
}

TEST(NormLinear, Cases) {
  for (const NormLinearCase& c : norm_linear_cases()) {
    const Inputs in(c);
    auto expected = in.outputs(c);
    in.with_op(c, expected, 0, c.num_tokens, norm_linear_reference);
    on_all_backends(c.name, [&](Backend& backend) {
      auto y = in.outputs(c);
      in.with_op(c, y, 0, c.num_tokens, [&](const NormLinear& op) { backend.norm_linear(op); });
      for (size_t i = 0; i < y.size(); ++i) EXPECT_LE(relative_error(y[i], expected[i]), bound(c, backend));
    });
  }
}

// A token's result does not depend on who shares its step: prefill in chunks and decode give the same bits.
TEST(NormLinear, SameBitsInAnyBatch) {
  for (const NormLinearCase& c : norm_linear_cases()) {
    const Inputs in(c);
    on_all_backends(c.name, [&](Backend& backend) {
      auto together = in.outputs(c);
      auto alone = in.outputs(c);
      in.with_op(c, together, 0, c.num_tokens, [&](const NormLinear& op) { backend.norm_linear(op); });
      for (int t = 0; t < c.num_tokens; ++t) {
        in.with_op(c, alone, t, 1, [&](const NormLinear& op) { backend.norm_linear(op); });
      }
      const double most = backend.same_bits_in_any_batch() ? 0 : bound(c, backend);
      for (size_t i = 0; i < alone.size(); ++i) EXPECT_LE(relative_error(together[i], alone[i]), most);
    });
  }
}

TEST(LinearResidual, Cases) {
  for (const NormLinearCase& c : norm_linear_cases()) {
    const Inputs in(c);
    Random random(3);
    const Floats before = random.normals(int64_t{c.num_tokens} * c.rows[0], c.scale);
    LinearResidual op{
        .num_tokens = c.num_tokens, .x = in.x.data(), .weight = in.weights[0].weight, .residual = nullptr};
    Floats expected = before;
    op.residual = expected.data();
    linear_residual_reference(op);
    on_all_backends(c.name, [&](Backend& backend) {
      Floats residual(before.size(), c.offset);
      std::copy(before.begin(), before.end(), residual.begin());
      op.residual = residual.data();
      backend.linear_residual(op);
      EXPECT_LE(relative_error(residual, expected), bound(c, backend));
    });
  }
}

}  // namespace
}  // namespace proa::testing
