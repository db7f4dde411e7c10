// A weight matrix as a kernel sees it: where its bytes are and how to read them. Owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"
#include "quant/formats.h"

namespace proa {

// Order of a weight's bytes. `stored` is the checkpoint's own order and always works; `proa pack` may write others.
enum class Layout : uint8_t { stored };

// Memory the bytes lie in. On unified memory a mapped file is `device` as well.
enum class Residency : uint8_t { host, device };

struct Weight {  // [rows, cols], y = W x with x [cols], y [rows]
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  size_t row_stride = 0;  // bytes from one row to the next
  Format format{};
  Layout layout = Layout::stored;
  Residency residency = Residency::host;

  explicit operator bool() const { return data != nullptr; }
  const std::byte* row(int64_t r) const { return data + static_cast<size_t>(r) * row_stride; }
  // Rows [begin, end) of the same matrix: how a weight is shared out among devices.
  Weight row_range(int64_t begin, int64_t end) const {
    Weight part = *this;
    part.data = row(begin);
    part.rows = end - begin;
    return part;
  }
};

// A matrix of a checkpoint in host memory, used where it lies. `tensor` is [rows, cols], or [rows, 1, cols] squeezed.
Weight wrap(const Tensor& tensor);

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

  Weight expert(int64_t e) const { return {data[e], rows, cols, row_stride, format, layout, residency}; }
};

}  // namespace proa
