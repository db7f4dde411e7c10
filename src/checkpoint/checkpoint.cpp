#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>

#include "checkpoint/printable.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxConfigBytes = 16u << 20;
constexpr size_t kMaxListed = 20;

// A name of a file in the folder and nothing else: an index must not reach out of it.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name.find('/') == name.npos && name.find('\0') == name.npos && name != "." && name != "..";
}

Error too_long(const std::string& path, size_t max_bytes, size_t bytes) {
  return {.doing = "read file",
          .where = path,
          .expected = "at most " + std::to_string(max_bytes) + " bytes",
          .actual = std::to_string(bytes)};
}

Result<std::string> read_bounded(const std::string& path, size_t max_bytes) {
  std::error_code code;
  const auto status = fs::status(path, code);
  if (fs::is_regular_file(status) && fs::file_size(path, code) == 0 && !code) return std::string();
  PROA_ASSIGN(const MappedFile file, MappedFile::open(path));
  if (file.bytes().size() > max_bytes) return too_long(path, max_bytes, file.bytes().size());
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

// "a, b, c and 4 more"
std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMaxListed); ++i) text += (i ? ", " : "") + printable(names[i]);
  if (names.size() > kMaxListed) text += " and " + std::to_string(names.size() - kMaxListed) + " more";
  return text;
}

bool has_gguf_magic(const std::string& path) {
  const auto file = MappedFile::open(path);
  return file.ok() && file->bytes().size() >= 4 && std::memcmp(file->bytes().data(), "GGUF", 4) == 0;
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.path_ = path;
  std::error_code code;
  if (fs::is_directory(path, code)) {
    PROA_TRY(checkpoint.open_folder());
    return checkpoint;
  }
  if (fs::exists(path, code) && !has_gguf_magic(path)) {
    PROA_TRY(MappedFile::open(path));  // says so if the file cannot be read at all
    return Error{.doing = "open checkpoint",
                 .where = path,
                 .expected = "a GGUF file, or a folder with config.json and safetensors files",
                 .actual = "a file of another kind",
                 .hint = path.ends_with(".safetensors") ? "name the folder that holds it" : ""};
  }
  PROA_ASSIGN(Gguf gguf, Gguf::open(path));
  checkpoint.gguf_ = std::make_unique<Gguf>(std::move(gguf));
  checkpoint.tensors_ = checkpoint.gguf_->tensors();
  return checkpoint;
}

Checkpoint Checkpoint::in_memory(std::string name, nlohmann::ordered_json config,
                                 std::map<std::string, TensorEntry, std::less<>> tensors) {
  Checkpoint checkpoint;
  checkpoint.path_ = std::move(name);
  checkpoint.on_disk_ = false;
  checkpoint.config_ = std::move(config);
  checkpoint.tensors_ = std::move(tensors);
  return checkpoint;
}

Result<Checkpoint> Checkpoint::dummy(const DummyCheckpoint& dummy, int num_threads, uint64_t max_tensor_bytes) {
  Checkpoint checkpoint;
  checkpoint.path_ = dummy.name;
  checkpoint.on_disk_ = false;
  checkpoint.texts_ = dummy.texts;
  for (const auto& [name, text] : checkpoint.texts_) checkpoint.parts_[name] = std::as_bytes(std::span(text));
  DummyIndex index;
  for (const DummyFile& file : dummy.files) {
    PROA_ASSIGN(AnonymousMemory memory, AnonymousMemory::allocate(file.bytes, dummy.name + "/" + file.name));
    lay_dummy(file, num_threads, max_tensor_bytes, memory.bytes().data());
    memory.make_read_only();
    index.add(file, max_tensor_bytes, memory.bytes().data());
    checkpoint.parts_[file.name] = memory.bytes();
    checkpoint.memory_.push_back(std::move(memory));
  }
  checkpoint.dummy_ = std::make_shared<const DummyIndex>(std::move(index));
  PROA_TRY(checkpoint.open_parts());
  return checkpoint;
}

// A single GGUF file, or what a folder holds.
Result<void> Checkpoint::open_parts() {
  const auto file =
      std::find_if(parts_.begin(), parts_.end(), [](auto& part) { return part.first.ends_with(".gguf"); });
  if (file == parts_.end()) return open_folder();
  PROA_ASSIGN(Gguf gguf, Gguf::parse(file->second, path_));
  gguf_ = std::make_unique<Gguf>(std::move(gguf));
  tensors_ = gguf_->tensors();
  return {};
}

Result<Safetensors> Checkpoint::open_shard(const std::string& name) const {
  const std::string path = (fs::path(path_) / name).string();
  return on_disk_ ? Safetensors::open(path) : Safetensors::parse(parts_.at(name), path);
}

