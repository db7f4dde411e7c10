// libFuzzer target: any bytes as a safetensors file. A parse that succeeds must hand out only what lies inside the
// bytes.
#include <cstddef>
#include <cstdint>
#include <span>

#include "checkpoint/safetensors.h"

namespace {

volatile uint64_t sink;  // keeps the reads

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = proa::Safetensors::parse(std::as_bytes(std::span(data, size)), "fuzz");
  if (!file.ok()) {
    sink = file.error().message().size();
    return 0;
  }
  for (const auto& [name, entry] : file->tensors()) {
    uint64_t sum = 0;
    for (size_t i = 0; i < entry.bytes; ++i) sum += static_cast<uint64_t>(entry.data[i]);
    sink = sum + file->tensor(name).ok();
  }
  return 0;
}
