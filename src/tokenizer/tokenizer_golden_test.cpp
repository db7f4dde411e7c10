// Against Hugging Face `tokenizers` and llama.cpp: tests/goldens/tokenizer/, made by tools/goldens/tokenizer.py.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_writer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

Json golden(const std::string& name) {
  std::ifstream file(PROA_SOURCE_DIR "/tests/goldens/tokenizer/" + name + ".json");
  return Json::parse(file, nullptr, false);
}

void expect_same_ids(const Tokenizer& tokenizer, const Json& file) {
  const auto texts = golden("texts").get<std::vector<std::string>>();
  ASSERT_GT(texts.size(), 100u);
  ASSERT_EQ(file["ids"].size(), texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto ids = file["ids"][i].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(texts[i], {.parse_special = true}), ids) << i << ": " << texts[i];
    const Json& plain = file["plain_ids"];
    const auto differing = plain.find(std::to_string(i));
    EXPECT_EQ(tokenizer.encode(texts[i]), differing == plain.end() ? ids : differing->get<std::vector<int32_t>>())
        << i << ": " << texts[i];
  }
}

// At every point of every text: what was pushed, with what is held back, is the decoding of the ids so far.
void expect_incremental_decoding(const Tokenizer& tokenizer) {
  for (const auto& text : golden("texts").get<std::vector<std::string>>()) {
    const std::vector<int32_t> ids = tokenizer.encode(text, {.parse_special = true});
    Detokenizer out(tokenizer);
    std::string bytes, pushed;
    for (size_t i = 0; i < ids.size(); ++i) {
      bytes += tokenizer.piece(ids[i]);
      std::string valid;  // of all pieces at once; what it has more is the spaces that stand for the beginning
      append_replacing_invalid(valid, bytes);
      pushed += out.push(ids[i]);
      Detokenizer ended = out;
      const std::string text_so_far = pushed + ended.finish();
      ASSERT_TRUE(valid.ends_with(text_so_far)) << i << ": " << text;
      const size_t dropped = valid.size() - text_so_far.size();
      ASSERT_EQ(valid.substr(0, dropped), std::string(dropped, ' ')) << i << ": " << text;
      ASSERT_EQ(text_so_far, tokenizer.decode(std::span(ids).first(i + 1))) << i << ": " << text;
    }
  }
}

