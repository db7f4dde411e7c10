// What the codes of short formats stand for, as tables.
#pragma once

#include <cstdint>

#include "quant/iq4_nl.h"
#include "quant/minifloat.h"

namespace proa {

struct Values16 {
  alignas(16) int8_t at[16];
};
struct Scales256 {
  float at[256];
};

template <class Table, class F>
constexpr Table table_of(F&& value) {
  Table table{};
  int code = 0;
  for (auto& at : table.at) at = static_cast<std::remove_reference_t<decltype(at)>>(value(code++));
  return table;
}

inline constexpr Values16 kE2M1Doubled = table_of<Values16>([](int code) { return e2m1_doubled(code); });
inline constexpr Values16 kIq4Values = table_of<Values16>([](int code) { return iq4_value(code); });

// Halves of scales, to go with kE2M1Doubled.
inline constexpr Scales256 kE8M0Halves =
    table_of<Scales256>([](int code) { return e8m0_half(static_cast<uint8_t>(code)); });
inline constexpr Scales256 kUE4M3Halves =
    table_of<Scales256>([](int code) { return ue4m3_half(static_cast<uint8_t>(code)); });
inline constexpr Scales256 kE4M3Halves =
    table_of<Scales256>([](int code) {  // to clang, arithmetic with NaN is no constant
      const float scale = e4m3_to_float(static_cast<uint8_t>(code));
      return scale != scale ? scale : 0.5f * scale;
    });

// All values of E2M1 times a scale, as bfloat16, where they are exact; by the code of the scale. 8 KiB each.
struct Products16 {
  alignas(64) uint16_t at[256][16];
};
constexpr Products16 products_of(const Scales256& halves) {
  Products16 table{};
  for (int scale = 0; scale < 256; ++scale) {
    for (int code = 0; code < 16; ++code) {
      const float half = halves.at[scale];
      const double value = half != half ? 0 : static_cast<double>(half) * e2m1_doubled(code);
      const bool finite = value > -0x1p128 && value < 0x1p128;
      const float product = half != half ? half : finite ? static_cast<float>(value) : 0;
      table.at[scale][code] = static_cast<uint16_t>(float_bits(product) >> 16);
      if (!finite) table.at[scale][code] = value < 0 ? 0xff80 : 0x7f80;
    }
  }
  return table;
}
inline constexpr Products16 kE8M0Products = products_of(kE8M0Halves);
inline constexpr Products16 kUE4M3Products = products_of(kUE4M3Halves);
inline constexpr Products16 kE4M3Products = products_of(kE4M3Halves);

}  // namespace proa
