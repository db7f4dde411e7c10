#include "checkpoint/safetensors_writer.h"

#include <cassert>
#include <cstring>

#include "checkpoint/gguf_writer.h"
#include "quant/formats.h"

namespace proa {

void SafetensorsWriter::put_metadata(std::string_view key, std::string_view value) {
  header_["__metadata__"][std::string(key)] = value;
}

void SafetensorsWriter::put_raw_tensor(std::string_view name, std::span<const int64_t> shape, std::string_view dtype,
                                       std::span<const std::byte> data) {
  const size_t begin = data_.size();
  data_.insert(data_.end(), data.begin(), data.end());
  nlohmann::ordered_json entry;
  entry["dtype"] = dtype;
  entry["shape"] = std::vector<int64_t>(shape.begin(), shape.end());
  entry["data_offsets"] = {begin, data_.size()};
  header_[std::string(name)] = std::move(entry);
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

std::vector<std::byte> SafetensorsWriter::bytes() const {
  std::string text = header_.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::vector<std::byte> out(sizeof(length) + text.size() + data_.size());
  std::memcpy(out.data(), &length, sizeof(length));
  std::memcpy(out.data() + sizeof(length), text.data(), text.size());
  if (!data_.empty()) std::memcpy(out.data() + sizeof(length) + text.size(), data_.data(), data_.size());
  return out;
}

Result<void> SafetensorsWriter::write(const std::string& path) const { return write_file(path, bytes()); }

}  // namespace proa
