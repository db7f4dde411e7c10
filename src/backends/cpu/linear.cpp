#include "backends/cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "backends/cpu/code_values.h"
#include "backends/cpu/linear_amx.h"
#include "backends/cpu/linear_bf16.h"
#include "backends/cpu/linear_vnni.h"

#ifndef PROA_LINEAR_ONCE
#define PROA_LINEAR_ONCE
namespace proa {
constexpr int64_t kMostPanelRows = 64;
}
#endif

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
// Up to kFew tokens weights are decoded in registers, for kTokensAtOnce each time: twice costs less than a panel.
constexpr int kTokensAtOnce = HWY_TARGET == HWY_AVX3 ? 4 : 2;
constexpr int kFew = 2 * kTokensAtOnce;

// Bytes to fetch ahead of one token's dot products. Rows of small models are short, and the hardware follows streams of
// a few hundred bytes badly: 576 columns of Q8_0 came from memory at 8 GB/s a thread without this and at 27 with it.
constexpr int kAhead = 12288;

template <class F>
struct Row {
  const typename F::Block* blocks;
  const std::byte* scales;
};

// Bytes of 32 columns.
template <class F>
[[maybe_unused]] constexpr int64_t kBytes = 32 * static_cast<int64_t>(sizeof(typename F::Block)) / F::block_elements;

// E2M1 with an E4M3 scale for each 16 columns: NVFP4 as ModelOpt stores it.
struct E2M1By16 : E2M1 {};

// unpack(format, row, i, w): block `i` of 32 columns of a row as vectors.

#if HWY_TARGET != HWY_SCALAR
HWY_INLINE void unpack(F32, const Row<F32>& row, int64_t i, V* w) {
  for (int k = 0; k < kVectors; ++k) w[k] = hn::LoadU(d, row.blocks + 32 * i + k * kLanes);
}

HWY_INLINE V broadcast_half(uint16_t half) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::BitCast(d16, hn::Set(hn::Rebind<uint16_t, D>(), half)));
}

HWY_INLINE void unpack(F16, const Row<F16>& row, int64_t i, V* w) {
  const hn::Rebind<hwy::float16_t, D> d16;
  for (int k = 0; k < kVectors; ++k) {
    const auto bits = hn::LoadU(hn::Rebind<uint16_t, D>(), row.blocks + 32 * i + k * kLanes);
    w[k] = hn::PromoteTo(d, hn::BitCast(d16, bits));
  }
}

HWY_INLINE void unpack(BF16, const Row<BF16>& row, int64_t i, V* w) {
  const hn::Rebind<uint32_t, D> d32;
  for (int k = 0; k < kVectors; ++k) {
    const auto bits = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<uint16_t, D>(), row.blocks + 32 * i + k * kLanes));
    w[k] = hn::BitCast(d, hn::ShiftLeft<16>(bits));
  }
}

// Sign, exponent and mantissa are those of a half that is 256 times less, subnormal ones too.
HWY_INLINE void unpack(F8_E4M3, const Row<F8_E4M3>& row, int64_t i, V* w) {
  const hn::Repartition<int16_t, D> di16;
  const hn::Rebind<hwy::float16_t, D> d16;
  for (int k = 0; k < kVectors; k += 2) {
    const auto* codes = reinterpret_cast<const int8_t*>(row.blocks) + 32 * i + k * kLanes;
    const auto code = hn::PromoteTo(di16, hn::LoadU(hn::Rebind<int8_t, decltype(di16)>(), codes));
    auto half = hn::And(hn::ShiftLeft<7>(code), hn::Set(di16, static_cast<int16_t>(0xbf80)));
    const auto nan = hn::Eq(hn::Add(half, half), hn::Set(di16, 0x7f00));
    half = hn::IfThenElse(nan, hn::Set(di16, -1), half);
    const auto halves = hn::BitCast(hn::Repartition<hwy::float16_t, D>(), half);
    w[k] = hn::PromoteTo(d, hn::LowerHalf(d16, halves));
    w[k + 1] = hn::PromoteTo(d, hn::UpperHalf(d16, halves));
  }
}

