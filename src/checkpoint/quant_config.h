// What a Hugging Face checkpoint says about its quantisation: hf_quant_config.json as ModelOpt writes it, or
// quantization_config in config.json. How a tensor is stored is read from the tensors themselves (scaled_tensors.h);
// this only tells whether the two agree.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

class Checkpoint;

// How ModelOpt stores a matrix.
enum class QuantScheme { none, fp8, nvfp4 };
std::string_view to_string(QuantScheme scheme);  // "not quantised", "FP8", "NVFP4"

class QuantConfig {
 public:
  // An empty one when the checkpoint has neither. Errors: a quant_algo or quant_method that is not known, with the list
  // of known ones; fields of wrong types.
  static Result<QuantConfig> read(const Checkpoint& checkpoint);
  // `where` for messages. `object` is the value of "quantization" or "quantization_config".
  static Result<QuantConfig> parse(const nlohmann::ordered_json& object, const std::string& where);

  // Whether a module ("backbone.layers.1.mixer.experts.3.up_proj") may be stored like this. Only what is certain is
  // denied: modules that are no linear layer are neither quantised nor listed. Prefixes of the text model (backbone.,
  // model., language_model.) do not count, since some savers rename tensors and leave this as it was.
  bool allows(std::string_view module, QuantScheme scheme) const;
  // What it says of the module, for messages: "FP8", "excluded", "not listed".
  std::string says(std::string_view module) const;

  const std::string& where() const { return where_; }

 private:
  enum class Kind { absent, uniform, mixed };

  bool excludes(std::string_view module) const;
  const QuantScheme* listed(std::string_view module, bool parents) const;

  std::string where_;
  Kind kind_ = Kind::absent;
  QuantScheme scheme_ = QuantScheme::none;               // uniform
  std::map<std::string, QuantScheme, std::less<>> map_;  // mixed: by module
  std::set<std::string, std::less<>> excluded_;
  std::vector<std::string> excluded_patterns_;  // with * or ?
};

}  // namespace proa
