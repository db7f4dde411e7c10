#include "layers/moe.h"

namespace proa {

size_t MoeLayer::workspace_bytes(int num_tokens) const {
  const int64_t choices = int64_t{num_tokens} * num_experts_per_tok;
  return Arena::padded<int32_t>(choices) + Arena::padded<float>(choices);
}

void MoeLayer::forward(const Forward& step, int moe_index) const {
  Arena::Scope scope(step.arena);
  const int tokens = step.batch.num_tokens;
  int32_t* topk_ids =
      step.arena.take<int32_t>(int64_t{tokens} * num_experts_per_tok);  // [num_tokens, num_experts_per_tok]
  float* topk_weights =
      step.arena.take<float>(int64_t{tokens} * num_experts_per_tok);  // [num_tokens, num_experts_per_tok]

  int32_t* counted = step.batch.expert_tokens;
  if (counted) counted += int64_t{moe_index} * n_routed_experts;
  step.backend.route({tokens, hidden_size, step.x, norm, eps, gate, bias, n_routed_experts, num_experts_per_tok,
                      n_group, topk_group, norm_topk_prob, routed_scaling_factor, topk_ids, topk_weights, counted});
  step.backend.moe({tokens, hidden_size, step.x, norm, eps, n_routed_experts, num_experts_per_tok, topk_ids,
                    topk_weights, up, down, latent_in, latent_out, shared_up, shared_down, activation});
  step.backend.all_reduce(step.x, int64_t{tokens} * hidden_size);
}

}  // namespace proa
