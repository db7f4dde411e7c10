#include "ops/embed.h"

#include "ops/embed_cases.h"

namespace proa::testing {
namespace {

TEST(Embed, ReferenceByHand) {
  const float table[] = {1, 2, 3, 4, 5, 6};  // [3, 2]
  const int32_t ids[] = {2, 0};
  float x[4];
  embed_reference({.num_tokens = 2,
                   .token_ids = ids,
                   .table = {reinterpret_cast<const std::byte*>(table), 3, 2, 8, Format::F32},
                   .x = x});
  EXPECT_EQ((std::vector<float>(x, x + 4)), (std::vector<float>{5, 6, 1, 2}));
}

// Decoding has one answer: equal bits.
TEST(Embed, Cases) {
  for (const EmbedCase& c : embed_cases()) {
    on_all_backends(c.name, [&](Backend& backend) {
      Random random(1);
      const TestWeight table(random, c.format, c.vocab_size, c.hidden_size, c.offset);
      Array<int32_t> ids(c.num_tokens, c.offset);
      for (int32_t& id : ids) id = random.below(c.vocab_size);
      Floats x = poisoned(int64_t{c.num_tokens} * c.hidden_size, c.offset);
      Floats expected = x;
      Embed op{.num_tokens = c.num_tokens, .token_ids = ids.data(), .table = table.weight, .x = expected.data()};
      embed_reference(op);
      op.x = x.data();
      backend.embed(op);
      EXPECT_EQ(relative_error(x, expected), 0);
    });
  }
}

}  // namespace
}  // namespace proa::testing
