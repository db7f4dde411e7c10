// A tensor as everyone passes it: a view of stored bytes with a shape and a format. It owns nothing.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace proa {

// How a weight is stored. The list is quant/formats.h; here only the size is known, so that a new format touches one
// list and no header below it.
enum class Format : uint8_t;

// Sizes per dimension in PyTorch order: the last one is contiguous in memory. At most four; rank 0 is a scalar.
class Shape {
 public:
  static constexpr size_t kMaxRank = 4;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<int64_t> sizes)
      : Shape(std::span<const int64_t>(sizes.begin(), sizes.size())) {}
  constexpr explicit Shape(std::span<const int64_t> sizes) : rank_(static_cast<uint8_t>(sizes.size())) {
    assert(sizes.size() <= kMaxRank);
    for (size_t i = 0; i < sizes.size(); ++i) sizes_[i] = sizes[i];
  }

  constexpr size_t size() const { return rank_; }  // number of dimensions
  constexpr int64_t operator[](size_t i) const { return assert(i < rank_), sizes_[i]; }
  constexpr int64_t front() const { return (*this)[0]; }
  constexpr int64_t back() const { return (*this)[rank_ - 1u]; }
  constexpr const int64_t* begin() const { return sizes_; }
  constexpr const int64_t* end() const { return sizes_ + rank_; }

  // Product of all sizes; 1 for a scalar. Readers have checked that it fits.
  constexpr int64_t elements() const {
    int64_t product = 1;
    for (int64_t size : *this) product *= size;
    return product;
  }

  friend constexpr bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (size_t i = 0; i < a.rank_; ++i) {
      if (a.sizes_[i] != b.sizes_[i]) return false;
    }
    return true;
  }

 private:
  int64_t sizes_[kMaxRank] = {};
  uint8_t rank_ = 0;
};

// "[576, 192]", as error messages spell shapes.
inline std::string to_string(std::span<const int64_t> sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}
inline std::string to_string(const Shape& shape) { return to_string({shape.begin(), shape.end()}); }

// The bytes stay valid and unchanged as long as their owner (a Checkpoint, a device allocation) lives.
struct Tensor {
  const std::byte* data = nullptr;  // aligned for the format's block
  Shape shape;                      // in elements, also for block formats
  Format format{};
  size_t bytes = 0;  // rows() x row_bytes(format, cols()): rows follow each other without padding

  int64_t cols() const { return shape.size() == 0 ? 1 : shape.back(); }
  int64_t rows() const { return cols() == 0 ? 0 : shape.elements() / cols(); }

  // Part `index` along the first dimension: one expert of [num_experts, rows, cols], one row of [rows, cols].
  Tensor slice(int64_t index) const {
    assert(shape.size() >= 1 && index >= 0 && index < shape.front());
    const size_t part = bytes / static_cast<size_t>(shape.front());
    return {data + static_cast<size_t>(index) * part, Shape(std::span<const int64_t>(shape.begin() + 1, shape.end())),
            format, part};
  }
};

}  // namespace proa
