// What the tables of cases share: reproducible random inputs, weights of any format, poisoned outputs, the error
// measure and its bound. Arrays end exactly where they should, so that a sanitizer sees a kernel that reads past them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "backends/backends.h"
#include "ops/staged_test.h"
#include "ops/weight.h"

namespace proa::testing {

// `count` values of T, `offset` elements past a 64-byte boundary: 0 is aligned, 1 as misaligned as T can be. A copy is
// aligned.
template <typename T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t count, int offset = 0) : offset_(offset), count_(count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<size_t>(count + offset) * sizeof(T)) != 0) std::abort();
    memory_.reset(static_cast<T*>(memory));
    std::memset(memory, 0, static_cast<size_t>(count + offset) * sizeof(T));
  }
  Array(const Array& other) : Array(other.count_) { std::copy(other.begin(), other.end(), begin()); }
  Array(Array&&) = default;
  Array& operator=(Array&&) = default;

  T* data() { return memory_.get() + offset_; }
  const T* data() const { return memory_.get() + offset_; }
  int64_t size() const { return count_; }
  T* begin() { return data(); }
  T* end() { return data() + count_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + count_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t offset_ = 0;
  int64_t count_ = 0;
};

using Floats = Array<float>;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  float normal() { return normal_(engine_); }
  int below(int n) { return static_cast<int>(engine_() % static_cast<uint64_t>(n)); }

  Floats normals(int64_t count, float scale = 1, int offset = 0) {
    Floats values(count, offset);
    for (float& value : values) value = scale * normal();
    return values;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

// An output nobody has written: a kernel that leaves or reads a value shows as NaN.
inline Floats poisoned(int64_t count, int offset = 0) {
  Floats values(count, offset);
  for (float& value : values) value = std::numeric_limits<float>::quiet_NaN();
  return values;
}

// `size` up to whole blocks of the format: rows of every format in the tables.
inline int whole_blocks(Format format, int size) {
  const int block = info(format).block_elements;
  return (size + block - 1) / block * block;
}

// A matrix with its bytes. Rows are scaled so that W · x has the RMS of x. `offset` moves the bytes by so many blocks'
// alignments from a 64-byte boundary; `padding` bytes stand between rows (a multiple of the block's alignment).
struct TestWeight {
  Array<std::byte> bytes;
  Weight weight;

  TestWeight() = default;
  TestWeight(Random& random, Format format, int64_t rows, int64_t cols, int offset = 0, size_t padding = 0) {
    const size_t stride = row_bytes(format, cols) + padding;
    const size_t size = rows == 0 ? 1 : static_cast<size_t>(rows) * stride - padding;
    bytes = Array<std::byte>(static_cast<int64_t>(size), offset * static_cast<int>(info(format).block_alignment));
    weight = {.data = bytes.data(), .rows = rows, .cols = cols, .row_stride = stride, .format = format};
    // Formats that need scales have them as checkpoints do.
    if (format == Format::E2M1) add_scales(Format::F8_E4M3, 16);
    if (format == Format::F8_E4M3) add_scales(Format::F32, cols);
    if (format == Format::NVFP4 || weight.scales) weight.scale = 0.0013f * static_cast<float>(1 + random.below(5));
    for (int64_t r = 0; r < rows; ++r) {
      Floats row = random.normals(cols, 1 / std::sqrt(static_cast<float>(cols)));
      for (float& value : row) value /= weight.scale;
      if (weight.scales) scale_row(r, row);
      encode_row(format, row.data(), cols, bytes.data() + static_cast<size_t>(r) * stride);
    }
  }

 private:
  Array<std::byte> scales_;

  void add_scales(Format format, int64_t group) {
    const size_t stride = row_bytes(format, (weight.cols + group - 1) / group);
    scales_ = Array<std::byte>(std::max<int64_t>(1, weight.rows * static_cast<int64_t>(stride)));
    weight.scales = {scales_.data(), stride, format, group};
  }

  // Gives each group of row r the scale that makes its largest value 6, the most that E2M1 holds.
  void scale_row(int64_t r, Floats& row) {
    const Scales& scales = weight.scales;
    for (int64_t begin = 0; begin < weight.cols; begin += scales.group) {
      const int64_t end = std::min(weight.cols, begin + scales.group);
      float amax = 0;
      for (int64_t c = begin; c < end; ++c) amax = std::max(amax, std::abs(row[c]));
      std::byte* stored =
          scales_.data() + (scales.row(r) - scales.data) + row_bytes(scales.format, begin / scales.group);
      float scale = amax / 6;
      encode_row(scales.format, &scale, 1, stored);
      decode_row(scales.format, stored, 1, &scale);
      for (int64_t c = begin; c < end; ++c) row[c] = scale == 0 ? 0 : row[c] / scale;
    }
  }
};

// One matrix per expert, each in memory of its own.
struct TestExperts {
  std::vector<TestWeight> matrices;
  ExpertTables tables;
  ExpertWeights weights;

  TestExperts(Random& random, Format format, int count, int64_t rows, int64_t cols, int offset = 0) {
    for (int e = 0; e < count; ++e) matrices.emplace_back(random, format, rows, cols, offset);
    std::vector<Weight> experts;
    for (const TestWeight& matrix : matrices) experts.push_back(matrix.weight);
    weights = tables.assign(experts);
  }
};

// ‖out − expected‖ / ‖expected‖; NaN counts as infinite. 0 for empty arrays.
inline double relative_error(std::span<const float> out, std::span<const float> expected) {
  EXPECT_EQ(out.size(), expected.size());
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double{out[i]} - expected[i], 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

// What F32 sums of `terms` products may differ from exact ones, relative to the norm of the result. Rounding partial
// sums of random terms is a random walk whose RMS is u · sqrt(terms) · 0.4 with u = 2^-24; inputs and result add a few
// u. The bound is five times that: never reached by chance, and far below any wrong term.
inline double sum_bound(int64_t terms) { return 0x1p-24 * (8 + 2 * std::sqrt(static_cast<double>(terms))); }

// Calls f(backend) for each backend of this machine, with its name in every failure message.
template <typename F>
void on_all_backends(const std::string& case_name, F&& f) {
  static const std::vector<std::unique_ptr<Backend>> backends = op_backends();
  for (const auto& backend : backends) {
    SCOPED_TRACE(case_name + " on " + std::string(backend->name()) + ", " + std::string(backend->description()));
    f(*backend);
  }
}

}  // namespace proa::testing
