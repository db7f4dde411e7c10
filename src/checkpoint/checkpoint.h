// A checkpoint: a Hugging Face folder (config.json with model.safetensors or an index and its shards) or a GGUF model.
// Both give named tensors in PyTorch order and metadata; what they mean is the model's business.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/dummy_checkpoint.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_entry.h"
#include "core/anonymous_memory.h"
#include "core/result.h"

namespace proa {

struct SafetensorsIndex;

// Text of a JSON file from outside as a value: bounded in nesting and in memory (48 MB and the text's size), each field
// once, errors with file and position. Python's NaN, Infinity and -Infinity outside of strings become the strings
// "NaN", "Infinity", "-Infinity".
Result<nlohmann::ordered_json> parse_json(std::string_view text, const std::string& file,
                                          size_t max_string_bytes = size_t{4} << 20);

class Checkpoint {
 public:
  enum class Kind { huggingface, gguf };

  static constexpr size_t kMaxTextBytes = 128u << 20;  // of a JSON or text file in the folder

  // `path` is a folder, a GGUF file (the first part of a split one) or a packed checkpoint; files are known by their
  // magic. Everything is mapped, nothing copied. All missing shards, and all tensors that the index names but no shard
  // holds, are listed in one error.
  static Result<Checkpoint> open(const std::string& path);

  // A checkpoint of dummy weights in anonymous memory: files as the readers would find them on disk. Tensors larger
  // than max_tensor_bytes are left zero, for devices that make the bytes themselves; num_threads 0: one per core.
  // Errors: no room for the addresses (whether memory suffices is the caller's question).
  static Result<Checkpoint> dummy(const DummyCheckpoint& dummy, int num_threads = 0,
                                  uint64_t max_tensor_bytes = UINT64_MAX);
  // How the bytes of dummy weights are made; nullptr for any other checkpoint.
  const DummyIndex* dummy() const { return dummy_.get(); }

  // The files of a folder, or one GGUF file, that are on no disk: small ones as text, those with weights in memory, by
  // name. `name` stands for the path in messages. Errors: as of open().
  using Texts = std::map<std::string, std::string, std::less<>>;
  static Result<Checkpoint> of_files(std::string name, Texts texts, std::map<std::string, AnonymousMemory> files);

  // A folder that is on no disk: a config and entries that the caller made, without files beside them. `name` stands
  // for the path in messages. Entries may have no data where only names and shapes are looked at.
  static Checkpoint in_memory(std::string name, nlohmann::ordered_json config,
                              std::map<std::string, TensorEntry, std::less<>> tensors);

  Kind kind() const { return gguf_ ? Kind::gguf : Kind::huggingface; }
  const std::string& path() const { return path_; }

  const std::map<std::string, TensorEntry, std::less<>>& tensors() const { return tensors_; }
  const TensorEntry* find(std::string_view name) const;  // nullptr: not there
  Result<Tensor> tensor(std::string_view name) const;    // valid while this object lives, also after a move

  // config.json; an empty object for GGUF.
  const nlohmann::ordered_json& config() const { return config_; }
  // generation_config.json; null when there is none.
  const nlohmann::ordered_json& generation_config() const { return generation_config_; }
  // The metadata of a GGUF checkpoint; nullptr for a folder.
  const Gguf* gguf() const { return gguf_.get(); }
  // Opened from one file that holds it all: checkpoint/packed.h.
  bool is_packed() const { return packed_.has_value(); }

  // Files beside the weights: "tokenizer.json", "chat_template.jinja". `name` is a plain file name. For a GGUF file
  // there are none. A link must lead to a file of the folder, or from a snapshot of the model cache to its blobs.
  bool has_file(std::string_view name) const;
  Result<std::string> read_text(std::string_view name) const;
  Result<nlohmann::ordered_json> read_json(std::string_view name) const;

 private:
  std::string path_;
  bool on_disk_ = true;
  // Files of a checkpoint that is not on disk as such, by name, and who owns their bytes.
  std::map<std::string, std::span<const std::byte>, std::less<>> parts_;
  std::vector<AnonymousMemory> memory_;
  std::optional<MappedFile> packed_;
  Texts texts_;
  std::shared_ptr<const DummyIndex> dummy_;
  std::unique_ptr<Gguf> gguf_;
  std::vector<Safetensors> shards_;
  std::map<std::string, TensorEntry, std::less<>> tensors_;
  nlohmann::ordered_json config_ = nlohmann::ordered_json::object();
  nlohmann::ordered_json generation_config_ = nullptr;

  struct Text {
    std::optional<MappedFile> file;
    std::string_view view;
  };

  Result<void> open_packed();
  Result<void> open_parts();
  Result<void> open_folder();
  Result<void> open_shards(const SafetensorsIndex& index, const std::string& index_path);
  Result<Safetensors> open_shard(const std::string& name) const;
  Result<Text> map_text(std::string_view name, size_t max_bytes) const;
  Result<nlohmann::ordered_json> read_object(std::string_view name, size_t max_bytes) const;
};

}  // namespace proa
