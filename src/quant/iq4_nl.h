// IQ4_NL: 32 four-bit indices into a fixed table, with one half-precision scale, y = d * T[q].
// Source: ggml type 20 (block_iq4_nl).
#pragma once

#include "core/half.h"
#include "quant/level.h"

namespace proa {

PROA_HOST_DEVICE inline int iq4_value(int q) {
  constexpr int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return values[q];
}

// The index whose value is nearest to x; the first of equals. NaN becomes 0.
inline int nearest_iq4(float x) {
  int q = 0;
  while (q < 15 && x * 2 > static_cast<float>(iq4_value(q) + iq4_value(q + 1))) ++q;
  return q;
}

struct IQ4_NL {
  static constexpr const char* name = "IQ4_NL";
  static constexpr int ggml_type = 20;
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
      y[j] = d * static_cast<float>(iq4_value(block.qs[j] & 15));
      y[j + 16] = d * static_cast<float>(iq4_value(block.qs[j] >> 4));
    }
  }

  // Simple: d = (the value of largest magnitude, with its sign) / -127, then the nearest value for each. The quantiser
  // of ggml tries several d beside this one.
  static void encode(const float* x, Block& block) {
    const float d = extreme_of(x, 32) / -127.0f;
    const float inverse = inverse_or_zero(d);
    block.d = float_to_half(d);
    for (int j = 0; j < 16; ++j) {
      block.qs[j] = static_cast<uint8_t>(nearest_iq4(x[j] * inverse) | nearest_iq4(x[j + 16] * inverse) << 4);
    }
  }
};

}  // namespace proa
