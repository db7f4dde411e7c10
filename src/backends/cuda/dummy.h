#pragma once

#include "backends/cuda/launch.h"
#include "quant/dummy.h"

namespace proa::cuda {

// Bytes [begin, begin + bytes) of a dummy tensor, to device memory: the bits of proa::fill_dummy(). `out` is aligned to
// 16 bytes, `begin` a multiple of dummy_unit_bytes(fill.format).
void fill_dummy(const DummyFill& fill, uint64_t begin, std::byte* out, size_t bytes, const Launch& launch);

}  // namespace proa::cuda
