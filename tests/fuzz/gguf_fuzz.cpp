// libFuzzer target: any bytes as a GGUF file. A parse that succeeds must hand out only what lies inside the bytes, and
// a vocabulary in it that is accepted must encode and decode without harm.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "checkpoint/gguf.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

namespace {

volatile uint64_t sink;  // keeps the reads

void touch(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (std::byte b : bytes) sum += static_cast<uint64_t>(b);
  sink = sum;
}

void use_vocabulary(const proa::Gguf& gguf) {
  auto vocabulary = proa::vocabulary_from_gguf(gguf);
  if (!vocabulary.ok()) return;
  vocabulary->steps.clear();  // expressions of our own, which take a millisecond to compile
  const auto tokenizer = proa::Tokenizer::create(*vocabulary);
  if (!tokenizer.ok()) return;
  const auto ids = tokenizer->encode("aab e\xCC\x81 12\n<s>", {.parse_special = true, .add_bos = true});
  for (const int32_t id : ids) {
    if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
  }
  sink = tokenizer->decode(ids).size();
}

constexpr size_t kMaxBytes = 1 << 16;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > kMaxBytes) return 0;
  const auto gguf = proa::Gguf::parse(std::as_bytes(std::span(data, size)), "fuzz");
  if (!gguf.ok()) {
    sink = gguf.error().message().size();
    return 0;
  }
  for (const auto& [key, value] : gguf->metadata()) {
    touch(value.bytes);
    sink = gguf->u32(key).ok() + gguf->i64(key).ok() + gguf->f32(key).ok() + gguf->boolean(key).ok();
    sink = gguf->integers(key).ok() + gguf->floats(key).ok() + gguf->u32_per_layer(key, 3).ok();
    if (const auto text = gguf->string(key); text.ok()) touch(std::as_bytes(std::span(*text)));
    if (const auto strings = gguf->strings(key); strings.ok()) {
      size_t count = 0;
      for (std::string_view text : *strings) {
        touch(std::as_bytes(std::span(text)));
        ++count;
      }
      if (count != strings->size()) std::abort();
    }
  }
  for (const auto& [name, entry] : gguf->tensors()) {
    touch({entry.data, entry.bytes});
    sink = gguf->tensor(name).ok();
  }
  if (gguf->has("tokenizer.ggml.model")) use_vocabulary(*gguf);
  return 0;
}
