// Checkpoints of full size without data: a description of tests/goldens/family becomes real headers in files that are
// holes from there on. What the lines mean is said in tools/goldens/family.py.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "golden.h"

namespace proa::golden {

// The lines of a description, each as its words.
inline std::vector<std::vector<std::string>> read_description(const std::string& path) {
  const MappedFile file = must(MappedFile::open(path));
  std::istringstream text({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
  std::vector<std::vector<std::string>> lines;
  for (std::string line; std::getline(text, line);) {
    std::istringstream words(line);
    std::vector<std::string> split;
    for (std::string word; words >> word;) split.push_back(word);
    if (!split.empty() && split.front() != "#") lines.push_back(split);
  }
  return lines;
}

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> items;
  std::istringstream in(text);
  for (std::string item; std::getline(in, item, separator);) items.push_back(item);
  return items;
}

// "blk.{0-1,7}.{a,b}" to its six names.
inline std::vector<std::string> expand(const std::string& pattern) {
  const size_t open = pattern.find('{');
  if (open == pattern.npos) return {pattern};
  const size_t close = pattern.find('}', open);
  std::vector<std::string> names;
  const auto rest = expand(pattern.substr(close + 1));
  const auto put = [&](const std::string& item) {
    for (const std::string& tail : rest) names.push_back(pattern.substr(0, open) + item + tail);
  };
  for (const std::string& item : split(pattern.substr(open + 1, close - open - 1), ',')) {
    const size_t dash = item.find('-');
    if (dash == item.npos) {
      put(item);
    } else {
      for (int i = std::stoi(item.substr(0, dash)); i <= std::stoi(item.substr(dash + 1)); ++i) put(std::to_string(i));
    }
  }
  return names;
}

// A file that begins with `header` and is `bytes` long. Returns why it cannot be had, or "".
inline std::string write_sparse(const std::string& path, const std::string& header, int64_t bytes) {
  const int file = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
  if (file < 0) return path + ": " + std::strerror(errno);
  const bool ok = ::write(file, header.data(), header.size()) == static_cast<ssize_t>(header.size()) &&
                  ::ftruncate(file, bytes) == 0;
  const std::string why = ok ? "" : "a sparse file of " + std::to_string(bytes) + " bytes: " + std::strerror(errno);
  ::close(file);
  return why;
}

struct SparseTensor {
  std::string type, name;
  std::vector<int64_t> shape;
  int64_t bytes = 0;
};

inline std::vector<SparseTensor> sparse_tensors(const std::vector<std::vector<std::string>>& lines) {
  std::vector<SparseTensor> tensors;
  for (const auto& line : lines) {
    if (line[0] != "tensor") continue;
    SparseTensor tensor;
    tensor.type = line[1];
    for (const std::string& size : split(line[2].substr(1, line[2].size() - 2), ',')) {
      tensor.shape.push_back(std::stoll(size));
    }
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    if (tensor.type == "U8") {
      tensor.bytes = elements;
    } else {
      const Format format = *format_from_name(tensor.type);
      tensor.bytes = elements / info(format).block_elements * static_cast<int64_t>(info(format).block_bytes);
    }
    for (const std::string& name : expand(line[3])) {
      tensors.push_back(tensor);
      tensors.back().name = name;
    }
  }
  return tensors;
}

// As the official library orders a file: wide types first, then by name.
inline std::string write_sparse_safetensors(const std::string& path, std::vector<SparseTensor> tensors) {
  const std::map<std::string, int> rank = {{"F32", 0}, {"BF16", 1}, {"F8_E4M3", 2}, {"U8", 3}};
  std::sort(tensors.begin(), tensors.end(), [&](const SparseTensor& a, const SparseTensor& b) {
    return std::pair(rank.at(a.type), a.name) < std::pair(rank.at(b.type), b.name);
  });
  std::string header = "{";
  int64_t offset = 0;
  std::vector<int64_t> ones;  // scales of a KV cache cannot be 0
  for (const SparseTensor& tensor : tensors) {
    if (tensor.name.ends_with(".k_scale") || tensor.name.ends_with(".v_scale")) ones.push_back(offset);
    if (header.size() > 1) header += ",";
    header += "\"" + tensor.name + "\":{\"dtype\":\"" + tensor.type + "\",\"shape\":" + to_string(tensor.shape) +
              ",\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(offset + tensor.bytes) + "]}";
    offset += tensor.bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t size = header.size();
  const std::string why = write_sparse(path, std::string(reinterpret_cast<const char*>(&size), 8) + header,
                                       8 + static_cast<int64_t>(size) + offset);
  if (!why.empty()) return why;
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  const float one = 1;
  for (const int64_t at : ones) {
    file.seekp(8 + static_cast<int64_t>(size) + at).write(reinterpret_cast<const char*>(&one), sizeof(one));
  }
  return file ? "" : path + ": scales could not be written";
}

inline std::string write_sparse_gguf(const std::string& path, const std::vector<std::vector<std::string>>& lines,
                                     const std::vector<SparseTensor>& tensors) {
  std::string head;
  const auto number = [&](auto value) { head.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  const auto string = [&](const std::string& text) {
    number(uint64_t{text.size()});
    head += text;
  };
  const auto keys = std::count_if(lines.begin(), lines.end(), [](const auto& line) { return line[0] == "meta"; });
  head += "GGUF";
  number(uint32_t{3});
  number(uint64_t{tensors.size()});
  number(static_cast<uint64_t>(keys));
  for (const auto& line : lines) {
    if (line[0] != "meta") continue;
    string(line[2]);
    if (line[1] == "u32") {
      number(GgufType::u32);
      number(static_cast<uint32_t>(std::stoul(line[3])));
    } else if (line[1] == "f32") {
      number(GgufType::f32);
      number(std::stof(line[3]));
    } else if (line[1] == "bool") {
      number(GgufType::boolean);
      number(static_cast<uint8_t>(line[3] == "true"));
    } else if (line[1] == "string") {
      number(GgufType::string);
      string(line[3]);
    } else {
      const auto values = split(line[3], ',');
      number(GgufType::array);
      number(GgufType::i32);
      number(uint64_t{values.size()});
      for (const std::string& value : values) number(static_cast<int32_t>(std::stol(value)));
    }
  }
  int64_t offset = 0;
  for (const SparseTensor& tensor : tensors) {
    string(tensor.name);
    number(static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i-- > 0;) number(static_cast<uint64_t>(tensor.shape[i]));
    number(static_cast<uint32_t>(info(*format_from_name(tensor.type)).ggml_type));
    number(static_cast<uint64_t>(offset));
    offset += (tensor.bytes + 31) / 32 * 32;
  }
  return write_sparse(path, head, static_cast<int64_t>((head.size() + 31) / 32 * 32) + offset);
}

// The checkpoint of a description in `folder`, which is made; `checkpoint` is what to open. Returns why it cannot be
// had, or "".
inline std::string write_sparse_checkpoint(const std::vector<std::vector<std::string>>& lines,
                                           const std::string& folder, std::string& checkpoint) {
  std::filesystem::create_directories(folder);
  const auto tensors = sparse_tensors(lines);
  const auto config = std::find_if(lines.begin(), lines.end(), [](const auto& line) { return line[0] == "config"; });
  if (config == lines.end()) {
    checkpoint = folder + "/model.gguf";
    return write_sparse_gguf(checkpoint, lines, tensors);
  }
  checkpoint = folder;
  std::filesystem::copy_file(PROA_SOURCE_DIR "/src/models/configs/" + config->at(1), folder + "/config.json",
                             std::filesystem::copy_options::overwrite_existing);
  nlohmann::ordered_json quantization;
  for (const auto& line : lines) {
    if (line[0] == "quant") quantization[line[1]] = line[2];
    if (line[0] == "quant" && line[1] == "group_size") quantization[line[1]] = std::stoi(line[2]);
    if (line[0] == "exclude") {
      for (const std::string& module : expand(line[1])) quantization["exclude_modules"].push_back(module);
    }
    if (line[0] == "quantized") {
      for (const std::string& module : expand(line[2])) {
        quantization["quantized_layers"][module] = {{"quant_algo", line[1]}};
      }
    }
  }
  if (!quantization.is_null()) {
    const std::string text =
        nlohmann::ordered_json{{"producer", {{"name", "modelopt"}}}, {"quantization", quantization}}.dump();
    const std::string why = write_sparse(folder + "/hf_quant_config.json", text, static_cast<int64_t>(text.size()));
    if (!why.empty()) return why;
  }
  return write_sparse_safetensors(folder + "/model.safetensors", tensors);
}

}  // namespace proa::golden
