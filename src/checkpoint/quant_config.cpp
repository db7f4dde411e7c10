#include "checkpoint/quant_config.h"

#include "checkpoint/checkpoint.h"
#include "checkpoint/config_reader.h"
#include "checkpoint/printable.h"

namespace proa {
namespace {

constexpr size_t kMaxPatterns = 4096;

struct Algorithm {
  const char* name;
  QuantScheme scheme;
};
// Activations stay as they are here, so that W4A4 and W4A16 are one.
constexpr Algorithm kAlgorithms[] = {{"FP8", QuantScheme::fp8},
                                     {"FP8_PER_CHANNEL_PER_TOKEN", QuantScheme::fp8},
                                     {"NVFP4", QuantScheme::nvfp4},
                                     {"W4A16_NVFP4", QuantScheme::nvfp4}};
constexpr std::string_view kMixed = "MIXED_PRECISION";

std::string known_algorithms() {
  std::string text = "one of ";
  for (const Algorithm& algorithm : kAlgorithms) text += std::string(algorithm.name) + ", ";
  return text + std::string(kMixed);
}

const Algorithm* find_algorithm(std::string_view name) {
  for (const Algorithm& algorithm : kAlgorithms) {
    if (algorithm.name == name) return &algorithm;
  }
  return nullptr;
}

std::string_view without_prefix(std::string_view module) {
  if (module.starts_with("language_model.")) module.remove_prefix(15);
  for (std::string_view prefix : {"backbone.", "model."}) {
    if (module.starts_with(prefix)) return module.substr(prefix.size());
  }
  return module;
}

// fnmatch with * and ? over the whole text; only the last star moves.
bool matches(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = pattern.npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != pattern.npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

// f(module), f(its parent), ... until one is true.
template <class F>
bool any_of_parents(std::string_view module, F f) {
  for (;;) {
    if (f(module)) return true;
    const size_t dot = module.rfind('.');
    if (dot == module.npos) return false;
    module = module.substr(0, dot);
  }
}

}  // namespace

std::string_view to_string(QuantScheme scheme) {
  return scheme == QuantScheme::fp8 ? "FP8" : scheme == QuantScheme::nvfp4 ? "NVFP4" : "not quantised";
}

Result<QuantConfig> QuantConfig::read(const Checkpoint& checkpoint) {
  if (checkpoint.has_file("hf_quant_config.json")) {
    const std::string where = checkpoint.path() + "/hf_quant_config.json";
    PROA_ASSIGN(const auto json, checkpoint.read_json("hf_quant_config.json"));
    if (!json.is_object()) return Error{"read quantization", where, "an object", json.type_name(), ""};
    const ConfigReader reader(json, where);
    PROA_ASSIGN(const ConfigReader object, reader.object("quantization"));
    return parse(object.json(), object.where());
  }
  const ConfigReader reader(checkpoint.config(), checkpoint.path() + "/config.json");
  if (!reader.has("quantization_config")) return QuantConfig();
  PROA_ASSIGN(const ConfigReader object, reader.object("quantization_config"));
  return parse(object.json(), object.where());
}

Result<QuantConfig> QuantConfig::parse(const nlohmann::ordered_json& object, const std::string& where) {
  const ConfigReader reader(object, where);
  QuantConfig config;
  config.where_ = where;
  PROA_ASSIGN(const std::string method, reader.string("quant_method", "modelopt"));
  if (!method.starts_with("modelopt")) return reader.error("quant_method", "modelopt", "\"" + printable(method) + "\"");
  if (!reader.has("quant_algo")) return config;
  PROA_ASSIGN(const std::string name, reader.string("quant_algo"));
  PROA_ASSIGN(const int64_t group_size, reader.integer("group_size", {.min = 0}, 16));
  if (name == kMixed) {
    config.kind_ = Kind::mixed;
    PROA_ASSIGN(const ConfigReader layers, reader.object("quantized_layers"));
    for (const auto& [module, layer] : layers.json().items()) {
      if (!layer.is_object()) return layers.error(printable(module), "an object", layer.type_name());
      const ConfigReader fields(layer, layers.where() + ": " + printable(module));
      PROA_ASSIGN(const std::string layer_name, fields.string("quant_algo"));
      const Algorithm* algorithm = find_algorithm(layer_name);
      if (!algorithm) return fields.error("quant_algo", known_algorithms(), "\"" + printable(layer_name) + "\"");
      PROA_ASSIGN(const int64_t size, fields.integer("group_size", {.min = 0}, group_size));
      if (algorithm->scheme == QuantScheme::nvfp4 && size != 16) {
        return fields.error("group_size", "16", std::to_string(size));
      }
      config.map_.emplace(without_prefix(module), algorithm->scheme);
    }
  } else {
    config.kind_ = Kind::uniform;
    const Algorithm* algorithm = find_algorithm(name);
    if (!algorithm) return reader.error("quant_algo", known_algorithms(), "\"" + printable(name) + "\"");
    config.scheme_ = algorithm->scheme;
    if (config.scheme_ == QuantScheme::nvfp4 && group_size != 16) {
      return reader.error("group_size", "16", std::to_string(group_size));
    }
  }
  PROA_ASSIGN(const auto excluded, reader.strings({"exclude_modules", "ignore"}, std::vector<std::string>()));
  for (const std::string& pattern : excluded) {
    const std::string name_or_pattern(without_prefix(pattern));
    if (pattern.find_first_of("*?") == pattern.npos) {
      config.excluded_.insert(name_or_pattern);
    } else {
      config.excluded_patterns_.push_back(name_or_pattern);
    }
  }
  if (config.excluded_patterns_.size() > kMaxPatterns) {
    return reader.error("exclude_modules", "at most " + std::to_string(kMaxPatterns) + " patterns",
                        std::to_string(config.excluded_patterns_.size()));
  }
  return config;
}

bool QuantConfig::excludes(std::string_view module) const {
  return any_of_parents(module, [&](std::string_view name) {
    if (excluded_.contains(name)) return true;
    for (const std::string& pattern : excluded_patterns_) {
      if (matches(pattern, name)) return true;
    }
    return false;
  });
}

const QuantScheme* QuantConfig::listed(std::string_view module, bool parents) const {
  const QuantScheme* found = nullptr;
  const auto look = [&](std::string_view name) {
    const auto it = map_.find(name);
    if (it != map_.end()) found = &it->second;
    return found != nullptr;
  };
  if (look(module)) return found;
  // Experts that are stacked in the file may be listed one by one.
  if (const size_t dot = module.rfind("experts."); dot != module.npos) {
    if (look(std::string(module.substr(0, dot)) + "experts.0." + std::string(module.substr(dot + 8)))) return found;
  }
  if (parents) any_of_parents(module, look);
  return found;
}

bool QuantConfig::allows(std::string_view module, QuantScheme scheme) const {
  module = without_prefix(module);
  if (kind_ == Kind::absent) return true;
  if (scheme == QuantScheme::none) return kind_ == Kind::uniform || !listed(module, false);
  if (excludes(module)) return false;
  if (kind_ == Kind::uniform) return scheme == scheme_;
  const QuantScheme* entry = listed(module, true);
  return entry && *entry == scheme;
}

std::string QuantConfig::says(std::string_view module) const {
  module = without_prefix(module);
  if (kind_ == Kind::absent) return "nothing";
  if (excludes(module)) return "excluded";
  if (kind_ == Kind::uniform) return std::string(to_string(scheme_));
  const QuantScheme* entry = listed(module, true);
  return entry ? std::string(to_string(*entry)) : "not listed";
}

}  // namespace proa
