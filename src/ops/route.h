// route: which experts a token goes to, and with what weights (reference nemotron-h 2.7).
//   s = sigmoid(Gate · RMSNorm(x))                    F32
//   choose the num_experts_per_tok largest of s + bias; the bias only chooses, it never weighs.
//   Equal values: the lower expert first.
//   n_group > 1: the experts fall into n_group equal groups, a group scores the sum of its two best s + bias, and only
//   the topk_group best groups may be chosen from. weight = s of the chosen, divided by their sum + 1e-20 if
//   norm_topk_prob, times routed_scaling_factor.
#pragma once

#include "ops/weight.h"

namespace proa {

struct Route {
  int num_tokens;
  int hidden_size;
  const float* x;     // [num_tokens, hidden_size] the residual stream
  const float* norm;  // [hidden_size]
  float eps;
  Weight gate;        // [n_routed_experts, hidden_size]
  const float* bias;  // [n_routed_experts] e_score_correction_bias
  int n_routed_experts;
  int num_experts_per_tok;
  int n_group;
  int topk_group;
  bool norm_topk_prob;
  float routed_scaling_factor;
  int32_t* topk_ids;                 // [num_tokens, num_experts_per_tok] out, best first
  float* topk_weights;               // [num_tokens, num_experts_per_tok] out
  int32_t* expert_tokens = nullptr;  // [n_routed_experts] the tokens that chose each are added here; null: not counted
};

void route_reference(const Route& op);

}  // namespace proa
