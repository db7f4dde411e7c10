// A weight matrix as a kernel sees it: where its bytes are and how to read them. Owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "quant/formats.h"

namespace proa {

// Order of a weight's bytes. `stored` is the checkpoint's own order and always works; `proa pack` may write others.
enum class Layout : uint8_t { stored };

// Memory the bytes lie in. On unified memory a mapped file is `device` as well.
enum class Residency : uint8_t { host, device };

// Scales in a tensor of their own: value c of a row is multiplied with scale c / group of the same row. NVFP4 of
// ModelOpt is E2M1 with E4M3 scales of groups of 16, FP8 per channel is F8_E4M3 with one F32 scale per row.
struct Scales {
  const std::byte* data = nullptr;  // [rows, ceil(cols / group)]; null: none
  size_t row_stride = 0;            // bytes from one row to the next
  Format format{};                  // one without blocks
  int64_t group = 0;                // columns that share a scale

  explicit operator bool() const { return data != nullptr; }
  const std::byte* row(int64_t r) const { return data + static_cast<size_t>(r) * row_stride; }
};

// [rows, cols], y = W x with x [cols], y [rows]. A value is (stored value · its scale of `scales`) · `scale`.
struct Weight {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  size_t row_stride = 0;  // bytes from one row to the next
  Format format{};
  Layout layout = Layout::stored;
  Residency residency = Residency::host;
  Scales scales{};
  float scale = 1;  // of the whole matrix; a kernel may apply it to the result
  // What x is divided by before it becomes E4M3, on a backend that is told to round it so (Backend::quantises). 0: each
  // vector has a scale of its own, which makes its largest value 448.
  float input_scale = 0;

  explicit operator bool() const { return data != nullptr; }
  const std::byte* row(int64_t r) const { return data + static_cast<size_t>(r) * row_stride; }
  // Rows [begin, end) of the same matrix: how a weight is shared out among devices.
  Weight row_range(int64_t begin, int64_t end) const {
    Weight part = *this;
    part.data = row(begin);
    part.rows = end - begin;
    if (scales) part.scales.data = scales.row(begin);
    return part;
  }
};

// A matrix of a checkpoint in host memory, used where it lies. `tensor` is [rows, cols], or [rows, 1, cols] squeezed.
Weight wrap(const Tensor& tensor);

// Row r of a weight in host memory as floats, all scales applied. y: [cols].
void decode_row(const Weight& weight, int64_t r, float* y);

// Applies `scales` alone to the stored values of row r; nothing to do without them.
void apply_scales(const Weight& weight, int64_t r, float* y);

// One matrix per expert, all of one shape and format. A table of pointers, never one base pointer: experts may lie in
// different memories (offload, caches of hot experts) and checkpoints store them apart.
struct ExpertWeights {
  const std::byte* const* data = nullptr;  // [n_experts], each the first byte of a [rows, cols] matrix
  int64_t rows = 0;
  int64_t cols = 0;
  size_t row_stride = 0;
  Format format{};
  Layout layout = Layout::stored;
  Residency residency = Residency::host;
  Scales scales{};                                // but for `data`, which is in the table below
  const std::byte* const* scales_data = nullptr;  // [n_experts]; null: no scales
  const float* scale = nullptr;                   // [n_experts] of the whole matrices; null: 1
  float input_scale = 0;                          // the largest of theirs; 0: none has one

  Weight expert(int64_t e) const {
    Weight weight = {data[e], rows, cols, row_stride, format, layout, residency, scales};
    weight.scales.data = scales_data ? scales_data[e] : nullptr;
    if (scale) weight.scale = scale[e];
    weight.input_scale = input_scale;
    return weight;
  }
};

// What an ExpertWeights points to. Views stay valid when it is moved.
struct ExpertTables {
  std::vector<const std::byte*> data;    // [n_experts]
  std::vector<const std::byte*> scales;  // [n_experts]
  std::vector<float> scale;              // [n_experts]

  // The matrices given, which differ in nothing but where they lie and in `scale`: see alike(). The view is of host
  // memory; a device with memory of its own needs copies of its arrays.
  ExpertWeights assign(const std::vector<Weight>& experts);
};

// Whether two matrices can be experts of one ExpertWeights.
bool alike(const Weight& a, const Weight& b);

}  // namespace proa
