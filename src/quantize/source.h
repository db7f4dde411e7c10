// What is quantised: a Hugging Face folder of Nemotron-H with plain weights (BF16, F16, F32), of which some shards may
// not be there yet.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "core/result.h"
#include "models/nemotron_h_tensors.h"

namespace proa {

struct QuantizeSource {
  std::string path;
  nlohmann::ordered_json config;  // config.json
  nemotron_h::NemotronHConfig model;
  // By name, also of shards that are absent: those have no data and no shape.
  std::map<std::string, TensorEntry, std::less<>> tensors;
  std::vector<Safetensors> shards;           // those that are there, mapped
  std::vector<std::string> absent;           // plain names of shards that are not there
  std::map<std::string, std::string> texts;  // small files beside the weights, by name; without the index
  std::string key;                           // of config and names: 16 hexadecimal digits
};

// Errors: those of the readers; a GGUF file or a quantised folder; shards that are missing, all of them, unless
// `allow_absent`; another architecture.
Result<QuantizeSource> open_quantize_source(const std::string& path, bool allow_absent);

}  // namespace proa
