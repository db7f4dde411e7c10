#include "registry/hub_cache.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <system_error>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "checkpoint/printable.h"
#include "registry/model_name.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxListed = 40;
constexpr size_t kMaxFiles = 20000;
constexpr int kMaxDepth = 8;
constexpr const char* kIndex = "model.safetensors.index.json";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool is_file(const fs::path& path) {
  std::error_code code;
  return fs::is_regular_file(path, code);
}

bool is_folder(const fs::path& path) {
  std::error_code code;
  return fs::is_directory(path, code);
}

std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMaxListed); ++i) text += (i ? ", " : "") + printable(names[i]);
  if (names.size() > kMaxListed) text += " and " + std::to_string(names.size() - kMaxListed) + " more";
  return text;
}

// Names in a folder, sorted; hidden ones and more than kMaxFiles are left out.
std::vector<std::string> entries(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code code;
  for (fs::directory_iterator at(folder, code), end; !code && at != end && names.size() < kMaxFiles;
       at.increment(code)) {
    if (std::string name = at->path().filename().string(); !name.starts_with('.')) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

void list_below(const fs::path& folder, const std::string& prefix, int depth, std::vector<std::string>& files) {
  for (const std::string& name : entries(folder)) {
    if (files.size() >= kMaxFiles) return;
    const fs::path path = folder / name;
    if (is_file(path)) files.push_back(prefix + name);
    // Links to folders are no part of the layout, and could be a cycle.
    std::error_code code;
    if (depth > 1 && is_folder(path) && !fs::is_symlink(path, code)) {
      list_below(path, prefix + name + "/", depth - 1, files);
    }
  }
}

struct Repository {
  std::string id;
  fs::path folder;

  Error error(std::string expected, std::string actual, const std::string& revision = "") const {
    return {.doing = "find model",
            .where = id + (revision.empty() ? "" : "@" + revision),
            .expected = std::move(expected),
            .actual = std::move(actual),
            .hint = "proa pull " + id + (revision.empty() ? "" : "@" + revision) + " downloads it"};
  }
};

// The commit that refs/REVISION names; empty: no such ref, or not a name of a folder.
std::string read_ref(const fs::path& repository, const std::string& revision) {
  const fs::path path = repository / "refs" / revision;
  if (!is_file(path)) return "";
  std::ifstream file(path, std::ios::binary);
  std::string commit(100, '\0');
  file.read(commit.data(), static_cast<std::streamsize>(commit.size()));
  commit.resize(static_cast<size_t>(file.gcount()));
  while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back()))) commit.pop_back();
  const bool good = is_safe_revision(commit) && commit.find('/') == commit.npos;
  return good ? commit : "";
}

Result<fs::path> find_snapshot(const Repository& repository, const std::string& revision) {
  const fs::path snapshots = repository.folder / "snapshots";
  if (!revision.empty() && revision.find('/') == revision.npos && is_folder(snapshots / revision)) {
    return snapshots / revision;
  }
  const std::string commit = read_ref(repository.folder, revision.empty() ? "main" : revision);
  if (!commit.empty() && is_folder(snapshots / commit)) return snapshots / commit;
  if (!commit.empty()) {
    return repository.error("the snapshot " + commit, "none in " + snapshots.string(), revision);
  }
  std::vector<std::string> commits;
  for (const std::string& name : entries(snapshots)) {
    if (is_folder(snapshots / name)) commits.push_back(name);
  }
  if (!revision.empty()) {
    return repository.error("that revision in " + repository.folder.string(),
                            commits.empty() ? "no snapshot" : "the snapshots " + list(commits), revision);
  }
  if (commits.size() == 1) return snapshots / commits[0];
  if (commits.size() > 1) {
    Error error = repository.error("a revision, as refs/main is missing", "the snapshots " + list(commits));
    error.hint = "choose one with --revision";
    return error;
  }
  for (const std::string& name : entries(repository.folder)) {
    if (name == "config.json" || name.ends_with(".gguf")) return repository.folder;
  }
  return repository.error("a snapshot in " + repository.folder.string(), "none");
}

// ", and 2 downloads that did not end (blobs/1f3c.incomplete, ...)"; empty when there are none.
std::string unfinished_downloads(const fs::path& repository) {
  std::vector<std::string> names;
  for (const char* folder : {"blobs", ".cache/huggingface/download"}) {
    for (const std::string& name : entries(repository / folder)) {
      if (name.ends_with(".incomplete")) names.push_back(std::string(folder) + "/" + name);
    }
  }
  if (names.empty()) return "";
  return ", and " + std::to_string(names.size()) + " unfinished downloads: " + list(names);
}

}  // namespace

std::string expand_home(const std::string& path) {
  const std::string home = environment("HOME");
  if (home.empty() || (path != "~" && !path.starts_with("~/"))) return path;
  return home + path.substr(1);
}

