// Q2_K: 256 two-bit values; each 16 have a four-bit scale and minimum, all one half-precision scale for either,
// y = d * scale * q - dmin * min. Source: ggml type 10 (block_q2_K).
#pragma once

#include "core/half.h"
#include "quant/level.h"

namespace proa {

struct Q2_K {
  static constexpr const char* name = "Q2_K";
  static constexpr int ggml_type = 10;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 256;

  struct Block {
    uint8_t scales[16];  // low nibble: scale, high nibble: minimum
    uint8_t qs[64];      // bits 2t and 2t + 1 of qs[32 h + j] are value 128 h + 32 t + j
    uint16_t d;          // half
    uint16_t dmin;       // half
  };
  static_assert(sizeof(Block) == 84);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    const float dmin = half_to_float(block.dmin);
    for (int i = 0; i < 16; ++i) {
      const float dl = d * static_cast<float>(block.scales[i] & 15);
      const float ml = dmin * static_cast<float>(block.scales[i] >> 4);
      const uint8_t* qs = block.qs + i / 8 * 32 + i % 2 * 16;
      for (int j = 0; j < 16; ++j) y[16 * i + j] = dl * static_cast<float>(qs[j] >> (i / 2 % 4 * 2) & 3) - ml;
    }
  }

  // Simple: each part from its minimum, at most 0, to its maximum. The quantiser of ggml searches for a smaller error.
  static void encode(const float* x, Block& block) {
    float scales[16], mins[16];
    for (int i = 0; i < 16; ++i) range_of(x + 16 * i, 16, 3, scales[i], mins[i]);
    block = {};
    block.d = float_to_half(extreme_of(scales, 16) / 15.0f);
    block.dmin = float_to_half(extreme_of(mins, 16) / 15.0f);
    const float d = half_to_float(block.d);
    const float dmin = half_to_float(block.dmin);
    for (int i = 0; i < 16; ++i) {
      const int scale = nearest_level(scales[i] * inverse_or_zero(d), 0, 15);
      const int min = nearest_level(mins[i] * inverse_or_zero(dmin), 0, 15);
      block.scales[i] = static_cast<uint8_t>(scale | min << 4);
      const float inverse = inverse_or_zero(d * static_cast<float>(scale));
      uint8_t* qs = block.qs + i / 8 * 32 + i % 2 * 16;
      for (int j = 0; j < 16; ++j) {
        const int q = nearest_level((x[16 * i + j] + dmin * static_cast<float>(min)) * inverse, 0, 3);
        qs[j] = static_cast<uint8_t>(qs[j] | q << (i / 2 % 4 * 2));
      }
    }
  }
};

}  // namespace proa
