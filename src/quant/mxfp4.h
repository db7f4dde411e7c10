// MXFP4: 32 E2M1 values with one power of two as scale, y = e2m1(q) * 2^(e - 127). Source: ggml type 39 (block_mxfp4).
#pragma once

#include <cmath>

#include "quant/minifloat.h"

namespace proa {

struct MXFP4 {
  static constexpr const char* name = "MXFP4";
  static constexpr int ggml_type = 39;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 32;

  struct Block {
    uint8_t e;       // E8M0
    uint8_t qs[16];  // low nibble of qs[j] is value j, high nibble is value j + 16
  };
  static_assert(sizeof(Block) == 17);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = e8m0_half(block.e);
    for (int j = 0; j < 16; ++j) {
      y[j] = d * static_cast<float>(e2m1_doubled(block.qs[j] & 15));
      y[j + 16] = d * static_cast<float>(e2m1_doubled(block.qs[j] >> 4));
    }
  }

  // e = floor(log2 max|x|) - 2 + 127, so that the largest lies in [4, 8) scales; each value the nearest.
  static void encode(const float* x, Block& block) {
    float amax = 0;
    for (int i = 0; i < 32; ++i) amax = std::fabs(x[i]) > amax ? std::fabs(x[i]) : amax;
    int e = 0;
    if (amax > 0) {
      std::frexp(std::isinf(amax) ? 0x1p127f : amax, &e);  // amax in [2^(e - 1), 2^e)
      e = e - 1 - 2 + 127;
    }
    block.e = static_cast<uint8_t>(e > 0 ? e : 0);
    const float d = e8m0_half(block.e);
    for (int j = 0; j < 16; ++j) {
      block.qs[j] = static_cast<uint8_t>(nearest_e2m1(x[j], d) | nearest_e2m1(x[j + 16], d) << 4);
    }
  }
};

}  // namespace proa
