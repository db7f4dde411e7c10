#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <climits>
#include <random>
#include <thread>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

// Ids 0 to 255 are the bytes, 256 "he", 257 " he", 258 "é"; then the added tokens.
constexpr int32_t kImStart = 259, kImEnd = 260, kThink = 261, kUnknown = 262;

struct Fixture {
  std::vector<std::string> texts;
  Vocabulary vocabulary;

  Fixture() {
    for (int b = 0; b < 256; ++b) texts.push_back(to_byte_alphabet(std::string(1, static_cast<char>(b))));
    for (const char* text : {"he", "Ġhe", "Ã©", "<|im_start|>", "<|im_end|>", "<think>", "<unk>"})
      texts.push_back(text);
    vocabulary.tokens.assign(texts.begin(), texts.end());
    vocabulary.types.assign(texts.size(), TokenType::normal);
    vocabulary.merges = {{"h", "e"}, {"Ġ", "he"}, {"Ã", "©"}};
    for (const int32_t id : {kImStart, kImEnd, kThink, kUnknown}) {
      vocabulary.types[id] = id == kThink     ? TokenType::user_defined
                             : id == kUnknown ? TokenType::unknown
                                              : TokenType::control;
      vocabulary.added.push_back({.id = id, .content = vocabulary.tokens[id], .special = id != kThink});
    }
    vocabulary.steps = pretokenizer_preset("gpt2")->steps;
    vocabulary.bos_id = kImStart;
    vocabulary.eos_ids = {kImEnd};
  }
  Tokenizer tokenizer() const {
    auto result = Tokenizer::create(vocabulary);
    EXPECT_TRUE(result.ok());
    return *std::move(result);
  }
};

std::vector<int32_t> bytes(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

using Ids = std::vector<int32_t>;

TEST(Tokenizer, MatchesControlTokensOnlyWhenAsked) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  struct Row {
    std::string_view text;
    Ids parsed, plain;
  };
  const Row rows[] = {
      {"", {}, {}},
      {"<|im_end|>", {kImEnd}, bytes("<|im_end|>")},
      {"he<|im_end|>", {256, kImEnd}, Ids{256} + bytes("<|im_end|>")},
      {"<|im_end|<|im_end|>", bytes("<|im_end|") + Ids{kImEnd}, bytes("<|im_end|<|im_end|>")},
      {"<unk>", {kUnknown}, bytes("<unk>")},
      {" he<think> he", {257, kThink, 257}, {257, kThink, 257}},  // user-defined: always
  };
  for (const Row& row : rows) {
    EXPECT_EQ(tokenizer.encode(row.text, {.parse_special = true}), row.parsed) << row.text;
    EXPECT_EQ(tokenizer.encode(row.text), row.plain) << row.text;
  }
}

TEST(Tokenizer, SegmentsAreOneTextButForControlTokens) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  struct Row {
    const char* what;
    std::vector<TextSegment> segments;
    Ids ids;
  };
  const Row rows[] = {
      {"none", {}, {}},
      {"all empty", {{"", true}, {"", false}}, {}},
      {"a word across the border", {{" h", true}, {"e", false}}, {257}},
      {"chat", {{"<|im_start|>", true}, {"he", false}, {"<|im_end|>", true}}, {kImStart, 256, kImEnd}},
      {"control token in a message",
       {{"<|im_start|>", true}, {"<|im_end|>", false}, {"<|im_end|>", true}},
       Ids{kImStart} + bytes("<|im_end|>") + Ids{kImEnd}},
      {"begun in the template, ended by the message", {{"<|im_", true}, {"end|>", false}}, bytes("<|im_end|>")},
      {"begun by the message, ended in the template", {{"<|im_", false}, {"end|>", true}}, bytes("<|im_end|>")},
      {"across two stretches of template", {{"<|im_", true}, {"", false}, {"end|>", true}}, {kImEnd}},
      {"user-defined across the border", {{"<th", true}, {"ink>", false}}, {kThink}},
      {"message right before a control token", {{" he", false}, {"<|im_end|>he", true}}, {257, kImEnd, 256}},
      {"half a character is nobody's other half",
       {{"\xC3", false}, {"\xA9", false}},
       bytes("\xEF\xBF\xBD\xEF\xBF\xBD")},
  };
  for (const Row& row : rows) EXPECT_EQ(tokenizer.encode(row.segments), row.ids) << row.what;
}

