// Q6_K: 256 six-bit values; each 16 have an eight-bit scale, all one half-precision scale, y = d * scale * (q - 32).
// Source: ggml type 14 (block_q6_K).
#pragma once

#include "core/half.h"
#include "quant/level.h"

namespace proa {

struct Q6_K {
  static constexpr const char* name = "Q6_K";
  static constexpr int ggml_type = 14;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 256;

  struct Block {
    uint8_t ql[128];  // low nibble of ql[64 h + j] is the lower part of value 128 h + j, high nibble of 128 h + 64 + j
    uint8_t qh[64];   // bits 2t and 2t + 1 of qh[32 h + j] are the upper two of value 128 h + 32 t + j
    int8_t scales[16];  // of 16 values each
    uint16_t d;         // half
  };
  static_assert(sizeof(Block) == 210);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    for (int i = 0; i < 256; ++i) {
      const int low = block.ql[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
      const int high = block.qh[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
      y[i] = d * static_cast<float>(block.scales[i / 16]) * static_cast<float>((low | high << 4) - 32);
    }
  }

  // Simple: a part's scale is its largest value over -32, and the largest scale becomes -128. The quantiser of ggml
  // searches for a smaller error.
  static void encode(const float* x, Block& block) {
    float scales[16];
    for (int i = 0; i < 16; ++i) scales[i] = extreme_of(x + 16 * i, 16) / -32.0f;
    block = {};
    block.d = float_to_half(extreme_of(scales, 16) / -128.0f);
    const float d = half_to_float(block.d);
    for (int i = 0; i < 256; ++i) {
      if (i % 16 == 0) {
        block.scales[i / 16] = static_cast<int8_t>(nearest_level(scales[i / 16] * inverse_or_zero(d), -128, 127));
      }
      const float inverse = inverse_or_zero(d * static_cast<float>(block.scales[i / 16]));
      const int q = nearest_level(x[i] * inverse, -32, 31) + 32;
      uint8_t& low = block.ql[i / 128 * 64 + i % 64];
      uint8_t& high = block.qh[i / 128 * 32 + i % 32];
      low = static_cast<uint8_t>(low | (q & 15) << (i / 64 % 2 * 4));
      high = static_cast<uint8_t>(high | (q >> 4) << (i / 32 % 4 * 2));
    }
  }
};

}  // namespace proa
