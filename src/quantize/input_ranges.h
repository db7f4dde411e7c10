// How large the inputs of linear layers become: what static scales of activations are made of.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "core/result.h"

namespace proa {

// The largest magnitude by module, as the published checkpoint names it: "backbone.layers.1.mixer.experts.3.up_proj".
// Of keys and values by their module too: "backbone.layers.5.mixer.k_proj".
struct InputRanges {
  std::map<std::string, float, std::less<>> inputs;
  std::map<std::string, float, std::less<>> keys_values;
  float fallback = 0;  // of modules that are not named; 0: they are an error
  int64_t tokens = 0;  // that were looked at

  // The module's own; of an expert that no token chose, the largest of its layer. 0: not known.
  float input(std::string_view module) const;

  // {"tokens": 4096, "inputs": {"backbone...": 12.5}, "keys_values": {...}, "default": 8}; all but "inputs" may be
  // missing. Errors name the field: numbers that are negative or not finite.
  static Result<InputRanges> parse(std::string_view text, const std::string& path);
  std::string to_json() const;
};

}  // namespace proa
