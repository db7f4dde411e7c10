// moe: the routed and the shared experts of one layer, added to the residual stream (reference nemotron-h 2.7).
//   u = RMSNorm(x);  z = LatentIn · u, or u itself
//   r = Σ_k topk_weights[k] · Down_k · act(Up_k · z);   r = LatentOut · r where there is a latent
//   x += r + SharedDown · act(SharedUp · u)
#pragma once

#include "ops/activation.h"
#include "ops/weight.h"

namespace proa {

struct Moe {
  int num_tokens;
  int hidden_size;
  float* x;           // [num_tokens, hidden_size] the residual stream, in and out
  const float* norm;  // [hidden_size]
  float eps;
  int n_routed_experts;
  int num_experts_per_tok;
  const int32_t* topk_ids;    // [num_tokens, num_experts_per_tok], each in [0, n_routed_experts)
  const float* topk_weights;  // [num_tokens, num_experts_per_tok]
  ExpertWeights up;           // [n_routed_experts] of [moe_intermediate_size, latent or hidden]
  ExpertWeights down;         // [n_routed_experts] of [latent or hidden, moe_intermediate_size]
  Weight latent_in;           // [moe_latent_size, hidden_size], or empty
  Weight latent_out;          // [hidden_size, moe_latent_size], or empty
  Weight shared_up;           // [moe_shared_expert_intermediate_size, hidden_size], or empty: no shared expert
  Weight shared_down;         // [hidden_size, moe_shared_expert_intermediate_size]
  Activation activation;
};

void moe_reference(const Moe& op);

}  // namespace proa
