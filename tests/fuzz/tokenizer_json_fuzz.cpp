// libFuzzer target: any bytes as tokenizer.json. What is accepted must encode and decode without harm.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto vocabulary = proa::vocabulary_from_tokenizer_json(json, "");
  if (!vocabulary.ok()) return 0;
  const auto tokenizer = proa::Tokenizer::create(*vocabulary);
  if (!tokenizer.ok()) return 0;
  const auto ids =
      tokenizer->encode("abc <s> e\xCC\x81 12\n\n\xFF<think>  x", {.parse_special = true, .add_bos = true});
  (void)tokenizer->decode(ids, true);
  for (const int32_t id : ids) {
    if (id < 0 || id >= tokenizer->vocab_size()) __builtin_trap();
  }
  return 0;
}
