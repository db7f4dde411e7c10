// The folder in which huggingface_hub, transformers and vLLM keep what they downloaded, and what is in it:
//   models--ORG--NAME/blobs/ETAG               contents; ETAG.incomplete while they come
//   models--ORG--NAME/refs/REVISION            the commit that a branch or tag meant
//   models--ORG--NAME/snapshots/COMMIT/FILE    a symbolic link into blobs
// Source: the cache layout that huggingface_hub documents. Nothing here uses a network or writes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

// HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub: the first
// that is set. See expand_home(). Empty: not even HOME is set.
std::string hub_cache_folder();

// HF_HOME, XDG_CACHE_HOME/huggingface, ~/.cache/huggingface: where the stored token lies. Empty as above.
std::string hub_home_folder();

// "~" and "~/..." with HOME in place of "~"; any other path as it is.
std::string expand_home(const std::string& path);

// HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is 1, ON, YES or TRUE.
bool hub_is_offline();

// "models--org--name" for "org/name".
std::string repository_folder_name(std::string_view id);

struct ResolveOptions {
  std::string cache;     // a folder laid out as above, see expand_home(); empty: hub_cache_folder()
  std::string revision;  // a branch, tag or commit, unless the name has one; empty: main, else the only snapshot
};

// The path to open for a model as a user names it: a file or folder of that name if there is one, else what the cache
// holds of org/name[@revision | :revision | :Q4_0 | /file.gguf]: a snapshot folder, or a GGUF file where a snapshot
// holds only those or one was asked for. A models--ORG--NAME folder that holds the files directly (as downloads with
// --local-dir leave it) is taken too. Errors: not there, no such revision, several GGUF files (listed), files that a
// broken download left out (all listed); the hint is the command that downloads.
Result<std::string> resolve_model(const std::string& model, const ResolveOptions& options = {});

// Names of the files below `folder`, with '/' between folders, sorted; links that lead nowhere are left out. At most
// 20,000 in at most 8 levels.
std::vector<std::string> list_files(const std::string& folder);

// What a model's folder lacks to be opened: config.json, model.safetensors, or shards of its index; empty when
// complete.
std::vector<std::string> missing_files(const std::string& folder);

// The other parts of a split GGUF file that are not there, as `first` names them.
std::vector<std::string> missing_parts(const std::string& first);

}  // namespace proa
