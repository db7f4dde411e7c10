#include "checkpoint/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "checkpoint/printable.h"
#include "quant/formats.h"

namespace proa {
namespace {

constexpr uint32_t kMaxDims = 4;
// What is kept of a key or a tensor takes several times the bytes that it needs in a file, so there is an end to it.
constexpr uint64_t kMaxTensors = 16384, kMaxKeys = 65536;
constexpr size_t kMaxNameBytes = 256;
constexpr uint64_t kMaxCopied = 4u << 20;  // elements of an array that is not read in place

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// Bytes of one element; 0 for strings and arrays, whose length is in the file.
size_t element_bytes(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::string:
    case GgufType::array:
      return 0;
  }
  return 0;
}

// Names of the types of ggml that have no Format here, so that an error can say "Q4_K" instead of a number.
std::string ggml_type_name(uint32_t type) {
  static constexpr std::pair<uint32_t, const char*> kNames[] = {
      {6, "Q5_0"},   {7, "Q5_1"},   {9, "Q8_1"},     {10, "Q2_K"},   {11, "Q3_K"},    {12, "Q4_K"},  {13, "Q5_K"},
      {14, "Q6_K"},  {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"},
      {21, "IQ3_S"}, {22, "IQ2_S"}, {23, "IQ4_XS"},  {24, "I8"},     {25, "I16"},     {26, "I32"},   {27, "I64"},
      {28, "F64"},   {29, "IQ1_M"}, {34, "TQ1_0"},   {35, "TQ2_0"},  {39, "MXFP4"},   {40, "NVFP4"}};
  for (const auto& [number, name] : kNames) {
    if (number == type) return name;
  }
  return "ggml type " + std::to_string(type);
}

std::string describe(const GgufValue& value) {
  if (value.is_array()) return "array of " + std::to_string(value.count) + " " + std::string(to_string(value.element));
  if (value.type == GgufType::string) {
    return "string \"" + printable({reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size()}, 40) + "\"";
  }
  std::string text(to_string(value.type));
  if (const auto integer = value.integer()) return text + " " + std::to_string(*integer);
  if (const auto number = value.number()) return text + " " + std::to_string(*number);
  return text;
}

// Reads front to back; every read is checked against what is left.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  size_t at() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }

  // What is being read, for messages: "key general.name".
  void set_item(std::string item) { item_ = std::move(item); }

  Error error(std::string expected, std::string actual) const {
    return {.doing = "read GGUF",
            .where = file_ + ": offset " + std::to_string(at_) + (item_.empty() ? "" : ": " + item_),
            .expected = std::move(expected),
            .actual = std::move(actual)};
  }

  Result<std::span<const std::byte>> take(uint64_t count) {
    if (count > left()) {
      return error(std::to_string(count) + " more bytes", std::to_string(left()) + " until the end of the file");
    }
    const auto part = bytes_.subspan(at_, count);
    at_ += count;
    return part;
  }

  template <class T>
  Result<T> number() {
    PROA_ASSIGN(auto part, take(sizeof(T)));
    return load<T>(part.data());
  }

  Result<std::string_view> string() {
    PROA_ASSIGN(const uint64_t length, number<uint64_t>());
    PROA_ASSIGN(auto part, take(length));
    return std::string_view(reinterpret_cast<const char*>(part.data()), part.size());
  }

  // A count of items that take at least `least` bytes each: more than fit in the file is refused before any is read.
  Result<uint64_t> count(size_t least, const char* what, uint64_t most = std::numeric_limits<uint64_t>::max()) {
    PROA_ASSIGN(const uint64_t n, number<uint64_t>());
    if (n > left() / least) {
      return error("at most " + std::to_string(left() / least) + " " + what + " in a file of this size",
                   std::to_string(n));
    }
    if (n > most) return error("at most " + std::to_string(most) + " " + what, std::to_string(n));
    return n;
  }

  Result<GgufType> type() {
    PROA_ASSIGN(const uint32_t type, number<uint32_t>());
    if (type > static_cast<uint32_t>(GgufType::f64)) return error("a value type from 0 to 12", std::to_string(type));
    return static_cast<GgufType>(type);
  }

  Result<GgufValue> value() {
    GgufValue value;
    PROA_ASSIGN(value.type, type());
    value.element = value.type;
    if (value.type == GgufType::string) {
      PROA_ASSIGN(const std::string_view text, string());
      value.bytes = std::as_bytes(std::span(text));
      return value;
    }
    if (value.type == GgufType::array) {
      PROA_ASSIGN(value.element, type());
      if (value.element == GgufType::array) return error("an array of numbers or strings", "an array of arrays");
      const size_t least = value.element == GgufType::string ? 8 : element_bytes(value.element);
      PROA_ASSIGN(value.count, count(least, "elements"));
    }
    if (value.element == GgufType::string) {
      const size_t begin = at_;
      for (uint64_t i = 0; i < value.count; ++i) PROA_TRY(string());
      value.bytes = bytes_.subspan(begin, at_ - begin);
      return value;
    }
    PROA_ASSIGN(value.bytes, take(value.count * element_bytes(value.element)));
    if (value.element == GgufType::boolean) {
      for (std::byte b : value.bytes) {
        if (b > std::byte{1}) return error("a bool of 0 or 1", std::to_string(static_cast<int>(b)));
      }
    }
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& file_;
  size_t at_ = 0;
  std::string item_;
};

// A tensor's description, before the start of the data is known.
struct Described {
  TensorEntry entry;
  uint64_t offset;
};

Result<Described> read_tensor(Cursor& cursor, const std::string& file) {
  Described described;
  TensorEntry& entry = described.entry;
  entry.file = file;
  PROA_ASSIGN(const std::string_view name, cursor.string());
  if (name.size() > kMaxNameBytes) {
    return cursor.error("a name of at most " + std::to_string(kMaxNameBytes) + " bytes", std::to_string(name.size()));
  }
  entry.name = name;
  cursor.set_item("tensor " + printable(name));
  PROA_ASSIGN(const uint32_t num_dims, cursor.number<uint32_t>());
  if (num_dims > kMaxDims) return cursor.error("at most 4 dimensions", std::to_string(num_dims));
  int64_t elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    PROA_ASSIGN(const int64_t size, cursor.number<int64_t>());
    if (size < 0 || __builtin_mul_overflow(elements, size, &elements)) {
      return cursor.error("sizes of at least 0 whose product fits 64 bits", std::to_string(size));
    }
    entry.shape.push_back(size);
  }
  std::reverse(entry.shape.begin(), entry.shape.end());  // ne[0] is the contiguous one
  PROA_ASSIGN(const uint32_t type, cursor.number<uint32_t>());
  PROA_ASSIGN(described.offset, cursor.number<uint64_t>());

  if (type <= std::numeric_limits<int>::max()) entry.format = format_from_ggml(static_cast<int>(type));
  if (!entry.format) {
    entry.type = ggml_type_name(type);
    return described;
  }
  const FormatInfo& format = info(*entry.format);
  entry.type = format.name;
  const int64_t cols = entry.shape.empty() ? 1 : entry.shape.back();
  if (cols % format.block_elements != 0) {
    return cursor.error("rows of whole blocks of " + std::to_string(format.block_elements),
                        entry.type + " " + to_string(entry.shape));
  }
  if (__builtin_mul_overflow(static_cast<uint64_t>(elements / format.block_elements), format.block_bytes,
                             &entry.bytes)) {
    return cursor.error("a size that fits 64 bits", entry.type + " " + to_string(entry.shape));
  }
  return described;
}

// Gives each tensor its bytes in `data`: aligned, inside, and not shared with another one.
Result<void> place_tensors(std::vector<Described>& tensors, std::span<const std::byte> data, uint32_t alignment,
                           const std::string& file) {
  const auto error = [&](const TensorEntry& entry, std::string expected, std::string actual, std::string hint = "") {
    return Error{.doing = "read GGUF",
                 .where = file + ": tensor " + printable(entry.name),
                 .expected = std::move(expected),
                 .actual = std::move(actual),
                 .hint = std::move(hint)};
  };
  for (auto& [entry, offset] : tensors) {
    if (offset % alignment != 0) {
      return error(entry, "an offset that is a multiple of " + std::to_string(alignment), std::to_string(offset));
    }
    if (offset > data.size() || entry.bytes > data.size() - offset) {
      return error(entry, std::to_string(entry.bytes) + " bytes at offset " + std::to_string(offset),
                   std::to_string(data.size()) + " bytes of data", "the file may be truncated");
    }
    entry.data = data.data() + offset;
  }
  std::sort(tensors.begin(), tensors.end(), [](const Described& a, const Described& b) {
    return std::pair(a.offset, a.entry.bytes) < std::pair(b.offset, b.entry.bytes);
  });
  uint64_t end = 0;
  for (const auto& [entry, offset] : tensors) {
    if (entry.bytes == 0) continue;  // empty, or of a type whose size is unknown
    if (offset < end) return error(entry, "data of its own", "an overlap with another tensor");
    end = offset + entry.bytes;
  }
  return {};
}

}  // namespace

