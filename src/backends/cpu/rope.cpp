// The angles of a token are the same for all its heads: computed once, in double, since position · inv_freq reaches
// 100,000 and float would leave 0.004 of it.
#include <algorithm>
#include <cmath>

#include "backends/cpu/cpu_backend.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/rope.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
constexpr hn::ScalableTag<float> d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));

void turn_halves(const float* cosines, const float* sines, int half, float* head) {
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const auto c = hn::LoadU(d, cosines + i), s = hn::LoadU(d, sines + i);
    const auto a = hn::LoadU(d, head + i), b = hn::LoadU(d, head + half + i);
    hn::StoreU(hn::MulSub(a, c, hn::Mul(b, s)), d, head + i);
    hn::StoreU(hn::MulAdd(b, c, hn::Mul(a, s)), d, head + half + i);
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[half + i] = b * cosines[i] + a * sines[i];
  }
}

void turn_adjacent(const float* cosines, const float* sines, int half, float* head) {
  int i = 0;
#if HWY_TARGET != HWY_SCALAR
  for (; i + kLanes <= half; i += kLanes) {
    hn::Vec<decltype(d)> a, b;
    const auto c = hn::LoadU(d, cosines + i), s = hn::LoadU(d, sines + i);
    hn::LoadInterleaved2(d, head + 2 * i, a, b);
    hn::StoreInterleaved2(hn::MulSub(a, c, hn::Mul(b, s)), hn::MulAdd(b, c, hn::Mul(a, s)), d, head + 2 * i);
  }
#endif
  for (; i < half; ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cosines[i] - b * sines[i];
    head[2 * i + 1] = b * cosines[i] + a * sines[i];
  }
}

}  // namespace

// Tokens [begin, end). `room` holds rotary_dim floats.
void turn_tokens(const Rope& op, int64_t begin, int64_t end, float* room) {
  const int half = op.rotary_dim / 2;
  float *cosines = room, *sines = room + half;
  for (int64_t t = begin; t < end; ++t) {
    for (int i = 0; i < half; ++i) {
      const double angle = double{op.inv_freq[i]} * op.positions[t];
      cosines[i] = static_cast<float>(std::cos(angle) * op.attention_factor);
      sines[i] = static_cast<float>(std::sin(angle) * op.attention_factor);
    }
    for (int h = 0; h < op.num_heads + op.num_kv_heads; ++h) {
      float* head = h < op.num_heads ? op.q + (t * op.num_heads + h) * op.head_dim
                                     : op.k + (t * op.num_kv_heads + h - op.num_heads) * op.head_dim;
      if (op.pairs == RopePairs::halves) {
        turn_halves(cosines, sines, half, head);
      } else {
        turn_adjacent(cosines, sines, half, head);
      }
    }
  }
}

}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace proa {

HWY_EXPORT(turn_tokens);

void CpuBackend::rope(const Rope& op) {
  const size_t bytes = Arena::padded<float>(op.rotary_dim);
  std::byte* rooms = scratch(bytes * threads().num_threads());
  if (counting()) return;
  const auto turn = PROA_DISPATCH(turn_tokens, target());
  threads().parallel_for(op.num_tokens, 1, [&](int64_t begin, int64_t end, int thread) {
    turn(op, begin, end, reinterpret_cast<float*>(rooms + thread * bytes));
  });
}

}  // namespace proa
#endif  // HWY_ONCE
