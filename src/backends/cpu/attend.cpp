// Attention with an online softmax (Dao et al. 2022). One item of work is some queries of one sequence, the query heads
// of one KV head, and a range of keys: its rows (query, head) share every key and value that is loaded, 64 at a time.
// Threads take items from a counter. Where there are fewer items than threads, as in decoding one sequence, keys are
// split, and the partial softmaxes are merged at the end.
//
// Few rows read the cache in its own format, converted in registers; many rows share one conversion to scratch.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/cpu_backend.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/attend.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
// clang-format on

#ifndef PROA_BACKENDS_CPU_ATTEND_ONCE_
#define PROA_BACKENDS_CPU_ATTEND_ONCE_
namespace proa {
namespace {

constexpr int kKeys = 64;        // per round; 64 keys and values of 128 floats fill the first-level cache
constexpr int kMaxRows = 256;    // of an item: enough to pay for converting keys, few enough for the second-level cache
constexpr int kDirectRows = 16;  // up to here keys are converted in registers
constexpr int kMinSplit = 256;   // keys per split, at least
constexpr int kPad = 16;         // floats; rows in scratch are padded to it with zeros

constexpr int64_t padded(int64_t count) { return (count + kPad - 1) / kPad * kPad; }

struct Item {
  int sequence, kv_head;
  int first_query, num_queries;  // tokens of the batch
  int begin, end;                // keys
  int64_t partial;               // float offset of its partial results, or -1: it writes `out` itself
};

// One thread's scratch.
struct Room {
  float* q;       // [rows, head_dim] scaled
  float* sum;     // [rows, head_dim] Σ exp(score - best) v
  float* scores;  // [rows, kKeys]
  float* best;    // [rows] largest score so far
  float* total;   // [rows] Σ exp(score - best)
  float* keys;    // [kKeys, head_dim]
  float* values;  // [kKeys, head_dim]
};

}  // namespace
}  // namespace proa
#endif

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, kPad>;
using V = hn::Vec<D>;
constexpr D d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
constexpr int kRows = HWY_TARGET == HWY_AVX2 ? 2 : 4;  // of a register tile: 16 sums of 32 registers, or 8 of 16

// A vector of cached elements.
HWY_INLINE V load(F32, const void* row, int64_t i) { return hn::LoadU(d, static_cast<const float*>(row) + i); }
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE V load(F16, const void* row, int64_t i) {
  return hn::Set(d, half_to_float(static_cast<const uint16_t*>(row)[i]));
}
HWY_INLINE V load(BF16, const void* row, int64_t i) {
  return hn::Set(d, bfloat16_to_float(static_cast<const uint16_t*>(row)[i]));
}
#else
HWY_INLINE V load(F16, const void* row, int64_t i) {
  const auto bits = hn::LoadU(hn::Rebind<uint16_t, D>(), static_cast<const uint16_t*>(row) + i);
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), bits));
}
HWY_INLINE V load(BF16, const void* row, int64_t i) {
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::LoadU(hn::Rebind<uint16_t, D>(), static_cast<const uint16_t*>(row) + i);
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
#endif
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE V load(F8_E4M3, const void* row, int64_t i) {
  return hn::Set(d, e4m3_to_float(static_cast<const uint8_t*>(row)[i]));
}
#else
// Exponent and mantissa in place are 2^-7 (1 + m / 8) where they should be 2^-6 m / 8, if the exponent is 0.
HWY_INLINE V load(F8_E4M3, const void* row, int64_t i) {
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(hn::Rebind<uint8_t, D>(), static_cast<const uint8_t*>(row) + i));
  const auto magnitude = hn::And(bits, hn::Set(d32, 0x7f));
  const V normal = hn::BitCast(d, hn::Add(hn::ShiftLeft<20>(magnitude), hn::Set(d32, 120u << 23)));
  const V small = hn::MulSub(normal, hn::Set(d, 2.0f), hn::Set(d, 0x1p-6f));
  V value = hn::IfThenElse(hn::RebindMask(d, hn::Lt(magnitude, hn::Set(d32, 8))), small, normal);
  value = hn::IfThenElse(hn::RebindMask(d, hn::Eq(magnitude, hn::Set(d32, 0x7f))), hn::NaN(d), value);
  return hn::Or(value, hn::BitCast(d, hn::ShiftLeft<24>(hn::AndNot(hn::Set(d32, 0x7f), bits))));
}
#endif

