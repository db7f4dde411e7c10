#include "ops/rope.h"

#include <cmath>

namespace proa {
namespace {

void turn(const Rope& op, int32_t position, float* head) {
  const int half = op.rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    const double angle = double{op.inv_freq[i]} * position;
    const double c = std::cos(angle) * op.attention_factor;
    const double s = std::sin(angle) * op.attention_factor;
    float& first = op.pairs == RopePairs::halves ? head[i] : head[2 * i];
    float& second = op.pairs == RopePairs::halves ? head[i + half] : head[2 * i + 1];
    const double a = first, b = second;
    first = static_cast<float>(a * c - b * s);
    second = static_cast<float>(b * c + a * s);
  }
}

}  // namespace

void rope_reference(const Rope& op) {
  for (int64_t t = 0; t < op.num_tokens; ++t) {
    for (int h = 0; h < op.num_heads; ++h) turn(op, op.positions[t], op.q + (t * op.num_heads + h) * op.head_dim);
    for (int h = 0; h < op.num_kv_heads; ++h) turn(op, op.positions[t], op.k + (t * op.num_kv_heads + h) * op.head_dim);
  }
}

}  // namespace proa
