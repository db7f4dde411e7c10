#include "backends/cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "backends/cpu/linear_bf16.h"
#include "backends/cpu/linear_vnni.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr D d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
constexpr int kVectors = 32 / kLanes;  // of a block of 32 columns

// A tile is kRows weight rows by up to kTokens tokens, its sums in registers: 16 of them on AVX2, 32 elsewhere.
constexpr int kRows = 4;
constexpr int kTokens = HWY_TARGET == HWY_AVX3 ? 6 : HWY_TARGET == HWY_NEON ? 4 : 2;

// Bytes to fetch ahead of one token's dot products. Rows of small models are short, and the hardware follows streams of
// a few hundred bytes badly: 576 columns of Q8_0 came from memory at 8 GB/s a thread without this and at 27 with it.
constexpr int kAhead = 12288;

// unpack(format, block, w): the 32 values from `block` on as vectors.

#if HWY_TARGET != HWY_SCALAR
#define PROA_TUNED 1

HWY_INLINE void unpack(F32, const float* block, V* w) {
  for (int i = 0; i < kVectors; ++i) w[i] = hn::LoadU(d, block + i * kLanes);
}

HWY_INLINE V broadcast_half(uint16_t half) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::BitCast(d16, hn::Set(hn::Rebind<uint16_t, D>(), half)));
}

HWY_INLINE void unpack(F16, const uint16_t* block, V* w) {
  const hn::Rebind<hwy::float16_t, D> d16;
  for (int i = 0; i < kVectors; ++i) {
    const auto bits = hn::LoadU(hn::Rebind<uint16_t, D>(), block + i * kLanes);
    w[i] = hn::PromoteTo(d, hn::BitCast(d16, bits));
  }
}

HWY_INLINE void unpack(BF16, const uint16_t* block, V* w) {
  const hn::Rebind<uint32_t, D> d32;
  for (int i = 0; i < kVectors; ++i) {
    const auto bits = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<uint16_t, D>(), block + i * kLanes));
    w[i] = hn::BitCast(d, hn::ShiftLeft<16>(bits));
  }
}

HWY_INLINE void unpack(Q8_0, const Q8_0::Block* block, V* w) {
  const hn::Rebind<int32_t, D> d32;
  const V scale = broadcast_half(block->d);
  for (int i = 0; i < kVectors; ++i) {
    const auto q = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<int8_t, D>(), block->qs + i * kLanes));
    w[i] = hn::Mul(hn::ConvertTo(d, q), scale);
  }
}

// q · d + m for the 32 nibbles of qs.
HWY_INLINE void unpack_nibbles(const uint8_t* qs, V scale, V min, V* w) {
  const hn::Rebind<uint32_t, D> d32;
#if HWY_TARGET == HWY_AVX3
  // A vector has as many lanes as a nibble has values: decode all 16 once, then look each up by its low four bits.
  const V values = hn::MulAdd(hn::Iota(d, 0), scale, min);
  const auto q = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<uint8_t, D>(), qs));
  w[0] = V{_mm512_permutexvar_ps(q.raw, values.raw)};
  w[1] = V{_mm512_permutexvar_ps(hn::ShiftRight<4>(q).raw, values.raw)};
#else
  const hn::Rebind<int32_t, D> di32;
  const auto low = hn::Set(d32, 15);
  for (int i = 0; i < kVectors / 2; ++i) {
    const auto q = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<uint8_t, D>(), qs + i * kLanes));
    w[i] = hn::MulAdd(hn::ConvertTo(d, hn::BitCast(di32, hn::And(q, low))), scale, min);
    w[i + kVectors / 2] = hn::MulAdd(hn::ConvertTo(d, hn::BitCast(di32, hn::ShiftRight<4>(q))), scale, min);
  }
#endif
}

HWY_INLINE void unpack(Q4_0, const Q4_0::Block* block, V* w) {
  const V scale = broadcast_half(block->d);
  unpack_nibbles(block->qs, scale, hn::Mul(scale, hn::Set(d, -8.0f)), w);
}

