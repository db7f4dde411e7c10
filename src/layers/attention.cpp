#include "layers/attention.h"

namespace proa {

CacheSpec AttentionLayer::cache_spec() const {
  return {.kind = CacheSpec::Kind::kv, .num_kv_heads = num_kv_heads, .head_dim = head_dim, .window = window};
}

size_t AttentionLayer::workspace_bytes(int num_tokens) const {
  const int64_t tokens = num_tokens;
  return 2 * Arena::padded<float>(tokens * num_heads * head_dim) +
         2 * Arena::padded<float>(tokens * num_kv_heads * head_dim);
}

void AttentionLayer::forward(const Forward& step, const LayerCache& cache) const {
  Arena::Scope scope(step.arena);
  const Batch& batch = step.batch;
  const int64_t tokens = batch.num_tokens;
  float* q = step.arena.take<float>(tokens * num_heads * head_dim);     // [num_tokens, num_heads, head_dim]
  float* k = step.arena.take<float>(tokens * num_kv_heads * head_dim);  // [num_tokens, num_kv_heads, head_dim]
  float* v = step.arena.take<float>(tokens * num_kv_heads * head_dim);  // [num_tokens, num_kv_heads, head_dim]
  float* out = step.arena.take<float>(tokens * num_heads * head_dim);   // [num_tokens, num_heads, head_dim]

  const LinearOutput qkv[] = {{q_proj, q}, {k_proj, k}, {v_proj, v}};
  step.backend.norm_linear({batch.num_tokens, hidden_size, step.x, norm, eps, qkv});
  if (rope) {
    step.backend.rope({batch.num_tokens, batch.positions, num_heads, num_kv_heads, head_dim, rope->rotary_dim,
                       rope->inv_freq, rope->attention_factor, rope->pairs, q, k});
  }
  const bool scaled = cache.kv.format == Format::F8_E4M3;
  step.backend.attend({&batch, num_heads, num_kv_heads, head_dim, window, scale, q, k, v, cache.kv, out,
                       scaled ? k_scale : 1, scaled ? v_scale : 1});
  step.backend.linear_residual({batch.num_tokens, out, o_proj, step.x});
  step.backend.all_reduce(step.x, tokens * hidden_size);
}

}  // namespace proa
