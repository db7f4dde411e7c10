// Reader of a GGUF model, versions 2 and 3, little-endian, in one file or split into parts. Source: include/gguf.h of
// ggml. Knows no model; every count, length and offset is checked against the file before it is used. Metadata are
// views into the mapping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_entry.h"
#include "core/mapped_file.h"
#include "core/result.h"

namespace proa {

enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

std::string_view to_string(GgufType type);  // "u32", "string", ...

// The strings of a string array, read in place: for (std::string_view token : strings). Bounds were checked when the
// file was opened. Access by index would be O(n): copy into a vector where that is needed.
class GgufStrings {
 public:
  class iterator {
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = std::string_view;
    using difference_type = std::ptrdiff_t;
    using pointer = void;
    using reference = std::string_view;

    iterator() = default;
    std::string_view operator*() const;
    iterator& operator++();
    iterator operator++(int) {
      iterator before = *this;
      ++*this;
      return before;
    }
    bool operator==(const iterator& other) const = default;

   private:
    friend class GgufStrings;
    explicit iterator(const std::byte* at) : at_(at) {}
    const std::byte* at_ = nullptr;
  };

  GgufStrings() = default;
  GgufStrings(std::span<const std::byte> bytes, size_t count) : bytes_(bytes), count_(count) {}

  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  iterator begin() const { return iterator(bytes_.data()); }
  iterator end() const { return iterator(bytes_.data() + bytes_.size()); }

 private:
  std::span<const std::byte> bytes_;  // u64 length + text, repeated
  size_t count_ = 0;
};

// One metadata value: a scalar, a string, or an array of either (arrays of arrays are refused on opening).
struct GgufValue {
  GgufType type{};                   // GgufType::array for arrays
  GgufType element{};                // element type of an array; otherwise equal to type
  uint64_t count = 1;                // elements
  std::span<const std::byte> bytes;  // the elements as stored, not aligned; of a scalar string its text

  bool is_array() const { return type == GgufType::array; }
  // Element `i` of an integer type (bools are 0 and 1); none when the element type is another one, or the value is a
  // u64 beyond int64.
  std::optional<int64_t> integer(size_t i = 0) const;
  // Element `i` of any number type but bool.
  std::optional<double> number(size_t i = 0) const;
};

// The name of a part: PREFIX-00002-of-00003.gguf. None: `path` is no such name.
struct GgufPartName {
  std::string prefix;   // with the folder
  uint32_t number = 1;  // from 1
  uint32_t count = 1;

  std::string path(uint32_t part) const;  // of part 1 to count
};
std::optional<GgufPartName> parse_gguf_part_name(std::string_view path);

class Gguf {
 public:
  static constexpr uint32_t kDefaultAlignment = 32;

  // Maps the file. Of a split model `path` is the first part; the others lie beside it and are mapped too. Errors of a
  // split model: another part was given, parts are missing (all are listed), a part that belongs elsewhere, a tensor in
  // two parts, another number of tensors than split.tensors.count.
  static Result<Gguf> open(const std::string& path);

  // One file, or one part with its own tensors only, from bytes that the caller keeps alive; `name` stands for the path
  // in messages.
  static Result<Gguf> parse(std::span<const std::byte> bytes, const std::string& name);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }

  const std::map<std::string, TensorEntry, std::less<>>& tensors() const { return tensors_; }
  const TensorEntry* find(std::string_view name) const;  // nullptr: not there
  Result<Tensor> tensor(std::string_view name) const;    // valid while this object lives

  // All metadata, ordered by key. Views live as long as this object.
  const std::map<std::string_view, GgufValue>& metadata() const { return metadata_; }
  bool has(std::string_view key) const { return metadata_.contains(key); }

  // Typed values. Errors name file, key, the expected and the found type or value. Integers are taken from any integer
  // type that holds a value in range, floats from f32, f64 and integers. With a fallback a missing key is no error; a
  // wrong type still is one.
  Result<uint32_t> u32(std::string_view key, std::optional<uint32_t> fallback = {}) const;
  Result<int64_t> i64(std::string_view key, std::optional<int64_t> fallback = {}) const;
  Result<float> f32(std::string_view key, std::optional<float> fallback = {}) const;
  Result<bool> boolean(std::string_view key, std::optional<bool> fallback = {}) const;
  Result<std::string_view> string(std::string_view key, std::optional<std::string_view> fallback = {}) const;

  // Arrays. strings() reads in place; the others copy.
  Result<GgufStrings> strings(std::string_view key) const;
  Result<std::vector<int64_t>> integers(std::string_view key) const;  // any integer type, or bool as 0 and 1
  Result<std::vector<float>> floats(std::string_view key) const;
  // A value per layer: an array of exactly `count` integers, or one integer that holds for all.
  Result<std::vector<uint32_t>> u32_per_layer(std::string_view key, size_t count) const;

 private:
  Error type_error(std::string_view key, std::string expected) const;
  Result<void> join_parts(uint32_t count);

  std::string path_;
  std::vector<MappedFile> files_;  // the first holds the metadata; none after parse()
  uint32_t version_ = 0;
  std::map<std::string_view, GgufValue> metadata_;
  std::map<std::string, TensorEntry, std::less<>> tensors_;
};

}  // namespace proa