class TokenizerGolden : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerGolden, GivesTheOfficialIdsAndTexts) {
  const Json file = golden(GetParam());
  ASSERT_TRUE(file.is_object());
  auto vocabulary = vocabulary_from_tokenizer_json(file["tokenizer"].dump(), "");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.error().message();
  auto tokenizer = Tokenizer::create(*vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  expect_same_ids(*tokenizer, file);
  expect_incremental_decoding(*tokenizer);

  ASSERT_FALSE(file["streams"].empty());
  for (const Json& stream : file["streams"]) {
    const auto ids = stream["ids"].get<std::vector<int32_t>>();
    for (const bool skip : {false, true}) {
      const auto text = stream[skip ? "text_skipping_special" : "text"].get<std::string>();
      EXPECT_EQ(tokenizer->decode(ids, skip), text);
      Detokenizer out(*tokenizer, skip);
      std::string pushed;
      for (const int32_t id : ids) pushed += out.push(id);
      EXPECT_EQ(pushed + out.finish(), text);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGolden,
                         testing::Values("gpt2", "nemotron", "nemotron_merging", "qwen", "prefix", "olmo",
                                         "merged_previous", "merged_next", "contiguous", "sentencepiece_llama",
                                         "sentencepiece_metaspace", "sentencepiece_gemma"),
                         [](const auto& row) { return std::string(row.param); });

std::string from_hexadecimal(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::string fnv(const std::vector<int32_t>& ids) {
  uint64_t value = 0xCBF29CE484222325u;
  for (const int32_t id : ids) {
    for (const char byte : std::to_string(id) + " ") value = (value ^ static_cast<uint8_t>(byte)) * 0x100000001B3u;
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

// Two kilobytes of every kind of text, also of broken UTF-8. tools/goldens/tokenizer_at_scale.py takes a megabyte.
TEST(TokenizerGoldenClasses, GiveTheOfficialIds) {
  const Json file = golden("classes");
  ASSERT_TRUE(file.is_object());
  for (const auto& [name, kinds] : file["ids"].items()) {
    auto vocabulary = vocabulary_from_tokenizer_json(golden(name)["tokenizer"].dump(), "");
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.error().message();
    auto tokenizer = Tokenizer::create(*vocabulary);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
    ASSERT_EQ(kinds.size(), 16u);
    for (const auto& [kind, texts] : kinds.items()) {
      for (size_t i = 0; i < texts.size(); ++i) {
        const std::string text = from_hexadecimal(file["texts"][kind][i].get<std::string>());
        const auto ids = tokenizer->encode(text, {.parse_special = true});
        EXPECT_EQ(ids.size(), texts[i][0].get<size_t>()) << name << " " << kind << ": " << text;
        EXPECT_EQ(fnv(ids), texts[i][1].get<std::string>()) << name << " " << kind << ": " << text;
      }
    }
  }
}

TEST(TokenizerGoldenSentencePiece, GivesTheIdsAndTextsOfLlamaCppFromGguf) {
  const Json file = golden("sentencepiece_gguf");
  ASSERT_TRUE(file.is_object());
  for (const bool space : {true, false}) {
    GgufWriter writer;
    writer.put_string("general.architecture", "llama");
    writer.put_string("tokenizer.ggml.model", "llama");
    writer.put_strings("tokenizer.ggml.tokens", file["tokens"].get<std::vector<std::string>>());
    writer.put_f32s("tokenizer.ggml.scores", file["scores"].get<std::vector<float>>());
    writer.put_i32s("tokenizer.ggml.token_type", file["types"].get<std::vector<int32_t>>());
    writer.put_u32("tokenizer.ggml.unknown_token_id", 0);
    if (!space) writer.put_bool("tokenizer.ggml.add_space_prefix", false);
    const std::vector<std::byte> bytes = writer.bytes();
    auto gguf = Gguf::parse(bytes, "golden.gguf");
    ASSERT_TRUE(gguf.ok()) << gguf.error().message();
    auto vocabulary = vocabulary_from_gguf(*gguf);
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.error().message();
    auto tokenizer = Tokenizer::create(*vocabulary);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
    if (space) {
      expect_same_ids(*tokenizer, file);
      expect_incremental_decoding(*tokenizer);
      for (size_t i = 0; i < file["ids"].size(); ++i) {
        // llama.cpp's pieces keep the space in front, as what continues a text does.
        const auto ids = file["ids"][i].get<std::vector<int32_t>>();
        const auto decoded = file["decoded"][i].get<std::string>();
        Detokenizer out(*tokenizer, false, /*continues=*/true);
        std::string text;
        for (const int32_t id : ids) text += out.push(id);
        EXPECT_EQ(text + out.finish(), decoded);
        EXPECT_EQ(tokenizer->decode(ids), decoded.substr(decoded.starts_with(' ') ? 1 : 0));
      }
      continue;
    }
    const auto texts = golden("texts").get<std::vector<std::string>>();
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(tokenizer->encode(texts[i], {.parse_special = true}),
                file["no_space_ids"][i].get<std::vector<int32_t>>())
          << texts[i];
    }
  }
}

TEST(TokenizerGoldenSmolLm2, GivesTheIdsOfLlamaCpp) {
  const char* path = std::getenv("PROA_SMOLLM2");
  if (!path) GTEST_SKIP() << "PROA_SMOLLM2 does not name a GGUF file";
  auto checkpoint = Checkpoint::open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  auto tokenizer = Tokenizer::open(*checkpoint);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  expect_same_ids(*tokenizer, golden("smollm2"));
  EXPECT_EQ(tokenizer->vocab_size(), 49152);
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(std::vector<int32_t>(tokenizer->eos_ids().begin(), tokenizer->eos_ids().end()),
            (std::vector<int32_t>{2, 0}));
  EXPECT_EQ(tokenizer->token_id("<|im_start|>"), 1);
}

}  // namespace
}  // namespace proa