#if HWY_TARGET != HWY_SCALAR
// Adds the 128-bit blocks of v: four floats.
template <class Tag, class Vector>
HWY_INLINE void store_block_sum(Tag tag, Vector v, float* out) {
  if constexpr (hn::MaxLanes(Tag()) <= 4) {
    hn::StoreU(v, tag, out);
  } else {
    const hn::Half<Tag> half;
    store_block_sum(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), out);
  }
}
#endif

// out[j] = sum of the lanes of v[j], j in [0, 4).
HWY_INLINE void sum_four(const V* v, float* out) {
#if HWY_TARGET == HWY_SCALAR
  for (int j = 0; j < 4; ++j) out[j] = hn::GetLane(v[j]);
#else
  const hn::RepartitionToWide<D> d64;
  const V ab = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const V ce = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto ab64 = hn::BitCast(d64, ab), ce64 = hn::BitCast(d64, ce);
  const V all = hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab64, ce64)),
                        hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ce64)));  // four sums per 128-bit block
  store_block_sum(d, all, out);
#endif
}

// scores[r, j] = q[r] · keys[j] for kR rows and four keys.
template <class F, int kR>
HWY_INLINE void score_tile(const float* q, int64_t stride, const void* const* keys, int64_t width, float* scores) {
  V sum[kR][4];
  for (int r = 0; r < kR; ++r) {
    for (int j = 0; j < 4; ++j) sum[r][j] = hn::Zero(d);
  }
  for (int64_t i = 0; i < width; i += kLanes) {
    V k[4];
    for (int j = 0; j < 4; ++j) k[j] = load(F(), keys[j], i);
    for (int r = 0; r < kR; ++r) {
      const V x = hn::LoadU(d, q + r * stride + i);
      for (int j = 0; j < 4; ++j) sum[r][j] = hn::MulAdd(x, k[j], sum[r][j]);
    }
  }
  for (int r = 0; r < kR; ++r) sum_four(sum[r], scores + r * kKeys);
}

// sum[r] += Σ_j weights[r, j] · values[j] for kR rows and kV vectors of columns from `column` on.
template <class F, int kR, int kV>
HWY_INLINE void add_values_tile(const float* weights, const void* const* values, int n, int64_t column, float* sum,
                                int64_t stride) {
  V acc[kR][kV];
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kV; ++v) acc[r][v] = hn::LoadU(d, sum + r * stride + column + v * kLanes);
  }
  for (int j = 0; j < n; ++j) {
    V x[kV];
    for (int v = 0; v < kV; ++v) x[v] = load(F(), values[j], column + v * kLanes);
    for (int r = 0; r < kR; ++r) {
      const V w = hn::Set(d, weights[r * kKeys + j]);
      for (int v = 0; v < kV; ++v) acc[r][v] = hn::MulAdd(w, x[v], acc[r][v]);
    }
  }
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kV; ++v) hn::StoreU(acc[r][v], d, sum + r * stride + column + v * kLanes);
  }
}

template <class F, int kR>
HWY_INLINE void score_rows(const Room& room, int row, int64_t stride, const void* const* keys, int n, int64_t width) {
  for (int j = 0; j < n; j += 4) {
    score_tile<F, kR>(room.q + row * stride, stride, keys + j, width, room.scores + row * kKeys + j);
  }
}

template <class F, int kR>
HWY_INLINE void add_values(const Room& room, int row, int64_t stride, const void* const* values, int n, int64_t width) {
  const float* weights = room.scores + row * kKeys;
  float* sum = room.sum + row * stride;
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) add_values_tile<F, kR, 4>(weights, values, n, i, sum, stride);
  for (; i < width; i += kLanes) add_values_tile<F, kR, 1>(weights, values, n, i, sum, stride);
}

