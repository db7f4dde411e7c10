// What a checkpoint of Nemotron-H holds: the config, the spelling of every tensor in either kind of file, and the table
// of tensors with their shapes and the ranges that random values of them are drawn from.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_table.h"
#include "ops/mamba2.h"

namespace proa::nemotron_h {

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

// Whether the pattern has a mixer: M, *, E or -.
inline bool has(const NemotronHConfig& c, char mixer) { return c.pattern.find(mixer) != std::string::npos; }

// Fields are checked one by one and against each other: what comes back is safe to compute with.
Result<NemotronHConfig> read_config(const Checkpoint& checkpoint);
Result<NemotronHConfig> read_config(const nlohmann::ordered_json& config, const std::string& path);

// How the two kinds of file spell a tensor, and how some of either kind do.
struct TensorName {
  const char* hf;
  const char* gguf;
  const char* hf_other = nullptr;
  const char* gguf_other = nullptr;
};
constexpr TensorName kEmbeddings = {"embeddings.weight", "token_embd.weight", "embed_tokens.weight"};
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
constexpr TensorName kExpertsUp = {"mixer.experts.up_proj", "ffn_up_exps.weight", "mixer.switch_mlp.fc1.weight"};
constexpr TensorName kExpertsDown = {"mixer.experts.down_proj", "ffn_down_exps.weight", "mixer.switch_mlp.fc2.weight"};
constexpr TensorName kSharedUp = {"mixer.shared_experts.up_proj.weight", "ffn_up_shexp.weight"};
constexpr TensorName kSharedDown = {"mixer.shared_experts.down_proj.weight", "ffn_down_shexp.weight"};
constexpr TensorName kLatentIn = {"mixer.fc1_latent_proj.weight", "ffn_latent_down.weight", nullptr,
                                  "ffn_latent_in.weight"};
constexpr TensorName kLatentOut = {"mixer.fc2_latent_proj.weight", "ffn_latent_up.weight", nullptr,
                                   "ffn_latent_out.weight"};
constexpr TensorName kUp = {"mixer.up_proj.weight", "ffn_up.weight"};
constexpr TensorName kDown = {"mixer.down_proj.weight", "ffn_down.weight"};

// The spelling of every tensor in one checkpoint.
class Names {
 public:
  // As published: "backbone.", experts a tensor each; or as in GGUF.
  explicit Names(Checkpoint::Kind kind) : gguf_(kind == Checkpoint::Kind::gguf) {}
  explicit Names(const Checkpoint& checkpoint) : checkpoint_(&checkpoint), gguf_(checkpoint.gguf() != nullptr) {
    if (gguf_) return;
    // Published files say "backbone.", those that transformers 5 saved "model."; multimodal ones wrap the text model.
    for (const char* prefix : {"backbone.", "model.", "language_model.backbone.", "language_model.model."}) {
      if (checkpoint.find(prefix + std::string(kFinalNorm.hf))) prefix_ = prefix;
    }
  }
  std::string trunk(TensorName name) const { return spelt(gguf_ ? "" : prefix_, name); }
  std::string lm_head() const {
    if (gguf_) return kLmHead.gguf;
    return (prefix_.starts_with("language_model.") ? "language_model." : "") + std::string(kLmHead.hf);
  }
  std::string layer(size_t i, TensorName name) const {
    return spelt((gguf_ ? "blk." : prefix_ + "layers.") + std::to_string(i) + ".", name);
  }
  // Experts are one tensor [n_routed_experts, ...] in GGUF and in files that transformers 5 saved, or one each.
  bool stacked(size_t i, TensorName name) const {
    return gguf_ || (checkpoint_ && checkpoint_->find(layer(i, name)) != nullptr);
  }
  std::string expert(size_t i, TensorName name, int64_t e) const {  // "...experts.3.up_proj.weight"
    const std::string whole = layer(i, name);
    const size_t dot = whole.rfind('.');
    return whole.substr(0, dot) + "." + std::to_string(e) + whole.substr(dot) + ".weight";
  }
  bool gguf() const { return gguf_; }

 private:
  std::string spelt(const std::string& path, TensorName name) const {
    const char* other = gguf_ ? name.gguf_other : name.hf_other;
    if (other && checkpoint_ && checkpoint_->find(path + other)) return path + other;
    return path + (gguf_ ? name.gguf : name.hf);
  }

  const Checkpoint* checkpoint_ = nullptr;
  bool gguf_;
  std::string prefix_ = "backbone.";
};

// The ranges (TensorSpec::low, high) keep the size of activations: embedding RMS 1, each mixer's output about 0.1 of
// it, router logits of unit variance, constants of Mamba-2 as they are initialised.
std::vector<TensorSpec> tensor_table(const NemotronHConfig& c, const Names& names);

}  // namespace proa::nemotron_h
