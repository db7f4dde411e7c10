#include "quantize/input_ranges.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/printable.h"

namespace proa {

float InputRanges::input(std::string_view module) const {
  const auto found = inputs.find(module);
  if (found != inputs.end() && found->second > 0) return found->second;
  const size_t experts = module.find(".experts.");
  float most = 0;
  if (experts != module.npos) {
    const std::string_view layer = module.substr(0, experts), part = module.substr(module.rfind('.'));
    for (auto it = inputs.lower_bound(layer); it != inputs.end() && it->first.starts_with(layer); ++it) {
      if (it->first.find(".experts.") == experts && it->first.ends_with(part)) most = std::max(most, it->second);
    }
  }
  return most > 0 ? most : fallback;
}

Result<InputRanges> InputRanges::parse(std::string_view text, const std::string& path) {
  PROA_ASSIGN(const auto json, parse_json(text, path));
  const auto bad = [&](const std::string& field, const std::string& actual) {
    return Error{"read ranges of activations", path + ": " + printable(field), "a number above or equal to 0", actual,
                 ""};
  };
  if (!json.is_object() || !json.contains("inputs") || !json["inputs"].is_object()) {
    return Error{"read ranges of activations", path, "an object with \"inputs\"", json.type_name(), ""};
  }
  InputRanges ranges;
  const auto number = [&](const std::string& field, const nlohmann::ordered_json& value) -> Result<float> {
    if (!value.is_number()) return bad(field, value.type_name());
    const float result = value.get<float>();
    if (!(result >= 0) || std::isinf(result)) return bad(field, printable(value.dump()));
    return result;
  };
  for (const auto& [group, target] :
       {std::pair("inputs", &ranges.inputs), std::pair("keys_values", &ranges.keys_values)}) {
    if (!json.contains(group)) continue;
    if (!json[group].is_object()) return bad(group, json[group].type_name());
    for (const auto& [module, value] : json[group].items()) {
      PROA_ASSIGN((*target)[module], number(module, value));
    }
  }
  if (json.contains("default")) {
    PROA_ASSIGN(ranges.fallback, number("default", json["default"]));
  }
  if (json.contains("tokens") && json["tokens"].is_number_integer()) ranges.tokens = json["tokens"].get<int64_t>();
  return ranges;
}

std::string InputRanges::to_json() const {
  nlohmann::ordered_json json = {{"tokens", tokens}};
  for (const auto& [group, source] : {std::pair("inputs", &inputs), std::pair("keys_values", &keys_values)}) {
    json[group] = nlohmann::ordered_json::object();
    for (const auto& [module, value] : *source) json[group][module] = value;
  }
  if (fallback > 0) json["default"] = fallback;
  return json.dump(1) + "\n";
}

}  // namespace proa