std::string_view to_string(GgufType type) {
  static constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

std::string_view GgufStrings::iterator::operator*() const {
  return {reinterpret_cast<const char*>(at_ + sizeof(uint64_t)), static_cast<size_t>(load<uint64_t>(at_))};
}

GgufStrings::iterator& GgufStrings::iterator::operator++() {
  at_ += sizeof(uint64_t) + load<uint64_t>(at_);
  return *this;
}

std::optional<int64_t> GgufValue::integer(size_t i) const {
  if (i >= count) return std::nullopt;
  const std::byte* at = bytes.data() + i * element_bytes(element);
  switch (element) {
    case GgufType::u8:
    case GgufType::boolean:
      return load<uint8_t>(at);
    case GgufType::i8:
      return load<int8_t>(at);
    case GgufType::u16:
      return load<uint16_t>(at);
    case GgufType::i16:
      return load<int16_t>(at);
    case GgufType::u32:
      return load<uint32_t>(at);
    case GgufType::i32:
      return load<int32_t>(at);
    case GgufType::i64:
      return load<int64_t>(at);
    case GgufType::u64: {
      const uint64_t value = load<uint64_t>(at);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> GgufValue::number(size_t i) const {
  if (i >= count || element == GgufType::boolean) return std::nullopt;
  const std::byte* at = bytes.data() + i * element_bytes(element);
  if (element == GgufType::f32) return load<float>(at);
  if (element == GgufType::f64) return load<double>(at);
  if (element == GgufType::u64) return static_cast<double>(load<uint64_t>(at));
  if (const auto value = integer(i)) return static_cast<double>(*value);
  return std::nullopt;
}

Result<Gguf> Gguf::open(const std::string& path) {
  PROA_ASSIGN(MappedFile file, MappedFile::open(path));
  PROA_ASSIGN(Gguf gguf, parse(file.bytes(), path));
  gguf.files_.push_back(std::move(file));
  PROA_ASSIGN(const uint32_t split_count, gguf.u32("split.count", 0));
  if (split_count > 1) PROA_TRY(gguf.join_parts(split_count));
  return gguf;
}

Result<Gguf> Gguf::parse(std::span<const std::byte> bytes, const std::string& name) {
  Gguf gguf;
  gguf.path_ = name;
  Cursor cursor(bytes, name);

  PROA_ASSIGN(auto magic, cursor.take(4));
  const std::string_view magic_text(reinterpret_cast<const char*>(magic.data()), 4);
  if (magic_text != "GGUF") return cursor.error("magic GGUF", "\"" + printable(magic_text) + "\"");
  PROA_ASSIGN(gguf.version_, cursor.number<uint32_t>());
  if (gguf.version_ != 2 && gguf.version_ != 3) {
    const bool swapped = (gguf.version_ & 0xffff) == 0 && gguf.version_ != 0;
    return cursor.error("GGUF version 2 or 3", swapped ? "a big-endian file" : std::to_string(gguf.version_));
  }

  // The least a tensor takes: name length, dimensions count, type, offset; a key: name length, type, one byte.
  PROA_ASSIGN(const uint64_t num_tensors, cursor.count(8 + 4 + 4 + 8, "tensors", kMaxTensors));
  PROA_ASSIGN(const uint64_t num_keys, cursor.count(8 + 4 + 1, "keys", kMaxKeys));

  for (uint64_t i = 0; i < num_keys; ++i) {
    cursor.set_item("key " + std::to_string(i));
    PROA_ASSIGN(const std::string_view key, cursor.string());
    cursor.set_item("key " + printable(key));
    PROA_ASSIGN(const GgufValue value, cursor.value());
    if (!gguf.metadata_.emplace(key, value).second) return cursor.error("each key once", "it twice");
  }
  PROA_ASSIGN(const uint32_t alignment, gguf.u32("general.alignment", kDefaultAlignment));
  if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
    return gguf.type_error("general.alignment", "a power of two");
  }

  std::vector<Described> tensors;
  tensors.reserve(num_tensors);
  for (uint64_t i = 0; i < num_tensors; ++i) {
    cursor.set_item("tensor " + std::to_string(i));
    PROA_ASSIGN(Described described, read_tensor(cursor, name));
    tensors.push_back(std::move(described));
  }
  if (tensors.empty()) return gguf;  // a vocabulary; may end without padding

  const uint64_t padding = (alignment - cursor.at() % alignment) % alignment;
  cursor.set_item("tensor data");
  PROA_TRY(cursor.take(padding));
  PROA_TRY(place_tensors(tensors, bytes.subspan(cursor.at()), alignment, name));
  for (Described& described : tensors) {
    std::string key = described.entry.name;
    if (!gguf.tensors_.emplace(key, std::move(described.entry)).second) {
      return Error{.doing = "read GGUF",
                   .where = name + ": tensor " + printable(key),
                   .expected = "each tensor once",
                   .actual = "its name twice"};
    }
  }
  return gguf;
}

const TensorEntry* Gguf::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Result<Tensor> Gguf::tensor(std::string_view name) const {
  if (const TensorEntry* entry = find(name)) return to_tensor(*entry);
  return Error{.doing = "use tensor", .where = path_ + ": " + printable(name), .actual = "no such tensor"};
}

Error Gguf::type_error(std::string_view key, std::string expected) const {
  const auto found = metadata_.find(key);
  return {.doing = "read GGUF",
          .where = path_ + ": " + printable(key),
          .expected = std::move(expected),
          .actual = found == metadata_.end() ? "no such key" : describe(found->second)};
}

Result<uint32_t> Gguf::u32(std::string_view key, std::optional<uint32_t> fallback) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() && fallback) return *fallback;
  if (found != metadata_.end() && !found->second.is_array() && found->second.type != GgufType::boolean) {
    const auto value = found->second.integer();
    if (value && *value >= 0 && *value <= std::numeric_limits<uint32_t>::max()) return static_cast<uint32_t>(*value);
  }
  return type_error(key, "an integer from 0 to 4294967295");
}

Result<int64_t> Gguf::i64(std::string_view key, std::optional<int64_t> fallback) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() && fallback) return *fallback;
  if (found != metadata_.end() && !found->second.is_array() && found->second.type != GgufType::boolean) {
    if (const auto value = found->second.integer()) return *value;
  }
  return type_error(key, "a 64-bit integer");
}

