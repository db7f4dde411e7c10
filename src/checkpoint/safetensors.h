// Reader of one safetensors file. Source: the format section of the safetensors README (u64 header length, JSON header
// of name -> dtype, shape, data_offsets, then the data). Knows no model; every number in the header is checked.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "checkpoint/tensor_entry.h"
#include "core/mapped_file.h"
#include "core/result.h"

namespace proa {

class Safetensors {
 public:
  static constexpr size_t kMaxHeaderBytes = 100'000'000;  // the official library's limit
  // Of all shards of a checkpoint; the largest of the family has 170,000.
  static constexpr size_t kMaxTensors = 200'000;

  // What an entry takes in memory until a model is open, some four copies of its name among it, and what all entries of
  // files of this size may take. Tensors with data are far below; a small file can describe very many without.
  static constexpr size_t entry_memory(size_t name_bytes) { return 640 + 4 * name_bytes; }
  static constexpr size_t max_memory(size_t file_bytes) { return (size_t{48} << 20) + file_bytes / 2; }

  // Maps the file. Errors name the file and the tensor whose description is wrong: bounds, overlap, size that is not
  // shape x dtype, duplicate names. A dtype without a Format is an entry like any other; only using it is an error.
  static Result<Safetensors> open(const std::string& path);

  // The same on bytes that the caller keeps alive; `name` stands for the path in messages.
  static Result<Safetensors> parse(std::span<const std::byte> bytes, const std::string& name);

  const std::string& path() const { return path_; }
  size_t file_bytes() const { return file_bytes_; }
  const std::map<std::string, TensorEntry, std::less<>>& tensors() const { return tensors_; }
  const TensorEntry* find(std::string_view name) const;  // nullptr: not there
  Result<Tensor> tensor(std::string_view name) const;    // valid while this object lives
  // All entries, for an owner that keeps this object for its mapping alone.
  std::map<std::string, TensorEntry, std::less<>> take_tensors() { return std::move(tensors_); }

  // The strings of "__metadata__".
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }

 private:
  std::string path_;
  size_t file_bytes_ = 0;
  std::optional<MappedFile> file_;
  std::map<std::string, TensorEntry, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

}  // namespace proa
