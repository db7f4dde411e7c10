// Writes a GGUF file (version 3, little-endian) from memory: fixtures of tests, and files of a size that fits in
// memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "core/tensor.h"

namespace proa {

// Keys and tensors appear in the order in which they were put. Nothing is checked for sense: a test may want nonsense.
class GgufWriter {
 public:
  explicit GgufWriter(uint32_t alignment = 32) : alignment_(alignment) {}

  void put_u32(std::string_view key, uint32_t value);
  void put_i32(std::string_view key, int32_t value);
  void put_u64(std::string_view key, uint64_t value);
  void put_f32(std::string_view key, float value);
  void put_bool(std::string_view key, bool value);
  void put_string(std::string_view key, std::string_view value);
  void put_i32s(std::string_view key, std::span<const int32_t> values);
  void put_f32s(std::string_view key, std::span<const float> values);
  void put_bools(std::string_view key, const std::vector<bool>& values);
  void put_strings(std::string_view key, std::span<const std::string> values);
  // Any key: `type` is the number of a GgufType, `value` what stands after it in the file.
  void put_raw(std::string_view key, uint32_t type, std::span<const std::byte> value);

  // `shape` in PyTorch order; the file gets it reversed.
  void put_tensor(std::string_view name, std::span<const int64_t> shape, Format format,
                  std::span<const std::byte> data);
  // Values [shape] in row order, encoded to the format; the last size must be whole blocks.
  void put_tensor(std::string_view name, std::span<const int64_t> shape, Format format, std::span<const float> values);
  void put_raw_tensor(std::string_view name, std::span<const int64_t> shape, uint32_t ggml_type,
                      std::span<const std::byte> data);

  // A tensor whose data are left out: for header(), where somebody else writes them.
  void declare_tensor(std::string_view name, std::span<const int64_t> shape, Format format);

  std::vector<std::byte> bytes() const;
  Result<void> write(const std::string& path) const;

  // What stands before the data, padded; data begin where it ends. There the tensors lie one after the other, in their
  // order, each from a multiple of alignment() on, and the file ends at such a multiple.
  std::vector<std::byte> header() const;
  uint32_t alignment() const { return alignment_; }

 private:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    uint32_t ggml_type;
    uint64_t size;
    std::vector<std::byte> data;  // none of a declared one
  };

  uint32_t alignment_;
  uint64_t num_keys_ = 0;
  std::vector<std::byte> metadata_;
  std::vector<Entry> tensors_;
};

// Values in row order, encoded row by row; values.size() is a multiple of cols, cols of whole blocks.
std::vector<std::byte> encode_tensor(Format format, int64_t cols, std::span<const float> values);

}  // namespace proa
