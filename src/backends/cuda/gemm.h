// Matrix times many vectors, for prefill: weights and activations become halves, sums are F32. Where a backend is told
// to round activations to the weights' own kind, E4M3 or BF16, both meet as they are (gemm_same_kind.cu).
//
// A weight is decoded to the half next to it: integers times their scale, short floats as they are. An activation is
// the half next to it after a power of two has brought its vector's largest below 2^14. Either is off by 2^-11 of
// itself at most, an eighth of what BF16 loses. Fewer vectors than kManyTokens are multiplied without loss (matmul.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backends/cuda/launch.h"
#include "backends/cuda/matmul.h"
#include "quant/formats.h"

namespace proa::cuda {

constexpr int kManyTokens = 128;
// Of a product, relative to its norm: either factor is off by 2^-13 in the root of the mean of squares, which makes
// 2^-11.7 of a sum of many products; three times that.
constexpr double kGemmRounding = 0x1p-10;
// The same of activations as E4M3. Between 1 and 2 it has steps of 1/8, so a value is off by 1/8 / sqrt(12) = 0.036 in
// the root of the mean of squares, where values are 1.47: 0.0245 of a sum of many products; three times that.
constexpr double kE4m3Rounding = 0.0735;
constexpr double kBf16Rounding = 0x1p-7;  // as kGemmRounding, of three bits fewer

// Vectors as operands, zeros behind the last column: halves, columns of each group of 32 in the Order of the weights
// they meet; or E4M3 or BF16, columns as they are.
enum class Vectors : uint8_t { halves, e4m3, bf16 };
struct Halves {
  __half* x = nullptr;       // [rows, stride] of what `kind` says
  int64_t stride = 0;        // padded_cols()
  float* unscale = nullptr;  // [rows] undoes the power of two of a vector; of E4M3 its scale
  Vectors kind = Vectors::halves;
  float scale = 0;  // of E4M3, for all vectors, and unscale is not read; 0: each has its own
};
// Results as vectors of the next product. 32 columns whose largest is no good as a half are times a power of two;
// level_halves() makes it one for all of a vector.
struct HalvesOut {
  Halves to;
  uint8_t order = 0;
  int8_t* powers = nullptr;  // [rows, to.stride / 32] exponents; kNoPower: zeros. Null: no such results are wanted
};
constexpr int8_t kNoPower = 127;
constexpr int64_t padded_cols(int64_t cols) { return (cols + 255) / 256 * 256; }

struct Gemm {
  Matrix matrix;  // of experts: the shape
  const std::byte* const* expert_data = nullptr;
  const std::byte* const* expert_scales = nullptr;
  const float* expert_scale = nullptr;
  bool expert_row_scales = false;
  // Of experts: tiles of up to gemm_tokens() slots that one expert multiplies; null: no experts.
  const int32_t* tile_expert = nullptr;  // [tiles] -1: an empty tile
  const int32_t* tile_first = nullptr;   // [tiles] first slot
  const int32_t* tile_count = nullptr;   // [tiles]

  int slots = 0;
  Halves x;
  const int32_t* rows = nullptr;    // [slots] row of x; null: its own number
  float* y = nullptr;               // [slots, y_stride]
  __nv_bfloat16* y_bf16 = nullptr;  // in place of y, of Output::store, where x are no halves
  int64_t y_stride = 0;
  Output output = Output::store;
  bool relu2 = false;
  const float* gate = nullptr;  // [slots, y_stride]
  // In place of y, of Output::activate with relu2: halves where writes_halves(), else what x is, E4M3 of one scale.
  HalvesOut halves;
};

// Vectors that a block multiplies; 0: this device or format has only matmul.h.
int gemm_tokens(Format format, const Launch& launch);
bool writes_halves(Format format, const Launch& launch);
// Whether this device multiplies weights as they lie: sm_90a does. And what vectors of their kind a matrix can meet so,
// BF16 or F8_E4M3 in rows of 16-byte chunks; halves: none. Of experts all begin at 16 bytes, as whatever CudaBackend
// places does.
bool has_same_kind();
Vectors same_kind(const Matrix& matrix, Format format);
int same_kind_tokens();  // as gemm_tokens()
// Brings `rows` of `out` to one power each, and says which.
void level_halves(const HalvesOut& out, int rows, const Launch& launch);
// x of `op` as halves in `order`, or as out.kind says; op.out, op.bf16, op.order and op.tile_count are not looked at.
void prepare_halves(const Prepare& op, uint8_t order, const Halves& out, const Launch& launch);
// combine_experts() (kernels.h) of results that were stored as BF16.
void combine_experts(const __nv_bfloat16* y, const int32_t* slot, const float* weights, int num_tokens, int per_token,
                     int width, bool add, float* x, const Launch& launch);
// `tiles` of experts; without experts tiles follow from slots.
void multiply_many(Format format, const Gemm& op, int tiles, const Launch& launch);
void multiply_same_kind(const Gemm& op, int tiles, const Launch& launch);  // the same of vectors that are no halves

}  // namespace proa::cuda