Result<float> Gguf::f32(std::string_view key, std::optional<float> fallback) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() && fallback) return *fallback;
  if (found != metadata_.end() && !found->second.is_array()) {
    const auto value = found->second.number();
    if (value && !(std::isfinite(*value) && std::fabs(*value) > std::numeric_limits<float>::max())) {
      return static_cast<float>(*value);
    }
  }
  return type_error(key, "a number");
}

Result<bool> Gguf::boolean(std::string_view key, std::optional<bool> fallback) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() && fallback) return *fallback;
  if (found != metadata_.end() && found->second.type == GgufType::boolean)
    return found->second.bytes[0] != std::byte{0};
  return type_error(key, "a bool");
}

Result<std::string_view> Gguf::string(std::string_view key, std::optional<std::string_view> fallback) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() && fallback) return *fallback;
  if (found != metadata_.end() && found->second.type == GgufType::string) {
    const auto bytes = found->second.bytes;
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return type_error(key, "a string");
}

Result<GgufStrings> Gguf::strings(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() || !found->second.is_array() || found->second.element != GgufType::string) {
    return type_error(key, "an array of strings");
  }
  return GgufStrings(found->second.bytes, found->second.count);
}

Result<std::vector<int64_t>> Gguf::integers(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() || !found->second.is_array()) return type_error(key, "an array of integers");
  if (found->second.count > kMaxCopied) {
    return type_error(key, "an array of at most " + std::to_string(kMaxCopied) + " integers");
  }
  std::vector<int64_t> values;
  values.reserve(found->second.count);
  for (size_t i = 0; i < found->second.count; ++i) {
    const auto value = found->second.integer(i);
    if (!value) return type_error(key, "an array of integers");
    values.push_back(*value);
  }
  return values;
}

