#include "registry/select.h"

#include <fnmatch.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <string_view>

#include "checkpoint/gguf.h"
#include "checkpoint/printable.h"

namespace proa {
namespace {

enum class Kind { text, safetensors, gguf, other_weights };

Kind kind_of(const std::string& path) {
  std::string extension = path.substr(std::min(path.rfind('.'), path.size()));
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (extension == ".safetensors") return Kind::safetensors;
  if (extension == ".gguf") return Kind::gguf;
  for (const std::string_view other : {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".tflite", ".onnx",
                                       ".onnx_data", ".mlmodel", ".nemo", ".npz", ".dat", ".pkl"}) {
    if (extension == other) return Kind::other_weights;
  }
  return Kind::text;
}

// A second copy of the weights, in another format or layout.
bool is_copy(const std::string& path) {
  for (const std::string_view folder : {"original/", "onnx/", "openvino/", "coreml/", "metal/"}) {
    if (path.starts_with(folder)) return true;
  }
  return path.starts_with("consolidated");
}

bool matches_any(const std::vector<std::string>& globs, const std::string& path) {
  return std::any_of(globs.begin(), globs.end(), [&](const std::string& glob) {
    const std::string pattern = glob.ends_with('/') ? glob + "*" : glob;
    return pattern.size() <= 512 && ::fnmatch(pattern.c_str(), path.c_str(), 0) == 0;
  });
}

Result<std::set<std::string>> with_parts(const std::string& first, const std::set<std::string>& known) {
  const auto part = parse_gguf_part_name(first);
  std::set<std::string> wanted{first};
  std::string missing;
  for (uint32_t number = 2; part && number <= part->count; ++number) {
    const std::string path = part->path(number);
    wanted.insert(path);
    if (!known.contains(path) && missing.size() < 400) missing += (missing.empty() ? "" : ", ") + printable(path);
  }
  if (missing.empty()) return wanted;
  return Error{"choose files", printable(first), std::to_string(part->count) + " parts on the hub",
               "these missing: " + missing, ""};
}

}  // namespace

Result<std::vector<HubFile>> select_files(const std::vector<HubFile>& files, const ModelName& name,
                                          const Patterns& patterns) {
  std::set<std::string> known, gguf;
  std::vector<std::string> paths;
  bool has_safetensors = false;
  for (const HubFile& file : files) {
    known.insert(file.path);
    paths.push_back(file.path);
    has_safetensors |= kind_of(file.path) == Kind::safetensors;
  }
  const bool by_name = !name.file.empty() || !name.tag.empty();
  const std::vector<std::string> models = gguf_models(paths);
  Kind weights = has_safetensors ? Kind::safetensors : models.empty() ? Kind::other_weights : Kind::gguf;
  if (by_name) weights = Kind::gguf;
  if (weights == Kind::gguf && (patterns.include.empty() || by_name)) {
    PROA_ASSIGN(const std::string chosen, choose_gguf(models, name));
    PROA_ASSIGN(gguf, with_parts(chosen, known));
  }

  std::vector<HubFile> selected;
  for (const HubFile& file : files) {
    const Kind kind = kind_of(file.path);
    bool wanted = kind == Kind::text   ? !is_copy(file.path)
                  : kind == Kind::gguf ? gguf.contains(file.path)
                                       : kind == weights && !is_copy(file.path);
    if (!patterns.include.empty()) wanted = gguf.contains(file.path) || matches_any(patterns.include, file.path);
    if (wanted && !matches_any(patterns.exclude, file.path)) selected.push_back(file);
  }
  if (selected.empty()) {
    return Error{"choose files", name.id, "a file that the patterns leave", "none of " + std::to_string(files.size()),
                 ""};
  }
  return selected;
}

}  // namespace proa
