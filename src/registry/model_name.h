// Names of models on a hub as users write them: org/name, org/name@revision, org/name:Q4_0, org/name/file.gguf.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

struct ModelName {
  std::string id;        // "org/name"
  std::string revision;  // a branch, tag or commit; empty: the one asked for elsewhere, else main
  std::string tag;       // ":Q4_0" picks one of several GGUF files; empty: none
  std::string file;      // "folder/file.gguf" in the repository; empty: none
};

// Every character is checked: nothing that passes can leave a folder or an address. After ':' stands a quantization
// ("Q4_K_M", "UD-Q2_K_XL", "BF16"), otherwise a revision. Errors name what is not allowed.
Result<ModelName> parse_model_name(std::string_view text);

// A path below a folder: no empty, "." or ".." component, no backslash, no control character, at most 512 bytes.
bool is_safe_relative_path(std::string_view path);

// A branch, tag or commit: is_safe_relative_path of A-Z a-z 0-9 . _ - / with no component that begins with a dot.
bool is_safe_revision(std::string_view revision);

// The GGUF models among file names: single files and first parts, sorted; projectors of images (mmproj) are left out.
std::vector<std::string> gguf_models(const std::vector<std::string>& files);

// Whether the file is of the quantization `tag`: "Q4_0" stands in "model-q4_0-00001-of-00003.gguf", not in "Q4_0_8".
// A folder of that name counts too ("Q4_0/model-00001-of-00003.gguf").
bool has_quantization_tag(std::string_view file, std::string_view tag);

// The one GGUF among `models` that file or tag pick, or the only one. The error lists what there is to choose from.
Result<std::string> choose_gguf(const std::vector<std::string>& models, const ModelName& name);

}  // namespace proa
