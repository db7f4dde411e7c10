// Llama: x += Attention(x), x += MLP(x) per layer, gated SiLU MLP, rotary positions (Touvron et al. 2023; reference
// comparison-models 0.3 and 1).
#include <algorithm>
#include <cmath>
#include <numbers>

#include "checkpoint/config_reader.h"
#include "layers/attention.h"
#include "layers/mlp.h"
#include "models/models.h"
#include "models/weight_loader.h"

namespace proa {
namespace {

struct RopeConfig {
  std::vector<float> inv_freq;  // [rotary_dim / 2]
  float attention_factor = 1;
  RopePairs pairs = RopePairs::halves;
};

struct LlamaConfig {
  int64_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim,
      vocab_size, max_position_embeddings;
  float rms_norm_eps;
  RopeConfig rope;
};

// What the kernels rely on, for both kinds of file, with the fields' names of config.json. Sizes are bounded one by one
// before any product is formed.
Result<void> check(const LlamaConfig& c, const std::string& path) {
  const auto fail = [&](const char* name, std::string expected, std::string actual) {
    return Error{"read model config", path + ": " + name, std::move(expected), std::move(actual), ""};
  };
  const auto within = [&](const char* name, int64_t value, int64_t max) -> Result<void> {
    if (value >= 1 && value <= max) return {};
    return fail(name, "1 to " + std::to_string(max), std::to_string(value));
  };
  constexpr int64_t kMaxWidth = 1 << 26;
  PROA_TRY(within("hidden_size", c.hidden_size, kMaxWidth));
  PROA_TRY(within("intermediate_size", c.intermediate_size, kMaxWidth));
  PROA_TRY(within("num_hidden_layers", c.num_hidden_layers, 1024));
  PROA_TRY(within("num_attention_heads", c.num_attention_heads, 4096));
  PROA_TRY(within("num_key_value_heads", c.num_key_value_heads, c.num_attention_heads));
  PROA_TRY(within("head_dim", c.head_dim, 4096));
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    return fail("num_key_value_heads", "a divisor of " + std::to_string(c.num_attention_heads),
                std::to_string(c.num_key_value_heads));
  }
  if (c.head_dim % 2 != 0) return fail("head_dim", "an even number: rotary pairs", std::to_string(c.head_dim));
  if (!(c.rms_norm_eps >= 0 && c.rms_norm_eps <= 1)) {
    return fail("rms_norm_eps", "0 to 1", std::to_string(c.rms_norm_eps));
  }
  return {};
}

// Frequencies of config.json's rope_scaling (transformers 4) or rope_parameters (5): none, linear, or Llama 3's, which
// slows waves longer than the original context by `factor` and blends between low_freq_factor and high_freq_factor.
Result<RopeConfig> rope_from_config(const ConfigReader& config, int64_t head_dim) {
  ConfigReader rope = config;
  if (config.has({"rope_parameters", "rope_scaling"})) {
    PROA_ASSIGN(rope, config.object({"rope_parameters", "rope_scaling"}));
  }
  PROA_ASSIGN(const std::string type, rope.string({"rope_type", "type"}, "default"));
  PROA_ASSIGN(const double outer_theta, config.number("rope_theta", {.min = 1}, 10000.0));
  PROA_ASSIGN(const double theta, rope.number("rope_theta", {.min = 1}, outer_theta));
  double factor = 1, low = 1, high = 1, original = 1;
  if (type == "linear" || type == "llama3") {
    PROA_ASSIGN(factor, rope.number("factor", {.min = 1}));
  } else if (type != "default") {
    return rope.error("rope_type", "default, linear or llama3", type);
  }
  if (type == "llama3") {
    PROA_ASSIGN(low, rope.number("low_freq_factor", {.min = 1e-3}));
    PROA_ASSIGN(high, rope.number("high_freq_factor", {.min = low + 1e-3}));
    PROA_ASSIGN(original, rope.number("original_max_position_embeddings", {.min = 1}));
  }

  RopeConfig result;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (type == "linear") frequency /= factor;
    if (type == "llama3") {
      const double turns = original * frequency / (2 * std::numbers::pi);  // within the original context
      const double keep = std::min(1.0, std::max(0.0, (turns - low) / (high - low)));
      frequency *= keep + (1 - keep) / factor;
    }
    result.inv_freq.push_back(static_cast<float>(frequency));
  }
  return result;
}

