// MoE layer: a sigmoid router picks experts, whose MLPs add to that of the shared expert; with latent projections
// around the routed experts where a model has them (reference nemotron-h 2.7).
#pragma once

#include "layers/forward.h"

namespace proa {

struct MoeLayer {
  int hidden_size;
  int n_routed_experts;
  int num_experts_per_tok;
  int n_group;
  int topk_group;
  bool norm_topk_prob;
  float routed_scaling_factor;
  Activation activation;
  float eps;
  const float* norm;                    // [hidden_size]
  Weight gate;                          // [n_routed_experts, hidden_size]
  const float* bias;                    // [n_routed_experts] e_score_correction_bias
  ExpertTables up_tables, down_tables;  // what the next two point to
  ExpertWeights up, down;
  Weight latent_in, latent_out;   // empty: no latent
  Weight shared_up, shared_down;  // empty: no shared expert

  size_t workspace_bytes(int num_tokens) const;
  // moe_index: of this layer among the MoE layers, its row of Batch::expert_tokens.
  void forward(const Forward& step, int moe_index) const;
};

}  // namespace proa
