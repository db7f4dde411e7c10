#include "engine/teacher_forcing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "engine/fake_model.h"

namespace proa {
namespace {

const std::vector<int32_t> kTokens = {5, 9, 9, 0, 31, 2, 17, 8, 4, 4, 4, 39, 1, 22, 6, 30, 3, 12, 25, 7, 11};

TEST(ForcedLogits, AnyChunksGiveTheSameLogits) {
  const struct {
    std::vector<int> chunks;
    std::vector<int32_t> rows;
    int block_size = 16;
    bool decode_single_tokens = true;
  } rows[] = {
      {{}, {20}},                     // all at once
      {{}, {0, 7, 20}},               // several rows
      {{}, {20, 3, 3, 0}},            // any order, repeated
      {{1}, {0, 10, 20}},             // token by token, as decodes
      {{1}, {0, 10, 20}, 16, false},  // token by token, as prefills
      {{7}, {6, 7, 8, 20}},           // borders of chunks
      {{5, 1}, {4, 5, 20}},           // prefill, then decode
      {{3, 8, 2}, {20}},
      {{100}, {20}},           // longer than the text
      {{4}, {20}, 1},          // small blocks
      {{4}, {15, 16, 20}, 5},  // blocks that are not a multiple
      {{4}, {}},               // no rows at all
  };
  const FakeModel model;
  for (size_t i = 0; i < std::size(rows); ++i) {
    HostBackend backend;
    const auto logits = forced_logits(model, backend, kTokens, rows[i].rows,
                                      {.chunks = rows[i].chunks,
                                       .decode_single_tokens = rows[i].decode_single_tokens,
                                       .block_size = rows[i].block_size});
    ASSERT_TRUE(logits.ok()) << logits.error().message();
    ASSERT_EQ(logits->size(), rows[i].rows.size() * fake::kVocabSize);
    for (size_t r = 0; r < rows[i].rows.size(); ++r) {
      const auto expected = fake::expected_logits(std::span(kTokens).first(static_cast<size_t>(rows[i].rows[r]) + 1));
      EXPECT_TRUE(
          std::equal(expected.begin(), expected.end(), logits->begin() + static_cast<ptrdiff_t>(r) * fake::kVocabSize))
          << "case " << i << ", row " << rows[i].rows[r];
    }
  }
}

TEST(ForcedLogits, ErrorsNameTheArgument) {
  const struct {
    std::vector<int32_t> tokens, rows;
    ForcingOptions options;
    const char* where;
  } rows[] = {
      {{}, {}, {}, "token_ids"},
      {{1, -1}, {}, {}, "token_ids"},
      {{1, fake::kVocabSize}, {}, {}, "token_ids"},
      {{1, 2}, {2}, {}, "rows"},
      {{1, 2}, {-1}, {}, "rows"},
      {{1, 2}, {0}, {.chunks = {1, 0}}, "chunks"},
      {{1, 2}, {0}, {.block_size = 0}, "block_size"},
      {{1, 2}, {0}, {.kv_cache_dtype = Format::Q8_0}, "kv_cache_dtype"},
  };
  const FakeModel model;
  for (const auto& row : rows) {
    HostBackend backend;
    const auto logits = forced_logits(model, backend, row.tokens, row.rows, row.options);
    ASSERT_FALSE(logits.ok()) << row.where;
    EXPECT_EQ(logits.error().where, row.where);
  }
}

}  // namespace
}  // namespace proa