std::string hub_home_folder() {
  if (const std::string home = environment("HF_HOME"); !home.empty()) return expand_home(home);
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty()) {
    return expand_home(cache) + "/huggingface";
  }
  const std::string home = environment("HOME");
  return home.empty() ? "" : home + "/.cache/huggingface";
}

std::string hub_cache_folder() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const std::string folder = environment(name); !folder.empty()) return expand_home(folder);
  }
  const std::string home = hub_home_folder();
  return home.empty() ? "" : home + "/hub";
}

bool hub_is_offline() {
  std::string value = environment("HF_HUB_OFFLINE");
  if (value.empty()) value = environment("TRANSFORMERS_OFFLINE");
  for (char& c : value) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

std::string repository_folder_name(std::string_view id) {
  std::string name = "models--" + std::string(id);
  if (const size_t slash = name.find('/'); slash != name.npos) name.replace(slash, 1, "--");
  return name;
}

std::vector<std::string> list_files(const std::string& folder) {
  std::vector<std::string> files;
  list_below(folder, "", kMaxDepth, files);
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> missing_files(const std::string& folder) {
  std::vector<std::string> missing;
  const fs::path path(folder);
  if (!is_file(path / "config.json")) missing.push_back("config.json");
  if (is_file(path / "model.safetensors")) return missing;
  if (!is_file(path / kIndex)) {
    missing.push_back(std::string("model.safetensors or ") + kIndex);
    return missing;
  }
  const auto mapped = MappedFile::open((path / kIndex).string());
  if (!mapped.ok() || mapped->bytes().size() > Checkpoint::kMaxTextBytes) return missing;  // opening it will say why
  const auto index =
      parse_json({reinterpret_cast<const char*>(mapped->bytes().data()), mapped->bytes().size()}, kIndex);
  if (!index.ok() || !index->is_object()) return missing;
  const auto weight_map = index->find("weight_map");
  if (weight_map == index->end() || !weight_map->is_object()) return missing;
  std::set<std::string> shards;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (file.is_string()) shards.insert(file.get<std::string>());
  }
  for (const std::string& shard : shards) {
    if (is_safe_relative_path(shard) && !is_file(path / shard)) missing.push_back(shard);
  }
  return missing;
}

std::vector<std::string> missing_parts(const std::string& first) {
  std::vector<std::string> missing;
  const auto name = parse_gguf_part_name(first);
  for (uint32_t part = 1; name && part <= name->count; ++part) {
    if (!is_file(name->path(part))) missing.push_back(fs::path(name->path(part)).filename().string());
  }
  return missing;
}

Result<std::string> resolve_model(const std::string& model, const ResolveOptions& options) {
  std::error_code code;
  if (fs::exists(model, code)) return model;
  PROA_ASSIGN(const ModelName name, parse_model_name(model));
  const std::string revision = name.revision.empty() ? options.revision : name.revision;
  if (!revision.empty() && !is_safe_revision(revision)) {
    return Error{"find model", "--revision " + printable(revision), "a branch, tag or commit", "another name", ""};
  }
  const std::string cache = options.cache.empty() ? hub_cache_folder() : expand_home(options.cache);
  if (cache.empty()) {
    return Error{"find model", printable(model), "a cache of models", "neither HF_HOME nor HOME is set", ""};
  }
  const Repository repository{name.id, fs::path(cache) / repository_folder_name(name.id)};
  if (!is_folder(repository.folder)) {
    return repository.error("a file, a folder, or a model in " + cache, "none of that name", revision);
  }
  PROA_ASSIGN(const fs::path snapshot, find_snapshot(repository, revision));

  const std::vector<std::string> files = list_files(snapshot.string());
  const std::vector<std::string> models = gguf_models(files);
  const bool has_safetensors = std::any_of(files.begin(), files.end(), [](const std::string& file) {
    return file.ends_with(".safetensors") || file == kIndex;
  });
  std::vector<std::string> missing;
  std::string path = snapshot.string();
  const bool wants_gguf = !name.file.empty() || !name.tag.empty() || (!models.empty() && !has_safetensors);
  if (wants_gguf) {
    auto chosen = choose_gguf(models, name);
    if (!chosen.ok()) {
      Error error = std::move(chosen).error();
      error.where += " in " + path;
      if (models.empty()) error.hint = "proa pull " + printable(model) + " downloads it";
      return error;
    }
    path = (snapshot / *chosen).string();
    missing = missing_parts(path);
  } else {
    missing = missing_files(path);
  }
  if (!missing.empty()) {
    return repository.error(
        "a complete model in " + snapshot.string(),
        std::to_string(missing.size()) + " missing: " + list(missing) + unfinished_downloads(repository.folder),
        revision);
  }
  return path;
}

}  // namespace proa
