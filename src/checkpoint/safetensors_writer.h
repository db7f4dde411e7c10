// Writes a safetensors file from memory: fixtures of tests, and files of a size that fits in memory.
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

// Tensors appear in the order in which they were put; the header is padded with spaces so that data start at a multiple
// of 8 bytes.
class SafetensorsWriter {
 public:
  void put_metadata(std::string_view key, std::string_view value);

  // The format must have a safetensors dtype.
  void put_tensor(std::string_view name, std::span<const int64_t> shape, Format format,
                  std::span<const std::byte> data);
  // Values [shape] in row order, encoded to the format.
  void put_tensor(std::string_view name, std::span<const int64_t> shape, Format format, std::span<const float> values);
  void put_raw_tensor(std::string_view name, std::span<const int64_t> shape, std::string_view dtype,
                      std::span<const std::byte> data);

  // A tensor whose data are left out: for header(), where somebody else writes them.
  void declare_tensor(std::string_view name, std::span<const int64_t> shape, std::string_view dtype, uint64_t size);

  std::vector<std::byte> bytes() const;
  Result<void> write(const std::string& path) const;

  // What stands before the data. There the tensors lie one after the other, in their order, without gaps.
  std::vector<std::byte> header() const;

 private:
  std::string metadata_, tensors_;  // members of JSON objects: "name":value,"name":value
  uint64_t size_ = 0;
  std::vector<std::byte> data_;
};

}  // namespace proa
