#include "models/nemotron_h_tensors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "checkpoint/config_reader.h"
#include "models/models.h"
#include "models/weight_loader.h"

namespace proa::nemotron_h {
namespace {

// The letters of hybrid_override_pattern, or of the names in layers_block_type, which newer files have instead.
Result<std::string> pattern_from(const ConfigReader& config) {
  std::string pattern;
  if (config.has("hybrid_override_pattern")) {
    PROA_ASSIGN(pattern, config.string("hybrid_override_pattern"));
    if (pattern.empty() || pattern.find_first_not_of("M*E-") != std::string::npos) {
      return config.error("hybrid_override_pattern", "letters M, *, E and -", pattern);
    }
  } else {
    PROA_ASSIGN(const auto types, config.strings({"layers_block_type", "layer_types"}));
    for (const std::string& type : types) {
      if (type == "mamba" || type == "mamba2" || type == "linear_attention") {
        pattern += 'M';
      } else if (type == "attention" || type == "full_attention") {
        pattern += '*';
      } else if (type == "moe") {
        pattern += 'E';
      } else if (type == "mlp") {
        pattern += '-';
      } else {
        return config.error("layers_block_type", "mamba, attention, moe or mlp", type);
      }
    }
  }
  PROA_ASSIGN(const int64_t layers,
              config.integer("num_hidden_layers", {.max = 4096}, static_cast<int64_t>(pattern.size())));
  if (layers != static_cast<int64_t>(pattern.size())) {
    return config.error("num_hidden_layers", std::to_string(pattern.size()) + ", as many as the layer pattern has",
                        std::to_string(layers));
  }
  return pattern;
}

Result<NemotronHConfig> config_from_hf(const nlohmann::ordered_json& json, const std::string& path) {
  const ConfigReader config(json, path);
  NemotronHConfig c;
  PROA_ASSIGN(c.pattern, pattern_from(config));
  PROA_ASSIGN(c.hidden_size, config.integer("hidden_size"));
  PROA_ASSIGN(c.vocab_size, config.integer("vocab_size"));
  PROA_ASSIGN(c.max_position_embeddings, config.integer("max_position_embeddings", {}, 8192));
  PROA_ASSIGN(c.num_attention_heads, config.integer("num_attention_heads", {.max = 65536}));
  PROA_ASSIGN(c.num_key_value_heads, config.integer("num_key_value_heads", {.max = 65536}, c.num_attention_heads));
  PROA_ASSIGN(c.head_dim, config.integer({"head_dim", "attention_head_dim"}, {.max = 65536},
                                         c.hidden_size / c.num_attention_heads));
  PROA_ASSIGN(c.mamba_num_heads, config.integer("mamba_num_heads", {.max = 65536}, 128));
  PROA_ASSIGN(c.mamba_head_dim, config.integer("mamba_head_dim", {.max = 65536}, 64));
  PROA_ASSIGN(c.n_groups, config.integer({"n_groups", "mamba_n_groups"}, {.max = 65536}, 8));
  PROA_ASSIGN(c.ssm_state_size, config.integer({"ssm_state_size", "mamba_d_state"}, {.max = 65536}, 128));
  PROA_ASSIGN(c.conv_kernel, config.integer({"conv_kernel", "mamba_d_conv"}, {.min = 1, .max = kMaxConvKernel}, 4));
  PROA_ASSIGN(c.chunk_size, config.integer({"chunk_size", "mamba_chunk_size"}, {.max = 65536}, 128));
  PROA_ASSIGN(c.use_conv_bias, config.boolean({"use_conv_bias", "mamba_conv_bias"}, true));
  PROA_ASSIGN(const auto limit, config.numbers({"time_step_limit", "mamba_dt_limit"}, {.min = 0},
                                               std::vector<double>{0, std::numeric_limits<double>::infinity()}));
  if (limit.size() != 2 || limit[0] > limit[1]) {
    return config.error("time_step_limit", "two ascending numbers", std::to_string(limit.size()) + " numbers");
  }
  c.time_step_limit = {static_cast<float>(limit[0]), static_cast<float>(limit[1])};
  PROA_ASSIGN(const double eps,
              config.number({"layer_norm_epsilon", "norm_eps", "rms_norm_eps"}, {.min = 0, .max = 1}, 1e-5));
  c.layer_norm_epsilon = static_cast<float>(eps);
  PROA_ASSIGN(c.tie_word_embeddings, config.boolean("tie_word_embeddings", false));

  if (has(c, '-')) {
    PROA_ASSIGN(c.intermediate_size, config.integer("intermediate_size"));
  }
  if (has(c, 'E')) {
    PROA_ASSIGN(c.n_routed_experts, config.integer("n_routed_experts", {.max = 65536}));
    PROA_ASSIGN(c.num_experts_per_tok, config.integer("num_experts_per_tok", {.max = c.n_routed_experts}));
    PROA_ASSIGN(c.n_group, config.integer("n_group", {.max = c.n_routed_experts}, 1));
    PROA_ASSIGN(c.topk_group, config.integer("topk_group", {.max = c.n_group}, 1));
    PROA_ASSIGN(c.moe_intermediate_size, config.integer("moe_intermediate_size"));
    PROA_ASSIGN(const int64_t shared, config.integer("n_shared_experts", {.min = 0}, 1));
    PROA_ASSIGN(c.moe_shared_expert_intermediate_size,
                config.integer("moe_shared_expert_intermediate_size", {.min = 0}, c.moe_intermediate_size));
    if (shared == 0) c.moe_shared_expert_intermediate_size = 0;
    PROA_ASSIGN(c.moe_latent_size, config.integer("moe_latent_size", {.min = 0}, 0));
    PROA_ASSIGN(c.norm_topk_prob, config.boolean("norm_topk_prob", true));
    PROA_ASSIGN(const double scale, config.number("routed_scaling_factor", {.min = 0, .max = 1e6}, 1.0));
    c.routed_scaling_factor = static_cast<float>(scale);
  }

  for (const char* name : {"attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias"}) {
    PROA_ASSIGN(const bool bias, config.boolean(name, false));
    if (bias) return config.error(name, "false", "true");
  }
  PROA_ASSIGN(const std::string act, config.string("mlp_hidden_act", "relu2"));
  if (act != "relu2") return config.error("mlp_hidden_act", "relu2", act);
  PROA_ASSIGN(const std::string mamba_act, config.string({"mamba_hidden_act", "hidden_act"}, "silu"));
  if (mamba_act != "silu") return config.error("mamba_hidden_act", "silu", mamba_act);
  return c;
}

Result<NemotronHConfig> config_from_gguf(const Gguf& gguf) {
  PROA_ASSIGN(const std::string_view architecture, gguf.string("general.architecture"));
  const auto key = [&](const char* name) { return std::string(architecture) + "." + name; };
  const auto fail = [&](const char* name, std::string expected, std::string actual) {
    return Error{"read model config", gguf.path() + ": " + key(name), std::move(expected), std::move(actual), ""};
  };
  NemotronHConfig c;
  // A file that speculates carries its MTP layers folded into trailing blocks, which are not part of the trunk.
  PROA_ASSIGN(const uint32_t blocks, gguf.u32(key("block_count")));
  PROA_ASSIGN(const uint32_t nextn, gguf.u32(key("nextn_predict_layers"), 0));
  if (blocks == 0 || blocks > 4096 || nextn >= blocks) return fail("block_count", "1 to 4096", std::to_string(blocks));
  PROA_ASSIGN(const auto kv_heads, gguf.u32_per_layer(key("attention.head_count_kv"), blocks));
  PROA_ASSIGN(const auto ffn, gguf.u32_per_layer(key("feed_forward_length"), blocks));
  for (uint32_t i = 0; i < blocks - nextn; ++i) {
    const bool moe = gguf.find("blk." + std::to_string(i) + ".ffn_gate_inp.weight") != nullptr;
    c.pattern += kv_heads[i] > 0 ? '*' : ffn[i] == 0 ? 'M' : moe ? 'E' : '-';
    if (kv_heads[i] > 0) c.num_key_value_heads = kv_heads[i];
    if (kv_heads[i] == 0 && ffn[i] > 0) (moe ? c.moe_intermediate_size : c.intermediate_size) = ffn[i];
  }
  if (!has(c, '*')) c.num_key_value_heads = 1;

  PROA_ASSIGN(c.hidden_size, gguf.u32(key("embedding_length")));
  PROA_ASSIGN(c.max_position_embeddings, gguf.u32(key("context_length")));
  PROA_ASSIGN(const auto heads, gguf.u32_per_layer(key("attention.head_count"), blocks));
  c.num_attention_heads = *std::max_element(heads.begin(), heads.end());
  if (c.num_attention_heads == 0) return fail("attention.head_count", "1 or more", "0");
  PROA_ASSIGN(c.head_dim,
              gguf.u32(key("attention.key_length"), static_cast<uint32_t>(c.hidden_size / c.num_attention_heads)));
  PROA_ASSIGN(const float eps, gguf.f32(key("attention.layer_norm_rms_epsilon")));
  c.layer_norm_epsilon = eps;
  PROA_ASSIGN(c.conv_kernel, gguf.u32(key("ssm.conv_kernel")));
  PROA_ASSIGN(c.ssm_state_size, gguf.u32(key("ssm.state_size")));
  PROA_ASSIGN(c.n_groups, gguf.u32(key("ssm.group_count")));
  PROA_ASSIGN(c.mamba_num_heads, gguf.u32(key("ssm.time_step_rank")));
  PROA_ASSIGN(const uint32_t inner, gguf.u32(key("ssm.inner_size")));
  if (c.mamba_num_heads == 0 || inner % c.mamba_num_heads != 0) {
    return fail("ssm.inner_size", "a multiple of ssm.time_step_rank", std::to_string(inner));
  }
  if (c.conv_kernel == 0 || c.conv_kernel > kMaxConvKernel) {
    return fail("ssm.conv_kernel", "1 to " + std::to_string(kMaxConvKernel), std::to_string(c.conv_kernel));
  }
  c.mamba_head_dim = inner / c.mamba_num_heads;
  c.chunk_size = 128;  // not in the file; it does not change the result
  c.use_conv_bias = true;
  const TensorEntry* embedding = gguf.find("token_embd.weight");
  c.vocab_size =
      embedding && embedding->shape.size() == 2 ? embedding->shape.front() : 0;  // the tensor table complains
  c.tie_word_embeddings = gguf.find("output.weight") == nullptr;

  if (has(c, 'E')) {
    PROA_ASSIGN(c.n_routed_experts, gguf.u32(key("expert_count")));
    PROA_ASSIGN(c.num_experts_per_tok, gguf.u32(key("expert_used_count")));
    PROA_ASSIGN(c.moe_intermediate_size,
                gguf.u32(key("expert_feed_forward_length"), static_cast<uint32_t>(c.moe_intermediate_size)));
    PROA_ASSIGN(c.moe_shared_expert_intermediate_size, gguf.u32(key("expert_shared_feed_forward_length"), 0));
    PROA_ASSIGN(c.moe_latent_size, gguf.u32(key("moe_latent_size"), 0));
    PROA_ASSIGN(c.norm_topk_prob, gguf.boolean(key("expert_weights_norm"), true));
    PROA_ASSIGN(c.routed_scaling_factor, gguf.f32(key("expert_weights_scale"), 1.f));
    PROA_ASSIGN(c.n_group, gguf.u32(key("expert_group_count"), 1));
    PROA_ASSIGN(c.topk_group, gguf.u32(key("expert_group_used_count"), 1));
  }
  return c;
}

// What the kernels rely on, for both kinds of file, with the fields' names of config.json. Sizes are bounded one by one
// before any product is formed: hostile configs end here, not in an overflow or in a table that fills the memory.
Result<void> check(const NemotronHConfig& c, const std::string& path) {
  const auto fail = [&](const std::string& name, std::string expected, std::string actual) {
    return Error{"read model config", path + ": " + name, std::move(expected), std::move(actual), ""};
  };
  const auto within = [&](const char* name, int64_t value, int64_t min, int64_t max) -> Result<void> {
    if (value >= min && value <= max) return {};
    return fail(name, std::to_string(min) + " to " + std::to_string(max), std::to_string(value));
  };
  const auto divides = [&](const char* name, int64_t whole, int64_t part) -> Result<void> {
    if (part > 0 && whole % part == 0) return {};
    return fail(name, "a divisor of " + std::to_string(whole), std::to_string(part));
  };
  constexpr int64_t kMaxWidth = 1 << 26, kMaxPart = 1 << 16;  // of a layer; heads, head sizes, groups, experts
  PROA_TRY(within("hidden_size", c.hidden_size, 1, kMaxWidth));
  PROA_TRY(within("num_attention_heads", c.num_attention_heads, 1, kMaxPart));
  PROA_TRY(within("head_dim", c.head_dim, 1, kMaxPart));
  PROA_TRY(within("mamba_num_heads", c.mamba_num_heads, 1, kMaxPart));
  PROA_TRY(within("mamba_head_dim", c.mamba_head_dim, 1, kMaxPart));
  PROA_TRY(within("n_groups", c.n_groups, 1, kMaxPart));
  PROA_TRY(within("ssm_state_size", c.ssm_state_size, 1, kMaxPart));
  PROA_TRY(within("num_attention_heads * head_dim", c.num_attention_heads * c.head_dim, 1, kMaxWidth));
  PROA_TRY(within("mamba_num_heads * mamba_head_dim", c.mamba_num_heads * c.mamba_head_dim, 1, kMaxWidth));
  PROA_TRY(within("n_groups * ssm_state_size", c.n_groups * c.ssm_state_size, 1, kMaxWidth));
  PROA_TRY(divides("num_key_value_heads", c.num_attention_heads, c.num_key_value_heads));
  PROA_TRY(divides("n_groups", c.mamba_num_heads, c.n_groups));
  if (has(c, '-')) PROA_TRY(within("intermediate_size", c.intermediate_size, 1, kMaxWidth));
  if (has(c, 'E')) {
    PROA_TRY(within("n_routed_experts", c.n_routed_experts, 1, kMaxPart));
    PROA_TRY(divides("n_group", c.n_routed_experts, c.n_group));
    PROA_TRY(within("topk_group", c.topk_group, 1, c.n_group));
    PROA_TRY(within("num_experts_per_tok", c.num_experts_per_tok, 1, c.n_routed_experts / c.n_group * c.topk_group));
    PROA_TRY(within("moe_intermediate_size", c.moe_intermediate_size, 1, kMaxWidth));
    PROA_TRY(within("moe_shared_expert_intermediate_size", c.moe_shared_expert_intermediate_size, 0, kMaxWidth));
    PROA_TRY(within("moe_latent_size", c.moe_latent_size, 0, kMaxWidth));
    PROA_TRY(within("n_routed_experts * moe layers",
                    c.n_routed_experts * std::count(c.pattern.begin(), c.pattern.end(), 'E'), 1, 1 << 18));
    if (!(c.routed_scaling_factor >= 0 && c.routed_scaling_factor <= 1e6f)) {
      return fail("routed_scaling_factor", "0 to 1000000", std::to_string(c.routed_scaling_factor));
    }
  }
  if (!(c.layer_norm_epsilon >= 0 && c.layer_norm_epsilon <= 1)) {
    return fail("layer_norm_epsilon", "0 to 1", std::to_string(c.layer_norm_epsilon));
  }
  return {};
}

// Deviations that keep the size of activations, from the statistics of what goes into a matrix. Norms give RMS 1.
struct Deviations {
  static constexpr double kMixer = 0.1;  // RMS of what a mixer adds

