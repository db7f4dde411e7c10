// What conv_ssm_step and ssd_chunk share: the convolution of one token, and the recurrence of one head over a few.
// Compiled once per instruction set.
#if defined(PROA_BACKENDS_CPU_MAMBA2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PROA_BACKENDS_CPU_MAMBA2_INL_H_
#undef PROA_BACKENDS_CPU_MAMBA2_INL_H_
#else
#define PROA_BACKENDS_CPU_MAMBA2_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "ops/mamba2.h"

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// v · sigmoid(v). Below -88 the result is smaller than any sum it meets, and Exp stays in its range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V silu(D d, V v) {
  const V e = hn::Exp(d, hn::Min(hn::Neg(v), hn::Set(d, 88.0f)));
  return hn::Div(v, hn::Add(e, hn::Set(d, 1.0f)));
}

// Weights [channels, taps] of as many channels as a vector has lanes, one vector per tap.
template <int kTaps, class D, class V>
HWY_INLINE void load_taps(D d, const float* weight, V* w) {
  if constexpr (hn::MaxLanes(D()) == 1) {
    for (int j = 0; j < kTaps; ++j) w[j] = hn::LoadU(d, weight + j);
  } else if constexpr (kTaps == 2) {
    hn::LoadInterleaved2(d, weight, w[0], w[1]);
  } else if constexpr (kTaps == 3) {
    hn::LoadInterleaved3(d, weight, w[0], w[1], w[2]);
  } else {
    hn::LoadInterleaved4(d, weight, w[0], w[1], w[2], w[3]);
  }
}

template <int kTaps, class D>
HWY_INLINE void convolve_vector(D d, const float* const* rows, const float* weight, const float* bias, int c,
                                float* out) {
  hn::Vec<D> w[kTaps];
  load_taps<kTaps>(d, weight + static_cast<size_t>(c) * kTaps, w);
  auto sum = bias ? hn::LoadU(d, bias + c) : hn::Zero(d);
  for (int j = 0; j < kTaps; ++j) sum = hn::MulAdd(w[j], hn::LoadU(d, rows[j] + c), sum);
  hn::StoreU(silu(d, sum), d, out + c);
}

template <int kTaps>
void convolve(const float* const* rows, const float* weight, const float* bias, int begin, int end, float* out) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  int c = begin;
  for (; c + kLanes <= end; c += kLanes) convolve_vector<kTaps>(d, rows, weight, bias, c, out);
  for (; c < end; ++c) convolve_vector<kTaps>(d1, rows, weight, bias, c, out);
}

// out[c] = silu(bias[c] + Σ_j weight[c, j] · rows[j][c]) for channels [begin, end): one token, oldest row first.
inline void convolve_token(int taps, const float* const* rows, const float* weight, const float* bias, int begin,
                           int end, float* out) {
  if (taps == 4) return convolve<4>(rows, weight, bias, begin, end, out);
  if (taps == 3) return convolve<3>(rows, weight, bias, begin, end, out);
  if (taps == 2) return convolve<2>(rows, weight, bias, begin, end, out);
  for (int c = begin; c < end; ++c) {
    float sum = bias ? bias[c] : 0;
    for (int j = 0; j < taps; ++j) sum += weight[static_cast<size_t>(c) * taps + j] * rows[j][c];
    out[c] = sum / (1 + std::exp(-sum));
  }
}

// Δ of one head and token.
inline float time_step(float dt, float bias, const TimeStepLimit& limit) {
  const float v = dt + bias;
  const float delta = v > 20 ? v : std::log1p(std::exp(v));
  return delta < limit.min ? limit.min : delta > limit.max ? limit.max : delta;
}

// One row of the state, [N]: out = decay · in + dx · B; returns out · C. `in` null is zero; `out` may be `in`.
inline float advance_row(const float* in, float* out, int N, float decay, float dx, const float* B, const float* C) {
  const hn::ScalableTag<float> d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  const auto vdecay = hn::Set(d, decay), vdx = hn::Set(d, dx);
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  int n = 0;
  for (; n + 2 * kLanes <= N; n += 2 * kLanes) {
    auto s0 = hn::Mul(vdx, hn::LoadU(d, B + n));
    auto s1 = hn::Mul(vdx, hn::LoadU(d, B + n + kLanes));
    if (in) {
      s0 = hn::MulAdd(vdecay, hn::LoadU(d, in + n), s0);
      s1 = hn::MulAdd(vdecay, hn::LoadU(d, in + n + kLanes), s1);
    }
    hn::StoreU(s0, d, out + n);
    hn::StoreU(s1, d, out + n + kLanes);
    sum0 = hn::MulAdd(s0, hn::LoadU(d, C + n), sum0);
    sum1 = hn::MulAdd(s1, hn::LoadU(d, C + n + kLanes), sum1);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; n < N; ++n) {
    const float s = (in ? decay * in[n] : 0.0f) + dx * B[n];
    out[n] = s;
    sum += s * C[n];
  }
  return sum;
}

// One head over `num_tokens` successive tokens of one sequence. Row after row of the state, so that a row stays in the
// nearest cache while all tokens pass over it.
//   projected  the first token's row; rows follow each other
//   activated  the same token's x | B | C after convolution and SiLU, [.., conv_dim]
//   in         [head_dim, N] before the first token, or null: zero
//   out(t)     [head_dim, N] that takes the state after token t; the next token reads it there
//   delta      room for 2 · num_tokens
//   y          the first token's row, [.., inner]
template <class Out>
void advance_head(const Mamba2Shape& shape, const Mamba2Weights& weights, const TimeStepLimit& limit, int h,
                  int num_tokens, const float* projected, const float* activated, const float* in, const Out& out,
                  float* delta, float* y) {
  const int N = shape.ssm_state_size, inner = shape.inner(), conv_dim = shape.conv_dim();
  const int group = h / (shape.num_heads / shape.n_groups);
  float* decay = delta + num_tokens;
  for (int t = 0; t < num_tokens; ++t) {
    const float dt = projected[int64_t{t} * shape.projected() + inner + conv_dim + h];
    delta[t] = time_step(dt, weights.dt_bias[h], limit);
    decay[t] = std::exp(delta[t] * weights.a[h]);
  }
  for (int p = 0; p < shape.head_dim; ++p) {
    const int channel = h * shape.head_dim + p;
    const float* row = in ? in + int64_t{p} * N : nullptr;
    for (int t = 0; t < num_tokens; ++t) {
      const float* token = activated + int64_t{t} * conv_dim;
      const float* B = token + inner + group * N;
      const float* C = B + shape.n_groups * N;
      float* next = out(t) + int64_t{p} * N;
      const float sum = advance_row(row, next, N, decay[t], delta[t] * token[channel], B, C);
      y[int64_t{t} * inner + channel] = sum + weights.d[h] * token[channel];
      row = next;
    }
  }
}

}  // namespace
}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard of this instruction set
