// Q4_1: 32 four-bit values with half-precision scale and minimum, y = q * d + m. Source: ggml type 3 (block_q4_1).
#pragma once

#include "core/half.h"

namespace proa {

struct Q4_1 {
  static constexpr const char* name = "Q4_1";
  static constexpr int ggml_type = 3;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 32;

  struct Block {
    uint16_t d;      // half
    uint16_t m;      // half
    uint8_t qs[16];  // low nibble of qs[j] is value j, high nibble is value j + 16
  };
  static_assert(sizeof(Block) == 20);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    const float m = half_to_float(block.m);
    for (int j = 0; j < 16; ++j) {
      y[j] = static_cast<float>(block.qs[j] & 15) * d + m;
      y[j + 16] = static_cast<float>(block.qs[j] >> 4) * d + m;
    }
  }

  // m = min x, d = (max x - m) / 15; q = floor((x - m) / d + 0.5), at most 15. Rounding uses d and m before they
  // become halves.
  static void encode(const float* x, Block& block) {
    float min = x[0];
    float max = x[0];
    for (int i = 1; i < 32; ++i) {
      min = x[i] < min ? x[i] : min;
      max = x[i] > max ? x[i] : max;
    }
    const float d = (max - min) / 15.0f;
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    block.d = float_to_half(d);
    block.m = float_to_half(min);
    for (int j = 0; j < 16; ++j) {
      const int low = level((x[j] - min) * inverse + 0.5f);
      const int high = level((x[j + 16] - min) * inverse + 0.5f);
      block.qs[j] = static_cast<uint8_t>(low | high << 4);
    }
  }

 private:
  static int level(float q) { return q >= 15 ? 15 : q > 0 ? static_cast<int>(q) : 0; }  // NaN becomes 0
};

}  // namespace proa
