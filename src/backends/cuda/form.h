// What operands beside weights of a format are (operands.cuh), and how many threads of a block make and use them.
#pragma once

#include <cstdint>

namespace proa::cuda {

// Warps of a block that compute. With the one that fetches they are four for each quarter of an SM's registers.
constexpr int kConsumers = 15;
constexpr int kConsumerThreads = kConsumers * 32;
// Warps that share a tile of rows: what a tile costs beside its products is shared by few, and tiles go on side by
// side.
constexpr int kTeam = 5;
constexpr int kTeams = kConsumers / kTeam;
constexpr int kStepThreads = kConsumerThreads + 32;
constexpr int kMaxOldRows = 256;  // of a block whose old values it keeps

constexpr int kKeptItems = 4;  // of a thread: parts of the input that stay in registers

// Columns 0-3 of a lane go to the first 16 of a product's 32, columns 4-7 to the second.
enum class CodeOrder : uint8_t {
  apart,     // 4j .. 4j + 3, then 16 + 4j ..
  together,  // 8j .. 8j + 7
  pairs,     // 4j, 16 + 4j, 4j + 1, 17 + 4j, 4j + 2, ...
  eighths,   // 2j, 2j + 8, 2j + 1, 2j + 9, and the same 16 further on
};

// What operands of a format are.
struct Form {
  enum class Kind : uint8_t { digits, halves, bfloats } kind;
  CodeOrder order;  // of digits
  bool swapped;     // halves: the middle two of four columns change places (Order::bytes)
  bool minima;      // sums of half groups are wanted
};
// Of 32 columns of the input as operands.
constexpr int group_bytes(Form::Kind kind) { return kind == Form::Kind::bfloats ? 192 : 128; }

}  // namespace proa::cuda
