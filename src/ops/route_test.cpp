#include "ops/route.h"

#include <numeric>

#include "ops/route_cases.h"

namespace proa::testing {
namespace {

// hidden 1 and norm 1: RMSNorm(x) = 1, so the gate's column holds the logits.
struct ByHand {
  std::vector<float> logits;
  std::vector<float> bias;
  int k = 2;
  int n_group = 1;
  int topk_group = 1;
  bool norm_topk_prob = false;
  float scale = 1;

  std::pair<std::vector<int32_t>, std::vector<float>> run() const {
    const float x = 1;
    const float norm = 1;
    std::vector<int32_t> ids(static_cast<size_t>(k));
    std::vector<float> weights(static_cast<size_t>(k));
    const auto n = static_cast<int64_t>(logits.size());
    route_reference({.num_tokens = 1,
                     .hidden_size = 1,
                     .x = &x,
                     .norm = &norm,
                     .eps = 0,
                     .gate = {reinterpret_cast<const std::byte*>(logits.data()), n, 1, 4, Format::F32},
                     .bias = bias.data(),
                     .n_routed_experts = static_cast<int>(n),
                     .num_experts_per_tok = k,
                     .n_group = n_group,
                     .topk_group = topk_group,
                     .norm_topk_prob = norm_topk_prob,
                     .routed_scaling_factor = scale,
                     .topk_ids = ids.data(),
                     .topk_weights = weights.data()});
    return {ids, weights};
  }
};

const float kLog3 = std::log(3.0f);  // sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4

TEST(Route, ReferenceByHand) {
  using Ids = std::vector<int32_t>;
  const ByHand base{.logits = {0, kLog3, -kLog3, 0}, .bias = {0, 0, 0, 0}};  // sigmoids 1/2, 3/4, 1/4, 1/2
  auto [ids, weights] = base.run();
  EXPECT_EQ(ids, (Ids{1, 0}));  // of the equal 0 and 3 the lower
  EXPECT_FLOAT_EQ(weights[0], 0.75f);
  EXPECT_FLOAT_EQ(weights[1], 0.5f);

  ByHand biased = base;  // the bias chooses and does not weigh
  biased.bias = {0, -1, 1, 0};
  std::tie(ids, weights) = biased.run();
  EXPECT_EQ(ids, (Ids{2, 0}));
  EXPECT_FLOAT_EQ(weights[0], 0.25f);
  EXPECT_FLOAT_EQ(weights[1], 0.5f);

  ByHand normed = base;
  normed.norm_topk_prob = true;
  normed.scale = 2.5f;
  std::tie(ids, weights) = normed.run();
  EXPECT_FLOAT_EQ(weights[0], 2.5f * 0.6f);
  EXPECT_FLOAT_EQ(weights[1], 2.5f * 0.4f);

  ByHand grouped = base;  // sums 5/4 and 3/4: the first group alone
  grouped.n_group = 2;
  std::tie(ids, weights) = grouped.run();
  EXPECT_EQ(ids, (Ids{1, 0}));
  grouped.bias = {0, 0, 0.3f, 0.3f};  // sums 1.25 and 1.35, though expert 1 is the best alone with 3/4
  grouped.logits = {0, kLog3, -kLog3, kLog3};
  grouped.bias = {0, 0, 0.4f, -0.1f};  // choice .5 .75 | .65 .65
  std::tie(ids, weights) = grouped.run();
  EXPECT_EQ(ids, (Ids{2, 3}));
}

TEST(Route, Cases) {
  for (const RouteCase& c : route_cases()) {
    Random random(6);
    const Floats x = random.normals(int64_t{c.num_tokens} * c.hidden_size, 1, c.offset);
    const Floats norm = random.normals(c.hidden_size, 1, c.offset);
    TestWeight gate(random, c.format, c.n_routed_experts, c.hidden_size, c.offset);
    Floats bias = random.normals(c.n_routed_experts, c.bias, c.offset);
    for (int e = 1; e < c.n_routed_experts; ++e) {
      const int like = c.equal ? 0 : c.in_pairs ? e / 2 * 2 : e;
      const size_t stride = gate.weight.row_stride;
      std::copy_n(gate.weight.row(like), stride, gate.bytes.data() + static_cast<size_t>(e) * stride);
      bias[e] = bias[like];
    }
    const int64_t count = int64_t{c.num_tokens} * c.num_experts_per_tok;
    Route op{.num_tokens = c.num_tokens,
             .hidden_size = c.hidden_size,
             .x = x.data(),
             .norm = norm.data(),
             .eps = 1e-5f,
             .gate = gate.weight,
             .bias = bias.data(),
             .n_routed_experts = c.n_routed_experts,
             .num_experts_per_tok = c.num_experts_per_tok,
             .n_group = c.n_group,
             .topk_group = c.topk_group,
             .norm_topk_prob = c.norm_topk_prob,
             .routed_scaling_factor = c.routed_scaling_factor,
             .topk_ids = nullptr,
             .topk_weights = nullptr};
    Array<int32_t> expected_ids(count);
    Floats expected_weights(count);
    op.topk_ids = expected_ids.data();
    op.topk_weights = expected_weights.data();
    Array<int32_t> expected_tokens(c.n_routed_experts);
    std::fill(expected_tokens.begin(), expected_tokens.end(), 7);
    op.expert_tokens = expected_tokens.data();
    route_reference(op);
    EXPECT_EQ(std::accumulate(expected_tokens.begin(), expected_tokens.end(), int64_t{0}),
              7 * int64_t{c.n_routed_experts} + count);
    on_all_backends(c.name, [&](Backend& backend) {
      Array<int32_t> ids(count, c.offset);
      std::fill(ids.begin(), ids.end(), -1);
      Floats weights = poisoned(count, c.offset);
      Array<int32_t> expert_tokens(c.n_routed_experts, c.offset);
      std::fill(expert_tokens.begin(), expert_tokens.end(), 7);
      op.topk_ids = ids.data();
      op.topk_weights = weights.data();
      op.expert_tokens = expert_tokens.data();
      backend.route(op);
      // Random scores are never so close that F32 would order them otherwise.
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), expected_ids.begin()));
      EXPECT_TRUE(std::equal(expert_tokens.begin(), expert_tokens.end(), expected_tokens.begin()));
      EXPECT_LE(relative_error(weights, expected_weights), 3 * sum_bound(c.hidden_size));
    });
  }
}

}  // namespace
}  // namespace proa::testing
