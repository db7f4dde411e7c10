// Q3_K: 256 three-bit values; each 16 have a six-bit scale, all one half-precision scale, y = d * (scale - 32) * (q -
// 4). Source: ggml type 11 (block_q3_K).
#pragma once

#include "core/half.h"
#include "quant/level.h"

namespace proa {

struct Q3_K {
  static constexpr const char* name = "Q3_K";
  static constexpr int ggml_type = 11;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 256;

  struct Block {
    uint8_t hmask[32];   // bit 4h + t of hmask[j] is the third bit of value 128 h + 32 t + j
    uint8_t qs[64];      // bits 2t and 2t + 1 of qs[32 h + j] are the lower two of value 128 h + 32 t + j
    uint8_t scales[12];  // 16 of six bits, see scale()
    uint16_t d;          // half
  };
  static_assert(sizeof(Block) == 110);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    for (int i = 0; i < 16; ++i) {
      const float dl = d * static_cast<float>(scale(block, i) - 32);
      const uint8_t* qs = block.qs + i / 8 * 32 + i % 2 * 16;
      const uint8_t* hmask = block.hmask + i % 2 * 16;
      for (int j = 0; j < 16; ++j) {
        const int q = (qs[j] >> (i / 2 % 4 * 2) & 3) | (hmask[j] >> (i / 2) & 1) << 2;
        y[16 * i + j] = dl * static_cast<float>(q - 4);
      }
    }
  }

  // Simple: a part's scale is its largest value over -4, and the largest scale becomes -32. The quantiser of ggml
  // searches for a smaller error.
  static void encode(const float* x, Block& block) {
    float scales[16];
    for (int i = 0; i < 16; ++i) scales[i] = extreme_of(x + 16 * i, 16) / -4.0f;
    block = {};
    block.d = float_to_half(extreme_of(scales, 16) / -32.0f);
    const float d = half_to_float(block.d);
    for (int i = 0; i < 16; ++i) {
      const int level = nearest_level(scales[i] * inverse_or_zero(d), -32, 31);
      const int bits = level + 32;
      block.scales[i % 8] = static_cast<uint8_t>(block.scales[i % 8] | (bits & 15) << (i / 8 * 4));
      block.scales[8 + i % 4] = static_cast<uint8_t>(block.scales[8 + i % 4] | (bits >> 4) << (i / 4 * 2));
      const float inverse = inverse_or_zero(d * static_cast<float>(level));
      uint8_t* qs = block.qs + i / 8 * 32 + i % 2 * 16;
      uint8_t* hmask = block.hmask + i % 2 * 16;
      for (int j = 0; j < 16; ++j) {
        const int q = nearest_level(x[16 * i + j] * inverse, -4, 3) + 4;
        qs[j] = static_cast<uint8_t>(qs[j] | (q & 3) << (i / 2 % 4 * 2));
        hmask[j] = static_cast<uint8_t>(hmask[j] | (q >> 2) << (i / 2));
      }
    }
  }

 private:
  // The lower four bits of scales 0-7 are the low nibbles of the first eight bytes, of 8-15 the high ones; the upper
  // two are in the last four bytes, byte i % 4, from bit 2 (i / 4) on.
  PROA_HOST_DEVICE static int scale(const Block& block, int i) {
    return (block.scales[i % 8] >> (i / 8 * 4) & 15) | (block.scales[8 + i % 4] >> (i / 4 * 2) & 3) << 4;
  }
};

}  // namespace proa
