// Q5_0: 32 five-bit values with one half-precision scale, y = (q - 16) * d. Source: ggml type 6 (block_q5_0).
#pragma once

#include <cmath>

#include "core/half.h"

namespace proa {

struct Q5_0 {
  static constexpr const char* name = "Q5_0";
  static constexpr int ggml_type = 6;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 32;

  struct Block {
    uint16_t d;      // half
    uint8_t qh[4];   // 32 bits, little-endian: bit j is the fifth bit of value j
    uint8_t qs[16];  // low nibble of qs[j] is value j, high nibble is value j + 16
  };
  static_assert(sizeof(Block) == 22);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    for (int j = 0; j < 16; ++j) {
      const int low = (block.qs[j] & 15) | (block.qh[j / 8] >> (j % 8) & 1) << 4;
      const int high = block.qs[j] >> 4 | (block.qh[2 + j / 8] >> (j % 8) & 1) << 4;
      y[j] = static_cast<float>(low - 16) * d;
      y[j + 16] = static_cast<float>(high - 16) * d;
    }
  }

  // As Q4_0: d = (the value of largest magnitude, with its sign; the first of equals) / -16, q = floor(x / d + 16.5),
  // at most 31. Rounding uses d before it becomes a half.
  static void encode(const float* x, Block& block) {
    float extreme = 0;
    for (int i = 0; i < 32; ++i) {
      if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
    }
    const float d = extreme / -16.0f;
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    block = {};
    block.d = float_to_half(d);
    for (int j = 0; j < 16; ++j) {
      const int low = level(x[j] * inverse + 16.5f);
      const int high = level(x[j + 16] * inverse + 16.5f);
      block.qs[j] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
      block.qh[j / 8] = static_cast<uint8_t>(block.qh[j / 8] | (low >> 4) << (j % 8));
      block.qh[2 + j / 8] = static_cast<uint8_t>(block.qh[2 + j / 8] | (high >> 4) << (j % 8));
    }
  }

 private:
  static int level(float q) { return q >= 31 ? 31 : q > 0 ? static_cast<int>(q) : 0; }  // NaN becomes 0
};

}  // namespace proa
