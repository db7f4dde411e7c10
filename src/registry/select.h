// Which files of a model to download.
#pragma once

#include <string>
#include <vector>

#include "core/result.h"
#include "registry/hub.h"
#include "registry/model_name.h"

namespace proa {

struct Patterns {
  std::vector<std::string> include;  // globs on the path, '*' also matches '/'; empty: the weights once and all else
  std::vector<std::string> exclude;
};

// Without `include` weights come once: safetensors if there are any, else one GGUF model with all its parts (which the
// name has to choose where there are several), else the other formats; a file or tag in the name means GGUF. Copies of
// the weights under original/, onnx/ and the like are left out. Errors: nothing matches, several GGUF models, parts
// that the hub does not have.
Result<std::vector<HubFile>> select_files(const std::vector<HubFile>& files, const ModelName& name,
                                          const Patterns& patterns);

}  // namespace proa