HWY_INLINE void unpack(Q4_1, const Q4_1::Block* block, V* w) {
  unpack_nibbles(block->qs, broadcast_half(block->d), broadcast_half(block->m), w);
}
#else
#define PROA_TUNED 0
#endif  // HWY_TARGET != HWY_SCALAR

// Formats that have an unpack above; the others, and all of them in plain C++, are decoded by the format itself.
template <class F>
constexpr bool kTuned = PROA_TUNED && (std::is_same_v<F, F32> || std::is_same_v<F, F16> || std::is_same_v<F, BF16> ||
                                       std::is_same_v<F, Q8_0> || std::is_same_v<F, Q4_0> || std::is_same_v<F, Q4_1>);
#undef PROA_TUNED

template <class F>
[[maybe_unused]] constexpr int kBlocks =
    F::block_elements < 32 ? 32 / F::block_elements : 1;  // stored blocks per 32 columns

template <class F>
const typename F::Block* row_blocks(const Weight& weight, int64_t row) {
  return reinterpret_cast<const typename F::Block*>(weight.row(row));
}

// The columns after the last whole 32, with zeros behind them. Only formats without blocks have any.
template <class F>
void copy_tail(const typename F::Block* row, int64_t cols, typename F::Block (&tail)[32]) {
  std::memset(tail, 0, sizeof tail);
  std::memcpy(tail, row + cols / 32 * 32, static_cast<size_t>(cols % 32) * sizeof(typename F::Block));
}

// One row to floats, padded with zeros to a multiple of 32; all but weight.scale, which put() applies.
template <class F>
void decode_padded(const Weight& weight, int64_t row, float* out) {
  const auto* block = row_blocks<F>(weight, row);
  const int64_t cols = weight.cols;
  if constexpr (kTuned<F>) {
    V w[kVectors];
    for (int64_t c = 0; c + 32 <= cols; c += 32, block += kBlocks<F>) {
      unpack(F(), block, w);
      for (int i = 0; i < kVectors; ++i) hn::StoreU(w[i], d, out + c + i * kLanes);
    }
    if constexpr (F::block_elements == 1) {
      if (cols % 32 != 0) {
        typename F::Block tail[32];
        copy_tail<F>(row_blocks<F>(weight, row), cols, tail);
        unpack(F(), tail, w);
        for (int i = 0; i < kVectors; ++i) hn::StoreU(w[i], d, out + cols / 32 * 32 + i * kLanes);
      }
    }
  } else {
    for (int64_t c = 0; c < cols; c += F::block_elements) F::decode(*block++, out + c);
    std::fill(out + cols, out + padded_cols(cols), 0.0f);
  }
  apply_scales(weight, row, out);
}

// Sums of R rows for one token, decoded in registers.
template <class F, int R>
HWY_INLINE void dot_rows(const Weight& weight, int64_t row, const float* x, V (&sum)[R]) {
  const typename F::Block* block[R];
  for (int r = 0; r < R; ++r) {
    block[r] = row_blocks<F>(weight, row + r);
    sum[r] = hn::Zero(d);
  }
  const int64_t cols = weight.cols;
  V xv[kVectors];
  V w[kVectors];
  for (int64_t c = 0; c + 32 <= cols; c += 32) {
    for (int i = 0; i < kVectors; ++i) xv[i] = hn::LoadU(d, x + c + i * kLanes);
    for (int r = 0; r < R; ++r) {
      unpack(F(), block[r], w);
      __builtin_prefetch(reinterpret_cast<const std::byte*>(block[r]) + kAhead);
      block[r] += kBlocks<F>;
      for (int i = 0; i < kVectors; ++i) sum[r] = hn::MulAdd(w[i], xv[i], sum[r]);
    }
  }
  if constexpr (F::block_elements == 1) {
    if (cols % 32 != 0) {
      for (int i = 0; i < kVectors; ++i) xv[i] = hn::LoadU(d, x + cols / 32 * 32 + i * kLanes);
      for (int r = 0; r < R; ++r) {
        typename F::Block tail[32];
        copy_tail<F>(row_blocks<F>(weight, row + r), cols, tail);
        unpack(F(), tail, w);
        for (int i = 0; i < kVectors; ++i) sum[r] = hn::MulAdd(w[i], xv[i], sum[r]);
      }
    }
  }
}

