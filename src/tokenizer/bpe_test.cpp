#include "tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <random>

namespace proa {
namespace {

// The 256 bytes as ids 0 to 255, then the tokens that the merges make, in their order.
struct Fixture {
  std::vector<std::string> texts;
  std::vector<std::pair<std::string, std::string>> pairs;

  explicit Fixture(std::vector<std::pair<std::string, std::string>> merges) {
    for (int b = 0; b < 256; ++b) texts.push_back(to_byte_alphabet(std::string(1, static_cast<char>(b))));
    for (auto& [left, right] : merges) {
      pairs.emplace_back(to_byte_alphabet(left), to_byte_alphabet(right));
      const std::string joined = pairs.back().first + pairs.back().second;
      if (std::find(texts.begin(), texts.end(), joined) == texts.end()) texts.push_back(joined);
    }
  }
  Vocabulary vocabulary() const {
    Vocabulary v;
    v.tokens.assign(texts.begin(), texts.end());
    v.types.assign(texts.size(), TokenType::normal);
    for (const auto& [left, right] : pairs) v.merges.push_back({left, right});
    return v;
  }
};

std::vector<std::string> pieces(const Bpe& bpe, std::string_view word) {
  BpeScratch scratch;
  std::vector<int32_t> ids;
  bpe.encode(word, scratch, ids);
  std::vector<std::string> texts;
  for (const int32_t id : ids) texts.emplace_back(bpe.piece(id));
  return texts;
}

// By the definition: the lowest-ranked pair anywhere, leftmost first, until there is none.
std::vector<std::string> reference(const Fixture& fixture, std::string_view word) {
  std::vector<std::string> parts;
  for (const char b : word) parts.emplace_back(1, b);
  while (true) {
    size_t best_rank = fixture.pairs.size(), best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const std::pair pair(to_byte_alphabet(parts[i]), to_byte_alphabet(parts[i + 1]));
      const auto rank =
          static_cast<size_t>(std::find(fixture.pairs.begin(), fixture.pairs.end(), pair) - fixture.pairs.begin());
      if (rank < best_rank) best_rank = rank, best = i;
    }
    if (best_rank == fixture.pairs.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

const std::vector<std::pair<std::string, std::string>> kMerges = {{"a", "b"},       {"b", "c"},   {"ab", "c"},
                                                                  {"a", "a"},       {"aa", "aa"}, {" ", "ab"},
                                                                  {"\xC3", "\xA9"}, {"aa", "ab"}, {"c", "abc"}};

TEST(ByteAlphabet, IsThatOfGpt2AndGoesBack) {
  EXPECT_EQ(to_byte_alphabet(" the\n"), "ĠtheĊ");
  EXPECT_EQ(to_byte_alphabet("é"), "Ã©");
  EXPECT_EQ(to_byte_alphabet(std::string_view("\0\x7F\xAD\xFF", 4)), "ĀġŃÿ");
  for (int b = 0; b < 256; ++b) {
    std::string bytes;
    EXPECT_TRUE(append_from_byte_alphabet(bytes, to_byte_alphabet(std::string(1, static_cast<char>(b)))));
    EXPECT_EQ(bytes, std::string(1, static_cast<char>(b)));
  }
  for (const char* foreign : {" ", "a b", "\n", "漢", "ń", "▁the", "\xC3", "\x80"}) {
    std::string bytes = "kept";
    EXPECT_FALSE(append_from_byte_alphabet(bytes, foreign)) << foreign;
    EXPECT_EQ(bytes, "kept");
  }
}

TEST(Bpe, MergesByRankThenFromTheLeft) {
  const Fixture fixture(kMerges);
  auto bpe = Bpe::create(fixture.vocabulary());
  ASSERT_TRUE(bpe.ok()) << bpe.error().message();
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(pieces(*bpe, ""), Pieces{});
  EXPECT_EQ(pieces(*bpe, "x"), (Pieces{"x"}));
  EXPECT_EQ(pieces(*bpe, "abc"), (Pieces{"abc"}));  // ab first although bc is there too
  EXPECT_EQ(pieces(*bpe, "bcab"), (Pieces{"bc", "ab"}));
  EXPECT_EQ(pieces(*bpe, "aaa"), (Pieces{"aa", "a"}));  // leftmost
  EXPECT_EQ(pieces(*bpe, "aaaaab"), (Pieces{"aaaa", "ab"}));
  EXPECT_EQ(pieces(*bpe, " é"), (Pieces{" ", "é"}));
  EXPECT_EQ(pieces(*bpe, "\xFF\xC3"), (Pieces{"\xFF", "\xC3"}));
}

TEST(Bpe, ShortAndLongWordsAgreeWithTheDefinition) {
  const Fixture fixture(kMerges);
  auto bpe = Bpe::create(fixture.vocabulary());
  ASSERT_TRUE(bpe.ok());
  std::mt19937 random(3);
  for (size_t length = 1; length < 200; ++length) {  // the algorithm changes in between
    std::string word;
    for (size_t i = 0; i < length; ++i) word += "aaabbc \xC3"[random() % 8];
    EXPECT_EQ(pieces(*bpe, word), reference(fixture, word)) << word;
  }
}

TEST(Bpe, AMegabyteWordIsEncodedWhole) {
  auto bpe = Bpe::create(Fixture(kMerges).vocabulary());
  ASSERT_TRUE(bpe.ok());
  EXPECT_EQ(pieces(*bpe, std::string(1 << 20, 'a')).size(), (1u << 20) / 4);
}

TEST(Bpe, IgnoreMergesTakesWholeWords) {
  Fixture fixture(kMerges);
  fixture.texts.push_back("xyz");
  Vocabulary vocabulary = fixture.vocabulary();
  EXPECT_EQ(pieces(*Bpe::create(vocabulary), "xyz").size(), 3u);
  vocabulary.ignore_merges = true;
  EXPECT_EQ(pieces(*Bpe::create(vocabulary), "xyz").size(), 1u);
  EXPECT_EQ(pieces(*Bpe::create(vocabulary), "xyzx").size(), 4u);
  vocabulary.types.back() = TokenType::control;  // which no text may spell
  EXPECT_EQ(pieces(*Bpe::create(vocabulary), "xyz").size(), 3u);
}

TEST(Bpe, BytesWithoutATokenAreDroppedOrUnknown) {
  Vocabulary vocabulary;
  vocabulary.tokens = {"a", "b", "<unk>"};
  vocabulary.types = {TokenType::normal, TokenType::normal, TokenType::unknown};
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(pieces(*Bpe::create(vocabulary), "xaxxb"), (Pieces{"a", "b"}));
  vocabulary.unk_id = 2;
  EXPECT_EQ(pieces(*Bpe::create(vocabulary), "xaxxb"), (Pieces{"<unk>", "a", "<unk>", "<unk>", "b"}));
  vocabulary.fuse_unk = true;
  EXPECT_EQ(pieces(*Bpe::create(vocabulary), "xaxxb"), (Pieces{"<unk>", "a", "<unk>", "b"}));
}

TEST(Bpe, OfEqualTokensTheFirstIsReached) {
  Fixture fixture(kMerges);
  fixture.texts.push_back("abc");
  auto bpe = Bpe::create(fixture.vocabulary());
  ASSERT_TRUE(bpe.ok());
  const int32_t last = static_cast<int32_t>(bpe->size()) - 1;
  EXPECT_EQ(bpe->piece(last), "abc");
  EXPECT_EQ(pieces(*bpe, "abc"), (std::vector<std::string>{"abc"}));
  EXPECT_LT(bpe->find("abc"), last);
}

TEST(Bpe, BrokenVocabulariesAreErrorsThatNameThePlace) {
  struct Row {
    const char* message;
    void (*change)(Vocabulary&);
  };
  const Row rows[] = {
      {"found 0", [](Vocabulary& v) { v.tokens.clear(); }},
      {"token types", [](Vocabulary& v) { v.types.pop_back(); }},
      {"merge 9: expected tokens of the vocabulary, found 'zz'",
       [](Vocabulary& v) {
         v.merges.push_back({"zz", "a"});
       }},
      {"merge 9: expected tokens of the vocabulary, found 'zz'",
       [](Vocabulary& v) {
         v.merges.push_back({"a", "zz"});
       }},
      {"merge 9: expected tokens of the vocabulary, found 'xy'",
       [](Vocabulary& v) {
         v.merges.push_back({"x", "y"});
       }},
      {"merge 0: expected tokens of the vocabulary, found ''", [](Vocabulary& v) { v.merges[0].left = ""; }},
      {"merge 0: expected tokens of the vocabulary, found 'a b'", [](Vocabulary& v) { v.merges[0].left = "a b"; }},
      {"unknown token", [](Vocabulary& v) { v.unk_id = 100'000; }},
      {"added token x", [](Vocabulary& v) { v.added.push_back({.id = 100'000, .content = "x"}); }},
      {"added token x", [](Vocabulary& v) { v.added.push_back({.id = -5, .content = "x"}); }},
  };
  const Fixture fixture(kMerges);
  for (const Row& row : rows) {
    Vocabulary vocabulary = fixture.vocabulary();
    row.change(vocabulary);
    auto bpe = Bpe::create(vocabulary);
    ASSERT_FALSE(bpe.ok()) << row.message;
    EXPECT_NE(bpe.error().message().find(row.message), std::string::npos) << bpe.error().message();
  }
}

}  // namespace
}  // namespace proa