Result<std::string> Checkpoint::read_bounded(std::string_view name, size_t max_bytes) const {
  const std::string path = (fs::path(path_) / name).string();
  if (on_disk_) return proa::read_bounded(path, max_bytes);
  const auto part = parts_.find(name);
  if (part == parts_.end()) return Error{"read file", path, "", "no such file in this checkpoint", ""};
  const auto bytes = part->second;
  if (bytes.size() > max_bytes) return too_long(path, max_bytes, bytes.size());
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

Result<nlohmann::ordered_json> Checkpoint::read_object(std::string_view name, size_t max_bytes) const {
  const std::string path = (fs::path(path_) / name).string();
  PROA_ASSIGN(const std::string text, read_bounded(name, max_bytes));
  PROA_ASSIGN(auto json, parse_json(text, path));
  if (!json.is_object()) {
    return Error{.doing = "read JSON", .where = path, .expected = "an object", .actual = json.type_name()};
  }
  return json;
}

Result<void> Checkpoint::open_folder() {
  if (!has_file("config.json")) {
    return Error{.doing = "open checkpoint", .where = path_, .expected = "a config.json", .actual = "none"};
  }
  PROA_ASSIGN(config_, read_object("config.json", kMaxConfigBytes));
  if (has_file("generation_config.json")) {
    PROA_ASSIGN(generation_config_, read_object("generation_config.json", kMaxConfigBytes));
  }

  if (has_file("model.safetensors")) {
    PROA_ASSIGN(Safetensors shard, open_shard("model.safetensors"));
    tensors_ = shard.tensors();
    shards_.push_back(std::move(shard));
    return {};
  }
  const std::string index_name = "model.safetensors.index.json";
  const std::string index_path = (fs::path(path_) / index_name).string();
  if (!has_file(index_name)) {
    return Error{.doing = "open checkpoint",
                 .where = path_,
                 .expected = "model.safetensors or " + index_name,
                 .actual = "neither"};
  }
  const auto index_error = [&](std::string expected, std::string actual) {
    return Error{
        .doing = "open checkpoint", .where = index_path, .expected = std::move(expected), .actual = std::move(actual)};
  };
  PROA_ASSIGN(const auto index, read_object(index_name, kMaxTextBytes));
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object()) return index_error("an object weight_map", "none");

  std::map<std::string, std::string> shard_of;  // tensor -> file
  std::set<std::string> files;
  for (const auto& [tensor_name, file] : weight_map->items()) {
    if (!file.is_string() || !is_plain_name(file.get_ref<const std::string&>())) {
      return index_error(
          "a file name in this folder for " + printable(tensor_name),
          file.is_string() ? "\"" + printable(file.get_ref<const std::string&>()) + "\"" : "another type");
    }
    shard_of[tensor_name] = file;
    files.insert(file);
  }

  std::vector<std::string> missing;
  for (const std::string& file : files) {
    if (!has_file(file)) missing.push_back(file);
  }
  if (!missing.empty()) {
    return index_error(std::to_string(files.size()) + " shards",
                       std::to_string(missing.size()) + " missing: " + list(missing));
  }
  for (const std::string& file : files) {
    PROA_ASSIGN(Safetensors shard, open_shard(file));
    for (const auto& [tensor_name, entry] : shard.tensors()) {
      const auto named = shard_of.find(tensor_name);
      if (named != shard_of.end() && named->second != file) continue;  // the index decides between two copies
      if (!tensors_.emplace(tensor_name, entry).second) {
        return index_error("each tensor in one shard or in the index", printable(tensor_name) + " in two shards");
      }
    }
    shards_.push_back(std::move(shard));
  }
  for (const auto& [tensor_name, file] : shard_of) {
    if (!tensors_.contains(tensor_name)) missing.push_back(tensor_name + " (" + file + ")");
  }
  if (!missing.empty()) {
    return index_error("every tensor of the index in its shard",
                       std::to_string(missing.size()) + " missing: " + list(missing));
  }
  return {};
}

const TensorEntry* Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Result<Tensor> Checkpoint::tensor(std::string_view name) const {
  if (const TensorEntry* entry = find(name)) return to_tensor(*entry);
  return Error{.doing = "use tensor", .where = path_ + ": " + printable(name), .actual = "no such tensor"};
}

bool Checkpoint::has_file(std::string_view name) const {
  if (gguf_ || !is_plain_name(name)) return false;
  if (!on_disk_) return parts_.contains(name);
  std::error_code code;
  return fs::is_regular_file(fs::path(path_) / name, code);
}

Result<std::string> Checkpoint::read_text(std::string_view name) const {
  if (gguf_ || !is_plain_name(name)) {
    return Error{.doing = "read file",
                 .where = path_ + ": " + printable(name),
                 .actual = gguf_ ? "a GGUF file has no files beside it" : "not a plain file name"};
  }
  return read_bounded(name, kMaxTextBytes);
}

Result<nlohmann::ordered_json> Checkpoint::read_json(std::string_view name) const {
  PROA_ASSIGN(const std::string text, read_text(name));
  return parse_json(text, (fs::path(path_) / name).string());
}

}  // namespace proa
