#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "checkpoint/packed.h"
#include "checkpoint/printable.h"
#include "checkpoint/safetensors_index.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxConfigBytes = 16u << 20;
constexpr size_t kMaxListed = 20;

Error too_long(const std::string& path, size_t max_bytes, size_t bytes) {
  return {.doing = "read file",
          .where = path,
          .expected = "at most " + std::to_string(max_bytes) + " bytes",
          .actual = std::to_string(bytes)};
}

// An empty file has no mapping.
bool is_empty_file(const std::string& path) {
  std::error_code code;
  return fs::is_regular_file(path, code) && fs::file_size(path, code) == 0 && !code;
}

// The folder's own files, and blobs of the cache that a snapshot's links point to; a link to anywhere else would let a
// downloaded folder name any file of this machine.
Result<void> check_link(const fs::path& folder, const fs::path& path) {
  std::error_code code;
  if (!fs::is_symlink(fs::symlink_status(path, code))) return {};
  const fs::path target = fs::canonical(path, code);
  if (code) return {};  // opening it says why
  const fs::path own = fs::canonical(folder, code);
  if (code) return {};
  const fs::path holder = target.parent_path(), snapshots = own.parent_path();
  if (std::mismatch(own.begin(), own.end(), holder.begin(), holder.end()).first == own.end()) return {};
  if (snapshots.filename() == "snapshots" && holder == snapshots.parent_path() / "blobs") return {};
  return Error{.doing = "open file",
               .where = path.string(),
               .expected = "a file of this folder",
               .actual = "a link to " + printable(target.string()),
               .hint = "copy the file, or name the folder that holds it"};
}

// "7 missing: a, b, c and 4 more"
class Missing {
 public:
  void add(const std::string& name) {
    if (++count_ <= kMaxListed) text_ += (count_ > 1 ? ", " : "") + printable(name);
  }
  bool any() const { return count_ > 0; }
  std::string text() const {
    const std::string more = count_ > kMaxListed ? " and " + std::to_string(count_ - kMaxListed) + " more" : "";
    return std::to_string(count_) + " missing: " + text_ + more;
  }

