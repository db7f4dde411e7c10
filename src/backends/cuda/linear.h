// Products of a weight of any format with several vectors, and what they need before. One vector: step.h.
#pragma once

#include "backends/cuda/launch.h"
#include "backends/cuda/matmul.h"

namespace proa::cuda {

void multiply_matrix(Format format, const MatMul& op, int tiles, const Launch& launch);
void prepare(const Prepare& op, const Launch& launch);

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
