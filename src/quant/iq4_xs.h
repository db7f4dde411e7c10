// IQ4_XS: 256 four-bit indices into the table of IQ4_NL; each 32 have a six-bit scale, all one half-precision scale,
// y = d * (scale - 32) * T[q]. Source: ggml type 23 (block_iq4_xs).
#pragma once

#include "core/half.h"
#include "quant/iq4_nl.h"
#include "quant/level.h"

namespace proa {

struct IQ4_XS {
  static constexpr const char* name = "IQ4_XS";
  static constexpr int ggml_type = 23;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 256;

  struct Block {
    uint16_t d;           // half
    uint16_t scales_h;    // bits 2i and 2i + 1 are the upper two of scale i
    uint8_t scales_l[4];  // low nibble of scales_l[i] is the lower part of scale 2i, high nibble of 2i + 1
    uint8_t qs[128];      // each 16 bytes as IQ4_NL's
  };
  static_assert(sizeof(Block) == 136);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    for (int i = 0; i < 8; ++i) {
      const int scale = (block.scales_l[i / 2] >> 4 * (i % 2) & 15) | (block.scales_h >> 2 * i & 3) << 4;
      const float dl = d * static_cast<float>(scale - 32);
      for (int j = 0; j < 16; ++j) {
        const int q = block.qs[16 * i + j];
        y[32 * i + j] = dl * static_cast<float>(iq4_value(q & 15));
        y[32 * i + j + 16] = dl * static_cast<float>(iq4_value(q >> 4));
      }
    }
  }

  // Simple, as IQ4_NL: a part's scale is its largest value over -127, and the largest scale becomes -32.
  static void encode(const float* x, Block& block) {
    float scales[8];
    for (int i = 0; i < 8; ++i) scales[i] = extreme_of(x + 32 * i, 32) / -127.0f;
    block = {};
    block.d = float_to_half(extreme_of(scales, 8) / -32.0f);
    const float d = half_to_float(block.d);
    for (int i = 0; i < 8; ++i) {
      const int scale = nearest_level(scales[i] * inverse_or_zero(d), -32, 31);
      const int bits = scale + 32;
      block.scales_l[i / 2] = static_cast<uint8_t>(block.scales_l[i / 2] | (bits & 15) << 4 * (i % 2));
      block.scales_h = static_cast<uint16_t>(block.scales_h | (bits >> 4) << 2 * i);
      const float inverse = inverse_or_zero(d * static_cast<float>(scale));
      for (int j = 0; j < 16; ++j) {
        const float* part = x + 32 * i + j;
        block.qs[16 * i + j] =
            static_cast<uint8_t>(nearest_iq4(part[0] * inverse) | nearest_iq4(part[16] * inverse) << 4);
      }
    }
  }
};

}  // namespace proa
