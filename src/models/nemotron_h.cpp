// Nemotron-H: a stack of layers, each one norm, one mixer and one residual add. The mixer is what the layer pattern
// says: M Mamba-2, * attention without positions, E mixture of experts, - MLP (reference nemotron-h 1-3, 5.2, 5.3;
// NVIDIA 2025, "Nemotron-H" and "Nemotron 3 Nano").
#include <algorithm>
#include <cmath>
#include <limits>
#include <variant>

#include "checkpoint/config_reader.h"
#include "layers/attention.h"
#include "layers/mamba2.h"
#include "layers/mlp.h"
#include "layers/moe.h"
#include "models/models.h"
#include "models/weight_loader.h"

namespace proa {
namespace {

// Fields as in config.json. What is there and does not count is not here: rope_theta and partial_rotary_factor (there
// are no positions), expand (inner is heads times head size), time_step_min/max/floor (constants of initialisation).
struct NemotronHConfig {
  std::string pattern;  // [num_hidden_layers] letters
  int64_t hidden_size, vocab_size, max_position_embeddings;
  int64_t num_attention_heads, num_key_value_heads, head_dim;
  int64_t mamba_num_heads, mamba_head_dim, n_groups, ssm_state_size, conv_kernel, chunk_size;
  TimeStepLimit time_step_limit;
  bool use_conv_bias;
  int64_t intermediate_size = 0;  // of "-" layers
  int64_t n_routed_experts = 0, num_experts_per_tok = 0, n_group = 1, topk_group = 1;
  int64_t moe_intermediate_size = 0, moe_shared_expert_intermediate_size = 0, moe_latent_size = 0;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1;
  float layer_norm_epsilon;
  bool tie_word_embeddings = false;
};

bool has(const NemotronHConfig& c, char mixer) { return c.pattern.find(mixer) != std::string::npos; }

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

Result<NemotronHConfig> config_from_hf(const Checkpoint& checkpoint) {
  const ConfigReader config(checkpoint.config(), checkpoint.path() + "/config.json");
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

// How the two kinds of file spell a tensor.
struct TensorName {
  const char* hf;
  const char* gguf;
};
constexpr TensorName kEmbeddings = {"embeddings.weight", "token_embd.weight"};
constexpr TensorName kFinalNorm = {"norm_f.weight", "output_norm.weight"};
constexpr TensorName kLmHead = {"lm_head.weight", "output.weight"};
constexpr TensorName kNorm = {"norm.weight", "attn_norm.weight"};
constexpr TensorName kInProj = {"mixer.in_proj.weight", "ssm_in.weight"};
constexpr TensorName kConv = {"mixer.conv1d.weight", "ssm_conv1d.weight"};
constexpr TensorName kConvBias = {"mixer.conv1d.bias", "ssm_conv1d.bias"};
constexpr TensorName kDtBias = {"mixer.dt_bias", "ssm_dt.bias"};
constexpr TensorName kA = {"mixer.A_log", "ssm_a"};  // GGUF holds A = -exp(A_log) already
constexpr TensorName kD = {"mixer.D", "ssm_d"};
constexpr TensorName kGatedNorm = {"mixer.norm.weight", "ssm_norm.weight"};
constexpr TensorName kOutProj = {"mixer.out_proj.weight", "ssm_out.weight"};
constexpr TensorName kQ = {"mixer.q_proj.weight", "attn_q.weight"};
constexpr TensorName kK = {"mixer.k_proj.weight", "attn_k.weight"};
constexpr TensorName kV = {"mixer.v_proj.weight", "attn_v.weight"};
constexpr TensorName kO = {"mixer.o_proj.weight", "attn_output.weight"};
constexpr TensorName kGate = {"mixer.gate.weight", "ffn_gate_inp.weight"};
constexpr TensorName kBias = {"mixer.gate.e_score_correction_bias", "exp_probs_b.bias"};
constexpr TensorName kExpertsUp = {"mixer.experts.up_proj", "ffn_up_exps.weight"};
constexpr TensorName kExpertsDown = {"mixer.experts.down_proj", "ffn_down_exps.weight"};
constexpr TensorName kSharedUp = {"mixer.shared_experts.up_proj.weight", "ffn_up_shexp.weight"};
constexpr TensorName kSharedDown = {"mixer.shared_experts.down_proj.weight", "ffn_down_shexp.weight"};
constexpr TensorName kLatentIn = {"mixer.fc1_latent_proj.weight", "ffn_latent_down.weight"};
constexpr TensorName kLatentOut = {"mixer.fc2_latent_proj.weight", "ffn_latent_up.weight"};
constexpr TensorName kUp = {"mixer.up_proj.weight", "ffn_up.weight"};
constexpr TensorName kDown = {"mixer.down_proj.weight", "ffn_down.weight"};

// The spelling of every tensor in one checkpoint.
class Names {
 public:
  explicit Names(const Checkpoint& checkpoint) : checkpoint_(checkpoint), gguf_(checkpoint.gguf() != nullptr) {
    if (gguf_) return;
    // Published files say "backbone.", those that transformers 5 saved "model."; multimodal ones wrap the text model.
    for (const char* prefix : {"backbone.", "model.", "language_model.backbone.", "language_model.model."}) {
      if (checkpoint.find(prefix + std::string(kFinalNorm.hf))) prefix_ = prefix;
    }
  }
  std::string trunk(TensorName name) const { return gguf_ ? name.gguf : prefix_ + name.hf; }
  std::string lm_head() const {
    if (gguf_) return kLmHead.gguf;
    return (prefix_.starts_with("language_model.") ? "language_model." : "") + std::string(kLmHead.hf);
  }
  std::string layer(size_t i, TensorName name) const {
    return (gguf_ ? "blk." : prefix_ + "layers.") + std::to_string(i) + "." + (gguf_ ? name.gguf : name.hf);
  }
  // Experts are one tensor [n_routed_experts, ...] in GGUF and in files that transformers 5 saved, or one each.
  bool stacked(size_t i, TensorName name) const { return gguf_ || checkpoint_.find(layer(i, name)) != nullptr; }
  std::string expert(size_t i, TensorName name, int64_t e) const {  // "...experts.3.up_proj.weight"
    const std::string whole = layer(i, name);
    const size_t dot = whole.rfind('.');
    return whole.substr(0, dot) + "." + std::to_string(e) + whole.substr(dot) + ".weight";
  }
  bool gguf() const { return gguf_; }

 private:
  const Checkpoint& checkpoint_;
  bool gguf_;
  std::string prefix_ = "backbone.";
};

std::vector<TensorSpec> tensor_table(const NemotronHConfig& c, const Names& names) {
  const int64_t hidden = c.hidden_size, inner = c.mamba_num_heads * c.mamba_head_dim;
  const int64_t conv_dim = inner + 2 * c.n_groups * c.ssm_state_size;
  const int64_t q_size = c.num_attention_heads * c.head_dim, kv_size = c.num_key_value_heads * c.head_dim;
  const int64_t expert_in = c.moe_latent_size ? c.moe_latent_size : hidden;

  std::vector<TensorSpec> table = {
      {.name = names.trunk(kEmbeddings), .shape = {c.vocab_size, hidden}},
      {.name = names.trunk(kFinalNorm), .shape = {hidden}, .formats = kVectorFormats},
      {.name = names.lm_head(), .shape = {c.vocab_size, hidden}, .optional = c.tie_word_embeddings},
  };
  for (size_t i = 0; i < c.pattern.size(); ++i) {
    const auto matrix = [&](TensorName name, std::vector<int64_t> shape) {
      table.push_back({.name = names.layer(i, name), .shape = std::move(shape)});
    };
    const auto vector = [&](TensorName name, std::vector<int64_t> shape) {
      table.push_back({.name = names.layer(i, name), .shape = std::move(shape), .formats = kVectorFormats});
    };
    const auto experts = [&](TensorName name, int64_t rows, int64_t cols) {
      if (names.stacked(i, name)) return matrix(name, {c.n_routed_experts, rows, cols});
      for (int64_t e = 0; e < c.n_routed_experts; ++e) {
        table.push_back({.name = names.expert(i, name, e), .shape = {rows, cols}});
      }
    };

    vector(kNorm, {hidden});
    switch (c.pattern[i]) {
      case 'M':
        matrix(kInProj, {inner + conv_dim + c.mamba_num_heads, hidden});
        vector(kConv, {conv_dim, 1, c.conv_kernel});
        if (c.use_conv_bias) vector(kConvBias, {conv_dim});
        vector(kDtBias, {c.mamba_num_heads});
        vector(kA, {c.mamba_num_heads});
        vector(kD, {c.mamba_num_heads});
        table.push_back(
            {.name = names.layer(i, kGatedNorm),
             .shape = names.gguf() ? std::vector<int64_t>{c.n_groups, inner / c.n_groups} : std::vector{inner},
             .formats = kVectorFormats});
        matrix(kOutProj, {hidden, inner});
        break;
      case '*':
        matrix(kQ, {q_size, hidden});
        matrix(kK, {kv_size, hidden});
        matrix(kV, {kv_size, hidden});
        matrix(kO, {hidden, q_size});
        break;
      case 'E':
        matrix(kGate, {c.n_routed_experts, hidden});
        vector(kBias, {c.n_routed_experts});
        experts(kExpertsUp, c.moe_intermediate_size, expert_in);
        experts(kExpertsDown, expert_in, c.moe_intermediate_size);
        if (c.moe_shared_expert_intermediate_size) {
          matrix(kSharedUp, {c.moe_shared_expert_intermediate_size, hidden});
          matrix(kSharedDown, {hidden, c.moe_shared_expert_intermediate_size});
        }
        if (c.moe_latent_size) {
          matrix(kLatentIn, {c.moe_latent_size, hidden});
          matrix(kLatentOut, {hidden, c.moe_latent_size});
        }
        break;
      case '-':
        matrix(kUp, {c.intermediate_size, hidden});
        matrix(kDown, {hidden, c.intermediate_size});
        break;
    }
  }
  return table;
}

class NemotronH final : public Model {
 public:
  static Result<std::unique_ptr<Model>> open(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend) {
    const Gguf* gguf = checkpoint->gguf();
    PROA_ASSIGN(const NemotronHConfig config, gguf ? config_from_gguf(*gguf) : config_from_hf(*checkpoint));
    PROA_TRY(check(config, checkpoint->path()));
    std::unique_ptr<NemotronH> model(new NemotronH);
    PROA_TRY(model->load(std::move(checkpoint), config, backend));
    return Result<std::unique_ptr<Model>>(std::move(model));
  }

  size_t workspace_bytes(int max_num_tokens) const override {
    size_t mixer_bytes = 0;
    for (const Mixer& mixer : layers_) {
      if (const auto* mamba2 = std::get_if<Mamba2Layer>(&mixer)) {
        mixer_bytes = std::max(mixer_bytes, mamba2->workspace_bytes(max_num_tokens));
      } else if (const auto* attention = std::get_if<AttentionLayer>(&mixer)) {
        mixer_bytes = std::max(mixer_bytes, attention->workspace_bytes(max_num_tokens));
      } else if (const auto* moe = std::get_if<MoeLayer>(&mixer)) {
        mixer_bytes = std::max(mixer_bytes, moe->workspace_bytes(max_num_tokens));
      }
    }
    return Arena::padded<float>(int64_t{max_num_tokens} * info_.hidden_size) + mixer_bytes;
  }

  void forward(Backend& backend, const Batch& batch, std::span<const LayerCache> caches, Arena& arena,
               float* logits) const override {
    Arena::Scope scope(arena);
    float* x = arena.take<float>(int64_t{batch.num_tokens} * info_.hidden_size);  // [num_tokens, hidden_size]
    const Forward step{backend, batch, arena, x};

    backend.embed({batch.num_tokens, batch.token_ids, embeddings_, x});
    auto cache = caches.begin();  // one per Mamba-2 or attention layer
    int moe_index = 0;
    for (const Mixer& mixer : layers_) {
      if (const auto* mamba2 = std::get_if<Mamba2Layer>(&mixer)) {
        mamba2->forward(step, *cache++);
      } else if (const auto* attention = std::get_if<AttentionLayer>(&mixer)) {
        attention->forward(step, *cache++);
      } else if (const auto* moe = std::get_if<MoeLayer>(&mixer)) {
        moe->forward(step, moe_index++);
      } else {
        std::get<MlpLayer>(mixer).forward(step);
      }
    }
    backend.lm_head({batch.num_logit_rows, info_.hidden_size, batch.logit_rows, x, norm_f_, eps_, lm_head_, logits});
  }

 private:
  using Mixer = std::variant<Mamba2Layer, AttentionLayer, MoeLayer, MlpLayer>;
  static_assert(std::is_nothrow_move_constructible_v<Mixer>,
                "a MoE layer points into its own vectors: move, never copy");

  Result<void> load(std::shared_ptr<const Checkpoint> checkpoint, const NemotronHConfig& c, Backend& backend) {
    const Names names(*checkpoint);
    std::vector<Ignored> ignored = {{"mtp.", "multi-token prediction"},
                                    {"vision_model.", "vision"},
                                    {"mlp1.", "vision"},
                                    {"sound_encoder.", "sound"},
                                    {"sound_projection.", "sound"}};
    if (names.gguf()) {
      ignored = {{"blk." + std::to_string(c.pattern.size()) + ".", "multi-token prediction"},
                 {"blk.*.nextn.", "multi-token prediction"}};
    }
    PROA_ASSIGN(CheckedTensors checked, checked_tensors(*checkpoint, tensor_table(c, names), ignored));
    unused_ = std::move(checked.unused);
    WeightLoader load(std::move(checked), backend);

    eps_ = c.layer_norm_epsilon;
    embeddings_ = load.matrix(WeightKind::embedding, names.trunk(kEmbeddings));
    norm_f_ = load.vector(names.trunk(kFinalNorm));
    lm_head_ = load.matrix(WeightKind::lm_head, names.lm_head(), true);
    if (!lm_head_) lm_head_ = embeddings_;
    for (size_t i = 0; i < c.pattern.size(); ++i) {
      switch (c.pattern[i]) {
        case 'M':
          add(mamba2(c, names, i, load));
          break;
        case '*':
          add(attention(c, names, i, load));
          break;
        case 'E':
          layers_.push_back(moe(c, names, i, load));
          break;
        case '-':
          layers_.push_back(mlp(c, names, i, load));
          break;
      }
    }
    PROA_TRY(load.status());

    info_ = {.architecture = "NemotronHForCausalLM",
             .layer_pattern = c.pattern,
             .hidden_size = static_cast<int>(c.hidden_size),
             .num_hidden_layers = static_cast<int>(c.pattern.size()),
             .vocab_size = static_cast<int>(c.vocab_size),
             .max_position_embeddings = c.max_position_embeddings,
             .num_moe_layers = static_cast<int>(std::count(c.pattern.begin(), c.pattern.end(), 'E')),
             .n_routed_experts = static_cast<int>(c.n_routed_experts),
             .num_experts_per_tok = static_cast<int>(c.num_experts_per_tok),
             .num_attention_heads = static_cast<int>(c.num_attention_heads)};
    set_weights(load.take_uses());
    buffers_ = load.take_buffers();
    checkpoint_ = std::move(checkpoint);
    return {};
  }

  template <typename Layer>
  void add(Layer layer) {
    cache_specs_.push_back(layer.cache_spec());
    layers_.push_back(std::move(layer));
  }

  static Mamba2Layer mamba2(const NemotronHConfig& c, const Names& names, size_t i, WeightLoader& load) {
    const float* a = load.vector(names.layer(i, kA));
    if (!names.gguf() && a) {
      std::vector<float> negative(static_cast<size_t>(c.mamba_num_heads));
      for (size_t h = 0; h < negative.size(); ++h) negative[h] = -std::exp(a[h]);
      a = load.copy(negative);
    }
    return {.hidden_size = static_cast<int>(c.hidden_size),
            .shape = {.num_heads = static_cast<int>(c.mamba_num_heads),
                      .head_dim = static_cast<int>(c.mamba_head_dim),
                      .n_groups = static_cast<int>(c.n_groups),
                      .ssm_state_size = static_cast<int>(c.ssm_state_size),
                      .conv_kernel = static_cast<int>(c.conv_kernel)},
            .limit = c.time_step_limit,
            .chunk_size = static_cast<int>(c.chunk_size),
            .eps = c.layer_norm_epsilon,
            .norm = load.vector(names.layer(i, kNorm)),
            .in_proj = load.matrix(WeightKind::mamba, names.layer(i, kInProj)),
            .weights = {.conv_weight = load.vector(names.layer(i, kConv)),
                        .conv_bias = load.vector(names.layer(i, kConvBias), !c.use_conv_bias),
                        .dt_bias = load.vector(names.layer(i, kDtBias)),
                        .a = a,
                        .d = load.vector(names.layer(i, kD))},
            .gated_norm = load.vector(names.layer(i, kGatedNorm)),
            .out_proj = load.matrix(WeightKind::mamba, names.layer(i, kOutProj))};
  }

  static AttentionLayer attention(const NemotronHConfig& c, const Names& names, size_t i, WeightLoader& load) {
    return {.hidden_size = static_cast<int>(c.hidden_size),
            .num_heads = static_cast<int>(c.num_attention_heads),
            .num_kv_heads = static_cast<int>(c.num_key_value_heads),
            .head_dim = static_cast<int>(c.head_dim),
            .scale = 1 / std::sqrt(static_cast<float>(c.head_dim)),
            .eps = c.layer_norm_epsilon,
            .norm = load.vector(names.layer(i, kNorm)),
            .q_proj = load.matrix(WeightKind::attention, names.layer(i, kQ)),
            .k_proj = load.matrix(WeightKind::attention, names.layer(i, kK)),
            .v_proj = load.matrix(WeightKind::attention, names.layer(i, kV)),
            .o_proj = load.matrix(WeightKind::attention, names.layer(i, kO)),
            .rope = std::nullopt};
  }

  static MoeLayer moe(const NemotronHConfig& c, const Names& names, size_t i, WeightLoader& load) {
    MoeLayer layer = {.hidden_size = static_cast<int>(c.hidden_size),
                      .n_routed_experts = static_cast<int>(c.n_routed_experts),
                      .num_experts_per_tok = static_cast<int>(c.num_experts_per_tok),
                      .n_group = static_cast<int>(c.n_group),
                      .topk_group = static_cast<int>(c.topk_group),
                      .norm_topk_prob = c.norm_topk_prob,
                      .routed_scaling_factor = c.routed_scaling_factor,
                      .activation = Activation::relu2,
                      .eps = c.layer_norm_epsilon,
                      .norm = load.vector(names.layer(i, kNorm)),
                      .gate = load.matrix(WeightKind::router, names.layer(i, kGate)),
                      .bias = load.vector(names.layer(i, kBias))};
    const auto experts = [&](TensorName name, ExpertTables& tables) {
      if (names.stacked(i, name)) return load.experts(names.layer(i, name), layer.num_experts_per_tok, tables);
      std::vector<std::string> each;
      for (int64_t e = 0; e < c.n_routed_experts; ++e) each.push_back(names.expert(i, name, e));
      return load.experts(each, layer.num_experts_per_tok, tables);
    };
    layer.up = experts(kExpertsUp, layer.up_tables);
    layer.down = experts(kExpertsDown, layer.down_tables);
    if (c.moe_latent_size) {
      layer.latent_in = load.matrix(WeightKind::latent, names.layer(i, kLatentIn));
      layer.latent_out = load.matrix(WeightKind::latent, names.layer(i, kLatentOut));
    }
    if (c.moe_shared_expert_intermediate_size) {
      layer.shared_up = load.matrix(WeightKind::shared_expert, names.layer(i, kSharedUp));
      layer.shared_down = load.matrix(WeightKind::shared_expert, names.layer(i, kSharedDown));
    }
    return layer;  // the tables move with their vectors' storage, which stays where it is
  }

  static MlpLayer mlp(const NemotronHConfig& c, const Names& names, size_t i, WeightLoader& load) {
    return {.hidden_size = static_cast<int>(c.hidden_size),
            .activation = Activation::relu2,
            .eps = c.layer_norm_epsilon,
            .norm = load.vector(names.layer(i, kNorm)),
            .gate_proj = {},
            .up_proj = load.matrix(WeightKind::mlp, names.layer(i, kUp)),
            .down_proj = load.matrix(WeightKind::mlp, names.layer(i, kDown))};
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<Buffer> buffers_;
  Weight embeddings_, lm_head_;
  const float* norm_f_ = nullptr;
  float eps_ = 0;
  std::vector<Mixer> layers_;
};

}  // namespace

Result<std::unique_ptr<Model>> open_nemotron_h(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend) {
  return NemotronH::open(std::move(checkpoint), backend);
}

}  // namespace proa
