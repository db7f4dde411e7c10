#include "ops/lm_head.h"

#include "ops/reference.h"

namespace proa {

void lm_head_reference(const LmHead& op) {
  const auto vocab_size = op.weight.rows;
  for (int i = 0; i < op.num_rows; ++i) {
    const float* x = op.x + int64_t{op.rows[i]} * op.hidden_size;
    const auto logits = reference::linear(op.weight, reference::rms_norm(x, op.norm, op.eps, 1, op.hidden_size), 1);
    for (int64_t v = 0; v < vocab_size; ++v)
      op.logits[i * vocab_size + v] = static_cast<float>(logits[static_cast<size_t>(v)]);
  }
}

}  // namespace proa
