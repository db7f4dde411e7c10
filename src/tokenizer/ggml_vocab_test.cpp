// The vocabularies and vectors that ggml publishes (texts with the ids of the official tokenizers), read from
// PROA_TEST_DATA/tokenizers.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "checkpoint/gguf.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> split(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t at; (at = text.find(separator, begin)) != std::string::npos; begin = at + separator.size()) {
    parts.push_back(text.substr(begin, at - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

struct Row {
  const char* name;
  int32_t vocab_size;
  int32_t eos;
  bool adds_bos;
};

class GgmlVocab : public testing::TestWithParam<Row> {};

TEST_P(GgmlVocab, EncodesTheVectorsAndDecodesThemBack) {
  const char* data = std::getenv("PROA_TEST_DATA");
  if (!data) GTEST_SKIP() << "PROA_TEST_DATA is not set";
  const std::string path = std::string(data) + "/tokenizers/ggml-vocab-" + GetParam().name + ".gguf";
  auto gguf = Gguf::open(path);
  ASSERT_TRUE(gguf.ok()) << gguf.error().message();
  const std::vector<std::string> texts = split(read_file(path + ".inp"), "\n__ggml_vocab_test__\n");
  const std::vector<std::string> lines = split(read_file(path + ".out"), "\n");
  ASSERT_GT(texts.size(), 30u);
  ASSERT_GE(lines.size(), texts.size());

  for (const bool llama_cpp : {false, true}) {
    auto vocabulary = vocabulary_from_gguf(*gguf, llama_cpp);
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.error().message();
    auto tokenizer = Tokenizer::create(*vocabulary);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
    EXPECT_EQ(tokenizer->vocab_size(), GetParam().vocab_size);
    EXPECT_EQ(tokenizer->adds_bos(), GetParam().adds_bos);
    ASSERT_FALSE(tokenizer->eos_ids().empty());
    EXPECT_EQ(tokenizer->eos_ids()[0], GetParam().eos);
    for (size_t i = 0; i < texts.size(); ++i) {
      std::vector<int32_t> expected;
      std::istringstream line(lines[i]);
      for (int32_t id; line >> id;) expected.push_back(id);
      EXPECT_EQ(tokenizer->encode(texts[i]), expected) << "text " << i << ": " << texts[i];
      EXPECT_EQ(tokenizer->decode(expected), texts[i]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgmlVocab,
                         testing::Values(Row{"gpt-2", 50257, 50256, false}, Row{"llama-bpe", 128256, 128001, true},
                                         Row{"qwen2", 151936, 151643, false}, Row{"qwen35", 151936, 151643, false}),
                         [](const auto& row) {
                           std::string name = row.param.name;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace proa