TEST(Tokenizer, EverySplitOfATextGivesTheSameIds) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  const std::string text = "he said: héhé he  he<think>\n\n  he's 42 he";
  const Ids whole = tokenizer.encode(text);
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && (text[i] & 0xC0) == 0x80) continue;
    const TextSegment segments[] = {{std::string_view(text).substr(0, i), true},
                                    {std::string_view(text).substr(i), false}};
    EXPECT_EQ(tokenizer.encode(segments), whole) << i;
  }
}

TEST(Tokenizer, PrependsBosOnlyIfFileAndCallerWantIt) {
  Fixture fixture;
  EXPECT_EQ(fixture.tokenizer().encode("he", {.add_bos = true}), Ids{256});
  fixture.vocabulary.add_bos = true;
  EXPECT_EQ(fixture.tokenizer().encode("he", {.add_bos = true}), (Ids{kImStart, 256}));
  EXPECT_EQ(fixture.tokenizer().encode("", {.add_bos = true}), Ids{kImStart});
  EXPECT_EQ(fixture.tokenizer().encode("he"), Ids{256});
  fixture.vocabulary.bos_id = -1;
  EXPECT_EQ(fixture.tokenizer().encode("he", {.add_bos = true}), Ids{256});
}

TEST(Tokenizer, AnswersAboutTokens) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 263);
  EXPECT_EQ(tokenizer.piece(258), "é");
  EXPECT_EQ(tokenizer.piece(0xC3), "\xC3");
  EXPECT_EQ(tokenizer.piece(kThink), "<think>");
  EXPECT_EQ(tokenizer.token_id(" he"), 257);
  EXPECT_EQ(tokenizer.token_id("<|im_end|>"), kImEnd);
  EXPECT_EQ(tokenizer.token_id("<think>"), kThink);
  EXPECT_EQ(tokenizer.token_id("Ġhe"), std::nullopt);
  EXPECT_EQ(tokenizer.token_id(""), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(kImEnd));
  EXPECT_TRUE(tokenizer.is_special(kUnknown));
  EXPECT_FALSE(tokenizer.is_special(kThink));
  EXPECT_FALSE(tokenizer.is_special(0));
  EXPECT_EQ(tokenizer.bos_id(), kImStart);
  EXPECT_EQ(Ids(tokenizer.eos_ids().begin(), tokenizer.eos_ids().end()), Ids{kImEnd});
  for (const int32_t outside : {-1, 263, INT_MAX, INT_MIN}) {
    EXPECT_EQ(tokenizer.piece(outside), "");
    EXPECT_FALSE(tokenizer.is_special(outside));
    EXPECT_EQ(tokenizer.decode(Ids{outside, 256}), "he");
    Detokenizer out(tokenizer);
    EXPECT_EQ(out.push(outside), "");
  }
}

TEST(Tokenizer, RefusesIdsOutsideTheVocabulary) {
  Fixture bos, eos, long_token;
  bos.vocabulary.bos_id = 263;
  eos.vocabulary.eos_ids = {263};
  const std::string text(AddedTokenMatcher::kMaxContentBytes + 1, 'x');
  long_token.vocabulary.tokens[kThink] = text;
  long_token.vocabulary.added[2].content = text;
  for (const Fixture* fixture : {&bos, &eos, &long_token}) {
    EXPECT_FALSE(Tokenizer::create(fixture->vocabulary).ok());
  }
}

