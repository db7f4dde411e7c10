// IQ4_NL: 32 four-bit indices into a fixed table, with one half-precision scale, y = d * T[q].
// Source: ggml type 20 (block_iq4_nl).
#pragma once

#include <cmath>

#include "core/half.h"
#include "quant/level.h"

namespace proa {

PROA_HOST_DEVICE constexpr int iq4_value(int q) {
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

  // The scale is searched for as llama-quantize does without an importance matrix: from the value of largest magnitude
  // m follow candidates 1 / d = -T[0] / m and (T[0] + t) / m with t in -7..7, and the one whose best multiple (least
  // squares, each value weighed by its square) is nearest counts. Sums are made in order, in F32.
  static void encode(const float* x, Block& block) {
    const float extreme = extreme_of(x, 32);
    block = {};
    float d = 0;
    if (std::fabs(extreme) >= 1e-15f) {
      const Fit first = fit(x, 1 / (extreme / static_cast<float>(-iq4_value(0))));
      d = first.scale();
      float most = d * first.qx;
      for (int t = -7; t <= 7; ++t) {
        const Fit tried = fit(x, static_cast<float>(t + iq4_value(0)) / extreme);
        if (tried.qq > 0 && tried.qx * tried.qx > most * tried.qq) {
          d = tried.scale();
          most = d * tried.qx;
        }
      }
    }
    block.d = float_to_half(d);
    const float inverse = inverse_or_zero(d);
    for (int j = 0; j < 16; ++j) {
      block.qs[j] = static_cast<uint8_t>(nearest_iq4(x[j] * inverse) | nearest_iq4(x[j + 16] * inverse) << 4);
    }
  }

 private:
  struct Fit {
    float qx = 0, qq = 0;  // weighed sums of level times value, of level squared
    float scale() const { return qq > 0 ? qx / qq : 0; }
  };
  static Fit fit(const float* x, float inverse) {
    Fit sums;
    for (int i = 0; i < 32; ++i) {
      const auto level = static_cast<float>(iq4_value(nearest_iq4(inverse * x[i])));
      const float weighed = x[i] * x[i] * level;
      sums.qx += weighed * x[i];
      sums.qq += weighed * level;
    }
    return sums;
  }
};

}  // namespace proa
