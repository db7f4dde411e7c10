// 16-bit floats as bits: IEEE half (F16) and bfloat16, to and from float. Rounding is to the nearest, ties to even, as
// hardware does it; NaN stays NaN. Plain integer code, so that host and device give the same bits everywhere.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PROA_HOST_DEVICE __host__ __device__
#else
#define PROA_HOST_DEVICE
#endif

namespace proa {

PROA_HOST_DEVICE constexpr float float_from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
PROA_HOST_DEVICE constexpr uint32_t float_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

PROA_HOST_DEVICE constexpr float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return float_from_bits(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal or zero; exact in float
  return float_from_bits(sign | float_bits(magnitude));
}

// Beyond the largest half (65504, from 65520 up) the result is infinity.
PROA_HOST_DEVICE constexpr uint16_t float_to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));  // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude >= 0x38800000u) {  // normal half; a carry out of the mantissa raises the exponent, as it should
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
  if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);  // below half of the least subnormal
  const uint32_t shift = 126u - (magnitude >> 23);                  // 14..24
  const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t quotient = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1u);
  const uint32_t tie = 1u << (shift - 1u);
  const uint32_t up = (rest > tie || (rest == tie && (quotient & 1u))) ? 1u : 0u;
  return static_cast<uint16_t>(sign | (quotient + up));
}

PROA_HOST_DEVICE constexpr float bfloat16_to_float(uint16_t value) {
  return float_from_bits(static_cast<uint32_t>(value) << 16);
}

PROA_HOST_DEVICE constexpr uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN, made quiet
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace proa
