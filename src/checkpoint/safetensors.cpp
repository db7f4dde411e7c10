#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "checkpoint/json_events.h"
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

class HeaderEvents final : public JsonEvents {
 public:
  HeaderEvents(std::span<const std::byte> data, const std::string& file, size_t memory)
      : data_(data), file_(file), memory_(memory) {}

  std::map<std::string, TensorEntry, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;

  bool key(std::string& name) override {
    if (place_ == Place::tensor) {
      field_ = std::move(name);
    } else if (place_ != Place::ignored) {
      name_ = std::move(name);
    }
    return true;
  }

  bool start_object(size_t /*count*/) override {
    switch (place_) {
      case Place::start:
        place_ = Place::header;
        return true;
      case Place::header:
        if (name_ == "__metadata__") {
          if (have_metadata_) return fail(wrong("one __metadata__", "two"));
          have_metadata_ = true;
          place_ = Place::metadata;
          return true;
        }
        place_ = Place::tensor;
        entry_ = {.name = name_, .file = file_};
        have_dtype_ = have_shape_ = have_offsets_ = false;
        return true;
      default:
        return start_nested();
    }
  }

  bool end_object() override {
    switch (place_) {
      case Place::tensor:
        place_ = Place::header;
        return end_tensor();
      case Place::metadata:
        place_ = Place::header;
        return true;
      default:
        return end_nested();
    }
  }

  bool start_array(size_t /*count*/) override {
    if (place_ == Place::start) return scalar({});
    if (place_ == Place::tensor && field_ == "shape") {
      if (have_shape_) return fail(wrong("each field once", "shape twice"));
      have_shape_ = true;
      place_ = Place::shape;
      return true;
    }
    if (place_ == Place::tensor && field_ == "data_offsets") {
      if (have_offsets_) return fail(wrong("each field once", "data_offsets twice"));
      have_offsets_ = true;
      num_offsets_ = 0;
      offsets_text_.clear();
      place_ = Place::offsets;
      return true;
    }
    return start_nested();
  }

  bool end_array() override {
    if (place_ == Place::shape) {
      place_ = Place::tensor;
      return true;
    }
    if (place_ == Place::offsets) {
      place_ = Place::tensor;
      return num_offsets_ == 2 || bad_offsets("");
    }
    return end_nested();
  }

  bool scalar(const JsonScalar& value) override {
    switch (place_) {
      case Place::start:
        return fail({.doing = "read safetensors header",
                     .where = file_,
                     .expected = "a JSON object",
                     .actual = "another type",
                     .hint = {}});
      case Place::header:
        return fail(wrong(name_ == "__metadata__" ? "an object of strings" : "an object", "another type"));
      case Place::metadata:
        if (!value.is_string()) {
          name_ = "__metadata__";
          return fail(wrong("an object of strings", "another type"));
        }
        if (metadata.size() == kMaxMetadata) {
          name_ = "__metadata__";
          return fail(wrong("at most " + std::to_string(kMaxMetadata) + " strings", "more"));
        }
        metadata.insert_or_assign(std::move(name_), std::string(value.text));
        return true;
      case Place::tensor:
        return field(value);
      case Place::shape:
        if (!value.number || *value.number > std::numeric_limits<int64_t>::max()) {
          return fail(wrong("sizes that are integers of at least 0", std::string(value.text)));
        }
        if (entry_.shape.size() == kMaxDims) {
          return fail(wrong("at most " + std::to_string(kMaxDims) + " dimensions", "more"));
        }
        entry_.shape.push_back(static_cast<int64_t>(*value.number));
        return true;
      case Place::offsets:
        if (!value.number || num_offsets_ == 2) return bad_offsets(value.text);
        offsets_[num_offsets_++] = *value.number;
        offsets_text_ += (offsets_text_.empty() ? "" : ",") + std::string(value.text);
        return true;
      case Place::ignored:
        return true;
    }
    return true;
  }

