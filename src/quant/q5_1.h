// Q5_1: 32 five-bit values with half-precision scale and minimum, y = q * d + m. Source: ggml type 7 (block_q5_1).
#pragma once

#include "core/half.h"

namespace proa {

struct Q5_1 {
  static constexpr const char* name = "Q5_1";
  static constexpr int ggml_type = 7;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 32;

  struct Block {
    uint16_t d;      // half
    uint16_t m;      // half
    uint8_t qh[4];   // 32 bits, little-endian: bit j is the fifth bit of value j
    uint8_t qs[16];  // low nibble of qs[j] is value j, high nibble is value j + 16
  };
  static_assert(sizeof(Block) == 24);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    const float m = half_to_float(block.m);
    for (int j = 0; j < 16; ++j) {
      const int low = (block.qs[j] & 15) | (block.qh[j / 8] >> (j % 8) & 1) << 4;
      const int high = block.qs[j] >> 4 | (block.qh[2 + j / 8] >> (j % 8) & 1) << 4;
      y[j] = static_cast<float>(low) * d + m;
      y[j + 16] = static_cast<float>(high) * d + m;
    }
  }

  // As Q4_1: m = min x, d = (max x - m) / 31; q = floor((x - m) / d + 0.5), at most 31. Rounding uses d and m before
  // they become halves.
  static void encode(const float* x, Block& block) {
    float min = x[0];
    float max = x[0];
    for (int i = 1; i < 32; ++i) {
      min = x[i] < min ? x[i] : min;
      max = x[i] > max ? x[i] : max;
    }
    const float d = (max - min) / 31.0f;
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    block = {};
    block.d = float_to_half(d);
    block.m = float_to_half(min);
    for (int j = 0; j < 16; ++j) {
      const int low = level((x[j] - min) * inverse + 0.5f);
      const int high = level((x[j + 16] - min) * inverse + 0.5f);
      block.qs[j] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
      block.qh[j / 8] = static_cast<uint8_t>(block.qh[j / 8] | (low >> 4) << (j % 8));
      block.qh[2 + j / 8] = static_cast<uint8_t>(block.qh[2 + j / 8] | (high >> 4) << (j % 8));
    }
  }

 private:
  static int level(float q) { return q >= 31 ? 31 : q > 0 ? static_cast<int>(q) : 0; }  // NaN becomes 0
};

}  // namespace proa
