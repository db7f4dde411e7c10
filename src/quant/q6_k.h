// Q6_K: 256 six-bit values; each 16 have an eight-bit scale, all one half-precision scale, y = d * scale * (q - 32).
// Source: ggml type 14 (block_q6_K).
#pragma once

#include <cmath>

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

  // The scale of a part is searched for as llama-quantize does without an importance matrix: from the value of largest
  // magnitude m follow candidates 1 / scale = -(32 + t / 10) / m with t in -9..9, and the one whose best multiple
  // (least squares, each value weighed by its square) is nearest counts. The largest scale becomes -128. Sums are made
  // in order, in F32; levels are rounded with ties to even.
  static void encode(const float* x, Block& block) {
    float scales[16];
    for (int i = 0; i < 16; ++i) scales[i] = best_scale(x + 16 * i);
    block = {};
    const float extreme = extreme_of(scales, 16);
    if (std::fabs(extreme) < 1e-15f) return;
    const float inverse_d = -128.0f / extreme;
    block.d = float_to_half(1 / inverse_d);
    for (int i = 0; i < 16; ++i) {
      const float scale = std::nearbyint(inverse_d * scales[i]);
      block.scales[i] = static_cast<int8_t>(scale < 127 ? scale : 127);
    }
    for (int i = 0; i < 256; ++i) {
      const float d = half_to_float(block.d) * static_cast<float>(block.scales[i / 16]);
      const int q = d != 0 ? level(x[i] / d) + 32 : 0;
      uint8_t& low = block.ql[i / 128 * 64 + i % 64];
      uint8_t& high = block.qh[i / 128 * 32 + i % 32];
      low = static_cast<uint8_t>(low | (q & 15) << (i / 64 % 2 * 4));
      high = static_cast<uint8_t>(high | (q >> 4) << (i / 32 % 4 * 2));
    }
  }

 private:
  static int level(float q) {  // NaN becomes 0
    return q >= 31 ? 31 : q <= -32 ? -32 : q == q ? static_cast<int>(std::nearbyint(q)) : 0;
  }
  static float best_scale(const float* x) {
    const float extreme = extreme_of(x, 16);
    if (std::fabs(extreme) < 1e-15f) return 0;
    float scale = 0, most = 0;
    for (int step = 0; step < 19; ++step) {
      const int t = step == 0 ? 0 : step <= 9 ? step - 10 : step - 9;  // 0, then -9..-1, 1..9
      const float inverse = -(32 + 0.1f * static_cast<float>(t)) / extreme;
      float xq = 0, qq = 0;
      for (int i = 0; i < 16; ++i) {
        const auto q = static_cast<float>(level(inverse * x[i]));
        const float weight = x[i] * x[i];
        xq += weight * x[i] * q;
        qq += weight * q * q;
      }
      if (qq > 0 && (step == 0 || xq * xq > most * qq)) {
        scale = xq / qq;
        most = scale * xq;
      }
    }
    return scale;
  }
};

}  // namespace proa