// Scores of one row, of which [begin, end) are seen, become weights relative to the best so far.
void weigh(const Room& room, int row, int64_t stride, int begin, int end) {
  float* scores = room.scores + row * kKeys;
  if (begin >= end) {
    std::memset(scores, 0, kKeys * sizeof(float));
    return;
  }
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (int j = 0; j < begin; ++j) scores[j] = kNever;
  for (int j = end; j < kKeys; ++j) scores[j] = kNever;
  V most = hn::LoadU(d, scores);
  for (int j = kLanes; j < kKeys; j += kLanes) most = hn::Max(most, hn::LoadU(d, scores + j));
  const float before = room.best[row];
  const float best = std::max(before, hn::GetLane(hn::MaxOfLanes(d, most)));
  const V vbest = hn::Set(d, best);
  V total = hn::Zero(d);
  for (int j = 0; j < kKeys; j += kLanes) {
    const V w = hn::Exp(d, hn::Sub(hn::LoadU(d, scores + j), vbest));
    total = hn::Add(total, w);
    hn::StoreU(w, d, scores + j);
  }
  const float sum = hn::GetLane(hn::SumOfLanes(d, total));
  if (best == before) {
    room.total[row] += sum;
    return;
  }
  const float fade = std::exp(before - best);  // 0 the first time
  room.best[row] = best;
  room.total[row] = room.total[row] * fade + sum;
  const V vfade = hn::Set(d, fade);
  for (int64_t i = row * stride; i < (row + 1) * stride; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, room.sum + i), vfade), d, room.sum + i);
  }
}

// Calls tile<kR>(row) over rows [begin, end), kRows at a time.
#define PROA_ROW_TILES(begin, end, function, ...)                                        \
  do {                                                                                   \
    int row = begin;                                                                     \
    for (; row + kRows <= end; row += kRows) function<F, kRows>(room, row, __VA_ARGS__); \
    if (end - row == 3) function<F, 3>(room, row, __VA_ARGS__);                          \
    if (end - row == 2) function<F, 2>(room, row, __VA_ARGS__);                          \
    if (end - row == 1) function<F, 1>(room, row, __VA_ARGS__);                          \
  } while (0)

// Rows [begin, end) against n keys from position `first` on.
template <class F>
void attend_keys(const Attend& op, const Item& item, const Room& room, const void* const* keys,
                 const void* const* values, int first, int n, int begin, int end) {
  const int64_t stride = padded(op.head_dim), width = (op.head_dim + kLanes - 1) / kLanes * kLanes;
  const int group = op.num_heads / op.num_kv_heads;
  PROA_ROW_TILES(begin, end, score_rows, stride, keys, n, width);
  for (int r = begin; r < end; ++r) {
    const int position = op.batch->positions[item.first_query + r / group];
    const int seen_end = std::min(item.end, position + 1);
    const int seen_begin = std::max(item.begin, op.window > 0 ? position + 1 - op.window : 0);
    weigh(room, r, stride, std::clamp(seen_begin - first, 0, n), std::clamp(seen_end - first, 0, n));
  }
  PROA_ROW_TILES(begin, end, add_values, stride, values, n, width);
}
#undef PROA_ROW_TILES

template <class F>
void convert_rows(const void* const* rows, int n, int head_dim, float* out) {
  const int64_t stride = padded(head_dim);
  for (int j = 0; j < n; ++j) {
    int64_t i = 0;
    for (; i + kLanes <= head_dim; i += kLanes) hn::StoreU(load(F(), rows[j], i), d, out + j * stride + i);
    if (i < head_dim) {
      typename F::Block tail[kPad] = {};
      std::memcpy(tail, static_cast<const typename F::Block*>(rows[j]) + i,
                  static_cast<size_t>(head_dim - i) * sizeof(typename F::Block));
      hn::StoreU(load(F(), tail, 0), d, out + j * stride + i);
    }
  }
}

template <class Element>
HWY_INLINE void prefetch_row(const Element* row, int count) {
  for (int i = 0; i < count; i += 64 / static_cast<int>(sizeof(Element))) hwy::Prefetch(row + i);
}

