// F16: IEEE half, little-endian. Source: ggml type 1, safetensors dtype F16.
#pragma once

#include "core/half.h"

namespace proa {

struct F16 {
  static constexpr const char* name = "F16";
  static constexpr int ggml_type = 1;
  static constexpr const char* safetensors_dtype = "F16";
  static constexpr int block_elements = 1;

  using Block = uint16_t;
  static_assert(sizeof(Block) == 2);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) { *y = half_to_float(block); }
  static void encode(const float* x, Block& block) { block = float_to_half(*x); }
};

}  // namespace proa
