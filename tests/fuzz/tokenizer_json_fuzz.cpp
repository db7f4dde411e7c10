// libFuzzer target: any bytes as tokenizer.json and, after a byte 0, tokenizer_config.json. What is accepted must
// encode and decode without harm.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

namespace {

constexpr size_t kMaxBytes = 1 << 16;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > kMaxBytes) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(text.find('\0'), size);
  const std::string_view config = text.substr(std::min(end + 1, size));
  const auto vocabulary = proa::vocabulary_from_tokenizer_json(text.substr(0, end), config);
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
