// A model: immutable weights and the forward pass of one architecture. Sequences, caches and sampling are elsewhere;
// several engines may share one model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "core/result.h"
#include "ops/backend.h"
#include "ops/batch.h"
#include "ops/cache_spec.h"

namespace proa {

class Checkpoint;

struct ModelInfo {
  std::string architecture;  // as config.json has it: "NemotronHForCausalLM"
  std::string
      layer_pattern;  // a letter per layer: M Mamba-2, * attention, E MoE, - MLP; empty where all layers are alike
  int hidden_size = 0;
  int num_hidden_layers = 0;
  int vocab_size = 0;
  int64_t max_position_embeddings = 0;  // tokens
  int num_moe_layers = 0;
  int n_routed_experts = 0;     // of each MoE layer
  int num_experts_per_tok = 0;  // chosen from them
  int num_attention_heads = 0;  // of queries, in each attention layer
  int64_t num_parameters = 0;   // of the tensors that are used
  int64_t weight_bytes = 0;     // sum of WeightUse::bytes
};

enum class WeightKind : uint8_t {
  embedding,
  mamba,
  attention,
  router,
  expert,  // routed
  shared_expert,
  latent,
  mlp,
  lm_head,
  vector,  // norms, convolution, biases, SSM constants
};
std::string_view to_string(WeightKind kind);  // "shared expert"

// A weight that the model holds: what it is and how many bytes a step that needs it reads.
struct WeightUse {
  std::string name;  // the tensor's; of experts that are a tensor each, the first one's
  WeightKind kind{};
  Format format{};         // as it is held: vectors are F32, whatever the file has
  std::string stored{};    // as the file has it: "BF16", "NVFP4", "F8_E4M3"
  int64_t parameters = 0;  // of all experts together
  int64_t bytes = 0;       // as it is held, with all scales that belong to it
  int num_experts = 1;     // matrices that `parameters` and `bytes` are about, of which a token needs
  int experts_per_token = 1;
};

// Tensors of the checkpoint that the model leaves alone, by what they are for.
struct UnusedTensors {
  std::string what;  // "multi-token prediction"
  int64_t count = 0;
  int64_t parameters = 0;
  int64_t bytes = 0;
};

class Model {
 public:
  virtual ~Model() = default;

  const ModelInfo& info() const { return info_; }

  // What each layer keeps. [num_caches]; forward() takes one LayerCache per entry, in this order.
  std::span<const CacheSpec> cache_specs() const { return cache_specs_; }

  // Everything it holds, in order of use. Without one of kind lm_head the embedding is the output matrix as well. What
  // a step costs follows from it: models/step_cost.h.
  std::span<const WeightUse> weights() const { return weights_; }
  std::span<const UnusedTensors> unused() const { return unused_; }

  // Bytes of arena that a step of at most max_num_tokens tokens takes.
  virtual size_t workspace_bytes(int max_num_tokens) const = 0;

  // One step: reads and writes the caches, and leaves logits [batch.num_logit_rows, vocab_size]. Allocates nothing.
  virtual void forward(Backend& backend, const Batch& batch, std::span<const LayerCache> caches, Arena& arena,
                       float* logits) const = 0;

 protected:
  // Fills info().num_parameters and weight_bytes too.
  void set_weights(std::vector<WeightUse> weights);

  ModelInfo info_;
  std::vector<CacheSpec> cache_specs_;
  std::vector<WeightUse> weights_;
  std::vector<UnusedTensors> unused_;
};

// Opens the model that the checkpoint's architecture names, its weights placed on `backend` (wrapped where they lie
// whenever the device can read them there). The model keeps the checkpoint. Errors: an unknown architecture with the
// list of known ones; a bad config field; all tensors that are missing or differ, together.
Result<std::unique_ptr<Model>> open_model(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend);

}  // namespace proa
