#include "layers/mamba2.h"

namespace proa {

CacheSpec Mamba2Layer::cache_spec() const {
  return {.kind = CacheSpec::Kind::state,
          .conv_dim = shape.conv_dim(),
          .conv_kernel = shape.conv_kernel,
          .num_heads = shape.num_heads,
          .ssm_head_dim = shape.head_dim,
          .ssm_state_size = shape.ssm_state_size};
}

size_t Mamba2Layer::workspace_bytes(int num_tokens) const {
  const int64_t tokens = num_tokens;
  return Arena::padded<float>(tokens * shape.projected()) + Arena::padded<float>(tokens * shape.inner());
}

void Mamba2Layer::forward(const Forward& step, const LayerCache& cache) const {
  Arena::Scope scope(step.arena);
  const Batch& batch = step.batch;
  const int64_t tokens = batch.num_tokens;
  float* projected = step.arena.take<float>(tokens * shape.projected());  // [num_tokens, z | x | B | C | dt]
  float* y = step.arena.take<float>(tokens * shape.inner());              // [num_tokens, inner]

  const LinearOutput in[] = {{in_proj, projected}};
  step.backend.norm_linear({batch.num_tokens, hidden_size, step.x, norm, eps, in});

  // Decodes come first in a batch and have one token each; what follows are prefills.
  const int decodes = batch.num_decodes;
  if (decodes > 0) {
    step.backend.conv_ssm_step(
        {shape, weights, limit, decodes, 1, projected, cache.state, batch.state_slot_in, batch.state_slot_out, y});
  }
  if (const int prefills = batch.num_seqs - decodes; prefills > 0) {
    step.backend.ssd_chunk({shape, weights, limit, chunk_size, prefills, batch.num_tokens - decodes,
                            batch.query_start + decodes, projected + int64_t{decodes} * shape.projected(), cache.state,
                            batch.state_slot_in + decodes, batch.state_slot_out + decodes,
                            y + int64_t{decodes} * shape.inner()});
  }

  step.backend.gated_norm_linear_residual({batch.num_tokens, shape.inner(), shape.n_groups, y, projected,
                                           shape.projected(), gated_norm, eps, out_proj, step.x});
  step.backend.all_reduce(step.x, tokens * hidden_size);
}

}  // namespace proa
