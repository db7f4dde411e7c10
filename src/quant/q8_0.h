// Q8_0: 32 signed bytes with one half-precision scale, y = q * d. Source: ggml type 8 (block_q8_0).
#pragma once

#include <cmath>

#include "core/half.h"

namespace proa {

struct Q8_0 {
  static constexpr const char* name = "Q8_0";
  static constexpr int ggml_type = 8;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 32;

  struct Block {
    uint16_t d;  // half
    int8_t qs[32];
  };
  static_assert(sizeof(Block) == 34);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(block.qs[i]) * d;
  }

  // d = max|x| / 127; q = x / d rounded to the nearest, halves away from zero. Rounding uses d before it becomes a
  // half.
  static void encode(const float* x, Block& block) {
    float amax = 0;
    for (int i = 0; i < 32; ++i) amax = std::fabs(x[i]) > amax ? std::fabs(x[i]) : amax;
    const float d = amax / 127.0f;
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    block.d = float_to_half(d);
    for (int i = 0; i < 32; ++i) {
      const float q = std::round(x[i] * inverse);
      // The bounds only act on infinities and subnormal scales; NaN becomes 0.
      block.qs[i] = static_cast<int8_t>(q >= 127 ? 127 : q <= -127 ? -127 : q == q ? static_cast<int>(q) : 0);
    }
  }
};

}  // namespace proa