Result<std::vector<float>> Gguf::floats(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() || !found->second.is_array()) return type_error(key, "an array of numbers");
  if (found->second.count > kMaxCopied) {
    return type_error(key, "an array of at most " + std::to_string(kMaxCopied) + " numbers");
  }
  std::vector<float> values;
  values.reserve(found->second.count);
  for (size_t i = 0; i < found->second.count; ++i) {
    const auto value = found->second.number(i);
    if (!value || (std::isfinite(*value) && std::fabs(*value) > std::numeric_limits<float>::max())) {
      return type_error(key, "an array of numbers");
    }
    values.push_back(static_cast<float>(*value));
  }
  return values;
}

Result<std::vector<uint32_t>> Gguf::u32_per_layer(std::string_view key, size_t count) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() || !found->second.is_array()) {
    PROA_ASSIGN(const uint32_t value, u32(key));
    return std::vector<uint32_t>(count, value);
  }
  const std::string expected = std::to_string(count) + " integers from 0 to 4294967295";
  if (found->second.count != count) return type_error(key, expected);
  std::vector<uint32_t> values;
  values.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const auto value = found->second.integer(i);
    if (!value || *value < 0 || *value > std::numeric_limits<uint32_t>::max()) return type_error(key, expected);
    values.push_back(static_cast<uint32_t>(*value));
  }
  return values;
}

}  // namespace proa
