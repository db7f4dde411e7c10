// libFuzzer target: any bytes as ids, some of them outside of the vocabulary, pushed one by one into a detokenizer that
// is finished at places of the input's choice. Every push gives valid UTF-8, and each stretch the text of its whole
// decoding. The first byte chooses the tokenizer and whether special tokens are skipped; two bytes make an id.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace {

constexpr size_t kMaxBytes = 1024;

void expect(bool holds) {
  if (!holds) std::abort();
}

// All bytes; pieces that begin, end and cross characters of two, three and four bytes; special tokens.
proa::Tokenizer byte_level() {
  std::vector<std::string> bytes;
  for (int b = 0; b < 256; ++b) bytes.emplace_back(1, static_cast<char>(b));
  for (const char* piece : {"\xC3", "\xA9\xC3", "\xE4\xB8", "\x96 \xE4", "\xF0\x9F", "\x98\x80\xF0", "\x9F\x98",
                            "hello", " w\xC3\xB6rld", "\xE2\x80\x8D", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xC0\xAF",
                            "\xFF\xFE", "\xEF\xBB\xBF", "\xF0\x80\x80", "\xE0\x80", "\n\n"}) {
    bytes.emplace_back(piece);
  }
  std::vector<std::string> texts;
  for (const std::string& piece : bytes) texts.push_back(proa::to_byte_alphabet(piece));
  for (const char* added : {"<|im_end|>", "<think>", "\xE2\x82\xAC"}) texts.emplace_back(added);
  proa::Vocabulary vocabulary;
  vocabulary.tokens.assign(texts.begin(), texts.end());
  vocabulary.types.assign(texts.size(), proa::TokenType::normal);
  for (size_t id = texts.size() - 3; id < texts.size(); ++id) {
    const bool special = id == texts.size() - 3;
    vocabulary.types[id] = special ? proa::TokenType::control : proa::TokenType::user_defined;
    vocabulary.added.push_back({.id = static_cast<int32_t>(id), .content = vocabulary.tokens[id], .special = special});
  }
  auto tokenizer = proa::Tokenizer::create(vocabulary);
  expect(tokenizer.ok());
  return *std::move(tokenizer);
}

// SentencePiece's pieces with byte fallback, as Llama 2 (which drops the first space) or as Gemma (which keeps it).
proa::Tokenizer sentencepiece(bool strips) {
  std::string vocab, separator;
  int id = 0;
  const auto add = [&](const std::string& piece) {
    vocab += separator + '"' + piece + "\":" + std::to_string(id++);
    separator = ",";
  };
  for (const char* special : {"<unk>", "<s>", "</s>"}) add(special);
  for (int b = 0; b < 256; ++b) {
    std::array<char, 8> name{};
    std::snprintf(name.data(), name.size(), "<0x%02X>", b);
    add(name.data());
  }
  for (const char* piece : {"▁", "▁▁", "a", "▁a", "é", "▁世", "😀", "a▁", "e\xCC\x81"}) add(piece);
  const std::string strip = strips ? R"(,{"type":"Strip","content":" ","start":1,"stop":0})" : "";
  const std::string prepend = strips ? R"({"type":"Prepend","prepend":"▁"},)" : "";
  const std::string json =
      R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":1,"content":"<s>","special":true},)"
      R"({"id":2,"content":"</s>","special":true}],"normalizer":{"type":"Sequence","normalizers":[)" +
      prepend +
      R"({"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"post_processor":null,)"
      R"("decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},)"
      R"({"type":"ByteFallback"},{"type":"Fuse"})" +
      strip + R"(]},"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{)" + vocab +
      R"(},"merges":[]}})";
  const auto vocabulary = proa::vocabulary_from_tokenizer_json(json, "");
  if (!vocabulary.ok()) std::fprintf(stderr, "%s\n", vocabulary.error().message().c_str());
  expect(vocabulary.ok());
  auto tokenizer = proa::Tokenizer::create(*vocabulary);
  expect(tokenizer.ok());
  return *std::move(tokenizer);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<proa::Tokenizer> tokenizers = {byte_level(), sentencepiece(true), sentencepiece(false)};
  if (size == 0 || size > kMaxBytes) return 0;
  const bool skip_special = (data[0] & 1) != 0;
  const proa::Tokenizer& tokenizer = tokenizers[(data[0] >> 1) % tokenizers.size()];
  const int32_t range = tokenizer.vocab_size() + 4;

  proa::Detokenizer out(tokenizer, skip_special);
  std::vector<int32_t> ids;
  std::string pushed;
  const auto end_stretch = [&] {
    pushed += out.finish();
    expect(pushed == tokenizer.decode(ids, skip_special));
    pushed.clear();
    ids.clear();
  };
  for (size_t i = 1; i + 1 < size; i += 2) {
    const int number = data[i] | data[i + 1] << 8;
    if (number >= 0xff00) {
      end_stretch();
      continue;
    }
    const int32_t id = number == 0xfeff ? INT32_MIN : number == 0xfefe ? INT32_MAX : number % range - 2;
    ids.push_back(id);
    const std::string text = out.push(id);
    std::string valid;
    proa::append_replacing_invalid(valid, text);
    expect(valid == text);
    pushed += text;
  }
  end_stretch();
  return 0;
}