  explicit Deviations(const NemotronHConfig& c) {
    const auto of_rms = [](int64_t fan_in, double in, double out) {
      return out / (in * std::sqrt(static_cast<double>(fan_in)));
    };
    const double relu2 = std::sqrt(1.5);  // RMS of relu(x)^2 for a normal x
    const auto inner = c.mamba_num_heads * c.mamba_head_dim;
    unit = of_rms(c.hidden_size, 1, 1);
    // Scores of deviation 2, so that attention chooses; of RMS 1 values, about half is left of their average.
    query_key = of_rms(c.hidden_size, 1, std::sqrt(2.0));
    attention_out = of_rms(c.num_attention_heads * c.head_dim, 0.5, kMixer);
    mamba_out = of_rms(inner, 1, kMixer);
    // Logits of deviation 3: some tokens are likely, none certain.
    lm_head = of_rms(c.hidden_size, 1, 3);
    if (has(c, '-')) mlp_down = of_rms(c.intermediate_size, relu2, kMixer);
    if (!has(c, 'E')) return;
    // Half of the square from the routed experts, whose outputs are independent, and half from the shared one.
    const bool shared = c.moe_shared_expert_intermediate_size > 0;
    const double half = shared ? kMixer * std::sqrt(0.5) : kMixer;
    const auto chosen = static_cast<double>(c.num_experts_per_tok);
    // Sigmoids of the best of many logits are near 0.85.
    const double sum = c.routed_scaling_factor * (c.norm_topk_prob ? 1 : 0.85 * chosen);
    if (sum > 0) expert_down = of_rms(c.moe_intermediate_size, relu2, half * std::sqrt(chosen) / sum);
    if (shared) shared_down = of_rms(c.moe_shared_expert_intermediate_size, relu2, half);
    if (c.moe_latent_size) latent = of_rms(c.moe_latent_size, 1, 1);
  }

