// libFuzzer target: any bytes as a safetensors file. A parse that succeeds must hand out only what lies inside the
// bytes, also after values and their scales have been brought together.
#include <cstddef>
#include <cstdint>
#include <span>

#include "checkpoint/quant_config.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/scaled_tensors.h"

namespace {

volatile uint64_t sink;  // keeps the reads

constexpr size_t kMaxBytes = 1 << 16;

void touch(const proa::TensorEntry& entry) {
  uint64_t sum = 0;
  for (size_t i = 0; i < entry.bytes; ++i) sum += static_cast<uint64_t>(entry.data[i]);
  sink = sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > kMaxBytes) return 0;
  const auto file = proa::Safetensors::parse(std::as_bytes(std::span(data, size)), "fuzz");
  if (!file.ok()) {
    sink = file.error().message().size();
    return 0;
  }
  for (const auto& [name, entry] : file->tensors()) {
    touch(entry);
    sink = file->tensor(name).ok();
  }
  const auto scaled = proa::scaled_tensors(file->tensors(), /*gguf=*/false, "fuzz", proa::QuantConfig());
  if (!scaled.ok()) {
    sink = scaled.error().message().size();
    return 0;
  }
  for (const auto& [name, entry] : scaled->entries) touch(entry);
  for (const auto& [data_begin, scaling] : scaled->scaling) touch(scaling.group_scales);
  return 0;
}
