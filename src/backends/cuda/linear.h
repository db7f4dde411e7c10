// Products of a weight of any format with several vectors, and what they need before. One vector: step.h.
#pragma once

#include <span>

#include "backends/cuda/launch.h"
#include "backends/cuda/matmul.h"

namespace proa::cuda {

// At most kMaxMatMuls of one format, side by side: none reads what another writes.
void multiply_matrices(Format format, std::span<const MatMul> ops, const Launch& launch);
void prepare(std::span<const Prepare> ops, const Launch& launch);  // at most two

// What Prepare and Operands of a format's product are.
struct OperandForm {
  bool bf16;
  uint8_t order;
};
OperandForm operand_form(Format format);
inline size_t fragment_bytes(int slots, int cols, bool bf16) {
  return static_cast<size_t>((slots + 7) / 8) * static_cast<size_t>((cols + 31) / 32) * (bf16 ? 2048 : 1024);
}

}  // namespace proa::cuda
