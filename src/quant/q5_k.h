// Q5_K: 256 five-bit values; each 32 have a six-bit scale and minimum, all one half-precision scale for either,
// y = d * scale * q - dmin * min. Source: ggml type 13 (block_q5_K).
#pragma once

#include "core/half.h"
#include "quant/q4_k.h"

namespace proa {

struct Q5_K {
  static constexpr const char* name = "Q5_K";
  static constexpr int ggml_type = 13;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 256;

  struct Block {
    uint16_t d;     // half
    uint16_t dmin;  // half
    ScalesAndMins scales;
    uint8_t qh[32];   // bit i of qh[j] is the fifth bit of value 32 i + j
    uint8_t qs[128];  // low nibble of qs[32 i + j] is value 64 i + j, high nibble is value 64 i + 32 + j
  };
  static_assert(sizeof(Block) == 176);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    const float dmin = half_to_float(block.dmin);
    for (int i = 0; i < 8; ++i) {
      const float dl = d * static_cast<float>(block.scales.scale(i));
      const float ml = dmin * static_cast<float>(block.scales.min(i));
      const uint8_t* qs = block.qs + i / 2 * 32;
      for (int j = 0; j < 32; ++j) {
        const int q = (qs[j] >> (i % 2 * 4) & 15) | (block.qh[j] >> i & 1) << 4;
        y[32 * i + j] = dl * static_cast<float>(q) - ml;
      }
    }
  }

  static void encode(const float* x, Block& block) {
    encode_with_minima(x, 31, block, [&](int i, int q) {
      uint8_t& low = block.qs[i / 64 * 32 + i % 32];
      uint8_t& high = block.qh[i % 32];
      low = static_cast<uint8_t>(low | (q & 15) << (i / 32 % 2 * 4));
      high = static_cast<uint8_t>(high | (q >> 4) << (i / 32));
    });
  }
};

}  // namespace proa
