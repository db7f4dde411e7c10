// BF16: the upper half of an IEEE single, little-endian. Source: ggml type 30, safetensors dtype BF16.
#pragma once

#include "core/half.h"

namespace proa {

struct BF16 {
  static constexpr const char* name = "BF16";
  static constexpr int ggml_type = 30;
  static constexpr const char* safetensors_dtype = "BF16";
  static constexpr int block_elements = 1;

  using Block = uint16_t;
  static_assert(sizeof(Block) == 2);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) { *y = bfloat16_to_float(block); }
  static void encode(const float* x, Block& block) { block = float_to_bfloat16(*x); }
};

}  // namespace proa