template <class F>
void attend_item_as(const Attend& op, const Item& item, const Room& room, float* partials) {
  using Element = typename F::Block;
  const Batch& batch = *op.batch;
  const int group = op.num_heads / op.num_kv_heads, head_dim = op.head_dim, num_rows = item.num_queries * group;
  const int64_t stride = padded(head_dim);
  const auto* k = reinterpret_cast<const Element*>(op.cache.k);
  const auto* v = reinterpret_cast<const Element*>(op.cache.v);

  const float q_scale = op.scale * op.k_scale;
  for (int r = 0; r < num_rows; ++r) {
    const int64_t head = int64_t{item.first_query + r / group} * op.num_heads + item.kv_head * group + r % group;
    for (int i = 0; i < head_dim; ++i) room.q[r * stride + i] = op.q[head * head_dim + i] * q_scale;
    std::fill(room.q + r * stride + head_dim, room.q + (r + 1) * stride, 0.0f);
    room.best[r] = -std::numeric_limits<float>::infinity();
    room.total[r] = 0;
  }
  std::memset(room.sum, 0, static_cast<size_t>(num_rows * stride) * sizeof(float));

  const int32_t* table = batch.block_table + int64_t{item.sequence} * batch.block_table_stride;
  const auto row_of = [&](int position) {
    const int64_t block = table[position / op.cache.block_size];
    return (block * op.num_kv_heads + item.kv_head) * op.cache.block_size + position % op.cache.block_size;
  };
  const bool direct = head_dim % kLanes == 0 && (num_rows <= kDirectRows || std::is_same_v<F, F32>);
  const int first_position = batch.positions[item.first_query];
  for (int first = item.begin; first < item.end; first += kKeys) {
    const int n = std::min(kKeys, item.end - first);
    // Queries that see any of these keys: not those before the first key, nor those whose window has passed the last.
    const int skip = std::clamp(first - first_position, 0, item.num_queries);
    const int64_t reach = op.window > 0 ? int64_t{first} + n - 1 + op.window - first_position : item.num_queries;
    const int stop = static_cast<int>(std::clamp<int64_t>(reach, skip, item.num_queries));
    if (skip == stop) continue;

    const void *keys[kKeys], *values[kKeys];
    for (int j = 0; j < n; ++j) {
      const int64_t row = row_of(first + j);
      keys[j] = k + row * head_dim;
      values[j] = v + row * head_dim;
    }
    // Blocks lie anywhere, so the hardware does not foresee the next ones.
    for (int j = 0; j < std::min(kKeys, item.end - first - n); ++j) {
      const int64_t row = row_of(first + n + j);
      prefetch_row(k + row * head_dim, head_dim);
      prefetch_row(v + row * head_dim, head_dim);
    }
    if (direct) {
      for (int j = n; j < (n + 3) / 4 * 4; ++j) keys[j] = keys[n - 1];  // the fourth of a tile; its score is not used
      attend_keys<F>(op, item, room, keys, values, first, n, skip * group, stop * group);
      continue;
    }
    convert_rows<F>(keys, n, head_dim, room.keys);
    convert_rows<F>(values, n, head_dim, room.values);
    for (int j = 0; j < (n + 3) / 4 * 4; ++j) {
      keys[j] = room.keys + std::min(j, n - 1) * stride;
      values[j] = room.values + std::min(j, n - 1) * stride;
    }
    attend_keys<F32>(op, item, room, keys, values, first, n, skip * group, stop * group);
  }

  if (item.partial >= 0) {  // [rows, head_dim] sums, then best and total of each row
    float* partial = partials + item.partial;
    std::memcpy(partial, room.sum, static_cast<size_t>(num_rows * stride) * sizeof(float));
    std::memcpy(partial + num_rows * stride, room.best, num_rows * sizeof(float));
    std::memcpy(partial + num_rows * (stride + 1), room.total, num_rows * sizeof(float));
    return;
  }
  for (int r = 0; r < num_rows; ++r) {
    const int64_t head = int64_t{item.first_query + r / group} * op.num_heads + item.kv_head * group + r % group;
    const float scale = room.total[r] > 0 ? op.v_scale / room.total[r] : 0;
    for (int i = 0; i < head_dim; ++i) op.out[head * head_dim + i] = room.sum[r * stride + i] * scale;
  }
}

