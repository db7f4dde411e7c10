// Q4_0: 32 four-bit values with one half-precision scale, y = (q - 8) * d. Source: ggml type 2 (block_q4_0).
#pragma once

#include <cmath>

#include "core/half.h"

namespace proa {

struct Q4_0 {
  static constexpr const char* name = "Q4_0";
  static constexpr int ggml_type = 2;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 32;

  struct Block {
    uint16_t d;      // half
    uint8_t qs[16];  // low nibble of qs[j] is value j, high nibble is value j + 16
  };
  static_assert(sizeof(Block) == 18);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    for (int j = 0; j < 16; ++j) {
      y[j] = static_cast<float>((block.qs[j] & 15) - 8) * d;
      y[j + 16] = static_cast<float>((block.qs[j] >> 4) - 8) * d;
    }
  }

  // d = (the value of largest magnitude, with its sign; the first of equals) / -8, so that this value is q = 0 and
  // exact; q = floor(x / d + 8.5), at most 15. Rounding uses d before it becomes a half.
  static void encode(const float* x, Block& block) {
    float extreme = 0;
    for (int i = 0; i < 32; ++i) {
      if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
    }
    const float d = extreme / -8.0f;
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    block.d = float_to_half(d);
    for (int j = 0; j < 16; ++j) {
      block.qs[j] = static_cast<uint8_t>(level(x[j] * inverse + 8.5f) | level(x[j + 16] * inverse + 8.5f) << 4);
    }
  }

 private:
  static int level(float q) { return q >= 15 ? 15 : q > 0 ? static_cast<int>(q) : 0; }  // NaN becomes 0
};

}  // namespace proa
