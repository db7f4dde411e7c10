#include "models/published.h"

#include <cstdio>
#include <nlohmann/json.hpp>

namespace proa {

using nemotron_h::NemotronHConfig;
using nlohmann::ordered_json;

int layer_of(std::string_view name) {
  for (const std::string_view prefix : {"blk.", "backbone.layers."}) {
    if (!name.starts_with(prefix)) continue;
    int layer = 0;
    for (const char c : name.substr(prefix.size())) {
      if (c < '0' || c > '9') break;
      layer = 10 * layer + (c - '0');
    }
    return layer;
  }
  return -1;
}

void put_gguf_metadata(const NemotronHConfig& c, const std::string& name, GgufWriter& out) {
  const bool moe = nemotron_h::has(c, 'E');
  const std::string architecture = moe ? "nemotron_h_moe" : "nemotron_h";
  const auto key = [&](const char* field) { return architecture + "." + field; };
  const auto u32 = [&](const char* field, int64_t value) { out.put_u32(key(field), static_cast<uint32_t>(value)); };
  out.put_string("general.architecture", architecture);
  out.put_string("general.type", "model");
  out.put_string("general.name", name);
  out.put_u32("general.quantization_version", 2);
  u32("block_count", static_cast<int64_t>(c.pattern.size()));
  u32("context_length", 1 << 20);  // the converter's constant for the whole family
  u32("embedding_length", c.hidden_size);
  u32("vocab_size", c.vocab_size);
  std::vector<int32_t> feed_forward, kv_heads;
  for (const char mixer : c.pattern) {
    feed_forward.push_back(static_cast<int32_t>(mixer == 'E'   ? c.moe_intermediate_size
                                                : mixer == '-' ? c.intermediate_size
                                                               : 0));
    kv_heads.push_back(static_cast<int32_t>(mixer == '*' ? c.num_key_value_heads : 0));
  }
  out.put_i32s(key("feed_forward_length"), feed_forward);
  u32("attention.head_count", c.num_attention_heads);
  out.put_i32s(key("attention.head_count_kv"), kv_heads);
  u32("attention.key_length", c.head_dim);
  u32("attention.value_length", c.head_dim);
  out.put_f32(key("attention.layer_norm_rms_epsilon"), c.layer_norm_epsilon);
  out.put_f32(key("attention.layer_norm_epsilon"), c.layer_norm_epsilon);
  out.put_f32(key("rope.freq_base"), 10000);  // there, and without a meaning: no positions
  u32("rope.dimension_count", c.hidden_size / c.num_attention_heads / 2 * 2);
  out.put_bool(key("rope.scaling.finetuned"), false);
  u32("ssm.conv_kernel", c.conv_kernel);
  u32("ssm.state_size", c.ssm_state_size);
  u32("ssm.group_count", c.n_groups);
  u32("ssm.inner_size", c.mamba_num_heads * c.mamba_head_dim);
  u32("ssm.time_step_rank", c.mamba_num_heads);
  if (!moe) return;
  u32("expert_count", c.n_routed_experts);
  u32("expert_used_count", c.num_experts_per_tok);
  u32("expert_shared_count", c.moe_shared_expert_intermediate_size ? 1 : 0);
  u32("expert_feed_forward_length", c.moe_intermediate_size);
  u32("expert_shared_feed_forward_length", c.moe_shared_expert_intermediate_size);
  out.put_bool(key("expert_weights_norm"), c.norm_topk_prob);
  out.put_f32(key("expert_weights_scale"), c.routed_scaling_factor);
  u32("expert_group_count", c.n_group);
  u32("expert_group_used_count", c.topk_group);
  if (c.moe_latent_size) u32("moe_latent_size", c.moe_latent_size);
}

std::vector<int64_t> gguf_shape(const TensorSpec& spec) {
  if (spec.name.ends_with("ssm_conv1d.weight")) return {spec.shape[0], spec.shape[2]};
  if (spec.name.ends_with("ssm_a") || spec.name.ends_with("ssm_d")) return {spec.shape[0], 1};
  return spec.shape;
}

void QuantisedModules::add(const TensorSpec& spec, HfScheme scheme) {
  const std::string module = spec.name.substr(0, spec.name.rfind('.'));
  const bool embedding = spec.name.ends_with("embeddings.weight");
  if (scheme == HfScheme::bf16 && (spec.shape.size() == 2 || spec.name.ends_with("conv1d.weight")) && !embedding) {
    excluded.push_back(module);
  } else if (scheme != HfScheme::f32 && scheme != HfScheme::bf16) {
    quantised.emplace_back(module, scheme == HfScheme::fp8                 ? "FP8"
                                   : scheme == HfScheme::nvfp4_weight_only ? "W4A16_NVFP4"
                                                                           : "NVFP4");
  }
}

std::string hf_quant_config(const Precision& precision, bool mixed, const QuantisedModules& modules) {
  ordered_json quantization = {{"quant_algo", mixed                     ? "MIXED_PRECISION"
                                              : precision.name == "fp8" ? "FP8"
                                                                        : "NVFP4"},
                               {"kv_cache_quant_algo", "FP8"}};
  if (mixed) {
    std::string layers;  // as text: an ordered object of this size is slow to make
    for (const auto& [module, algorithm] : modules.quantised) {
      layers += (layers.empty() ? "\"" : ",\"") + module + "\":{\"quant_algo\":\"" + algorithm + "\"" +
                (std::string_view(algorithm) == "FP8" ? "}" : ",\"group_size\":16}");
    }
    std::string text = quantization.dump();
    text.pop_back();
    return R"({"producer":{"name":"modelopt"},"quantization":)" + text + ",\"quantized_layers\":{" + layers + "}}}\n";
  }
  if (precision.name == "nvfp4") quantization["group_size"] = 16;
  quantization["exclude_modules"] = modules.excluded;
  return ordered_json{{"producer", {{"name", "modelopt"}}}, {"quantization", quantization}}.dump(2) + "\n";
}

std::string shard_name(size_t number, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number + 1, count);
  return name;
}

std::string shard_index(const std::vector<std::pair<std::string, std::string>>& file_of_tensor, uint64_t total_bytes) {
  std::string weight_map;
  for (const auto& [tensor, file] : file_of_tensor) {
    weight_map += (weight_map.empty() ? "\n    " : ",\n    ") + nlohmann::json(tensor).dump() + ": \"" + file + "\"";
  }
  return "{\n  \"metadata\": {\"total_size\": " + std::to_string(total_bytes) + "},\n  \"weight_map\": {" + weight_map +
         "\n  }\n}\n";
}

}  // namespace proa