// q · scale + min, or q · scale, for 16 or 32 bytes.
template <int kBytes>
HWY_INLINE void spread(const int8_t* q, V scale, V min, V* w) {
  const hn::Rebind<int32_t, D> d32;
  for (int k = 0; k < kBytes / kLanes; ++k) {
    const auto v = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<int8_t, D>(), q + k * kLanes));
    w[k] = hn::MulAdd(hn::ConvertTo(d, v), scale, min);
  }
}
template <int kBytes>
HWY_INLINE void spread(const int8_t* q, V scale, V* w) {
  const hn::Rebind<int32_t, D> d32;
  for (int k = 0; k < kBytes / kLanes; ++k) {
    const auto v = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<int8_t, D>(), q + k * kLanes));
    w[k] = hn::Mul(hn::ConvertTo(d, v), scale);
  }
}

HWY_INLINE void unpack(Q8_0, const Row<Q8_0>& row, int64_t i, V* w) {
  spread<32>(row.blocks[i].qs, broadcast_half(row.blocks[i].d), w);
}

// Columns of the 32 nibbles in 16 bytes. Of byte j: j and j + 16; within each eight bytes, which are 16 columns, j and
// j + 8; or 2 j and 2 j + 1.
enum class Order { halves, eights, pairs };

#if HWY_TARGET == HWY_AVX3
// A vector has as many lanes as a nibble has values, and a look-up takes the low four bits of each. So a block's
// values, its scale in them, are made first, and looked up by codes that are only shifted.
template <Order kOrder>
HWY_INLINE void nibbles(const uint8_t* qs, __m512i& low, __m512i& high) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(qs));
  if constexpr (kOrder == Order::halves) {
    low = _mm512_cvtepu8_epi32(bytes);
    high = _mm512_srli_epi32(low, 4);
    return;
  }
  constexpr bool kEights = kOrder == Order::eights;
  const __m512i word = kEights ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1)
                               : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i bit = kEights ? _mm512_setr_epi32(0, 8, 16, 24, 0, 8, 16, 24, 4, 12, 20, 28, 4, 12, 20, 28)
                              : _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m512i words = _mm512_castsi128_si512(bytes);
  low = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, words), bit);
  high = _mm512_srlv_epi32(_mm512_permutexvar_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(2)), words), bit);
}

// q · scale + min.
HWY_INLINE void unpack_nibbles(const uint8_t* qs, V scale, V min, V* w) {
  const V values = hn::MulAdd(hn::Iota(d, 0), scale, min);
  __m512i low, high;
  nibbles<Order::halves>(qs, low, high);
  w[0] = V{_mm512_permutexvar_ps(low, values.raw)};
  w[1] = V{_mm512_permutexvar_ps(high, values.raw)};
}

// The same with a fifth bit of each.
HWY_INLINE void unpack_fives(const uint8_t* qs, const uint8_t* qh, V scale, V min, V* w) {
  const V values = hn::MulAdd(hn::Iota(d, 0), scale, min), more = hn::MulAdd(hn::Iota(d, 16), scale, min);
  uint16_t fifth[2];
  std::memcpy(fifth, qh, sizeof fifth);
  __m512i low, high;
  nibbles<Order::halves>(qs, low, high);
  w[0] = V{_mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(low, values.raw), fifth[0], low, more.raw)};
  w[1] = V{_mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(high, values.raw), fifth[1], high, more.raw)};
}

// Codes by a table of 16 integers, with a scale for each 16 columns.
template <Order kOrder>
HWY_INLINE void unpack_table(const uint8_t* qs, const Values16& table, V first, V second, V* w) {
  const V values =
      hn::ConvertTo(d, hn::PromoteTo(hn::Rebind<int32_t, D>(), hn::Load(hn::Rebind<int8_t, D>(), table.at)));
  __m512i low, high;
  nibbles<kOrder>(qs, low, high);
  w[0] = V{_mm512_permutexvar_ps(low, hn::Mul(values, first).raw)};
  w[1] = V{_mm512_permutexvar_ps(high, hn::Mul(values, second).raw)};
}

