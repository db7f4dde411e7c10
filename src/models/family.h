// The family's published models, known without a download: the text of each config.json, compiled in from configs/.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/result.h"

namespace proa {

struct KnownModel {
  std::string_view name;    // as published, without the precision: "NVIDIA-Nemotron-3-Nano-30B-A3B"
  std::string_view config;  // text of its config.json, for the BF16 checkpoint
};

// All of them, by name. Lives as long as the program.
std::span<const KnownModel> known_models();

struct FamilyMember {
  const KnownModel* model;
  std::string precision;  // that the name asked for: "bf16", "fp8", "nvfp4"; empty without a suffix
};

// Finds "NVIDIA-Nemotron-3-Nano-30B-A3B", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8" and the like, in any case.
// Errors: an unknown name, with the known ones.
Result<FamilyMember> find_known_model(std::string_view name);

}  // namespace proa