Result<LlamaConfig> config_from_hf(const Checkpoint& checkpoint) {
  const ConfigReader config(checkpoint.config(), checkpoint.path() + "/config.json");
  LlamaConfig c;
  PROA_ASSIGN(c.hidden_size, config.integer("hidden_size"));
  PROA_ASSIGN(c.intermediate_size, config.integer("intermediate_size"));
  PROA_ASSIGN(c.num_hidden_layers, config.integer("num_hidden_layers", {.max = 1024}));
  PROA_ASSIGN(c.num_attention_heads, config.integer("num_attention_heads", {.max = 4096}));
  PROA_ASSIGN(c.num_key_value_heads,
              config.integer("num_key_value_heads", {.max = c.num_attention_heads}, c.num_attention_heads));
  PROA_ASSIGN(c.head_dim, config.integer("head_dim", {.max = 4096}, c.hidden_size / c.num_attention_heads));
  PROA_ASSIGN(c.vocab_size, config.integer("vocab_size"));
  PROA_ASSIGN(c.max_position_embeddings, config.integer("max_position_embeddings", {}, 2048));
  PROA_ASSIGN(const double eps, config.number("rms_norm_eps", {.min = 0, .max = 1}, 1e-6));
  c.rms_norm_eps = static_cast<float>(eps);
  PROA_ASSIGN(const std::string act, config.string("hidden_act", "silu"));
  if (act != "silu") return config.error("hidden_act", "silu", act);
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    PROA_ASSIGN(const bool on, config.boolean(bias, false));
    if (on) return config.error(bias, "false", "true");
  }
  PROA_TRY(check(c, config.where()));
  PROA_ASSIGN(c.rope, rope_from_config(config, c.head_dim));
  c.rope.pairs = RopePairs::halves;
  return c;
}

Result<LlamaConfig> config_from_gguf(const Gguf& gguf) {
  LlamaConfig c;
  PROA_ASSIGN(c.hidden_size, gguf.u32("llama.embedding_length"));
  PROA_ASSIGN(c.intermediate_size, gguf.u32("llama.feed_forward_length"));
  PROA_ASSIGN(c.num_hidden_layers, gguf.u32("llama.block_count"));
  PROA_ASSIGN(c.num_attention_heads, gguf.u32("llama.attention.head_count"));
  PROA_ASSIGN(c.num_key_value_heads,
              gguf.u32("llama.attention.head_count_kv", static_cast<uint32_t>(c.num_attention_heads)));
  const auto fail = [&](const char* key, std::string expected, std::string actual) {
    return Error{"read model config", gguf.path() + ": " + key, std::move(expected), std::move(actual), ""};
  };
  if (c.num_attention_heads == 0) return fail("llama.attention.head_count", "1 or more", "0");
  PROA_ASSIGN(c.head_dim,
              gguf.u32("llama.attention.key_length", static_cast<uint32_t>(c.hidden_size / c.num_attention_heads)));
  PROA_ASSIGN(const uint32_t rotary, gguf.u32("llama.rope.dimension_count", static_cast<uint32_t>(c.head_dim)));
  PROA_ASSIGN(c.max_position_embeddings, gguf.u32("llama.context_length"));
  PROA_ASSIGN(c.rms_norm_eps, gguf.f32("llama.attention.layer_norm_rms_epsilon"));
  PROA_ASSIGN(const float theta, gguf.f32("llama.rope.freq_base", 10000.f));
  PROA_ASSIGN(const std::string_view scaling, gguf.string("llama.rope.scaling.type", "none"));
  PROA_ASSIGN(const float linear, gguf.f32("llama.rope.scale_linear", 1.f));
  PROA_ASSIGN(const float factor, gguf.f32("llama.rope.scaling.factor", scaling == "linear" ? linear : 1.f));
  if (scaling != "none" && scaling != "linear") {
    return fail("llama.rope.scaling.type", "none or linear", std::string(scaling));
  }
  if (!(theta >= 1)) return fail("llama.rope.freq_base", "at least 1", std::to_string(theta));
  if (!(factor > 0)) return fail("llama.rope.scaling.factor", "more than 0", std::to_string(factor));
  if (const TensorEntry* embedding = gguf.find("token_embd.weight"); embedding && embedding->shape.size() == 2) {
    c.vocab_size = embedding->shape.front();
  } else {
    c.vocab_size = 0;  // the tensor table says what is wrong with it
  }
  PROA_TRY(check(c, gguf.path()));  // bounds head_dim, and so the loop below
  if (rotary % 2 != 0 || rotary > c.head_dim || rotary == 0) {
    return fail("llama.rope.dimension_count", "an even number up to the head size " + std::to_string(c.head_dim),
                std::to_string(rotary));
  }
  for (uint32_t i = 0; i < rotary / 2; ++i) {
    const double frequency = std::pow(static_cast<double>(theta), -2.0 * i / rotary);
    c.rope.inv_freq.push_back(
        static_cast<float>(scaling == "linear" ? frequency / static_cast<double>(factor) : frequency));
  }
  c.rope.pairs = RopePairs::adjacent;  // the converter permuted the rows of q and k
  return c;
}