// `count` floats, divided by `scale`, to cached elements.
void store_row(Format format, const float* x, float scale, int count, std::byte* out) {
  int i = 0;
  if (scale != 1) {
    float scaled[64];
    for (; i < count; i += 64) {
      const int n = std::min(64, count - i);
      for (int j = 0; j < n; ++j) scaled[j] = x[i + j] / scale;
      encode_row(format, scaled, n, out + row_bytes(format, i));
    }
    return;
  }
#if HWY_TARGET != HWY_SCALAR
  const hn::Rebind<uint16_t, D> d16;
  auto* bits = reinterpret_cast<uint16_t*>(out);
  if (format == Format::F16) {
    for (; i + kLanes <= count; i += kLanes) {
      hn::StoreU(hn::BitCast(d16, hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), hn::LoadU(d, x + i))), d16, bits + i);
    }
  } else if (format == Format::BF16) {
    const hn::Rebind<uint32_t, D> d32;
    for (; i + kLanes <= count; i += kLanes) {
      const V value = hn::LoadU(d, x + i);
      const auto u = hn::BitCast(d32, value);
      const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(d32, 1));
      const auto rounded = hn::ShiftRight<16>(hn::Add(u, hn::Add(odd, hn::Set(d32, 0x7fff))));
      const auto quiet = hn::Or(hn::ShiftRight<16>(u), hn::Set(d32, 0x40));
      const auto nan = hn::RebindMask(d32, hn::IsNaN(value));
      hn::StoreU(hn::DemoteTo(d16, hn::BitCast(hn::Rebind<int32_t, D>(), hn::IfThenElse(nan, quiet, rounded))), d16,
                 bits + i);
    }
  }
#endif
  encode_row(format, x + i, count - i, out + row_bytes(format, i));
}

}  // namespace

// Keys and values of tokens [begin, end) to where slot_mapping says.
void store_tokens(const Attend& op, int64_t begin, int64_t end) {
  const int64_t bytes = static_cast<int64_t>(row_bytes(op.cache.format, op.head_dim));
  for (int64_t t = begin; t < end; ++t) {
    const int64_t slot = op.batch->slot_mapping[t];
    if (slot < 0) continue;
    for (int h = 0; h < op.num_kv_heads; ++h) {
      const int64_t block = slot / op.cache.block_size, offset = slot % op.cache.block_size;
      const int64_t row = (block * op.num_kv_heads + h) * op.cache.block_size + offset;
      const int64_t from = (t * op.num_kv_heads + h) * op.head_dim;
      store_row(op.cache.format, op.k + from, op.k_scale, op.head_dim, op.cache.k + row * bytes);
      store_row(op.cache.format, op.v + from, op.v_scale, op.head_dim, op.cache.v + row * bytes);
    }
  }
}