  // The format demands that the data are covered by the tensors without overlap and without a gap.
  Result<void> check_coverage() const {
    std::vector<const TensorEntry*> order;
    order.reserve(tensors.size());
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
  enum class Place { start, header, metadata, tensor, shape, offsets, ignored };
  static constexpr size_t kMaxDims = 16, kMaxMetadata = 10'000;

  Error wrong(std::string expected, std::string actual, std::string hint = "") const {
    return error(name_, std::move(expected), std::move(actual), std::move(hint));
  }

  // A container where none belongs, or as the value of a field of the future, which is passed over.
  bool start_nested() {
    const bool known = field_ == "dtype" || field_ == "shape" || field_ == "data_offsets";
    if (place_ == Place::tensor && !known) {
      place_ = Place::ignored;
      ignored_depth_ = 1;
      return true;
    }
    if (place_ == Place::ignored) {
      ++ignored_depth_;
      return true;
    }
    if (place_ == Place::offsets) return bad_offsets("[");
    return scalar({.kind = JsonScalar::Kind::null, .text = "a list or object", .number = {}});
  }

  bool end_nested() {
    if (place_ == Place::ignored && --ignored_depth_ == 0) place_ = Place::tensor;
    return true;
  }

  bool bad_offsets(std::string_view next) {
    std::string text = "[" + offsets_text_;
    if (!next.empty()) text += (offsets_text_.empty() ? "" : ",") + std::string(next);
    return fail(wrong("data_offsets as two integers of at least 0", text + (next.empty() ? "]" : "...")));
  }

  bool field(const JsonScalar& value) {
    if (field_ == "dtype") {
      if (have_dtype_) return fail(wrong("each field once", "dtype twice"));
      if (!value.is_string()) return fail(wrong("dtype as a string", "another type"));
      have_dtype_ = true;
      entry_.type = value.text;
    } else if (field_ == "shape") {
      return fail(have_shape_ ? wrong("each field once", "shape twice") : wrong("shape as an array", "another type"));
    } else if (field_ == "data_offsets") {
      if (have_offsets_) return fail(wrong("each field once", "data_offsets twice"));
      return fail(wrong("data_offsets as two integers of at least 0", std::string(value.text)));
    }
    return true;
  }

  bool end_tensor() {
    if (!have_dtype_ || !have_shape_ || !have_offsets_) {
      return fail(wrong("dtype, shape and data_offsets", !have_dtype_   ? "no dtype"
                                                         : !have_shape_ ? "no shape"
                                                                        : "no data_offsets"));
    }
    const auto [begin, end] = offsets_;
    if (begin > end || end > data_.size()) {
      return fail(wrong("data_offsets within the " + std::to_string(data_.size()) + " bytes of data",
                        "[" + std::to_string(begin) + ", " + std::to_string(end) + "]",
                        begin > end ? "" : "the file may be truncated"));
    }
    entry_.data = data_.data() + begin;
    entry_.bytes = end - begin;
    entry_.format = format_from_safetensors(entry_.type);

    int64_t elements = 1;
    for (int64_t size : entry_.shape) {
      if (__builtin_mul_overflow(elements, size, &elements)) {
        return fail(wrong("a shape whose product fits 64 bits", to_string(entry_.shape)));
      }
    }
    if (const auto bits = dtype_bits(entry_.type)) {
      uint64_t total_bits = 0;
      if (__builtin_mul_overflow(static_cast<uint64_t>(elements), *bits, &total_bits) || total_bits % 8 != 0 ||
          total_bits / 8 != entry_.bytes) {
        return fail(wrong("the bytes of " + printable(entry_.type) + " " + to_string(entry_.shape),
                          std::to_string(entry_.bytes) + " bytes"));
      }
    }
    const size_t needed = Safetensors::entry_memory(name_.size());
    if (needed > memory_) return fail(wrong("fewer tensors in a file of this size", "more"));
    memory_ -= needed;
    entry_.shape.shrink_to_fit();
    if (!tensors.emplace(name_, std::move(entry_)).second) return fail(wrong("each tensor once", "its name twice"));
    return true;
  }

  std::span<const std::byte> data_;
  const std::string& file_;
  size_t memory_;  // that is left for entries
  Place place_ = Place::start;
  std::string name_, field_;  // the key of the header, the key within a tensor
  TensorEntry entry_;
  bool have_metadata_ = false, have_dtype_ = false, have_shape_ = false, have_offsets_ = false;
  std::array<uint64_t, 2> offsets_{};
  size_t num_offsets_ = 0;
  std::string offsets_text_;  // of those before, for messages
  int ignored_depth_ = 0;
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

  HeaderEvents events(bytes.subspan(length), name, max_memory(bytes.size()));
  // Three levels are all that the format has.
  if (const auto read = parse_json_events({text, length}, name, {.depth = 8}, events); !read.ok()) {
    Error problem = read.error();
    problem.doing = "read safetensors header";
    return problem;
  }
  PROA_TRY(events.check_coverage());
  Safetensors safetensors;
  safetensors.path_ = name;
  safetensors.file_bytes_ = sizeof(length) + bytes.size();
  safetensors.tensors_ = std::move(events.tensors);
  safetensors.metadata_ = std::move(events.metadata);
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