struct TensorName {
  const char* hf;
  const char* gguf;
};
constexpr TensorName kEmbeddings = {"model.embed_tokens.weight", "token_embd.weight"};
constexpr TensorName kFinalNorm = {"model.norm.weight", "output_norm.weight"};
constexpr TensorName kLmHead = {"lm_head.weight", "output.weight"};
constexpr TensorName kRopeFactors = {"", "rope_freqs.weight"};  // Llama 3's scaling as divisors, GGUF only
constexpr TensorName kInputNorm = {"input_layernorm.weight", "attn_norm.weight"};
constexpr TensorName kQ = {"self_attn.q_proj.weight", "attn_q.weight"};
constexpr TensorName kK = {"self_attn.k_proj.weight", "attn_k.weight"};
constexpr TensorName kV = {"self_attn.v_proj.weight", "attn_v.weight"};
constexpr TensorName kO = {"self_attn.o_proj.weight", "attn_output.weight"};
constexpr TensorName kPostNorm = {"post_attention_layernorm.weight", "ffn_norm.weight"};
constexpr TensorName kGate = {"mlp.gate_proj.weight", "ffn_gate.weight"};
constexpr TensorName kUp = {"mlp.up_proj.weight", "ffn_up.weight"};
constexpr TensorName kDown = {"mlp.down_proj.weight", "ffn_down.weight"};

class Llama final : public Model {
 public:
  static Result<std::unique_ptr<Model>> open(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend) {
    const Gguf* gguf = checkpoint->gguf();
    PROA_ASSIGN(LlamaConfig config, gguf ? config_from_gguf(*gguf) : config_from_hf(*checkpoint));
    std::unique_ptr<Llama> model(new Llama);
    PROA_TRY(model->load(std::move(checkpoint), std::move(config), backend));
    return Result<std::unique_ptr<Model>>(std::move(model));
  }

  size_t workspace_bytes(int max_num_tokens) const override {
    return Arena::padded<float>(int64_t{max_num_tokens} * info_.hidden_size) +
           layers_.front().attention.workspace_bytes(max_num_tokens);
  }

