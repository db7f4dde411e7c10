// libFuzzer target: any bytes as text. Ids decode to the text with its invalid bytes replaced, also through the
// incremental detokenizer and through segments cut anywhere. The first byte chooses the pre-tokenizer.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace {

constexpr const char* kPresets[] = {"default", "gpt-2", "smollm", "llama-bpe", "qwen35", "tekken", "gpt-4o"};

proa::Tokenizer make(const char* preset, bool ignore_merges) {
  std::vector<std::string> texts;
  for (int b = 0; b < 256; ++b) texts.push_back(proa::to_byte_alphabet(std::string(1, static_cast<char>(b))));
  for (const char* text : {"aa", "aaaa", "Ġa", "ab", "abc", "Ã©", "ĠĠ", "ĠĠĠĠ", "ĊĊ", "<|im_end|>", "<think>"}) {
    texts.push_back(text);
  }
  proa::Vocabulary vocabulary;
  vocabulary.tokens.assign(texts.begin(), texts.end());
  vocabulary.types.assign(texts.size(), proa::TokenType::normal);
  vocabulary.merges = {{"a", "a"}, {"aa", "aa"}, {"Ġ", "a"},   {"a", "b"}, {"ab", "c"},
                       {"Ã", "©"}, {"Ġ", "Ġ"},   {"ĠĠ", "ĠĠ"}, {"Ċ", "Ċ"}};
  for (int32_t id : {265, 266}) {
    const bool special = id == 265;
    vocabulary.types[id] = special ? proa::TokenType::control : proa::TokenType::user_defined;
    vocabulary.added.push_back({.id = id, .content = vocabulary.tokens[id], .special = special});
  }
  auto steps = proa::pretokenizer_preset(preset);
  if (!steps.ok()) std::abort();
  vocabulary.steps = steps->steps;
  vocabulary.ignore_merges = ignore_merges;
  auto tokenizer = proa::Tokenizer::create(vocabulary);
  if (!tokenizer.ok()) std::abort();
  return *std::move(tokenizer);
}

void expect(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<proa::Tokenizer> tokenizers = [] {
    std::vector<proa::Tokenizer> all;
    for (const char* preset : kPresets) all.push_back(make(preset, all.size() % 2 == 1));
    return all;
  }();
  if (size == 0) return 0;
  const proa::Tokenizer& tokenizer = tokenizers[data[0] % tokenizers.size()];
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::string valid;
  proa::append_replacing_invalid(valid, text);

  for (const bool parse_special : {false, true}) {
    const std::vector<int32_t> ids = tokenizer.encode(text, {.parse_special = parse_special});
    expect(tokenizer.decode(ids) == valid);
    proa::Detokenizer out(tokenizer);
    std::string pushed;
    for (const int32_t id : ids) pushed += out.push(id);
    pushed += out.finish();
    expect(pushed == valid);

    // A cut between two characters changes nothing.
    size_t middle = valid.size() / 2;
    while (middle < valid.size() && (valid[middle] & 0xC0) == 0x80) ++middle;
    const proa::TextSegment segments[] = {{std::string_view(valid).substr(0, middle), parse_special},
                                          {std::string_view(valid).substr(middle), parse_special}};
    expect(tokenizer.encode(segments) == ids);
  }

  // The bytes as ids, some of them outside of the vocabulary.
  std::vector<int32_t> ids;
  for (size_t i = 1; i < size; ++i)
    ids.push_back(static_cast<int32_t>(data[i]) * (i % 16 == 0 ? 2 : 1) - (i % 16 == 1));
  proa::Detokenizer out(tokenizer, /*skip_special=*/true);
  std::string pushed;
  for (const int32_t id : ids) pushed += out.push(id);
  pushed += out.finish();
  expect(pushed == tokenizer.decode(ids, true));
  return 0;
}