#else
using Bytes = hn::FixedTag<uint8_t, 16>;

template <Order kOrder>
HWY_INLINE void order_nibbles(hn::Vec<Bytes> low, hn::Vec<Bytes> high, int8_t* q) {
  const Bytes d8;
  const hn::Repartition<uint64_t, Bytes> d64;
  auto* bytes = reinterpret_cast<uint8_t*>(q);
  if constexpr (kOrder == Order::halves) {
    hn::Store(low, d8, bytes);
    hn::Store(high, d8, bytes + 16);
  } else if constexpr (kOrder == Order::eights) {
    const auto l = hn::BitCast(d64, low), h = hn::BitCast(d64, high);
    hn::Store(hn::BitCast(d8, hn::InterleaveLower(d64, l, h)), d8, bytes);
    hn::Store(hn::BitCast(d8, hn::InterleaveUpper(d64, l, h)), d8, bytes + 16);
  } else {
    hn::Store(hn::InterleaveLower(d8, low, high), d8, bytes);
    hn::Store(hn::InterleaveUpper(d8, low, high), d8, bytes + 16);
  }
}

HWY_INLINE void nibbles(const uint8_t* qs, hn::Vec<Bytes>& low, hn::Vec<Bytes>& high) {
  const Bytes d8;
  const hn::Repartition<uint16_t, Bytes> d16;
  const auto bytes = hn::LoadU(d8, qs), mask = hn::Set(d8, 15);
  low = hn::And(bytes, mask);
  high = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, bytes))), mask);
}

// q · scale + min.
HWY_INLINE void unpack_nibbles(const uint8_t* qs, V scale, V min, V* w) {
  const hn::Rebind<uint32_t, D> d32;
  const hn::Rebind<int32_t, D> di32;
  const auto low = hn::Set(d32, 15);
  for (int i = 0; i < kVectors / 2; ++i) {
    const auto q = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<uint8_t, D>(), qs + i * kLanes));
    w[i] = hn::MulAdd(hn::ConvertTo(d, hn::BitCast(di32, hn::And(q, low))), scale, min);
    w[i + kVectors / 2] = hn::MulAdd(hn::ConvertTo(d, hn::BitCast(di32, hn::ShiftRight<4>(q))), scale, min);
  }
}