  void forward(Backend& backend, const Batch& batch, std::span<const LayerCache> caches, Arena& arena,
               float* logits) const override {
    Arena::Scope scope(arena);
    float* x = arena.take<float>(int64_t{batch.num_tokens} * info_.hidden_size);  // [num_tokens, hidden_size]
    const Forward step{backend, batch, arena, x};

    backend.embed({batch.num_tokens, batch.token_ids, embeddings_, x});
    for (size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].attention.forward(step, caches[i]);
      layers_[i].mlp.forward(step);
    }
    backend.lm_head(
        {batch.num_logit_rows, info_.hidden_size, batch.logit_rows, x, final_norm_, eps_, lm_head_, logits});
  }

 private:
  struct Layer {
    AttentionLayer attention;
    MlpLayer mlp;
  };

  Result<void> load(std::shared_ptr<const Checkpoint> checkpoint, LlamaConfig c, Backend& backend) {
    const bool gguf = checkpoint->gguf() != nullptr;
    const auto global = [&](TensorName name) { return std::string(gguf ? name.gguf : name.hf); };
    const auto layer = [&](int64_t i, TensorName name) {
      return (gguf ? "blk." : "model.layers.") + std::to_string(i) + "." + (gguf ? name.gguf : name.hf);
    };
    const int64_t q_size = c.num_attention_heads * c.head_dim, kv_size = c.num_key_value_heads * c.head_dim;

    std::vector<TensorSpec> table = {
        {.name = global(kEmbeddings), .shape = {c.vocab_size, c.hidden_size}},
        {.name = global(kFinalNorm), .shape = {c.hidden_size}, .formats = kVectorFormats},
        {.name = global(kLmHead), .shape = {c.vocab_size, c.hidden_size}, .optional = true},  // absent: tied
    };
    if (gguf) {
      table.push_back({.name = kRopeFactors.gguf,
                       .shape = {static_cast<int64_t>(c.rope.inv_freq.size())},
                       .optional = true,
                       .formats = {Format::F32}});
    }
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
      table.insert(table.end(), {{.name = layer(i, kInputNorm), .shape = {c.hidden_size}, .formats = kVectorFormats},
                                 {.name = layer(i, kQ), .shape = {q_size, c.hidden_size}},
                                 {.name = layer(i, kK), .shape = {kv_size, c.hidden_size}},
                                 {.name = layer(i, kV), .shape = {kv_size, c.hidden_size}},
                                 {.name = layer(i, kO), .shape = {c.hidden_size, q_size}},
                                 {.name = layer(i, kPostNorm), .shape = {c.hidden_size}, .formats = kVectorFormats},
                                 {.name = layer(i, kGate), .shape = {c.intermediate_size, c.hidden_size}},
                                 {.name = layer(i, kUp), .shape = {c.intermediate_size, c.hidden_size}},
                                 {.name = layer(i, kDown), .shape = {c.hidden_size, c.intermediate_size}}});
    }
    const Ignored ignored[] = {{"model.layers.*.self_attn.rotary_emb.inv_freq", "rotary frequencies"}};
    PROA_ASSIGN(CheckedTensors checked, checked_tensors(*checkpoint, table, ignored));
    unused_ = std::move(checked.unused);
    WeightLoader load(std::move(checked), backend);

    embeddings_ = load.matrix(WeightKind::embedding, global(kEmbeddings));
    final_norm_ = load.vector(global(kFinalNorm));
    lm_head_ = load.matrix(WeightKind::lm_head, global(kLmHead), true);
    if (!lm_head_) lm_head_ = embeddings_;
    eps_ = c.rms_norm_eps;
    const std::vector<float> factors = gguf ? load.values(kRopeFactors.gguf, true) : std::vector<float>();
    for (size_t i = 0; i < factors.size(); ++i) c.rope.inv_freq[i] /= factors[i];
    const RotaryEmbedding rope = {.inv_freq = load.copy(c.rope.inv_freq),
                                  .rotary_dim = static_cast<int>(2 * c.rope.inv_freq.size()),
                                  .attention_factor = c.rope.attention_factor,
                                  .pairs = c.rope.pairs};

    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
      layers_.push_back({.attention = {.hidden_size = static_cast<int>(c.hidden_size),
                                       .num_heads = static_cast<int>(c.num_attention_heads),
                                       .num_kv_heads = static_cast<int>(c.num_key_value_heads),
                                       .head_dim = static_cast<int>(c.head_dim),
                                       .scale = 1 / std::sqrt(static_cast<float>(c.head_dim)),
                                       .eps = eps_,
                                       .norm = load.vector(layer(i, kInputNorm)),
                                       .q_proj = load.matrix(WeightKind::attention, layer(i, kQ)),
                                       .k_proj = load.matrix(WeightKind::attention, layer(i, kK)),
                                       .v_proj = load.matrix(WeightKind::attention, layer(i, kV)),
                                       .o_proj = load.matrix(WeightKind::attention, layer(i, kO)),
                                       .rope = rope,
                                       .k_scale = load.kv_scale(layer(i, kK), "k_scale"),
                                       .v_scale = load.kv_scale(layer(i, kV), "v_scale")},
                         .mlp = {.hidden_size = static_cast<int>(c.hidden_size),
                                 .activation = Activation::silu,
                                 .eps = eps_,
                                 .norm = load.vector(layer(i, kPostNorm)),
                                 .gate_proj = load.matrix(WeightKind::mlp, layer(i, kGate)),
                                 .up_proj = load.matrix(WeightKind::mlp, layer(i, kUp)),
                                 .down_proj = load.matrix(WeightKind::mlp, layer(i, kDown))}});
      cache_specs_.push_back(layers_.back().attention.cache_spec());
    }
    PROA_TRY(load.status());

    info_ = {.architecture = "LlamaForCausalLM",
             .layer_pattern = "",
             .hidden_size = static_cast<int>(c.hidden_size),
             .num_hidden_layers = static_cast<int>(c.num_hidden_layers),
             .vocab_size = static_cast<int>(c.vocab_size),
             .max_position_embeddings = c.max_position_embeddings,
             .num_attention_heads = static_cast<int>(c.num_attention_heads)};
    set_weights(load.take_uses());
    buffers_ = load.take_buffers();
    checkpoint_ = std::move(checkpoint);
    return {};
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<Buffer> buffers_;
  Weight embeddings_, lm_head_;
  const float* final_norm_ = nullptr;
  float eps_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace

Result<std::unique_ptr<Model>> open_llama(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend) {
  return Llama::open(std::move(checkpoint), backend);
}

}  // namespace proa
