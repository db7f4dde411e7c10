// Q4_K: 256 four-bit values; each 32 have a six-bit scale and minimum, all one half-precision scale for either,
// y = d * scale * q - dmin * min. Source: ggml type 12 (block_q4_K).
#pragma once

#include "core/half.h"
#include "quant/level.h"

namespace proa {

// Eight scales and eight minima of six bits in 12 bytes, as Q4_K and Q5_K have them. The first four of either are the
// lower bits of bytes 0-3 and 4-7; of the others, the lower four bits are in the nibbles of bytes 8-11 (scale low,
// minimum high), and the upper two on top of bytes 0-3 and 4-7.
struct ScalesAndMins {
  uint8_t bytes[12];

  PROA_HOST_DEVICE int scale(int i) const {
    return i < 4 ? bytes[i] & 63 : (bytes[i + 4] & 15) | bytes[i - 4] >> 6 << 4;
  }
  PROA_HOST_DEVICE int min(int i) const { return i < 4 ? bytes[i + 4] & 63 : bytes[i + 4] >> 4 | bytes[i] >> 6 << 4; }
  void add(int i, int scale, int min) {  // to bytes that were 0
    const auto put = [this](int at, int bits) { bytes[at] = static_cast<uint8_t>(bytes[at] | bits); };
    if (i < 4) {
      put(i, scale);
      put(i + 4, min);
    } else {
      put(i + 4, (scale & 15) | (min & 15) << 4);
      put(i - 4, scale >> 4 << 6);
      put(i, min >> 4 << 6);
    }
  }
};

// The encoders of Q4_K and Q5_K: calls put(i, q) with a level of 0..levels for each of the 256 values. Simple: each
// part from its minimum, at most 0, to its maximum. The quantiser of ggml searches for a smaller error.
template <typename Block, typename Put>
void encode_with_minima(const float* x, int levels, Block& block, Put put) {
  float scales[8], mins[8];
  for (int i = 0; i < 8; ++i) range_of(x + 32 * i, 32, levels, scales[i], mins[i]);
  block = {};
  block.d = float_to_half(extreme_of(scales, 8) / 63.0f);
  block.dmin = float_to_half(extreme_of(mins, 8) / 63.0f);
  const float d = half_to_float(block.d);
  const float dmin = half_to_float(block.dmin);
  for (int i = 0; i < 8; ++i) {
    const int scale = nearest_level(scales[i] * inverse_or_zero(d), 0, 63);
    const int min = nearest_level(mins[i] * inverse_or_zero(dmin), 0, 63);
    block.scales.add(i, scale, min);
    const float inverse = inverse_or_zero(d * static_cast<float>(scale));
    for (int j = 32 * i; j < 32 * i + 32; ++j) {
      put(j, nearest_level((x[j] + dmin * static_cast<float>(min)) * inverse, 0, levels));
    }
  }
}

struct Q4_K {
  static constexpr const char* name = "Q4_K";
  static constexpr int ggml_type = 12;
  static constexpr const char* safetensors_dtype = nullptr;
  static constexpr int block_elements = 256;

  struct Block {
    uint16_t d;     // half
    uint16_t dmin;  // half
    ScalesAndMins scales;
    uint8_t qs[128];  // low nibble of qs[32 i + j] is value 64 i + j, high nibble is value 64 i + 32 + j
  };
  static_assert(sizeof(Block) == 144);

  PROA_HOST_DEVICE static void decode(const Block& block, float* y) {
    const float d = half_to_float(block.d);
    const float dmin = half_to_float(block.dmin);
    for (int i = 0; i < 8; ++i) {
      const float dl = d * static_cast<float>(block.scales.scale(i));
      const float ml = dmin * static_cast<float>(block.scales.min(i));
      const uint8_t* qs = block.qs + i / 2 * 32;
      for (int j = 0; j < 32; ++j) y[32 * i + j] = dl * static_cast<float>(qs[j] >> (i % 2 * 4) & 15) - ml;
    }
  }

  static void encode(const float* x, Block& block) {
    encode_with_minima(x, 15, block, [&](int i, int q) {
      uint8_t& byte = block.qs[i / 64 * 32 + i % 32];
      byte = static_cast<uint8_t>(byte | q << (i / 32 % 2 * 4));
    });
  }
};

}  // namespace proa
