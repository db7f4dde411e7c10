// model.safetensors.index.json: which shard holds which tensor.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

struct SafetensorsIndex {
  std::vector<std::string> files;                      // plain names of files in the same folder
  std::map<std::string, uint32_t, std::less<>> shard;  // tensor -> index into files
};

// A name of a file in the folder and nothing else: an index must not reach out of it.
bool is_plain_file_name(std::string_view name);

// Errors name `path` and the tensor: no weight_map, a tensor twice, a shard that is not a plain file name.
Result<SafetensorsIndex> parse_safetensors_index(std::string_view text, const std::string& path);

}  // namespace proa
