// Floats of four and eight bits, as weights and as scales of block formats.
// Source: OCP 8-bit Floating Point Specification 1.0 (E4M3), OCP Microscaling Formats 1.0 (E2M1, E8M0).
#pragma once

#include <cstdint>

#include "core/half.h"

namespace proa {

// E4M3 without infinities: 1-4-3, bias 7, NaN is 0x7F and 0xFF, largest 448, smallest 2^-9.
PROA_HOST_DEVICE constexpr float e4m3_to_float(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7f) return float_from_bits(sign | 0x7fc00000u);
  if (magnitude >= 8) return float_from_bits(sign | ((magnitude << 20) + (120u << 23)));
  return float_from_bits(sign | float_bits(static_cast<float>(magnitude) * 0x1p-9f));
}

// To the nearest, ties to even, at most 448 as quantisers saturate; NaN stays NaN.
PROA_HOST_DEVICE constexpr uint8_t float_to_e4m3(float value) {
  const uint32_t bits = float_bits(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= float_bits(448.0f)) return static_cast<uint8_t>(sign | 0x7eu);
  if (magnitude < float_bits(0x1p-6f)) {  // subnormal: adding 2^14 leaves the quotient by 2^-9 in the low bits, rounded
    const float rounded = float_from_bits(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(sign | (float_bits(rounded) - float_bits(0x1p14f)));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded - (120u << 23)) >> 20));
}

// Twice the value of an E2M1 code, which is an integer: 0 1 2 3 4 6 8 12, and negative from code 8 on.
PROA_HOST_DEVICE constexpr int e2m1_doubled(int code) {
  const int magnitude = static_cast<int>(0xC8643210u >> (4 * (code & 7))) & 15;
  return code & 8 ? -magnitude : magnitude;
}

// Half of an E8M0 scale, 2^(bits - 128), to go with e2m1_doubled. ggml gives 255 its power of two instead of NaN, and
// halving keeps that within float.
PROA_HOST_DEVICE constexpr float e8m0_half(uint8_t bits) {
  return float_from_bits(bits < 2 ? 0x00200000u << bits : (bits - 1u) << 23);
}

// Half of an unsigned E4M3 scale as ggml reads it: 0x7F is 0, the sign bit does not count, and 0xFF is 480.
PROA_HOST_DEVICE constexpr float ue4m3_half(uint8_t bits) {
  if (bits == 0x7f) return 0;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude >= 8) return float_from_bits((magnitude << 20) + (119u << 23));
  return static_cast<float>(magnitude) * 0x1p-10f;
}

// The E2M1 code whose value times 2 d is nearest to x; the first of equals in the order of codes.
inline uint8_t nearest_e2m1(float x, float half_scale) {
  uint8_t best = 0;
  float least = 0;
  for (int code = 0; code < 16; ++code) {
    const float difference = half_scale * static_cast<float>(e2m1_doubled(code)) - x;
    const float distance = difference < 0 ? -difference : difference;
    if (code == 0 || distance < least) {
      best = static_cast<uint8_t>(code);
      least = distance;
    }
  }
  return best;
}

}  // namespace proa
