#include "models/models.h"

#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/config_reader.h"
#include "checkpoint/printable.h"

namespace proa {
namespace {

struct Architecture {
  const char* hf;    // config.json "architectures"
  const char* gguf;  // general.architecture
  Result<std::unique_ptr<Model>> (*open)(std::shared_ptr<const Checkpoint>, Backend&);
};

constexpr Architecture kArchitectures[] = {
    {"NemotronHForCausalLM", "nemotron_h", open_nemotron_h},
    {"NemotronHForCausalLM", "nemotron_h_moe", open_nemotron_h},
    {"LlamaForCausalLM", "llama", open_llama},
};

Result<std::string> architecture_of(const Checkpoint& checkpoint) {
  if (const Gguf* gguf = checkpoint.gguf()) {
    PROA_ASSIGN(auto name, gguf->string("general.architecture"));
    return std::string(name);
  }
  PROA_ASSIGN(const ConfigReader config, text_config(checkpoint));
  PROA_ASSIGN(auto names, config.strings("architectures"));
  if (names.size() != 1) return config.error("architectures", "one name", std::to_string(names.size()));
  return names.front();
}

}  // namespace

Result<ConfigReader> text_config(const Checkpoint& checkpoint) {
  const ConfigReader config(checkpoint.config(), checkpoint.path() + "/config.json");
  for (const char* name : {"llm_config", "text_config"}) {
    if (!config.has(name)) continue;
    PROA_ASSIGN(const ConfigReader nested, config.object(name));
    if (nested.has("architectures")) return nested;
  }
  return config;
}

std::string_view to_string(WeightKind kind) {
  constexpr std::string_view kNames[] = {"embedding",     "mamba",  "attention", "router",  "expert",
                                         "shared expert", "latent", "mlp",       "lm_head", "vector"};
  return kNames[static_cast<size_t>(kind)];
}

void Model::set_weights(std::vector<WeightUse> weights) {
  weights_ = std::move(weights);
  for (const WeightUse& weight : weights_) {
    info_.num_parameters += weight.parameters;
    info_.weight_bytes += weight.bytes;
  }
}

Result<std::unique_ptr<Model>> open_model(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend) {
  PROA_ASSIGN(const std::string name, architecture_of(*checkpoint));
  const bool gguf = checkpoint->gguf() != nullptr;
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    const std::string spelling = gguf ? architecture.gguf : architecture.hf;
    if (spelling == name) return architecture.open(std::move(checkpoint), backend);
    if (known.find(spelling) == std::string::npos) known += (known.empty() ? "" : ", ") + spelling;
  }
  return Error{.doing = "open model",
               .where = checkpoint->path() + (gguf ? ": general.architecture" : "/config.json: architectures"),
               .expected = "one of " + known,
               .actual = printable(name)};
}

}  // namespace proa
