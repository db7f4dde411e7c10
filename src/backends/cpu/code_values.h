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
    table_of<Scales256>([](int code) { return 0.5f * e4m3_to_float(static_cast<uint8_t>(code)); });

}  // namespace proa
