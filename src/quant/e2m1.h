// E2M1: two floats of four bits per byte, the first in the low nibble. A weight of these has scales in tensors of its
// own: with one E4M3 scale for each 16 values it is NVFP4 as ModelOpt stores it, in a tensor of dtype U8.
#pragma once

#include "quant/minifloat.h"

namespace proa {

struct E2M1 {
  static constexpr const char* name = "E2M1";
  static constexpr int ggml_type = -1;
  static constexpr const char* safetensors_dtype = nullptr;  // U8, which says nothing
  static constexpr int block_elements = 2;

  using Block = uint8_t;

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    y[0] = 0.5f * static_cast<float>(e2m1_doubled(block & 15));
    y[1] = 0.5f * static_cast<float>(e2m1_doubled(block >> 4));
  }
  static void encode(const float* x, Block& block) {
    block = static_cast<uint8_t>(nearest_e2m1(x[0], 0.5f) | nearest_e2m1(x[1], 0.5f) << 4);
  }
};

}  // namespace proa
