// Gate and grouped norm into scratch, then the linear of this backend.
#include <algorithm>
#include <cmath>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/linear.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/gated_norm_linear_residual.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "backends/cpu/mamba2-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {

// One group of one token: out = norm · v / sqrt(mean(v²) + eps), v = y · silu(z).
void gated_norm(const float* y, const float* z, const float* norm, float eps, int width, float* out) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  auto squares = hn::Zero(d);
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const auto v = hn::Mul(hn::LoadU(d, y + i), silu(d, hn::LoadU(d, z + i)));
    squares = hn::MulAdd(v, v, squares);
    hn::StoreU(v, d, out + i);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, squares));
  for (; i < width; ++i) {
    out[i] = y[i] * hn::GetLane(silu(d1, hn::Set(d1, z[i])));
    sum += out[i] * out[i];
  }
  const float scale = 1 / std::sqrt(sum / static_cast<float>(width) + eps);
  for (i = 0; i < width; ++i) out[i] = out[i] * scale * norm[i];
}

}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace proa {

HWY_EXPORT(gated_norm);

void CpuBackend::gated_norm_linear_residual(const GatedNormLinearResidual& op) {
  const int64_t rooms = room_floats(op.inner, op.num_tokens) * threads().num_threads();
  const Forms forms = forms_of(*this, {op.weight}, op.num_tokens);
  const size_t bytes = Input::bytes(op.num_tokens, op.inner, forms) + Arena::padded<float>(rooms);
  std::byte* memory = scratch(bytes);
  if (counting()) return;
  Arena arena(memory, bytes);
  const Input normed(arena, op.num_tokens, op.inner, forms);
  float* room = arena.take<float>(rooms);

  const int width = op.inner / op.n_groups;
  const auto norm = PROA_DISPATCH(gated_norm, target());
  threads().parallel_for(op.num_tokens, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = normed.x + t * normed.stride;
      for (int first = 0; first < op.inner; first += width) {
        norm(op.y + t * op.inner + first, op.z + t * op.z_stride + first, op.norm + first, op.eps, width, row + first);
      }
      std::fill(row + op.inner, row + normed.stride, 0.0f);
      normed.round(t, 0, normed.stride, op.inner);
    }
  });
  const Linear down = normed.read_by(
      {.weight = op.weight, .num_tokens = op.num_tokens, .y = op.residual, .y_stride = op.weight.rows, .add = true});
  linear(*this, {&down, 1}, room);
}

}  // namespace proa
#endif  // HWY_ONCE
