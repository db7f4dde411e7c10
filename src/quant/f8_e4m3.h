// F8_E4M3: one E4M3 float per byte. A weight of these has scales in tensors of its own.
// Source: safetensors dtype F8_E4M3, torch.float8_e4m3fn.
#pragma once

#include "quant/minifloat.h"

namespace proa {

struct F8_E4M3 {
  static constexpr const char* name = "F8_E4M3";
  static constexpr int ggml_type = -1;
  static constexpr const char* safetensors_dtype = "F8_E4M3";
  static constexpr int block_elements = 1;

  using Block = uint8_t;

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) { *y = e4m3_to_float(block); }
  static void encode(const float* x, Block& block) { block = float_to_e4m3(*x); }
};

}  // namespace proa
