#include "ops/lm_head.h"

#include "ops/lm_head_cases.h"

namespace proa::testing {
namespace {

TEST(LmHead, ReferenceByHand) {
  const float x[] = {9, 9, 3, 4};  // two tokens of two; mean square of the second 12.5
  const float norm[] = {1, 2};
  const float matrix[] = {1, 0, 0, 1, 1, 1};  // [3, 2]
  const int32_t rows[] = {1};
  float logits[3];
  lm_head_reference({.num_rows = 1,
                     .hidden_size = 2,
                     .rows = rows,
                     .x = x,
                     .norm = norm,
                     .eps = 3.5f,
                     .weight = {reinterpret_cast<const std::byte*>(matrix), 3, 2, 8, Format::F32},
                     .logits = logits});
  EXPECT_FLOAT_EQ(logits[0], 0.75f);
  EXPECT_FLOAT_EQ(logits[1], 2.0f);
  EXPECT_FLOAT_EQ(logits[2], 2.75f);
}

TEST(LmHead, Cases) {
  for (const LmHeadCase& c : lm_head_cases()) {
    Random random(5);
    const Floats x = random.normals(int64_t{c.num_tokens} * c.hidden_size, 1, c.offset);
    const Floats norm = random.normals(c.hidden_size, 1, c.offset);
    const TestWeight weight(random, c.format, c.vocab_size, c.hidden_size, c.offset);
    const auto num_rows = static_cast<int>(c.rows.size());
    LmHead op{.num_rows = num_rows,
              .hidden_size = c.hidden_size,
              .rows = c.rows.data(),
              .x = x.data(),
              .norm = norm.data(),
              .eps = 1e-5f,
              .weight = weight.weight,
              .logits = nullptr};
    Floats expected(int64_t{num_rows} * c.vocab_size);
    op.logits = expected.data();
    lm_head_reference(op);
    on_all_backends(c.name, [&](Backend& backend) {
      Floats logits = poisoned(expected.size(), c.offset);
      op.logits = logits.data();
      backend.lm_head(op);
      // Logits decide: where inputs are rounded, those of this op keep 8 bits more.
      const double rounding = backend.product_rounding(c.format, op.num_rows) / 256;
      EXPECT_LE(relative_error(logits, expected), 2 * sum_bound(c.hidden_size) + rounding);
    });
  }
}

}  // namespace
}  // namespace proa::testing