 private:
  size_t count_ = 0;
  std::string text_;
};

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
    PROA_ASSIGN(checkpoint.packed_, MappedFile::open(path));  // says so if the file cannot be read at all
    if (Packed::has_magic(checkpoint.packed_->bytes())) {
      PROA_TRY(checkpoint.open_packed());
      return checkpoint;
    }
    return Error{.doing = "open checkpoint",
                 .where = path,
                 .expected = "a GGUF file, a packed checkpoint, or a folder with config.json and safetensors files",
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

Result<Checkpoint> Checkpoint::of_files(std::string name, Texts texts, std::map<std::string, AnonymousMemory> files) {
  Checkpoint checkpoint;
  checkpoint.path_ = std::move(name);
  checkpoint.on_disk_ = false;
  checkpoint.texts_ = std::move(texts);
  for (const auto& [file, text] : checkpoint.texts_) checkpoint.parts_[file] = std::as_bytes(std::span(text));
  for (auto& [file, memory] : files) {
    memory.make_read_only();
    checkpoint.parts_[file] = memory.bytes();
    checkpoint.memory_.push_back(std::move(memory));
  }
  PROA_TRY(checkpoint.open_parts());
  return checkpoint;
}

Result<Checkpoint> Checkpoint::dummy(const DummyCheckpoint& dummy, int num_threads, uint64_t max_tensor_bytes) {
  DummyIndex index;
  std::map<std::string, AnonymousMemory> files;
  for (const DummyFile& file : dummy.files) {
    PROA_ASSIGN(AnonymousMemory memory, AnonymousMemory::allocate(file.bytes, dummy.name + "/" + file.name));
    lay_dummy(file, num_threads, max_tensor_bytes, memory.bytes().data());
    index.add(file, max_tensor_bytes, memory.bytes().data());
    files.emplace(file.name, std::move(memory));
  }
  PROA_ASSIGN(Checkpoint checkpoint, of_files(dummy.name, dummy.texts, std::move(files)));
  checkpoint.dummy_ = std::make_shared<const DummyIndex>(std::move(index));
  return checkpoint;
}

Result<void> Checkpoint::open_packed() {
  on_disk_ = false;
  PROA_ASSIGN(const Packed packed, Packed::parse(packed_->bytes(), path_));
  for (const PackedPart& part : packed.parts) parts_[part.name] = part.bytes;
  return open_parts();
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
  if (!on_disk_) return Safetensors::parse(parts_.at(name), path);
  PROA_TRY(check_link(path_, path));
  return Safetensors::open(path);
}

Result<Checkpoint::Text> Checkpoint::map_text(std::string_view name, size_t max_bytes) const {
  const std::string path = (fs::path(path_) / name).string();
  Text text;
  std::span<const std::byte> bytes;
  if (on_disk_) {
    PROA_TRY(check_link(path_, path));
    if (is_empty_file(path)) return text;
    PROA_ASSIGN(text.file, MappedFile::open(path));
    bytes = text.file->bytes();
  } else {
    const auto part = parts_.find(name);
    if (part == parts_.end()) return Error{"read file", path, "", "no such file in this checkpoint", ""};
    bytes = part->second;
  }
  if (bytes.size() > max_bytes) return too_long(path, max_bytes, bytes.size());
  text.view = {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  return text;
}

Result<nlohmann::ordered_json> Checkpoint::read_object(std::string_view name, size_t max_bytes) const {
  const std::string path = (fs::path(path_) / name).string();
  PROA_ASSIGN(const Text text, map_text(name, max_bytes));
  PROA_ASSIGN(auto json, parse_json(text.view, path));
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
    tensors_ = shard.take_tensors();
    shards_.push_back(std::move(shard));
    return {};
  }
  const std::string index_name = "model.safetensors.index.json";
  if (!has_file(index_name)) {
    return Error{.doing = "open checkpoint",
                 .where = path_,
                 .expected = "model.safetensors or " + index_name,
                 .actual = "neither"};
  }
  const std::string index_path = (fs::path(path_) / index_name).string();
  SafetensorsIndex index;
  {
    PROA_ASSIGN(const Text text, map_text(index_name, kMaxTextBytes));
    PROA_ASSIGN(index, parse_safetensors_index(text.view, index_path));
  }
  return open_shards(index, index_path);
}

Result<void> Checkpoint::open_shards(const SafetensorsIndex& index, const std::string& index_path) {
  const auto index_error = [&](std::string expected, std::string actual) {
    return Error{
        .doing = "open checkpoint", .where = index_path, .expected = std::move(expected), .actual = std::move(actual)};
  };
  Missing missing_files;
  for (const std::string& file : index.files) {
    if (!has_file(file)) missing_files.add(file);
  }
  if (missing_files.any()) {
    return index_error(std::to_string(index.files.size()) + " shards", missing_files.text());
  }
  size_t needed = 0, file_bytes = 0;  // memory for entries
  for (size_t i = 0; i < index.files.size(); ++i) {
    PROA_ASSIGN(Safetensors shard, open_shard(index.files[i]));
    auto tensors = shard.take_tensors();
    file_bytes += shard.file_bytes();
    for (const auto& [tensor_name, entry] : tensors) needed += Safetensors::entry_memory(tensor_name.size());
    std::erase_if(tensors, [&](const auto& tensor) {  // the index decides between two copies
      const auto named = index.shard.find(tensor.first);
      return named != index.shard.end() && named->second != i;
    });
    tensors_.merge(tensors);
    if (!tensors.empty()) {
      return index_error("each tensor in one shard or in the index",
                         printable(tensors.begin()->first) + " in two shards");
    }
    if (needed > Safetensors::max_memory(file_bytes)) {
      return index_error("fewer tensors in shards of this size", "more");
    }
    shards_.push_back(std::move(shard));
  }
  Missing missing_tensors;
  for (const auto& [tensor_name, file] : index.shard) {
    if (!tensors_.contains(tensor_name)) missing_tensors.add(tensor_name + " (" + index.files[file] + ")");
  }
  if (missing_tensors.any()) return index_error("every tensor of the index in its shard", missing_tensors.text());
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
  if (gguf_ || !is_plain_file_name(name)) return false;
  if (!on_disk_) return parts_.contains(name);
  // Also what is there and cannot be read, such as a folder of that name: opening it says so.
  std::error_code code;
  return fs::status(fs::path(path_) / name, code).type() != fs::file_type::not_found;
}

Result<std::string> Checkpoint::read_text(std::string_view name) const {
  if (gguf_ || !is_plain_file_name(name)) {
    return Error{.doing = "read file",
                 .where = path_ + ": " + printable(name),
                 .actual = gguf_ ? "a GGUF file has no files beside it" : "not a plain file name"};
  }
  PROA_ASSIGN(const Text text, map_text(name, kMaxTextBytes));
  return std::string(text.view);
}

Result<nlohmann::ordered_json> Checkpoint::read_json(std::string_view name) const {
  if (gguf_ || !is_plain_file_name(name)) return read_text(name).error();
  PROA_ASSIGN(const Text text, map_text(name, kMaxTextBytes));
  return parse_json(text.view, (fs::path(path_) / name).string());
}

}  // namespace proa