HWY_INLINE void put(const Linear& op, int token, int64_t row, float value) {
  value *= op.weight.scale;
  if (op.scale) value *= op.scale[token];
  float* y = op.y + (op.y_rows ? op.y_rows[token] : token) * op.y_stride + row;
  *y = op.add ? *y + value : value;
}

HWY_INLINE float total(V sum) { return hn::GetLane(hn::SumOfLanes(d, sum)); }

HWY_INLINE const float* input(const Linear& op, int token) {
  return op.x + (op.x_rows ? op.x_rows[token] : token) * op.x_stride;
}

template <class F, int R>
HWY_NOINLINE void one_token_tile(const Linear& op, int64_t row, int token) {
  V sum[R];
  dot_rows<F, R>(op.weight, row, input(op, token), sum);
  for (int r = 0; r < R; ++r) put(op, token, row + r, total(sum[r]));
}

// R panel rows by T tokens.
template <int R, int T>
HWY_NOINLINE void tile(const Linear& op, const float* panel, int64_t cols, int64_t row, int token) {
  V sum[R][T];
  const float* x[T];
  for (int t = 0; t < T; ++t) {
    x[t] = input(op, token + t);
    for (int r = 0; r < R; ++r) sum[r][t] = hn::Zero(d);
  }
  for (int64_t c = 0; c < cols; c += kLanes) {
    V w[R];
    for (int r = 0; r < R; ++r) w[r] = hn::LoadU(d, panel + r * cols + c);
    for (int t = 0; t < T; ++t) {
      const V xv = hn::LoadU(d, x[t] + c);
      for (int r = 0; r < R; ++r) sum[r][t] = hn::MulAdd(w[r], xv, sum[r][t]);
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) put(op, token + t, row + r, total(sum[r][t]));
  }
}

template <int R>
void tile_of(int tokens, const Linear& op, const float* panel, int64_t cols, int64_t row, int token) {
  if constexpr (kTokens >= 6) {
    if (tokens == 6) return tile<R, 6>(op, panel, cols, row, token);
    if (tokens == 5) return tile<R, 5>(op, panel, cols, row, token);
  }
  if constexpr (kTokens >= 4) {
    if (tokens == 4) return tile<R, 4>(op, panel, cols, row, token);
    if (tokens == 3) return tile<R, 3>(op, panel, cols, row, token);
  }
  if (tokens == 2) return tile<R, 2>(op, panel, cols, row, token);
  return tile<R, 1>(op, panel, cols, row, token);
}

template <class F>
void rows_of(const Linear& op, int64_t begin, int64_t end, int64_t panel_rows, float* panel) {
  if (kTuned<F> && op.num_tokens == 1 && !op.weight.scales) {
    if constexpr (kTuned<F>) {
      int64_t row = begin;
      for (; row + kRows <= end; row += kRows) one_token_tile<F, kRows>(op, row, 0);
      for (; row < end; ++row) one_token_tile<F, 1>(op, row, 0);
    }
    return;
  }
  const int64_t cols = padded_cols(op.weight.cols);
  for (int64_t first = begin; first < end; first += panel_rows) {
    const int64_t last = std::min(end, first + panel_rows);
    for (int64_t row = first; row < last; ++row) decode_padded<F>(op.weight, row, panel + (row - first) * cols);
    for (int token = 0; token < op.num_tokens; token += kTokens) {
      const int tokens = std::min(kTokens, op.num_tokens - token);
      int64_t row = first;
      for (; row + kRows <= last; row += kRows) {
        tile_of<kRows>(tokens, op, panel + (row - first) * cols, cols, row, token);
      }
      for (; row < last; ++row) tile_of<1>(tokens, op, panel + (row - first) * cols, cols, row, token);
    }
  }
}

