// Matrix times one vector, by which decode lives: a stage of a step (step.h).
#pragma once

#include <cstdint>

#include "ops/weight.h"

namespace proa::cuda {

// A matrix as kernels take it.
struct Matrix {
  const uint8_t* data = nullptr;
  const uint8_t* group_scales = nullptr;  // E4M3 for 16 columns each, or null
  const float* row_scales = nullptr;      // [rows], or null
  int64_t stride = 0;                     // bytes between rows
  int64_t scales_stride = 0;
  int rows = 0;
  int cols = 0;
  float scale = 1;
  float* y = nullptr;  // [rows]
};

// Matrices of one shape, chosen by the router: all but data, group_scales and scale is in `shape`.
struct Experts {
  const std::byte* const* data = nullptr;    // [n_experts]
  const std::byte* const* scales = nullptr;  // [n_experts] group or row scales, or null
  const float* scale = nullptr;              // [n_experts], or null
  bool row_scales = false;
  const int32_t* ids = nullptr;    // [count]
  const float* weights = nullptr;  // [count]
  int count = 0;
  Matrix shape;
};

enum class Input : uint8_t {
  plain,   // x
  normed,  // norm · x / rms(x)
  gated,   // norm · v / rms of its group(v), v = x · silu(z)
};

enum class Output : uint8_t {
  store,
  add,       // y +=, y the residual
  activate,  // y = act(.)
  gate,      // y = act(gate) · .
};

// Who does what. A crew is a part of the blocks (step.h); what a crew has made only it needs to await.
enum class Share : uint8_t {
  blocks,      // every block an equal part of the rows
  crew_rows,   // plain: every crew the same part of each matrix; widen: every crew the same part of all lists' rows
  crew_parts,  // every crew all rows of a part of the input, one of the lists or a part of it; their sum is wanted
};

constexpr int kMaxMatrices = 5;
constexpr int kMaxExperts = 32;  // of one token

// y_i = W_i · input for all matrices in turn; then, with experts, either
//   widen: act(Up_k · input) of each chosen expert, into rows of its own behind those of matrix 0; or
//   narrow: the one sum y (+)= W_0 · x_0 + sum_k weight_k Down_k · x_k, where x holds the parts one behind the other.
struct MatVec {
  Matrix matrices[kMaxMatrices];
  int num_matrices = 0;
  Experts experts;
  enum class Mode : uint8_t { plain, widen, narrow } mode = Mode::plain;

  Input input = Input::plain;
  Output output = Output::store;
  Share share = Share::blocks;
  bool relu2 = false;
  const float* x = nullptr;
  int version = 0;                 // of the residual (step.h), where x is that
  const int32_t* x_row = nullptr;  // x begins at row *x_row of `cols` values; null: at 0
  const float* z = nullptr;
  const float* norm = nullptr;
  const float* gate = nullptr;
  float eps = 0;
  int n_groups = 1;
};

}  // namespace proa::cuda
