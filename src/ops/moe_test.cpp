#include "ops/moe.h"

#include "ops/moe_cases.h"

namespace proa::testing {
namespace {

Weight matrix(const float* data, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(data), rows, cols, static_cast<size_t>(cols) * 4, Format::F32};
}

// All sizes are one and RMSNorm(x) = norm = 1.
TEST(Moe, ReferenceByHand) {
  const float norm = 1;
  const float up0 = 1, up1 = 2, down0 = 10, down1 = 20;
  const std::byte* up[] = {reinterpret_cast<const std::byte*>(&up0), reinterpret_cast<const std::byte*>(&up1)};
  const std::byte* down[] = {reinterpret_cast<const std::byte*>(&down0), reinterpret_cast<const std::byte*>(&down1)};
  const float shared_up = 3, shared_down = 100, latent_in = -1, latent_out = 0.5f;
  const int32_t ids[] = {1, 0};
  const float weights[] = {0.5f, 0.25f};
  float x = 7;
  Moe op{.num_tokens = 1,
         .hidden_size = 1,
         .x = &x,
         .norm = &norm,
         .eps = 0,
         .n_routed_experts = 2,
         .num_experts_per_tok = 2,
         .topk_ids = ids,
         .topk_weights = weights,
         .up = {.data = up, .rows = 1, .cols = 1, .row_stride = 4},
         .down = {.data = down, .rows = 1, .cols = 1, .row_stride = 4},
         .latent_in = {},
         .latent_out = {},
         .shared_up = {},
         .shared_down = {},
         .activation = Activation::relu2};
  moe_reference(op);
  EXPECT_EQ(x, 7 + 0.5f * 20 * 4 + 0.25f * 10 * 1);

  x = 7;
  op.shared_up = matrix(&shared_up, 1, 1);
  op.shared_down = matrix(&shared_down, 1, 1);
  moe_reference(op);
  EXPECT_EQ(x, 7 + 42.5f + 900);

  x = 7;  // the latent turns the sign: no routed expert fires, the shared one does not see it
  op.latent_in = matrix(&latent_in, 1, 1);
  op.latent_out = matrix(&latent_out, 1, 1);
  moe_reference(op);
  EXPECT_EQ(x, 7 + 900);

  x = 7;
  const float positive = 1;
  op.latent_in = matrix(&positive, 1, 1);
  moe_reference(op);
  EXPECT_EQ(x, 7 + 0.5f * 42.5f + 900);
}

struct Inputs {
  Random random{7};
  int latent;
  TestExperts up, down;
  TestWeight latent_in, latent_out, shared_up, shared_down;
  Floats norm, x, topk_weights;
  Array<int32_t> topk_ids;

  // A matrix in the case's format, or in F32 where its rows would not be whole blocks.
  static Format fitting(const MoeCase& c, int cols) {
    return cols % info(c.format).block_elements == 0 ? c.format : Format::F32;
  }
  TestWeight weight(const MoeCase& c, int rows, int cols) {
    return rows > 0 && cols > 0 ? TestWeight(random, fitting(c, cols), rows, cols, c.offset) : TestWeight();
  }

  explicit Inputs(const MoeCase& c)
      : latent(c.latent_size > 0 ? c.latent_size : c.hidden_size),
        up(random, fitting(c, latent), c.n_routed_experts, c.intermediate_size, latent, c.offset),
        down(random, fitting(c, c.intermediate_size), c.n_routed_experts, latent, c.intermediate_size, c.offset),
        latent_in(weight(c, c.latent_size, c.hidden_size)),
        latent_out(weight(c, c.hidden_size, c.latent_size)),
        shared_up(weight(c, c.shared_intermediate_size, c.hidden_size)),
        shared_down(weight(c, c.hidden_size, c.shared_intermediate_size)),
        norm(random.normals(c.hidden_size, 1, c.offset)),
        x(random.normals(int64_t{c.num_tokens} * c.hidden_size)),
        topk_weights(random.normals(int64_t{c.num_tokens} * c.num_experts_per_tok, 1, c.offset)),
        topk_ids(int64_t{c.num_tokens} * c.num_experts_per_tok, c.offset) {
    for (int t = 0; t < c.num_tokens; ++t) {
      const int first = c.same_expert ? 0 : random.below(c.n_routed_experts);
      for (int k = 0; k < c.num_experts_per_tok; ++k) {  // distinct, not sorted
        topk_ids[t * c.num_experts_per_tok + k] = (first + k * (c.n_routed_experts - 1)) % c.n_routed_experts;
      }
    }
  }

  Moe op(const MoeCase& c, Floats& out, int begin, int count) const {
    return {.num_tokens = count,
            .hidden_size = c.hidden_size,
            .x = out.data() + int64_t{begin} * c.hidden_size,
            .norm = norm.data(),
            .eps = 1e-5f,
            .n_routed_experts = c.n_routed_experts,
            .num_experts_per_tok = c.num_experts_per_tok,
            .topk_ids = topk_ids.data() + int64_t{begin} * c.num_experts_per_tok,
            .topk_weights = topk_weights.data() + int64_t{begin} * c.num_experts_per_tok,
            .up = up.weights,
            .down = down.weights,
            .latent_in = latent_in.weight,
            .latent_out = latent_out.weight,
            .shared_up = shared_up.weight,
            .shared_down = shared_down.weight,
            .activation = c.activation};
  }
  Floats copy_of_x(const MoeCase& c) const {
    Floats copy(x.size(), c.offset);
    std::copy(x.begin(), x.end(), copy.begin());
    return copy;
  }
};

// Norm, latent in, up (squared), down, latent out; experts partly cancel, which the factor 2 covers.
double bound(const MoeCase& c, const Backend& backend) {
  return 2 * (5 * sum_bound(c.hidden_size) + sum_bound(c.intermediate_size) + sum_bound(c.shared_intermediate_size) +
              2 * backend.product_rounding(c.format, c.num_tokens));
}

TEST(Moe, Cases) {
  for (const MoeCase& c : moe_cases()) {
    const Inputs in(c);
    Floats expected = in.copy_of_x(c);
    moe_reference(in.op(c, expected, 0, c.num_tokens));
    on_all_backends(c.name, [&](Backend& backend) {
      Floats x = in.copy_of_x(c);
      backend.moe(in.op(c, x, 0, c.num_tokens));
      EXPECT_LE(relative_error(x, expected), bound(c, backend));
    });
  }
}

TEST(Moe, SameBitsInAnyBatch) {
  for (const MoeCase& c : moe_cases()) {
    const Inputs in(c);
    on_all_backends(c.name, [&](Backend& backend) {
      Floats together = in.copy_of_x(c);
      Floats alone = in.copy_of_x(c);
      backend.moe(in.op(c, together, 0, c.num_tokens));
      for (int t = 0; t < c.num_tokens; ++t) backend.moe(in.op(c, alone, t, 1));
      EXPECT_LE(relative_error(together, alone), backend.same_bits_in_any_batch() ? 0 : bound(c, backend));
    });
  }
}

}  // namespace
}  // namespace proa::testing
