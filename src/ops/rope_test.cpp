#include "ops/rope_cases.h"

namespace proa::testing {
namespace {

struct RopeInputs {
  std::vector<int32_t> positions;
  std::vector<float> inv_freq;
  Floats q, k;

  explicit RopeInputs(const RopeCase& c, uint64_t seed) {
    Random random(seed);
    for (int t = 0; t < c.num_tokens; ++t) positions.push_back(c.first_position + 3 * t);
    for (int i = 0; i < c.rotary_dim / 2; ++i) {
      inv_freq.push_back(static_cast<float>(std::pow(c.theta, -2.0 * i / c.rotary_dim)));
    }
    q = random.normals(int64_t{c.num_tokens} * c.num_heads * c.head_dim, 1, c.offset);
    k = random.normals(int64_t{c.num_tokens} * c.num_kv_heads * c.head_dim, 1, c.offset);
  }
  Rope op(const RopeCase& c, RopePairs pairs, Floats& out_q, Floats& out_k) const {
    return {.num_tokens = c.num_tokens,
            .positions = positions.data(),
            .num_heads = c.num_heads,
            .num_kv_heads = c.num_kv_heads,
            .head_dim = c.head_dim,
            .rotary_dim = c.rotary_dim,
            .inv_freq = inv_freq.data(),
            .attention_factor = c.attention_factor,
            .pairs = pairs,
            .q = out_q.data(),
            .k = out_k.data()};
  }
};

// Elements past rotary_dim must keep their bits.
void expect_turned(const RopeCase& c, RopePairs pairs, const Floats& in, const Floats& actual, const Floats& expected) {
  const int half = c.rotary_dim / 2;
  for (int64_t i = 0; i < in.size(); ++i) {
    const int64_t channel = i % c.head_dim;
    if (channel >= c.rotary_dim) {
      ASSERT_EQ(actual[i], in[i]) << i;
      continue;
    }
    const int64_t other =
        pairs == RopePairs::halves ? (channel < half ? i + half : i - half) : i - channel + (channel ^ 1);
    ASSERT_NEAR(actual[i], expected[i], 3 * 0x1p-24 * c.attention_factor * (std::abs(in[i]) + std::abs(in[other])))
        << i;
  }
}

TEST(Rope, EveryBackend) {
  uint64_t seed = 1;
  for (const RopeCase& c : rope_cases()) {
    const RopeInputs in(c, seed++);
    for (RopePairs pairs : {RopePairs::halves, RopePairs::adjacent}) {
      Floats expected_q = in.q, expected_k = in.k;
      rope_reference(in.op(c, pairs, expected_q, expected_k));
      on_all_backends(c.name, [&](Backend& backend) {
        Floats q = in.q, k = in.k;
        backend.rope(in.op(c, pairs, q, k));
        expect_turned(c, pairs, in.q, q, expected_q);
        expect_turned(c, pairs, in.k, k, expected_k);
      });
    }
  }
}

TEST(Rope, AQuarterTurnByHand) {
  const float inv_freq[] = {static_cast<float>(M_PI / 2), 0};
  const int32_t position = 1;
  for (RopePairs pairs : {RopePairs::halves, RopePairs::adjacent}) {
    float q[] = {1, 2, 3, 4}, k[] = {5, 6, 7, 8};
    rope_reference({1, &position, 1, 1, 4, 4, inv_freq, 2, pairs, q, k});
    // The first pair (a, b) becomes (-b, a), the second stays; both doubled.
    const bool halves = pairs == RopePairs::halves;
    const float expected_q[] = {halves ? -6.f : -4.f, halves ? 4.f : 2.f, halves ? 2.f : 6.f, 8};
    const float expected_k[] = {halves ? -14.f : -12.f, halves ? 12.f : 10.f, halves ? 10.f : 14.f, 16};
    for (int i = 0; i < 4; ++i) {
      EXPECT_NEAR(q[i], expected_q[i], 1e-5);
      EXPECT_NEAR(k[i], expected_k[i], 1e-5);
    }
  }
}

// Scores depend on the distance alone: q at m, k at n give what q at m + 1000, k at n + 1000 give.
TEST(Rope, ScoresDependOnDistance) {
  RopeCase c{.name = "", .num_tokens = 2, .num_heads = 1, .num_kv_heads = 1};
  RopeInputs in(c, 3);
  double scores[2];
  for (int shift : {0, 1000}) {
    in.positions = {40 + shift, 7 + shift};
    Floats q = in.q, k = in.k;
    rope_reference(in.op(c, RopePairs::halves, q, k));
    double dot = 0;
    for (int i = 0; i < c.head_dim; ++i) dot += double{q[i]} * k[c.head_dim + i];
    scores[shift != 0] = dot;
  }
  EXPECT_NEAR(scores[0], scores[1], 1e-4);
}

}  // namespace
}  // namespace proa::testing