  double unit = 0, query_key = 0, attention_out = 0, mamba_out = 0, lm_head = 0, mlp_down = 0, expert_down = 0,
         shared_down = 0, latent = 0;
};

}  // namespace

Result<NemotronHConfig> read_config(const Checkpoint& checkpoint) {
  const Gguf* gguf = checkpoint.gguf();
  if (!gguf) {
    PROA_ASSIGN(const ConfigReader config, text_config(checkpoint));
    return read_config(config.json(), config.where());
  }
  PROA_ASSIGN(NemotronHConfig c, config_from_gguf(*gguf));
  PROA_TRY(check(c, checkpoint.path()));
  return c;
}

Result<NemotronHConfig> read_config(const nlohmann::ordered_json& config, const std::string& path) {
  PROA_ASSIGN(NemotronHConfig c, config_from_hf(config, path));
  PROA_TRY(check(c, path));
  return c;
}

std::vector<TensorSpec> tensor_table(const NemotronHConfig& c, const Names& names) {
  const int64_t hidden = c.hidden_size, inner = c.mamba_num_heads * c.mamba_head_dim;
  const int64_t conv_dim = inner + 2 * c.n_groups * c.ssm_state_size;
  const int64_t q_size = c.num_attention_heads * c.head_dim, kv_size = c.num_key_value_heads * c.head_dim;
  const int64_t expert_in = c.moe_latent_size ? c.moe_latent_size : hidden;
  const Deviations d(c);

  std::vector<TensorSpec> table;
  const auto add_matrix = [&](std::string name, std::vector<int64_t> shape, double deviation) {
    const double reach = deviation * std::sqrt(3.0);
    table.push_back({.name = std::move(name), .shape = std::move(shape), .low = -reach, .high = reach});
  };
  const auto add_vector = [&](std::string name, std::vector<int64_t> shape, double low, double high) {
    table.push_back(
        {.name = std::move(name), .shape = std::move(shape), .formats = kVectorFormats, .low = low, .high = high});
  };
  add_matrix(names.trunk(kEmbeddings), {c.vocab_size, hidden}, 1);
  add_vector(names.trunk(kFinalNorm), {hidden}, 1, 1);
  add_matrix(names.lm_head(), {c.vocab_size, hidden}, d.lm_head);
  table.back().optional = c.tie_word_embeddings;
  for (size_t i = 0; i < c.pattern.size(); ++i) {
    const auto matrix = [&](TensorName name, std::vector<int64_t> shape, double deviation) {
      add_matrix(names.layer(i, name), std::move(shape), deviation);
    };
    const auto vector = [&](TensorName name, std::vector<int64_t> shape, double low, double high) {
      add_vector(names.layer(i, name), std::move(shape), low, high);
    };
    const auto experts = [&](TensorName name, int64_t rows, int64_t cols, double deviation) {
      if (names.stacked(i, name)) return matrix(name, {c.n_routed_experts, rows, cols}, deviation);
      for (int64_t e = 0; e < c.n_routed_experts; ++e) add_matrix(names.expert(i, name, e), {rows, cols}, deviation);
    };

    vector(kNorm, {hidden}, 1, 1);
    switch (c.pattern[i]) {
      case 'M': {
        const double tap = 1 / std::sqrt(static_cast<double>(c.conv_kernel));
        matrix(kInProj, {inner + conv_dim + c.mamba_num_heads, hidden}, d.unit);
        vector(kConv, {conv_dim, 1, c.conv_kernel}, -tap, tap);
        if (c.use_conv_bias) vector(kConvBias, {conv_dim}, -tap, tap);
        vector(kDtBias, {c.mamba_num_heads}, -6.9, -2.25);  // softplus of it is 0.001 to 0.1
        if (names.gguf()) {
          vector(kA, {c.mamba_num_heads}, -16, -1);
        } else {
          vector(kA, {c.mamba_num_heads}, 0, std::log(16.0));
        }
        vector(kD, {c.mamba_num_heads}, 1, 1);
        vector(kGatedNorm, names.gguf() ? std::vector<int64_t>{c.n_groups, inner / c.n_groups} : std::vector{inner}, 1,
               1);
        matrix(kOutProj, {hidden, inner}, d.mamba_out);
        break;
      }
      case '*':
        matrix(kQ, {q_size, hidden}, d.query_key);
        matrix(kK, {kv_size, hidden}, d.query_key);
        matrix(kV, {kv_size, hidden}, d.unit);
        matrix(kO, {hidden, q_size}, d.attention_out);
        break;
      case 'E':
        matrix(kGate, {c.n_routed_experts, hidden}, d.unit);
        vector(kBias, {c.n_routed_experts}, 0, 0);
        experts(kExpertsUp, c.moe_intermediate_size, expert_in, 1 / std::sqrt(static_cast<double>(expert_in)));
        experts(kExpertsDown, expert_in, c.moe_intermediate_size, d.expert_down);
        if (c.moe_shared_expert_intermediate_size) {
          matrix(kSharedUp, {c.moe_shared_expert_intermediate_size, hidden}, d.unit);
          matrix(kSharedDown, {hidden, c.moe_shared_expert_intermediate_size}, d.shared_down);
        }
        if (c.moe_latent_size) {
          matrix(kLatentIn, {c.moe_latent_size, hidden}, d.unit);
          matrix(kLatentOut, {hidden, c.moe_latent_size}, d.latent);
        }
        break;
      case '-':
        matrix(kUp, {c.intermediate_size, hidden}, d.unit);
        matrix(kDown, {hidden, c.intermediate_size}, d.mlp_down);
        break;
    }
  }
  return table;
}

}  // namespace proa::nemotron_h
