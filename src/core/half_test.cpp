#include "core/half.h"

#include <gtest/gtest.h>

#include <cmath>

namespace proa {
namespace {

// The compiler's own half is the oracle.
float oracle_to_float(uint16_t half) { return static_cast<float>(__builtin_bit_cast(_Float16, half)); }
uint16_t oracle_to_half(float value) { return __builtin_bit_cast(uint16_t, static_cast<_Float16>(value)); }

TEST(Half, EveryHalfWidensExactlyAndComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float wide = half_to_float(half);
    if (std::isnan(oracle_to_float(half))) {
      EXPECT_TRUE(std::isnan(wide)) << bits;
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(wide)))) << bits;
    } else {
      ASSERT_EQ(float_bits(wide), float_bits(oracle_to_float(half))) << bits;
      ASSERT_EQ(float_to_half(wide), half);
    }
  }
}

// Around every half: the half itself, the tie to the next one, and the floats on both sides of the tie.
TEST(Half, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float low = half_to_float(static_cast<uint16_t>(bits));
    const float high = bits == 0x7bff ? 65536.0f : half_to_float(static_cast<uint16_t>(bits + 1));
    const float tie = (low + high) / 2;
    for (float value : {low, tie, std::nextafter(tie, low), std::nextafter(tie, high)}) {
      ASSERT_EQ(float_to_half(value), oracle_to_half(value)) << value;
      ASSERT_EQ(float_to_half(-value), oracle_to_half(-value)) << -value;
    }
  }
}

TEST(Half, BeyondTheRange) {
  EXPECT_EQ(float_to_half(65519.996f), 0x7bff);  // the largest half
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);    // a tie that goes to infinity
  EXPECT_EQ(float_to_half(-INFINITY), 0xfc00);
  EXPECT_EQ(float_to_half(1e-30f), 0);
  EXPECT_EQ(float_to_half(-1e-30f), 0x8000);
}

TEST(Bfloat16, RoundsToNearestEvenAndKeepsNan) {
  const struct {
    uint32_t from;
    uint16_t to;
  } rows[] = {
      {0x3f800000, 0x3f80},  // 1
      {0x3f808000, 0x3f80},  // tie, even below
      {0x3f818000, 0x3f82},  // tie, even above
      {0x3f808001, 0x3f81},  // just above the tie
      {0x7f7fffff, 0x7f80},  // the largest float rounds to infinity
      {0x7f800000, 0x7f80},  // infinity
      {0x7f800001, 0x7fc0},  // NaN whose payload lies in the lower half
      {0xffc12345, 0xffc1},  // negative NaN
      {0x80000000, 0x8000},  // -0
      {0x00018000, 0x0002},  // subnormal
  };
  for (const auto& row : rows) {
    EXPECT_EQ(float_to_bfloat16(float_from_bits(row.from)), row.to) << std::hex << row.from;
  }
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float wide = bfloat16_to_float(static_cast<uint16_t>(bits));
    if (!std::isnan(wide)) {
      ASSERT_EQ(float_to_bfloat16(wide), bits);
    }
  }
}

}  // namespace
}  // namespace proa
