#include "quantize/source.h"

#include <algorithm>
#include <filesystem>

#include "checkpoint/printable.h"
#include "checkpoint/safetensors_index.h"
#include "core/checksum.h"
#include "core/mapped_file.h"

namespace proa {
namespace {

namespace fs = std::filesystem;
constexpr const char* kDoing = "open what is to be quantised";
constexpr const char* kIndex = "model.safetensors.index.json";

Result<std::string> read_text(const std::string& path) {
  std::error_code code;
  const auto size = fs::file_size(path, code);
  if (!code && size == 0) return std::string();
  if (!code && size > Checkpoint::kMaxTextBytes) {
    return Error{kDoing, path, "at most " + std::to_string(Checkpoint::kMaxTextBytes) + " bytes", std::to_string(size),
                 ""};
  }
  PROA_ASSIGN(const MappedFile file, MappedFile::open(path));
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

// What goes along with a model whatever its weights are: config, tokenizer, template and licence. What a README says of
// the original need not hold for the copy.
bool goes_along(const fs::path& file) {
  const std::string name = file.filename().string();
  constexpr std::string_view kBeginnings[] = {
      "config.json", "generation_config.json", "tokenizer", "special_tokens", "added_tokens",       "vocab",
      "merges",      "chat_template",          "LICENSE",   "NOTICE",         "preprocessor_config"};
  return std::any_of(std::begin(kBeginnings), std::end(kBeginnings),
                     [&](std::string_view beginning) { return name.starts_with(beginning); });
}

Result<void> add_shard(Safetensors shard, const SafetensorsIndex* index, QuantizeSource& out) {
  for (auto& [name, entry] : shard.take_tensors()) {
    if (index && !index->shard.contains(name)) continue;  // as readers of the index see it
    TensorEntry& known = out.tensors[name];
    if (known.data || known.bytes) {
      return Error{kDoing, entry.file + ": " + printable(name), "a tensor in one shard", "also in " + known.file, ""};
    }
    known = entry;
  }
  out.shards.push_back(std::move(shard));
  return {};
}

Result<void> open_shards(bool allow_absent, QuantizeSource& out) {
  const std::string index_path = out.path + "/" + kIndex;
  if (!fs::exists(index_path)) {
    PROA_ASSIGN(Safetensors only, Safetensors::open(out.path + "/model.safetensors"));
    return add_shard(std::move(only), nullptr, out);
  }
  PROA_ASSIGN(const std::string text, read_text(index_path));
  PROA_ASSIGN(const SafetensorsIndex index, parse_safetensors_index(text, index_path));
  for (const auto& [name, file] : index.shard) out.tensors[name].name = name;
  for (const std::string& file : index.files) {
    if (!fs::exists(out.path + "/" + file)) {
      out.absent.push_back(file);
      continue;
    }
    PROA_ASSIGN(Safetensors shard, Safetensors::open(out.path + "/" + file));
    PROA_TRY(add_shard(std::move(shard), &index, out));
  }
  if (!out.absent.empty() && !allow_absent) {
    std::string list;
    for (const std::string& file : out.absent) list += (list.empty() ? "" : ", ") + printable(file);
    return Error{kDoing, out.path, "all shards", "without " + list,
                 "download them, or --as-they-come to quantise what is there"};
  }
  for (const auto& [name, file] : index.shard) {
    if (out.tensors[name].file.empty() &&
        std::find(out.absent.begin(), out.absent.end(), index.files[file]) == out.absent.end()) {
      return Error{kDoing, out.path + "/" + index.files[file], "tensor " + printable(name), "none",
                   "the file is not the one that the index is about"};
    }
  }
  return {};
}

}  // namespace

Result<QuantizeSource> open_quantize_source(const std::string& path, bool allow_absent) {
  std::error_code code;
  if (!fs::is_directory(path, code)) {
    return Error{kDoing, path, "a folder with config.json and BF16 safetensors",
                 fs::exists(path, code) ? "a file" : "nothing there", ""};
  }
  QuantizeSource out{.path = path};
  while (out.path.size() > 1 && out.path.ends_with('/')) out.path.pop_back();
  PROA_ASSIGN(const std::string text, read_text(out.path + "/config.json"));
  PROA_ASSIGN(out.config, parse_json(text, out.path + "/config.json"));
  if (!out.config.is_object()) return Error{kDoing, out.path + "/config.json", "an object", out.config.type_name(), ""};
  if (out.config.value("model_type", "") != "nemotron_h") {
    const auto type = out.config.find("model_type");
    return Error{kDoing, out.path + "/config.json: model_type", "nemotron_h",
                 type != out.config.end() && type->is_string() ? printable(type->get<std::string>()) : "none", ""};
  }
  if (fs::exists(out.path + "/hf_quant_config.json") || out.config.contains("quantization_config")) {
    return Error{kDoing, out.path, "plain weights (BF16, F16 or F32)", "a checkpoint that is quantised already",
                 "quantise the BF16 one"};
  }
  PROA_ASSIGN(out.model, nemotron_h::read_config(out.config, out.path + "/config.json"));
  PROA_TRY(open_shards(allow_absent, out));

  Checksum key;
  key.add(std::as_bytes(std::span(text)));
  for (const auto& [name, entry] : out.tensors) key.add(std::as_bytes(std::span(name)));
  out.key = hex(key.value());

  for (const auto& file : fs::directory_iterator(out.path, code)) {
    if (!file.is_regular_file(code) || !goes_along(file.path())) continue;
    PROA_ASSIGN(out.texts[file.path().filename().string()], read_text(file.path().string()));
  }
  return out;
}

}  // namespace proa