// The same with a fifth bit of each.
HWY_INLINE void unpack_fives(const uint8_t* qs, const uint8_t* qh, V scale, V min, V* w) {
  const Bytes d8;
  alignas(16) static constexpr uint8_t kBit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  alignas(16) static constexpr uint8_t kByte[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  uint32_t bits;
  std::memcpy(&bits, qh, sizeof bits);
  const auto all = hn::BitCast(d8, hn::Set(hn::Repartition<uint32_t, Bytes>(), bits));
  const auto byte = hn::Load(d8, kByte), bit = hn::Load(d8, kBit), fifth = hn::Set(d8, 16);
  const auto with = [&](hn::Vec<Bytes> q, hn::Vec<Bytes> at) HWY_ATTR {
    return hn::Or(q, hn::IfThenElseZero(hn::TestBit(hn::TableLookupBytes(all, at), bit), fifth));
  };
  hn::Vec<Bytes> low, high;
  nibbles(qs, low, high);
  HWY_ALIGN int8_t q[32];
  order_nibbles<Order::halves>(with(low, byte), with(high, hn::Add(byte, hn::Set(d8, 2))), q);
  spread<32>(q, scale, min, w);
}

// Codes by a table of 16 integers, with a scale for each 16 columns.
template <Order kOrder>
HWY_INLINE void unpack_table(const uint8_t* qs, const Values16& table, V first, V second, V* w) {
  const Bytes d8;
  const auto values = hn::Load(d8, reinterpret_cast<const uint8_t*>(table.at));
  hn::Vec<Bytes> low, high;
  nibbles(qs, low, high);
  HWY_ALIGN int8_t q[32];
  order_nibbles<kOrder>(hn::TableLookupBytes(values, low), hn::TableLookupBytes(values, high), q);
  spread<16>(q, first, w);
  spread<16>(q + 16, second, w + kVectors / 2);
}
#endif

HWY_INLINE void unpack(Q4_0, const Row<Q4_0>& row, int64_t i, V* w) {
  const V scale = broadcast_half(row.blocks[i].d);
  unpack_nibbles(row.blocks[i].qs, scale, hn::Mul(scale, hn::Set(d, -8.0f)), w);
}

HWY_INLINE void unpack(Q4_1, const Row<Q4_1>& row, int64_t i, V* w) {
  unpack_nibbles(row.blocks[i].qs, broadcast_half(row.blocks[i].d), broadcast_half(row.blocks[i].m), w);
}

HWY_INLINE void unpack(Q5_0, const Row<Q5_0>& row, int64_t i, V* w) {
  const V scale = broadcast_half(row.blocks[i].d);
  unpack_fives(row.blocks[i].qs, row.blocks[i].qh, scale, hn::Mul(scale, hn::Set(d, -16.0f)), w);
}

HWY_INLINE void unpack(Q5_1, const Row<Q5_1>& row, int64_t i, V* w) {
  unpack_fives(row.blocks[i].qs, row.blocks[i].qh, broadcast_half(row.blocks[i].d), broadcast_half(row.blocks[i].m), w);
}

HWY_INLINE void unpack(IQ4_NL, const Row<IQ4_NL>& row, int64_t i, V* w) {
  const V scale = broadcast_half(row.blocks[i].d);
  unpack_table<Order::halves>(row.blocks[i].qs, kIq4Values, scale, scale, w);
}

HWY_INLINE void unpack(MXFP4, const Row<MXFP4>& row, int64_t i, V* w) {
  const V scale = hn::Set(d, kE8M0Halves.at[row.blocks[i].e]);
  unpack_table<Order::halves>(row.blocks[i].qs, kE2M1Doubled, scale, scale, w);
}

HWY_INLINE void unpack(NVFP4, const Row<NVFP4>& row, int64_t i, V* w) {
  const NVFP4::Block& block = row.blocks[i / 2];
  const int64_t half = i % 2;
  unpack_table<Order::eights>(block.qs + 16 * half, kE2M1Doubled, hn::Set(d, kUE4M3Halves.at[block.scales[2 * half]]),
                              hn::Set(d, kUE4M3Halves.at[block.scales[2 * half + 1]]), w);
}

HWY_INLINE void unpack(E2M1By16, const Row<E2M1By16>& row, int64_t i, V* w) {
  const auto* scales = reinterpret_cast<const uint8_t*>(row.scales) + 2 * i;
  unpack_table<Order::pairs>(row.blocks + 16 * i, kE2M1Doubled, hn::Set(d, kE4M3Halves.at[scales[0]]),
                             hn::Set(d, kE4M3Halves.at[scales[1]]), w);
}
#endif  // HWY_TARGET != HWY_SCALAR

// Formats that have an unpack above; the others, and all of them in plain C++, are decoded by the format itself.
template <class F>
constexpr bool kTuned = requires(V* w) { unpack(F(), Row<F>(), int64_t(), w); };

// What the values that unpack() makes are to be multiplied with.
template <class F>
constexpr float kUnit = kTuned<F> && std::is_same_v<F, F8_E4M3> ? 256 : 1;

template <class F>
Row<F> row_of(const Weight& weight, int64_t row) {
  return {reinterpret_cast<const typename F::Block*>(weight.row(row)),
          weight.scales ? weight.scales.row(row) : nullptr};
}

// Scales that are those of whole rows: they are applied to sums.
bool one_per_row(const Weight& weight) { return weight.scales && weight.scales.group >= weight.cols; }

// What the sums of a row are multiplied with.
template <class F>
float factor_of(const Weight& weight, int64_t row) {
  float scale = 1;
  if (one_per_row(weight)) decode_row(weight.scales.format, weight.scales.row(row), 1, &scale);
  return kUnit<F> * scale * weight.scale;
}

// The columns after the last whole 32, with zeros behind them. Only formats without blocks have any.
template <class F>
void copy_tail(const Row<F>& row, int64_t cols, typename F::Block (&tail)[32]) {
  std::memset(tail, 0, sizeof tail);
  std::memcpy(tail, row.blocks + cols / 32 * 32, static_cast<size_t>(cols % 32) * sizeof(typename F::Block));
}

// One row to floats, padded with zeros to a multiple of 32; all but factor_of().
template <class F>
void decode_padded(const Weight& weight, int64_t r, float* out) {
  const Row<F> row = row_of<F>(weight, r);
  const int64_t cols = weight.cols;
  if constexpr (kTuned<F>) {
    V w[kVectors];
    for (int64_t i = 0; i < cols / 32; ++i) {
      unpack(F(), row, i, w);
      for (int k = 0; k < kVectors; ++k) hn::StoreU(w[k], d, out + 32 * i + k * kLanes);
    }
    if constexpr (F::block_elements == 1) {
      if (cols % 32 != 0) {
        typename F::Block tail[32];
        copy_tail<F>(row, cols, tail);
        unpack(F(), Row<F>{tail, nullptr}, 0, w);
        for (int k = 0; k < kVectors; ++k) hn::StoreU(w[k], d, out + cols / 32 * 32 + k * kLanes);
      }
    }
  } else {
    const auto* block = row.blocks;
    for (int64_t c = 0; c < cols; c += F::block_elements) F::decode(*block++, out + c);
    std::fill(out + cols, out + padded_cols(cols), 0.0f);
  }
  if (!std::is_same_v<F, E2M1By16> && !one_per_row(weight)) apply_scales(weight, r, out);
}

HWY_INLINE void put(const Linear& op, int token, int64_t row, float value) {
  if (op.scale) value *= op.scale[token];
  float* y = op.y + (op.y_rows ? op.y_rows[token] : token) * op.y_stride + row;
  *y = op.add ? *y + value : value;
}

HWY_INLINE float total(V sum) { return hn::GetLane(hn::SumOfLanes(d, sum)); }

HWY_INLINE const float* input(const Linear& op, int token) {
  return op.x + (op.x_rows ? op.x_rows[token] : token) * op.x_stride;
}

// R rows by T tokens, decoded in registers.
template <class F, int R, int T>
HWY_NOINLINE void few_tokens_tile(const Linear& op, int64_t first_row, int token) {
  const int64_t cols = op.weight.cols;
  Row<F> row[R];
  const float* x[T];
  V sum[R][T];
  for (int r = 0; r < R; ++r) row[r] = row_of<F>(op.weight, first_row + r);
  for (int t = 0; t < T; ++t) {
    x[t] = input(op, token + t);
    for (int r = 0; r < R; ++r) sum[r][t] = hn::Zero(d);
  }
  const auto add = [&](V& to, const V* w, const float* from) HWY_ATTR {
    for (int k = 0; k < kVectors; ++k) to = hn::MulAdd(w[k], hn::LoadU(d, from + k * kLanes), to);
  };
  V w[kVectors];
  for (int64_t i = 0; i < cols / 32; ++i) {
    for (int r = 0; r < R; ++r) {
      unpack(F(), row[r], i, w);
      __builtin_prefetch(reinterpret_cast<const std::byte*>(row[r].blocks) + kBytes<F> * i + kAhead);
      for (int t = 0; t < T; ++t) add(sum[r][t], w, x[t] + 32 * i);
    }
  }
  if constexpr (F::block_elements == 1) {
    if (cols % 32 != 0) {
      for (int r = 0; r < R; ++r) {
        typename F::Block tail[32];
        copy_tail<F>(row[r], cols, tail);
        unpack(F(), Row<F>{tail, nullptr}, 0, w);
        for (int t = 0; t < T; ++t) add(sum[r][t], w, x[t] + cols / 32 * 32);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const float factor = factor_of<F>(op.weight, first_row + r);
    for (int t = 0; t < T; ++t) put(op, token + t, first_row + r, factor * total(sum[r][t]));
  }
}

// R panel rows by T tokens.
template <int R, int T>
HWY_NOINLINE void tile(const Linear& op, const float* panel, int64_t cols, const float* factors, int64_t row,
                       int token) {
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
    for (int r = 0; r < R; ++r) put(op, token + t, row + r, factors[r] * total(sum[r][t]));
  }
}

// Calls f(token, tokens) for tiles of about the same number of tokens, at most kMost, which is a constant to f.
template <int kMost, class Fn>
HWY_INLINE void with_tokens(int tokens, Fn&& f) {
  if constexpr (kMost > 1) {
    if (tokens < kMost) return with_tokens<kMost - 1>(tokens, f);
  }
  f(std::integral_constant<int, kMost>());
}
template <int kMost, class Fn>
HWY_INLINE void for_tiles(int num_tokens, Fn&& f) {
  const int tiles = (num_tokens + kMost - 1) / kMost;
  for (int i = 0; i < tiles; ++i) {
    const int begin = num_tokens * i / tiles, end = num_tokens * (i + 1) / tiles;
    with_tokens<kMost>(end - begin, [&](auto tokens) HWY_ATTR { f(begin, tokens); });
  }
}

template <class F>
void rows_of(const Linear& op, int64_t begin, int64_t end, int64_t panel_rows, float* panel) {
  if constexpr (kTuned<F>) {
    const bool scaled = op.weight.scales && !std::is_same_v<F, E2M1By16> && !one_per_row(op.weight);
    if (op.num_tokens <= kFew && !scaled) {
      for (int64_t row = begin; row < end;) {
        const bool whole = row + kRows <= end;
        for_tiles<kTokensAtOnce>(op.num_tokens, [&](int token, auto tokens) HWY_ATTR {
          if (whole) return few_tokens_tile<F, kRows, tokens.value>(op, row, token);
          return few_tokens_tile<F, 1, tokens.value>(op, row, token);
        });
        row += whole ? kRows : 1;
      }
      return;
    }
  }
  const int64_t cols = padded_cols(op.weight.cols);
  for (int64_t first = begin; first < end; first += panel_rows) {
    const int64_t last = std::min(end, first + panel_rows);
    float factors[kMostPanelRows];
    for (int64_t row = first; row < last; ++row) {
      decode_padded<F>(op.weight, row, panel + (row - first) * cols);
      factors[row - first] = factor_of<F>(op.weight, row);
    }
    for_tiles<kTokens>(op.num_tokens, [&](int token, auto tokens) HWY_ATTR {
      int64_t row = 0;
      const auto multiply = [&](auto rows) HWY_ATTR {
        tile<rows.value, tokens.value>(op, panel + row * cols, cols, factors + row, first + row, token);
      };
      for (; first + row + kRows <= last; row += kRows) multiply(std::integral_constant<int, kRows>());
      for (; first + row < last; ++row) multiply(std::integral_constant<int, 1>());
    });
  }
}

void linear_rows(const Linear& op, int64_t begin, int64_t end, int64_t panel_rows, float* panel) {
  const Scales& scales = op.weight.scales;
  if (kTuned<E2M1By16> && op.weight.format == Format::E2M1 && scales.format == Format::F8_E4M3 && scales.group == 16 &&
      op.weight.cols % 32 == 0) {
    return rows_of<E2M1By16>(op, begin, end, panel_rows, panel);
  }
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
int64_t panel_rows(int64_t cols) {
  return std::clamp<int64_t>(65536 / std::max<int64_t>(cols, 1) / 4 * 4, 4, kMostPanelRows);
}

// The kernel of a weight for so many tokens: of tiles, of digits, of halves alone, or none of them. Integer weights are
// unpacked to tiles more slowly than a few tokens' digits are multiplied (on 16 cores up to 8 of them), and rounded,
// which is too much where logits are made. Short floats meet a single token in F32, since machines with tiles multiply
// BF16 in vectors at half the pace of that.
constexpr int64_t kFewForTiles = 8;
bool reads_tiles(const CpuBackend& backend, const Weight& weight, int64_t num_tokens, bool fine) {
  if (!backend.multiplies_tiles() || !amx_multiplies(weight.format, weight.cols, weight.scales)) return false;
  return vnni_multiplies(weight.format) ? num_tokens > kFewForTiles && !fine : num_tokens > 1;
}
bool reads_digits(const CpuBackend& backend, const Weight& weight, int64_t num_tokens, bool fine) {
  return backend.multiplies_bytes() && weight.scales.group == 0 && vnni_multiplies(weight.format) &&
         !reads_tiles(backend, weight, num_tokens, fine);
}
bool reads_halves(const CpuBackend& backend, const Weight& weight, int64_t num_tokens, bool fine) {
  if (backend.multiplies_tiles()) return reads_tiles(backend, weight, num_tokens, fine);
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

Forms forms_of(const CpuBackend& backend, std::initializer_list<Weight> weights, Tokens tokens, bool fine) {
  Forms forms{.fine = fine};
  for (const Weight& weight : weights) {
    for (int64_t count : {tokens.fewest, tokens.most}) {
      forms.digits = forms.digits || (weight.rows > 0 && reads_digits(backend, weight, count, fine));
      forms.halves = forms.halves || (weight.rows > 0 && reads_halves(backend, weight, count, fine));
    }
  }
  return forms;
}

int64_t room_floats(int64_t cols, int64_t num_tokens) {
  const auto rounded = static_cast<int64_t>(
      std::max({vnni_room(num_tokens), bf16_room(num_tokens), amx_room(cols, num_tokens)}) / sizeof(float));
  return std::max(panel_rows(cols) * padded_cols(cols), rounded);
}

int64_t row_unit(const CpuBackend& backend, const Weight& weight, int64_t num_tokens) {
  if (reads_tiles(backend, weight, num_tokens, false)) return kAmxRows;
  if (reads_digits(backend, weight, num_tokens, false)) return vnni_row_unit(num_tokens);
  return reads_halves(backend, weight, num_tokens, false) ? bf16_row_unit(num_tokens) : 4;
}

int64_t row_grain(CpuBackend& backend, const Weight& weight, int64_t num_tokens) {
  const int64_t unit = row_unit(backend, weight, num_tokens);
  if (num_tokens <= kFewForTiles || !reads_tiles(backend, weight, num_tokens, false)) return unit;
  const int64_t ranges = 2 * backend.threads().num_threads();
  return std::max(unit, (weight.rows + ranges - 1) / ranges / unit * unit);
}

void linear_rows(const CpuBackend& backend, const Linear& op, int64_t begin, int64_t end, float* room) {
  auto* bytes = reinterpret_cast<std::byte*>(room);
  const bool fine = op.digits.fine;
  if (op.halves.high && reads_tiles(backend, op.weight, op.num_tokens, fine)) return amx_rows(op, begin, end, bytes);
  if (op.digits.data && reads_digits(backend, op.weight, op.num_tokens, fine)) return vnni_rows(op, begin, end, bytes);
  if (op.halves.high && reads_halves(backend, op.weight, op.num_tokens, fine)) return bf16_rows(op, begin, end, bytes);
  PROA_DISPATCH(linear_rows, backend.target())(op, begin, end, panel_rows(op.weight.cols), room);
}

void linear(CpuBackend& backend, std::span<const Linear> linears, float* rooms) {
  int64_t size = 0, grain = 1;
  for (const Linear& op : linears) {
    size = std::max(size, room_floats(op.weight.cols, op.num_tokens));
    const int64_t rows = row_grain(backend, op.weight, op.num_tokens);
    grain = std::max(grain, std::min<int64_t>(kRowShares, rows * kRowShares / std::max<int64_t>(1, op.weight.rows)));
  }
  backend.threads().parallel_for(kRowShares, grain, [&](int64_t begin, int64_t end, int thread) {
    for (const Linear& op : linears) {
      const int64_t unit = row_unit(backend, op.weight, op.num_tokens);
      const RowRange range = shares_of(op.weight.rows, unit, begin, end);
      linear_rows(backend, op, range.begin, range.end, rooms + thread * size);
    }
  });
}

}  // namespace proa
#endif
