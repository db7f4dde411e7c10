#include "checkpoint/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <cstring>

#include "checkpoint/printable.h"
#include "quant/formats.h"

namespace proa {
namespace {

// Bits per value of the dtypes the format knows; none for others.
std::optional<uint64_t> dtype_bits(std::string_view dtype) {
  static constexpr struct {
    std::string_view dtype;
    uint64_t bits;
  } kTypes[] = {{"BOOL", 8},    {"U8", 8},   {"I8", 8},      {"F8_E4M3", 8}, {"F8_E5M2", 8},
                {"F8_E8M0", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U16", 16},
                {"I16", 16},    {"F16", 16}, {"BF16", 16},   {"U32", 32},    {"I32", 32},
                {"F32", 32},    {"U64", 64}, {"I64", 64},    {"F64", 64},    {"C64", 64}};
  for (const auto& type : kTypes) {
    if (type.dtype == dtype) return type.bits;
  }
  return std::nullopt;
}

class HeaderReader {
 public:
  HeaderReader(std::span<const std::byte> data, const std::string& file) : data_(data), file_(file) {}

  Result<TensorEntry> entry(std::string_view name, simdjson::dom::element value) const {
    TensorEntry entry{.name = std::string(name), .file = file_};
    simdjson::dom::object fields;
    if (value.get(fields) != simdjson::SUCCESS) return error(name, "an object", "another type");

    bool have_dtype = false, have_shape = false, have_offsets = false;
    uint64_t offsets[2] = {};
    for (auto [key, field] : fields) {
      bool& have = key == "dtype" ? have_dtype : key == "shape" ? have_shape : have_offsets;
      if (key != "dtype" && key != "shape" && key != "data_offsets") continue;
      if (have) return error(name, "each field once", std::string(key) + " twice");
      have = true;
      if (key == "dtype") {
        std::string_view dtype;
        if (field.get(dtype) != simdjson::SUCCESS) return error(name, "dtype as a string", "another type");
        entry.type = dtype;
      } else if (key == "shape") {
        simdjson::dom::array sizes;
        if (field.get(sizes) != simdjson::SUCCESS) return error(name, "shape as an array", "another type");
        for (simdjson::dom::element size : sizes) {
          int64_t number = 0;
          if (size.get(number) != simdjson::SUCCESS || number < 0) {
            return error(name, "sizes that are integers of at least 0", simdjson::minify(size));
          }
          entry.shape.push_back(number);
        }
      } else {
        simdjson::dom::array ends;
        if (field.get(ends) != simdjson::SUCCESS || ends.size() != 2 ||
            ends.at(0).get(offsets[0]) != simdjson::SUCCESS || ends.at(1).get(offsets[1]) != simdjson::SUCCESS) {
          return error(name, "data_offsets as two integers of at least 0", simdjson::minify(field));
        }
      }
    }
    if (!have_dtype || !have_shape || !have_offsets) {
      return error(name, "dtype, shape and data_offsets",
                   !have_dtype   ? "no dtype"
                   : !have_shape ? "no shape"
                                 : "no data_offsets");
    }
    const auto [begin, end] = offsets;
    if (begin > end || end > data_.size()) {
      return error(name, "data_offsets within the " + std::to_string(data_.size()) + " bytes of data",
                   "[" + std::to_string(begin) + ", " + std::to_string(end) + "]",
                   begin > end ? "" : "the file may be truncated");
    }
    entry.data = data_.data() + begin;
    entry.bytes = end - begin;
    entry.format = format_from_safetensors(entry.type);

    int64_t elements = 1;
    for (int64_t size : entry.shape) {
      if (__builtin_mul_overflow(elements, size, &elements)) {
        return error(name, "a shape whose product fits 64 bits", to_string(entry.shape));
      }
    }
    if (const auto bits = dtype_bits(entry.type)) {
      uint64_t total_bits = 0;
      if (__builtin_mul_overflow(static_cast<uint64_t>(elements), *bits, &total_bits) || total_bits % 8 != 0 ||
          total_bits / 8 != entry.bytes) {
        return error(name, "the bytes of " + entry.type + " " + to_string(entry.shape),
                     std::to_string(entry.bytes) + " bytes");
      }
    }
    return entry;
  }

  // The format demands that the data are covered by the tensors without overlap and without a gap.
  Result<void> check_coverage(const std::map<std::string, TensorEntry, std::less<>>& tensors) const {
    std::vector<const TensorEntry*> order;
    for (const auto& [name, entry] : tensors) order.push_back(&entry);
    std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
      return std::pair(a->data, a->bytes) < std::pair(b->data, b->bytes);
    });
    const std::byte* end = data_.data();
    for (const TensorEntry* entry : order) {
      if (entry->data != end) {
        return error(entry->name, "data that begin where the tensor before ends",
                     entry->data < end ? "an overlap" : "a gap");
      }
      end = entry->data + entry->bytes;
    }
    const size_t used = static_cast<size_t>(end - data_.data());
    if (used != data_.size()) {
      return Error{.doing = "read safetensors",
                   .where = file_,
                   .expected = std::to_string(used) + " bytes of data",
                   .actual = std::to_string(data_.size())};
    }
    return {};
  }

