// Nemotron-H: a stack of layers, each one norm, one mixer and one residual add. The mixer is what the layer pattern
// says: M Mamba-2, * attention without positions, E mixture of experts, - MLP (reference nemotron-h 1-3, 5.2, 5.3;
// NVIDIA 2025, "Nemotron-H" and "Nemotron 3 Nano").
#include <algorithm>
#include <cmath>
#include <variant>

#include "layers/attention.h"
#include "layers/mamba2.h"
#include "layers/mlp.h"
#include "layers/moe.h"
#include "models/models.h"
#include "models/nemotron_h_tensors.h"
#include "models/weight_loader.h"

namespace proa {
namespace {

using namespace nemotron_h;

class NemotronH final : public Model {
 public:
  static Result<std::unique_ptr<Model>> open(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend) {
    PROA_ASSIGN(const NemotronHConfig config, read_config(*checkpoint));
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
    std::vector<Ignored> ignored = {
        {"mtp.", "multi-token prediction"}, {"language_model.mtp.", "multi-token prediction"},
        {"vision_model.", "vision"},        {"mlp1.", "vision"},
        {"sound_encoder.", "sound"},        {"sound_projection.", "sound"}};
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
    std::vector<float> a = load.values(names.layer(i, kA));
    for (float& value : a) value = names.gguf() ? value : -std::exp(value);
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
                        .a = load.copy(a),
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
            .rope = std::nullopt,
            .k_scale = load.kv_scale(names.layer(i, kK), "k_scale"),
            .v_scale = load.kv_scale(names.layer(i, kV), "v_scale")};
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