void linear_rows(const Linear& op, int64_t begin, int64_t end, int64_t panel_rows, float* panel) {
  switch (op.weight.format) {
#define PROA_FORMAT(F) \
  case Format::F:      \
    return rows_of<F>(op, begin, end, panel_rows, panel);
    PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT
  }
}

}  // namespace
}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace proa {
namespace {

HWY_EXPORT(linear_rows);

// Rows of a panel: 256 KiB, a part of a core's own cache, and whole tiles.
int64_t panel_rows(int64_t cols) { return std::clamp<int64_t>(65536 / std::max<int64_t>(cols, 1) / 4 * 4, 4, 64); }

// The kernel of a weight: of digits, of halves, or neither.
bool reads_digits(const CpuBackend& backend, const Weight& weight) {
  return backend.multiplies_bytes() && weight.scales.group == 0 && vnni_multiplies(weight.format);
}
bool reads_halves(const CpuBackend& backend, const Weight& weight) {
  return backend.multiplies_bf16() && bf16_multiplies(weight.format, weight.cols, weight.scales);
}

}  // namespace

void Input::round(int64_t token, int64_t begin, int64_t end, int64_t cols) const {
  const float* row = x + token * stride;
  if (digits.data) vnni_round(row, begin, end, cols, digits.fine, digits.row(token));
  if (halves.high) {
    const Halves to = halves.from(token);
    bf16_round(row + begin, end - begin, to.high + begin, to.low ? to.low + begin : nullptr);
  }
}

Linear Input::read_by(Linear linear, int64_t first_token) const {
  linear.x = x + first_token * stride;
  linear.x_stride = stride;
  linear.digits = digits.from(first_token);
  linear.halves = halves.from(first_token);
  return linear;
}

Forms forms_of(const CpuBackend& backend, std::initializer_list<Weight> weights) {
  Forms forms;
  for (const Weight& weight : weights) {
    forms.digits = forms.digits || (weight.rows > 0 && reads_digits(backend, weight));
    forms.halves = forms.halves || (weight.rows > 0 && reads_halves(backend, weight));
  }
  return forms;
}

int64_t room_floats(int64_t cols, int64_t num_tokens) {
  const auto rounded = static_cast<int64_t>(std::max(vnni_room(num_tokens), bf16_room(num_tokens)) / sizeof(float));
  return std::max(panel_rows(cols) * padded_cols(cols), rounded);
}

int64_t row_unit(const CpuBackend& backend, const Weight& weight, int64_t num_tokens) {
  if (reads_digits(backend, weight)) return vnni_row_unit(num_tokens);
  return reads_halves(backend, weight) ? bf16_row_unit(num_tokens) : 4;
}

void linear_rows(const CpuBackend& backend, const Linear& op, int64_t begin, int64_t end, float* room) {
  auto* bytes = reinterpret_cast<std::byte*>(room);
  if (op.digits.data && reads_digits(backend, op.weight)) return vnni_rows(op, begin, end, bytes);
  if (op.halves.high && reads_halves(backend, op.weight)) return bf16_rows(op, begin, end, bytes);
  PROA_DISPATCH(linear_rows, backend.target())(op, begin, end, panel_rows(op.weight.cols), room);
}

void linear(CpuBackend& backend, std::span<const Linear> linears, float* rooms) {
  int64_t size = 0;
  for (const Linear& op : linears) size = std::max(size, room_floats(op.weight.cols, op.num_tokens));
  backend.threads().parallel_for(kRowShares, 1, [&](int64_t begin, int64_t end, int thread) {
    for (const Linear& op : linears) {
      const int64_t unit = row_unit(backend, op.weight, op.num_tokens);
      const RowRange range = shares_of(op.weight.rows, unit, begin, end);
      linear_rows(backend, op, range.begin, range.end, rooms + thread * size);
    }
  });
}

}  // namespace proa
#endif