  Error error(std::string_view name, std::string expected, std::string actual, std::string hint = "") const {
    return {.doing = "read safetensors header",
            .where = file_ + ": " + printable(name),
            .expected = std::move(expected),
            .actual = printable(actual),
            .hint = std::move(hint)};
  }

 private:
  std::span<const std::byte> data_;
  const std::string& file_;
};

}  // namespace

Result<Safetensors> Safetensors::open(const std::string& path) {
  PROA_ASSIGN(MappedFile file, MappedFile::open(path));
  PROA_ASSIGN(Safetensors safetensors, parse(file.bytes(), path));
  safetensors.file_ = std::move(file);
  return safetensors;
}

Result<Safetensors> Safetensors::parse(std::span<const std::byte> bytes, const std::string& name) {
  const auto error = [&](std::string expected, std::string actual) {
    return Error{.doing = "read safetensors header",
                 .where = name,
                 .expected = std::move(expected),
                 .actual = std::move(actual)};
  };
  uint64_t length = 0;
  if (bytes.size() < sizeof(length)) return error("at least 8 bytes", std::to_string(bytes.size()));
  std::memcpy(&length, bytes.data(), sizeof(length));
  bytes = bytes.subspan(sizeof(length));
  if (length > kMaxHeaderBytes) {
    return error("a header of at most " + std::to_string(kMaxHeaderBytes) + " bytes", std::to_string(length));
  }
  if (length > bytes.size()) {
    return error("a header of " + std::to_string(length) + " bytes", "a file with " + std::to_string(bytes.size()));
  }
  const char* text = reinterpret_cast<const char*>(bytes.data());
  if (length == 0 || text[0] != '{') return error("a JSON object", length == 0 ? "nothing" : "other text");

  simdjson::dom::parser parser;
  simdjson::dom::object header;
  // Three levels are all that the format has; the parser copies the text into a padded buffer.
  if (parser.allocate(length, 8) != simdjson::SUCCESS) return error("memory for the header", std::to_string(length));
  if (auto code = parser.parse(text, length).get(header); code != simdjson::SUCCESS) {
    return error("a JSON object", simdjson::error_message(code));
  }

  Safetensors safetensors;
  safetensors.path_ = name;
  const HeaderReader reader(bytes.subspan(length), name);
  for (auto [key, value] : header) {
    if (key == "__metadata__") {
      simdjson::dom::object metadata;
      if (value.get(metadata) != simdjson::SUCCESS) return reader.error(key, "an object of strings", "another type");
      for (auto [field, text_value] : metadata) {
        std::string_view string;
        if (text_value.get(string) != simdjson::SUCCESS)
          return reader.error(key, "an object of strings", "another type");
        safetensors.metadata_.insert_or_assign(std::string(field), std::string(string));
      }
      continue;
    }
    PROA_ASSIGN(TensorEntry entry, reader.entry(key, value));
    if (!safetensors.tensors_.emplace(std::string(key), std::move(entry)).second) {
      return reader.error(key, "each tensor once", "its name twice");
    }
  }
  PROA_TRY(reader.check_coverage(safetensors.tensors_));
  return safetensors;
}

const TensorEntry* Safetensors::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Result<Tensor> Safetensors::tensor(std::string_view name) const {
  if (const TensorEntry* entry = find(name)) return to_tensor(*entry);
  return Error{.doing = "use tensor", .where = path_ + ": " + printable(name), .actual = "no such tensor"};
}

}  // namespace proa
