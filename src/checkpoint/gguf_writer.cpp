#include "checkpoint/gguf_writer.h"

#include <cassert>
#include <cstring>

#include "checkpoint/gguf.h"
#include "core/output_path.h"
#include "quant/formats.h"

namespace proa {
namespace {

using Bytes = std::vector<std::byte>;

void append(Bytes& out, std::span<const std::byte> bytes) {
  const size_t at = out.size();
  out.resize(at + bytes.size());
  if (!bytes.empty()) std::memcpy(out.data() + at, bytes.data(), bytes.size());
}

template <class T>
void append_number(Bytes& out, T value) {
  append(out, std::as_bytes(std::span(&value, 1)));
}

void append_string(Bytes& out, std::string_view text) {
  append_number<uint64_t>(out, text.size());
  append(out, std::as_bytes(std::span(text)));
}

Bytes array_head(GgufType element, uint64_t count) {
  Bytes out;
  append_number(out, static_cast<uint32_t>(element));
  append_number(out, count);
  return out;
}

constexpr uint32_t number(GgufType type) { return static_cast<uint32_t>(type); }

size_t padded(size_t size, size_t alignment) { return (size + alignment - 1) / alignment * alignment; }

}  // namespace

void GgufWriter::put_raw(std::string_view key, uint32_t type, std::span<const std::byte> value) {
  append_string(metadata_, key);
  append_number(metadata_, type);
  append(metadata_, value);
  ++num_keys_;
}

void GgufWriter::put_u32(std::string_view key, uint32_t value) {
  put_raw(key, number(GgufType::u32), std::as_bytes(std::span(&value, 1)));
}

void GgufWriter::put_i32(std::string_view key, int32_t value) {
  put_raw(key, number(GgufType::i32), std::as_bytes(std::span(&value, 1)));
}

void GgufWriter::put_u64(std::string_view key, uint64_t value) {
  put_raw(key, number(GgufType::u64), std::as_bytes(std::span(&value, 1)));
}

void GgufWriter::put_f32(std::string_view key, float value) {
  put_raw(key, number(GgufType::f32), std::as_bytes(std::span(&value, 1)));
}

void GgufWriter::put_bool(std::string_view key, bool value) {
  const uint8_t byte = value ? 1 : 0;
  put_raw(key, number(GgufType::boolean), std::as_bytes(std::span(&byte, 1)));
}

void GgufWriter::put_string(std::string_view key, std::string_view value) {
  Bytes out;
  append_string(out, value);
  put_raw(key, number(GgufType::string), out);
}

void GgufWriter::put_i32s(std::string_view key, std::span<const int32_t> values) {
  Bytes out = array_head(GgufType::i32, values.size());
  append(out, std::as_bytes(values));
  put_raw(key, number(GgufType::array), out);
}

void GgufWriter::put_f32s(std::string_view key, std::span<const float> values) {
  Bytes out = array_head(GgufType::f32, values.size());
  append(out, std::as_bytes(values));
  put_raw(key, number(GgufType::array), out);
}

void GgufWriter::put_bools(std::string_view key, const std::vector<bool>& values) {
  Bytes out = array_head(GgufType::boolean, values.size());
  for (bool value : values) out.push_back(std::byte{value});
  put_raw(key, number(GgufType::array), out);
}

void GgufWriter::put_strings(std::string_view key, std::span<const std::string> values) {
  Bytes out = array_head(GgufType::string, values.size());
  for (const std::string& value : values) append_string(out, value);
  put_raw(key, number(GgufType::array), out);
}

void GgufWriter::put_raw_tensor(std::string_view name, std::span<const int64_t> shape, uint32_t ggml_type,
                                std::span<const std::byte> data) {
  tensors_.push_back(
      {std::string(name), {shape.begin(), shape.end()}, ggml_type, data.size(), {data.begin(), data.end()}});
}

void GgufWriter::put_tensor(std::string_view name, std::span<const int64_t> shape, Format format,
                            std::span<const std::byte> data) {
  assert(info(format).ggml_type >= 0);
  put_raw_tensor(name, shape, static_cast<uint32_t>(info(format).ggml_type), data);
}

void GgufWriter::put_tensor(std::string_view name, std::span<const int64_t> shape, Format format,
                            std::span<const float> values) {
  put_tensor(name, shape, format,
             std::span<const std::byte>(encode_tensor(format, shape.empty() ? 1 : shape.back(), values)));
}

void GgufWriter::declare_tensor(std::string_view name, std::span<const int64_t> shape, Format format) {
  assert(info(format).ggml_type >= 0 && !shape.empty());
  uint64_t rows = 1;
  for (const int64_t size : shape.first(shape.size() - 1)) rows *= static_cast<uint64_t>(size);
  tensors_.push_back({std::string(name),
                      {shape.begin(), shape.end()},
                      static_cast<uint32_t>(info(format).ggml_type),
                      rows * row_bytes(format, shape.back()),
                      {}});
}

std::vector<std::byte> GgufWriter::header() const {
  Bytes out;
  append(out, std::as_bytes(std::span("GGUF", 4)));
  append_number<uint32_t>(out, 3);
  append_number<uint64_t>(out, tensors_.size());
  append_number<uint64_t>(out, num_keys_ + (alignment_ != 32 ? 1 : 0));
  if (alignment_ != 32) {
    append_string(out, "general.alignment");
    append_number(out, number(GgufType::u32));
    append_number(out, alignment_);
  }
  append(out, metadata_);
  uint64_t offset = 0;
  for (const Entry& tensor : tensors_) {
    append_string(out, tensor.name);
    append_number<uint32_t>(out, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) append_number(out, tensor.shape[i]);
    append_number(out, tensor.ggml_type);
    append_number(out, offset);
    offset += padded(tensor.size, alignment_);
  }
  out.resize(padded(out.size(), alignment_));
  return out;
}

std::vector<std::byte> GgufWriter::bytes() const {
  Bytes out = header();
  for (const Entry& tensor : tensors_) {
    out.resize(padded(out.size(), alignment_));
    append(out, tensor.data);
  }
  out.resize(padded(out.size(), alignment_));
  return out;
}

Result<void> GgufWriter::write(const std::string& path) const {
  const std::vector<std::byte> all = bytes();
  return write_file(path, {reinterpret_cast<const char*>(all.data()), all.size()});
}

std::vector<std::byte> encode_tensor(Format format, int64_t cols, std::span<const float> values) {
  if (cols == 0) return {};
  const size_t rows = values.size() / static_cast<size_t>(cols);
  assert(rows * static_cast<size_t>(cols) == values.size());
  const size_t stride = row_bytes(format, cols);
  Bytes out(rows * stride);
  for (size_t row = 0; row < rows; ++row) {
    encode_row(format, values.data() + row * static_cast<size_t>(cols), cols, out.data() + row * stride);
  }
  return out;
}

}  // namespace proa
