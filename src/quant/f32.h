// F32: IEEE single, little-endian. Source: ggml type 0, safetensors dtype F32.
#pragma once

#include "core/half.h"

namespace proa {

struct F32 {
  static constexpr const char* name = "F32";
  static constexpr int ggml_type = 0;
  static constexpr const char* safetensors_dtype = "F32";
  static constexpr int block_elements = 1;

  using Block = float;
  static_assert(sizeof(Block) == 4);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) { *y = block; }
  static void encode(const float* x, Block& block) { block = *x; }
};

}  // namespace proa
