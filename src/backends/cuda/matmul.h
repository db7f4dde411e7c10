// Matrix times several vectors: prepare() splits activations into operands once, the product reads them for every row.
// For experts, the tokens are sorted: each expert owns whole tiles of 32 slots, a slot is one (token, chosen expert).
#pragma once

#include <vector_types.h>

#include "backends/cuda/matvec.h"

namespace proa::cuda {

constexpr int kTokenTile = 32;  // slots that one block multiplies
constexpr int kTokenStep = 8;   // tokens of one product

// Activations as operands of one Order (fragment.cuh).
struct Operands {
  uint4* fragments = nullptr;   // [ceil(slots / 8), groups, 2 or 4, 32 lanes]
  float* unscale = nullptr;     // [slots] undoes the power of two of a vector
  float* group_sums = nullptr;  // [ceil(slots / 8), groups, 2, 8]
};

struct Prepare {
  int slots = 0;
  int cols = 0;
  Input input = Input::plain;
  bool bf16 = false;
  uint8_t order = 0;
  const float* x = nullptr;  // [.., x_stride]
  int64_t x_stride = 0;
  const int32_t* rows = nullptr;        // [slots] row of x, -1: an empty slot; null: its own number
  const int32_t* tile_count = nullptr;  // [tiles] slots in use of each 32; null: all
  const float* z = nullptr;             // [.., z_stride]
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
  const int32_t* tile_expert = nullptr;  // [tiles] -1: nobody; null: no experts
  const int32_t* tile_count = nullptr;   // [tiles]

  int slots = 0;
  Operands x;
  float* y = nullptr;  // [slots, y_stride]
  int64_t y_stride = 0;
  Output output = Output::store;
  bool relu2 = false;
  const float* gate = nullptr;  // [slots, y_stride]
};

}  // namespace proa::cuda
