// NVFP4 as GGUF stores it: 64 E2M1 values, each 16 with an unsigned E4M3 scale, y = e2m1(q) * scale. The scale of the
// whole tensor is not in the block: files keep it in a tensor of its own. Source: ggml type 40 (block_nvfp4).
#pragma once

#include <cmath>

#include "quant/minifloat.h"

namespace proa {

struct NVFP4 {
  static constexpr const char* name = "NVFP4";
  static constexpr int ggml_type = 40;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 64;

  struct Block {
    uint8_t scales[4];  // unsigned E4M3
    uint8_t qs[32];     // 8 bytes per 16 values: low nibble of byte j is value j, high nibble is value j + 8
  };
  static_assert(sizeof(Block) == 36);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    for (int i = 0; i < 4; ++i) {
      const float d = ue4m3_half(block.scales[i]);
      for (int j = 0; j < 8; ++j) {
        const int q = block.qs[8 * i + j];
        y[16 * i + j] = d * static_cast<float>(e2m1_doubled(q & 15));
        y[16 * i + j + 8] = d * static_cast<float>(e2m1_doubled(q >> 4));
      }
    }
  }

  // A scale is max|x| / 6 rounded to E4M3; each value the nearest. Without a scale of the tensor only magnitudes from
  // 2^-9 to 2,688 have a place.
  static void encode(const float* x, Block& block) {
    for (int i = 0; i < 4; ++i) {
      const float* part = x + 16 * i;
      float amax = 0;
      for (int j = 0; j < 16; ++j) amax = std::fabs(part[j]) > amax ? std::fabs(part[j]) : amax;
      block.scales[i] = float_to_e4m3(amax / 6.0f);
      const float d = ue4m3_half(block.scales[i]);
      for (int j = 0; j < 8; ++j) {
        block.qs[8 * i + j] = static_cast<uint8_t>(nearest_e2m1(part[j], d) | nearest_e2m1(part[j + 8], d) << 4);
      }
    }
  }
};

}  // namespace proa
