// A model: immutable weights and the forward pass of one architecture. Sequences, caches and sampling are elsewhere;
// several engines may share one model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
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
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;  // of the tensors that are used
};

class Model {
 public:
  virtual ~Model() = default;

  const ModelInfo& info() const { return info_; }

  // What each layer keeps. [num_caches]; forward() takes one LayerCache per entry, in this order.
  std::span<const CacheSpec> cache_specs() const { return cache_specs_; }

  // Bytes of arena that a step of at most max_num_tokens tokens takes.
  virtual size_t workspace_bytes(int max_num_tokens) const = 0;

  // One step: reads and writes the caches, and leaves logits [batch.num_logit_rows, vocab_size]. Allocates nothing.
  virtual void forward(Backend& backend, const Batch& batch, std::span<const LayerCache> caches, Arena& arena,
                       float* logits) const = 0;

 protected:
  ModelInfo info_;
  std::vector<CacheSpec> cache_specs_;
};

// Opens the model that the checkpoint's architecture names, its weights placed on `backend` (wrapped where they lie
// whenever the device can read them there). The model keeps the checkpoint. Errors: an unknown architecture with the
// list of known ones; a bad config field; all tensors that are missing or differ, together.
Result<std::unique_ptr<Model>> open_model(std::shared_ptr<const Checkpoint> checkpoint, Backend& backend);

}  // namespace proa