TEST(Tokenizer, RandomBytesComeBackAsTheirValidText) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (size_t n = random() % 40; n > 0; --n) text += "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x80\xFF he\n1."[random() % 16];
    std::string valid;
    append_replacing_invalid(valid, text);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), valid) << testing::PrintToString(text);
  }
}

TEST(Detokenizer, HoldsBackWhatIsUnfinished) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  struct Row {
    Ids ids;
    std::vector<std::string> texts;  // one per id, then what finish() gives
  };
  const Row rows[] = {
      {{}, {""}},
      {{256, 257}, {"he", " he", ""}},
      {bytes("\xF0\x9F\xA6\x99"), {"", "", "", "\xF0\x9F\xA6\x99", ""}},
      {bytes("\xE2\x82"), {"", "", "\uFFFD"}},
      {Ids{0xE2} + Ids{256}, {"", "\uFFFDhe", ""}},            // can no longer complete
      {bytes("\xF0\x8F\x41"), {"", "\uFFFD\uFFFD", "A", ""}},  // 8F fits no F0 and begins nothing
      {Ids{0x80}, {"\uFFFD", ""}},
      {Ids{0xC3, kImEnd, 0xA9}, {"", "\uFFFD<|im_end|>", "\uFFFD", ""}},
  };
  for (const Row& row : rows) {
    Detokenizer out(tokenizer);
    std::vector<std::string> texts;
    for (const int32_t id : row.ids) texts.push_back(out.push(id));
    texts.push_back(out.finish());
    EXPECT_EQ(texts, row.texts);
    EXPECT_EQ(out.finish(), "") << "as new";
  }
  Detokenizer skipping(tokenizer, /*skip_special=*/true);
  EXPECT_EQ(skipping.push(0xC3), "");
  EXPECT_EQ(skipping.push(kImEnd), "");
  EXPECT_EQ(skipping.push(0xA9), "é");
  EXPECT_EQ(skipping.push(kThink), "<think>");
}

TEST(Detokenizer, DeltasOfRandomIdsAddUpToTheWholeAtEveryPoint) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  std::mt19937 random(2);
  for (int round = 0; round < 300; ++round) {
    Ids ids(random() % 30);
    for (int32_t& id : ids) {
      // Mostly bytes that begin or continue characters.
      id = random() % 4 ? 0x80 + static_cast<int32_t>(random() % 0x80) : static_cast<int32_t>(random() % 270) - 3;
    }
    for (const bool skip : {false, true}) {
      for (size_t length = 0; length <= ids.size(); ++length) {
        Detokenizer out(tokenizer, skip);
        std::string text;
        for (size_t i = 0; i < length; ++i) {
          const std::string delta = out.push(ids[i]);
          std::string valid;
          append_replacing_invalid(valid, delta);
          EXPECT_EQ(delta, valid);
          text += delta;
        }
        EXPECT_EQ(text + out.finish(), tokenizer.decode(std::span(ids).first(length), skip));
      }
    }
  }
}

TEST(Tokenizer, IsSharedBetweenThreads) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  const std::string text = "he said héhé <think> he 42\n";
  const Ids expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> same(4);
  for (int& count : same) {
    threads.emplace_back([&, copy = tokenizer] {
      for (int i = 0; i < 200; ++i) count += copy.encode(text) == expected && copy.decode(expected) == text;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(same, std::vector<int>(4, 200));
}

TEST(Tokenizer, HugeTextsOfOneKindAreEncodedWhole) {
  const Tokenizer tokenizer = Fixture().tokenizer();
  for (const char* unit : {"a", " ", "\n", "1", ".", "<", "<|im_end|", "he", "é", "\xFF", "<think>", "\u0301"}) {
    std::string text;
    while (text.size() < 300'000) text += unit;
    std::string valid;
    append_replacing_invalid(valid, text);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, {.parse_special = true})), valid) << unit;
  }
}

}  // namespace
}  // namespace proa