void attend_item(const Attend& op, const Item& item, const Room& room, float* partials) {
  if (op.cache.format == Format::F32) return attend_item_as<F32>(op, item, room, partials);
  if (op.cache.format == Format::F16) return attend_item_as<F16>(op, item, room, partials);
  if (op.cache.format == Format::F8_E4M3) return attend_item_as<F8_E4M3>(op, item, room, partials);
  attend_item_as<BF16>(op, item, room, partials);
}

}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace proa {
namespace {

// Merges the `count` items from `item` on, which are one whole split by keys.
void merge(const Attend& op, const Item* item, int count, const float* partials) {
  const int group = op.num_heads / op.num_kv_heads, num_rows = item->num_queries * group;
  const int64_t stride = padded(op.head_dim);
  for (int r = 0; r < num_rows; ++r) {
    const auto best_of = [&](int i) { return partials[item[i].partial + num_rows * stride + r]; };
    float best = best_of(0), total = 0;
    for (int i = 1; i < count; ++i) best = std::max(best, best_of(i));
    const int64_t head = int64_t{item->first_query + r / group} * op.num_heads + item->kv_head * group + r % group;
    float* out = op.out + head * op.head_dim;
    std::fill(out, out + op.head_dim, 0.0f);
    for (int i = 0; i < count; ++i) {
      const float* partial = partials + item[i].partial;
      const float more = partial[num_rows * (stride + 1) + r];
      if (more == 0) continue;  // saw no key
      const float weight = std::exp(best_of(i) - best);
      total += weight * more;
      for (int c = 0; c < op.head_dim; ++c) out[c] += weight * partial[r * stride + c];
    }
    for (int c = 0; total > 0 && c < op.head_dim; ++c) out[c] = out[c] / total * op.v_scale;
  }
}

// How a call is cut into items.
struct Plan {
  const Attend& op;
  int group, tile;  // queries per item
  int splits;       // of the keys, at most

  Plan(const Attend& attend, int num_threads) : op(attend), group(attend.num_heads / attend.num_kv_heads) {
    // Some items per thread, so that the long ones at the end of a causal triangle even out.
    const int64_t fair = int64_t{op.batch->num_tokens} * op.num_kv_heads / (int64_t{8} * num_threads);
    const int most = std::max(1, kMaxRows / group), least = std::min(most, std::max(1, 48 / group));
    tile = static_cast<int>(std::clamp<int64_t>(fair, least, most));
    splits = 1;
    const int64_t items = count();
    if (items > 0 && items < num_threads) splits = static_cast<int>((num_threads + items - 1) / items);
  }

  int64_t count() const {
    int64_t items = 0;
    for_each([&](const Item&, int parts) { items += parts; });
    return items;
  }

  // f(item, parts): an item before its keys are cut into `parts`.
  template <typename F>
  void for_each(F&& f) const {
    const Batch& batch = *op.batch;
    for (int s = 0; s < batch.num_seqs; ++s) {
      for (int first = batch.query_start[s]; first < batch.query_start[s + 1]; first += tile) {
        const int num_queries = std::min(tile, batch.query_start[s + 1] - first);
        const int end = std::min(batch.positions[first + num_queries - 1] + 1, batch.seq_lens[s]);
        const int begin = op.window > 0 ? std::max(0, batch.positions[first] + 1 - op.window) : 0;
        const int parts = std::clamp((end - begin) / kMinSplit, 1, splits);
        for (int h = 0; h < op.num_kv_heads; ++h) f(Item{s, h, first, num_queries, begin, end, -1}, parts);
      }
    }
  }
};

}  // namespace

HWY_EXPORT(store_tokens);
HWY_EXPORT(attend_item);

void CpuBackend::attend(const Attend& op) {
  const Plan plan(op, threads().num_threads());
  const int64_t stride = padded(op.head_dim), rows = padded(int64_t{plan.tile} * plan.group);
  const int64_t num_items = plan.count();
  int64_t partial_floats = 0;
  plan.for_each([&](const Item& item, int parts) {
    if (parts > 1) partial_floats += int64_t{parts} * item.num_queries * plan.group * (stride + 2);
  });
  const int64_t room_floats = rows * (2 * stride + kKeys + 2) + 2 * kKeys * stride;
  const size_t bytes = Arena::padded<Item>(num_items) + Arena::padded<float>(partial_floats) +
                       Arena::padded<float>(room_floats) * threads().num_threads();
  std::byte* memory = scratch(bytes);
  if (counting()) return;
  const auto store = PROA_DISPATCH(store_tokens, target());
  threads().parallel_for(op.batch->num_tokens, 4, [&](int64_t begin, int64_t end, int) { store(op, begin, end); });
  Arena arena(memory, bytes);
  Item* items = arena.take<Item>(num_items);
  float* partials = arena.take<float>(partial_floats);
  float* rooms = arena.take<float>(room_floats * threads().num_threads());

  int64_t filled = 0, partial = 0;
  plan.for_each([&](const Item& whole, int parts) {
    for (int i = 0; i < parts; ++i) {
      Item& item = items[filled++] = whole;
      const int64_t keys = whole.end - whole.begin;
      item.begin = whole.begin + static_cast<int>(keys * i / parts);
      item.end = whole.begin + static_cast<int>(keys * (i + 1) / parts);
      if (parts == 1) continue;
      item.partial = partial;
      partial += int64_t{whole.num_queries} * plan.group * (stride + 2);
    }
  });

  const auto attend_one = PROA_DISPATCH(attend_item, target());
  std::atomic<int64_t> next = 0;
  threads().run([&](int thread) {
    float* room = rooms + thread * room_floats;
    const Room parts{.q = room,
                     .sum = room + rows * stride,
                     .scores = room + 2 * rows * stride,
                     .best = room + rows * (2 * stride + kKeys),
                     .total = room + rows * (2 * stride + kKeys + 1),
                     .keys = room + rows * (2 * stride + kKeys + 2),
                     .values = room + rows * (2 * stride + kKeys + 2) + kKeys * stride};
    // From the back: a sequence's last queries see the most keys.
    for (int64_t i; (i = num_items - 1 - next.fetch_add(1, std::memory_order_relaxed)) >= 0;) {
      attend_one(op, items[i], parts, partials);
    }
  });
  if (partial_floats == 0) return;
  Item* item = items;
  plan.for_each([&](const Item&, int parts) {
    if (parts > 1) merge(op, item, parts, partials);
    item += parts;
  });
}

}  // namespace proa
#endif  // HWY_ONCE
