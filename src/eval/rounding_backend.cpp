#include "eval/rounding_backend.h"

#include "core/half.h"

namespace proa {
namespace {

float rounded(Rounding rounding, float x) {
  switch (rounding) {
    case Rounding::none:
      return x;
    case Rounding::f16:
      return half_to_float(float_to_half(x));
    case Rounding::bf16:
      return bfloat16_to_float(float_to_bfloat16(x));
  }
  return x;
}

}  // namespace

void RoundingBackend::round_state(const StateCacheView& cache, const Mamba2Shape& shape, const int32_t* slots,
                                  int count) const {
  const int64_t size = int64_t{shape.num_heads} * shape.head_dim * shape.ssm_state_size;
  for (int i = 0; i < count; ++i) {
    if (slots[i] < 0) continue;
    float* state = cache.ssm + slots[i] * size;
    for (int64_t j = 0; j < size; ++j) state[j] = rounded(state_, state[j]);
  }
}

void RoundingBackend::conv_ssm_step(const ConvSsmStep& op) {
  ForwardingBackend::conv_ssm_step(op);
  if (counting() || state_ == Rounding::none) return;
  round_state(op.cache, op.shape, op.state_slot_out, op.num_seqs * op.tokens_per_seq);
}

void RoundingBackend::ssd_chunk(const SsdChunk& op) {
  ForwardingBackend::ssd_chunk(op);
  if (counting() || state_ == Rounding::none) return;
  round_state(op.cache, op.shape, op.state_slot_out, op.num_seqs);
}

}  // namespace proa
