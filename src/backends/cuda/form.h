// What operands beside weights of a format are, see operands.cuh.
#pragma once

#include <cstdint>

namespace proa::cuda {

// Columns 0-3 of a lane go to the first 16 of a product's 32, columns 4-7 to the second.
enum class CodeOrder : uint8_t {
  apart,     // 4j .. 4j + 3, then 16 + 4j ..
  together,  // 8j .. 8j + 7
  pairs,     // 4j, 16 + 4j, 4j + 1, 17 + 4j, 4j + 2, ...
  eighths,   // 2j, 2j + 8, 2j + 1, 2j + 9, and the same 16 further on
};

struct Form {
  enum class Kind : uint8_t { digits, halves, bfloats } kind;
  CodeOrder order;  // of digits
  bool swapped;     // halves: the middle two of four columns change places (Order::bytes)
  bool minima;      // sums of half groups are wanted
};

// Of 32 columns of the input as operands, in bytes.
constexpr int group_bytes(Form::Kind kind) { return kind == Form::Kind::bfloats ? 192 : 128; }

}  // namespace proa::cuda
