// libFuzzer target: any bytes as a GGUF file. A parse that succeeds must hand out only what lies inside the bytes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "checkpoint/gguf.h"

namespace {

volatile uint64_t sink;  // keeps the reads

void touch(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (std::byte b : bytes) sum += static_cast<uint64_t>(b);
  sink = sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
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
  return 0;
}
