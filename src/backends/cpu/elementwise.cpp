#include "backends/cpu/elementwise.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/elementwise.cpp"
// clang-format off
#include "hwy/foreach_target.h"  // before the others
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

void normalize(const float* x, const float* norm, float eps, int64_t size, float* y, int64_t padded) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= size; i += 2 * lanes) {
    const auto a = hn::LoadU(d, x + i);
    const auto b = hn::LoadU(d, x + i + lanes);
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
  }
  float squares = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < size; ++i) squares += x[i] * x[i];

  const float scale = 1 / std::sqrt(squares / static_cast<float>(size) + eps);
  const auto factor = hn::Set(d, scale);
  for (i = 0; i + lanes <= size; i += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, norm + i), hn::Mul(hn::LoadU(d, x + i), factor)), d, y + i);
  }
  for (; i < size; ++i) y[i] = norm[i] * (x[i] * scale);
  std::fill(y + size, y + padded, 0.0f);
}

template <class D, class V>
HWY_INLINE V silu(D d, V x) {
  // Below -88 e^-x leaves the floats; there x / (1 + e^-x) is 0 to within 1e-36.
  const V e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), e));
}

template <class D, class V>
HWY_INLINE V relu2(D d, V x) {
  const V positive = hn::Max(x, hn::Zero(d));
  return hn::Mul(positive, positive);
}

template <class D>
HWY_INLINE void apply(D d, Activation activation, const float* gate, float* h) {
  const auto value = hn::LoadU(d, h);
  const auto in = gate ? hn::LoadU(d, gate) : value;
  const auto out = activation == Activation::relu2 ? relu2(d, in) : silu(d, in);
  hn::StoreU(gate ? hn::Mul(out, value) : out, d, h);
}

void activate(Activation activation, const float* gate, float* h, int64_t count) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) apply(d, activation, gate ? gate + i : nullptr, h + i);
  for (; i < count; ++i) apply(one, activation, gate ? gate + i : nullptr, h + i);
}

}  // namespace
}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace proa {
namespace {
HWY_EXPORT(normalize);
HWY_EXPORT(activate);
}  // namespace

void rms_norm(CpuBackend& backend, int num_tokens, int size, const float* x, const int32_t* x_rows, const float* norm,
              float eps, const Input& y) {
  const auto kernel = &PROA_DISPATCH(normalize, backend.target());
  // A fork and join costs about as much as normalizing four rows.
  backend.threads().parallel_for(num_tokens, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      kernel(x + (x_rows ? x_rows[t] : t) * size, norm, eps, size, y.x + t * y.stride, y.stride);
      y.round(t, 0, y.stride, size);
    }
  });
}

void activate(int64_t target, Activation activation, const float* gate, float* h, int64_t count) {
  PROA_DISPATCH(activate, target)(activation, gate, h, count);
}

}  // namespace proa
#endif
