// Matrix times several vectors: prepare() splits activations into operands once, every block of the product copies
// those it needs. Of experts: the choices of tokens are sorted, so that an expert's slots follow one another; a slot is
// one (token, chosen expert).
#pragma once

#include <vector_types.h>

#include "backends/cuda/matvec.h"

namespace proa::cuda {

constexpr int kTokenStep = 8;      // vectors of one product of the tensor cores
constexpr int kMaxTokenTile = 32;  // vectors that one block multiplies: 8, 16 or 32

// Vectors as operands of one Order (fragment.cuh).
struct Operands {
  // [ceil(vectors / 8), groups, 2 or 4, 32 lanes]: lanes 4 t to 4 t + 3 are vector t's; of each its first part for a
  // product of 16 columns, then its second; a third is in the other half of the units.
  uint4* fragments = nullptr;
  float* unscale = nullptr;     // [vectors] undoes the power of two of a vector
  float* group_sums = nullptr;  // [vectors, groups, 2]
};

struct Prepare {
  int slots = 0;
  int cols = 0;
  Input input = Input::plain;
  bool bf16 = false;
  uint8_t order = 0;
  const float* x = nullptr;  // [.., x_stride]
  int64_t x_stride = 0;
  const int32_t* rows = nullptr;  // [slots] row of x; null: its own number
  const float* z = nullptr;       // [.., z_stride]
  int64_t z_stride = 0;
  const float* norm = nullptr;
  float eps = 0;
  int n_groups = 1;
  Operands out;
};

struct MatMul {
  Matrix matrix;  // of experts: the shape
  const std::byte* const* expert_data = nullptr;
  const std::byte* const* expert_scales = nullptr;
  const float* expert_scale = nullptr;
  bool expert_row_scales = false;
  // Of experts: tiles of slots that one expert multiplies; null: no experts.
  const int32_t* tile_expert = nullptr;  // [tiles] -1: nobody
  const int32_t* tile_first = nullptr;   // [tiles] first slot
  const int32_t* tile_count = nullptr;   // [tiles]
  int tiles = 0;
  int token_tile = kMaxTokenTile;  // slots of a tile

  int slots = 0;
  Operands x;
  const int32_t* rows = nullptr;  // [slots] vector of x; null: its own number
  float* y = nullptr;             // [slots, y_stride]
  int64_t y_stride = 0;
  Output output = Output::store;
  bool relu2 = false;
  const float* gate = nullptr;  // [slots, y_stride]
};
constexpr int kMaxMatMuls = 4;  // side by side in one kernel

}  // namespace proa::cuda
