#include "ops/mlp.h"

#include "ops/mlp_cases.h"

namespace proa::testing {
namespace {

TEST(Activation, ByHand) {
  EXPECT_EQ(activate(Activation::relu2, -3.0), 0);
  EXPECT_EQ(activate(Activation::relu2, 3.0), 9);
  EXPECT_EQ(activate(Activation::silu, 0.0), 0);
  EXPECT_NEAR(activate(Activation::silu, 1.0), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(activate(Activation::silu, -1.0), -0.2689414213699951, 1e-15);
}

// hidden 1, intermediate 2: RMSNorm(x) = sign(x) · norm.
TEST(Mlp, ReferenceByHand) {
  const float norm[] = {2};
  const float up[] = {1, -3};
  const float gate[] = {2, 0};
  const float down[] = {10, 100};
  const auto matrix = [](const float* data, int64_t rows, int64_t cols) {
    return Weight{reinterpret_cast<const std::byte*>(data), rows, cols, static_cast<size_t>(cols) * 4, Format::F32};
  };
  float x = 5;
  Mlp op{.num_tokens = 1,
         .hidden_size = 1,
         .x = &x,
         .norm = norm,
         .eps = 0,
         .gate = {},
         .up = matrix(up, 2, 1),
         .down = matrix(down, 1, 2),
         .activation = Activation::relu2};
  mlp_reference(op);
  EXPECT_EQ(x, 5 + 10 * 4);  // up gives 2 and -6

  x = 5;
  op.gate = matrix(gate, 2, 1);
  mlp_reference(op);
  EXPECT_EQ(x, 5 + 10 * 16 * 2);  // gate gives 4 and 0
}

struct Inputs {
  Random random{4};
  TestWeight gate, up, down;
  Floats norm, x;

  explicit Inputs(const MlpCase& c)
      : gate(random, c.format, c.intermediate_size, c.hidden_size, c.offset),
        up(random, c.format, c.intermediate_size, c.hidden_size, c.offset),
        // The down projection of a block format needs whole blocks.
        down(random, c.intermediate_size % info(c.format).block_elements ? Format::F32 : c.format, c.hidden_size,
             c.intermediate_size, c.offset),
        norm(random.normals(c.hidden_size, c.scale, c.offset)),
        x(random.normals(int64_t{c.num_tokens} * c.hidden_size)) {}

  // Tokens [begin, begin + count).
  Mlp op(const MlpCase& c, Floats& out, int begin, int count) const {
    return {.num_tokens = count,
            .hidden_size = c.hidden_size,
            .x = out.data() + int64_t{begin} * c.hidden_size,
            .norm = norm.data(),
            .eps = 1e-5f,
            .gate = c.gated ? gate.weight : Weight{},
            .up = up.weight,
            .down = down.weight,
            .activation = c.activation};
  }
  Floats copy_of_x(const MlpCase& c) const {
    Floats copy(x.size(), c.offset);
    std::copy(x.begin(), x.end(), copy.begin());
    return copy;
  }
};

// The norm, the two first products and the last one each add a sum's error; squaring and gating double the first ones.
double bound(const MlpCase& c, const Backend& backend) {
  return 5 * sum_bound(c.hidden_size) + sum_bound(c.intermediate_size) +
         3 * backend.product_rounding(c.format, c.num_tokens);
}

TEST(Mlp, Cases) {
  for (const MlpCase& c : mlp_cases()) {
    const Inputs in(c);
    Floats expected = in.copy_of_x(c);
    mlp_reference(in.op(c, expected, 0, c.num_tokens));
    on_all_backends(c.name, [&](Backend& backend) {
      Floats x = in.copy_of_x(c);
      backend.mlp(in.op(c, x, 0, c.num_tokens));
      EXPECT_LE(relative_error(x, expected), bound(c, backend));
    });
  }
}

TEST(Mlp, SameBitsInAnyBatch) {
  for (const MlpCase& c : mlp_cases()) {
    const Inputs in(c);
    on_all_backends(c.name, [&](Backend& backend) {
      Floats together = in.copy_of_x(c);
      Floats alone = in.copy_of_x(c);
      backend.mlp(in.op(c, together, 0, c.num_tokens));
      for (int t = 0; t < c.num_tokens; ++t) backend.mlp(in.op(c, alone, t, 1));
      EXPECT_LE(relative_error(together, alone), backend.same_bits_in_any_batch() ? 0 : bound(c, backend));
    });
  }
}

}  // namespace
}  // namespace proa::testing
