// The list of weight formats. A new format is one header like q4_1.h, included and named in PROA_FORMATS here; readers,
// writers and every backend's generic kernels then know it.
//
// A format is a struct with: name, ggml_type (-1: never in GGUF), safetensors_dtype (nullptr: never in safetensors),
// block_elements, Block (its layout on disk), decode(block, y) and the reference encode(x, block).
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/tensor.h"
#include "quant/bf16.h"
#include "quant/e2m1.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/f8_e4m3.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/nvfp4.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"

// clang-format off
#define PROA_FORMATS(X) \
  X(F32) X(F16) X(BF16) X(F8_E4M3) X(E2M1) \
  X(Q8_0) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(IQ4_NL) X(MXFP4) X(NVFP4) \
  X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_XS)
// clang-format on

namespace proa {

enum class Format : uint8_t {
#define PROA_FORMAT(T) T,
  PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT
};

// The value for a format struct: format_of<Q4_1> == Format::Q4_1.
template <class T>
inline constexpr Format format_of = [] { static_assert(sizeof(T) == 0, "not in PROA_FORMATS"); }();
#define PROA_FORMAT(T) \
  template <>          \
  inline constexpr Format format_of<T> = Format::T;
PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT

struct FormatInfo {
  std::string_view name;               // "Q4_1"
  int block_elements;                  // values per block; rows are whole blocks
  size_t block_bytes;                  // bytes per block
  size_t block_alignment;              // bytes
  int ggml_type;                       // -1: none
  std::string_view safetensors_dtype;  // empty: none
};

const FormatInfo& info(Format format);

// Every format, in the order of PROA_FORMATS.
#define PROA_FORMAT(T) Format::T,
inline constexpr Format kFormats[] = {PROA_FORMATS(PROA_FORMAT)};
#undef PROA_FORMAT

// Bytes of a row of `cols` values; cols must be a multiple of block_elements.
size_t row_bytes(Format format, int64_t cols);

std::optional<Format> format_from_name(std::string_view name);  // "Q4_1"
std::optional<Format> format_from_ggml(int ggml_type);
std::optional<Format> format_from_safetensors(std::string_view dtype);  // "BF16"

// Calls f(T{}) with T the struct of the format, so that one template serves all:
//   visit_format(weight.format, [&](auto format) { matmul<decltype(format)>(...); });
template <class F>
decltype(auto) visit_format(Format format, F&& f) {
  switch (format) {
#define PROA_FORMAT(T) \
  case Format::T:      \
    return f(T{});
    PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT
  }
  assert(false && "a format outside PROA_FORMATS");
  __builtin_unreachable();
}

// `row` holds row_bytes(format, cols) bytes, aligned for the block; `y` and `x` hold cols values.
void decode_row(Format format, const void* row, int64_t cols, float* y);
void encode_row(Format format, const float* x, int64_t cols, void* row);

}  // namespace proa
