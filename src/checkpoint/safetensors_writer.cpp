#include "checkpoint/safetensors_writer.h"

#include <cassert>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint/gguf_writer.h"
#include "core/output_path.h"
#include "quant/formats.h"

namespace proa {

namespace {

std::string quoted(std::string_view text) { return nlohmann::json(text).dump(); }

void add_member(std::string& members, std::string_view name, const std::string& value) {
  members += (members.empty() ? "" : ",") + quoted(name) + ":" + value;
}

}  // namespace

void SafetensorsWriter::put_metadata(std::string_view key, std::string_view value) {
  add_member(metadata_, key, quoted(value));
}

void SafetensorsWriter::declare_tensor(std::string_view name, std::span<const int64_t> shape, std::string_view dtype,
                                       uint64_t size) {
  nlohmann::ordered_json entry;
  entry["dtype"] = dtype;
  entry["shape"] = std::vector<int64_t>(shape.begin(), shape.end());
  entry["data_offsets"] = {size_, size_ + size};
  size_ += size;
  add_member(tensors_, name, entry.dump());
}

void SafetensorsWriter::put_raw_tensor(std::string_view name, std::span<const int64_t> shape, std::string_view dtype,
                                       std::span<const std::byte> data) {
  data_.insert(data_.end(), data.begin(), data.end());
  declare_tensor(name, shape, dtype, data.size());
}

void SafetensorsWriter::put_tensor(std::string_view name, std::span<const int64_t> shape, Format format,
                                   std::span<const std::byte> data) {
  assert(!info(format).safetensors_dtype.empty());
  put_raw_tensor(name, shape, info(format).safetensors_dtype, data);
}

void SafetensorsWriter::put_tensor(std::string_view name, std::span<const int64_t> shape, Format format,
                                   std::span<const float> values) {
  put_tensor(name, shape, format,
             std::span<const std::byte>(encode_tensor(format, shape.empty() ? 1 : shape.back(), values)));
}

std::vector<std::byte> SafetensorsWriter::header() const {
  std::string text = "{";
  if (!metadata_.empty()) text += "\"__metadata__\":{" + metadata_ + (tensors_.empty() ? "}" : "},");
  text += tensors_ + "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::vector<std::byte> out(sizeof(length) + text.size());
  std::memcpy(out.data(), &length, sizeof(length));
  std::memcpy(out.data() + sizeof(length), text.data(), text.size());
  return out;
}

std::vector<std::byte> SafetensorsWriter::bytes() const {
  std::vector<std::byte> out = header();
  out.insert(out.end(), data_.begin(), data_.end());
  return out;
}

Result<void> SafetensorsWriter::write(const std::string& path) const {
  const std::vector<std::byte> all = bytes();
  return write_file(path, {reinterpret_cast<const char*>(all.data()), all.size()});
}

}  // namespace proa
