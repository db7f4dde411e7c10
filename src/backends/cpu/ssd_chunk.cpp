// Chunked SSD (reference nemotron-h 2.6): inside a chunk, and between chunk and state, everything is a small matrix
// product. A thread takes some heads of one group and one sequence, and goes through its chunks alone.
//
// The state stands transposed, [N, head_dim], so that every product is "broadcast a number, run along a row". Prefix
// sums of Δ·A are kept as a sum of two floats: their differences decide, and the sums may reach -10,000.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "backends/cpu/cpu_backend.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/ssd_chunk.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "backends/cpu/mamba2-inl.h"
// clang-format on

#ifndef PROA_BACKENDS_CPU_SSD_CHUNK_ONCE_
#define PROA_BACKENDS_CPU_SSD_CHUNK_ONCE_
namespace proa {
namespace {

// A chunk's matrices should stay in the second-level cache: at N = 128 and head_dim 64, 64 tokens need 130 kB, and 128
// are no faster. The result does not depend on it.
constexpr int kMaxChunk = 64;

// Below this the recurrence is as fast: a chunk's products are then too thin to fill registers, and the state is
// transposed for nothing.
constexpr int kMinChunked = 12;

constexpr int kPad = 16;  // floats; rows of all matrices below are padded to it with zeros
constexpr int64_t padded(int64_t count) { return (count + kPad - 1) / kPad * kPad; }

// Where the parts of one thread's scratch begin, in floats.
struct ChunkRoom {
  int64_t chunk, head_dim;             // padded
  int64_t state, bt, cb, m, x, xd, y;  // offsets
  int64_t sums;                        // four arrays of `chunk`
  int64_t floats;

  ChunkRoom(const Mamba2Shape& shape, int chunk_size, int heads_per_item) {
    const int64_t N = shape.ssm_state_size;
    chunk = padded(chunk_size);
    head_dim = padded(shape.head_dim);
    int64_t used = 0;
    const auto take = [&](int64_t count) { return std::exchange(used, used + padded(count)); };
    state = take(heads_per_item * N * head_dim);
    bt = take(N * chunk);
    cb = take(chunk * chunk);
    m = take(chunk * chunk);
    x = take(chunk * head_dim);
    xd = take(chunk * head_dim);
    y = take(chunk * head_dim);
    sums = take(4 * chunk);
    floats = used;
  }
};

struct Item {  // heads [first_head, first_head + num_heads), all of one group
  int sequence, first_head, num_heads;
};

}  // namespace
}  // namespace proa
#endif

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {
namespace {

constexpr hn::CappedTag<float, kPad> df;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::CappedTag<float, kPad>()));
// A tile of kTileRows x kTileVectors sums: 16 of 32 vector registers, or 8 of 16.
constexpr int kTileRows = 4;
constexpr int kTileVectors = HWY_TARGET == HWY_AVX2 ? 2 : 4;

// c[i, :] (+)= Σ_k a[i, k] · b[k, :] for kRows rows and kVectors vectors.
template <int kRows, int kVectors>
HWY_INLINE void multiply_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int depth, float* c,
                              int64_t ldc, bool add) {
  hn::Vec<decltype(df)> sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) sum[i][v] = add ? hn::LoadU(df, c + i * ldc + v * kLanes) : hn::Zero(df);
  }
  for (int k = 0; k < depth; ++k) {
    hn::Vec<decltype(df)> row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = hn::LoadU(df, b + k * ldb + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const auto factor = hn::Set(df, a[i * lda + k]);
      for (int v = 0; v < kVectors; ++v) sum[i][v] = hn::MulAdd(factor, row[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[i][v], df, c + i * ldc + v * kLanes);
  }
}

template <int kRows>
HWY_INLINE void multiply_rows(const float* a, int64_t lda, const float* b, int64_t ldb, int depth, float* c,
                              int64_t ldc, int64_t cols, bool add) {
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= cols; j += kTileVectors * kLanes) {
    multiply_tile<kRows, kTileVectors>(a, lda, b + j, ldb, depth, c + j, ldc, add);
  }
  for (; j < cols; j += kLanes) multiply_tile<kRows, 1>(a, lda, b + j, ldb, depth, c + j, ldc, add);
}

// c [rows, cols] (+)= a [rows, depth] · b [depth, cols]; cols is a multiple of kPad. With `lower`, a is zero above its
// diagonal (and there are zeros to read, up to the end of a tile), and only what c needs of each row is computed.
void multiply(const float* a, int64_t lda, const float* b, int64_t ldb, int rows, int depth, int64_t cols, float* c,
              int64_t ldc, bool add, bool lower) {
  int i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    const int used = lower ? std::min(depth, i + kTileRows) : depth;
    multiply_rows<kTileRows>(a + i * lda, lda, b, ldb, used, c + i * ldc, ldc, cols, add);
  }
  for (; i < rows; ++i) {
    multiply_rows<1>(a + i * lda, lda, b, ldb, lower ? std::min(depth, i + 1) : depth, c + i * ldc, ldc, cols, add);
  }
}

// One head over one chunk of Q tokens. `token` is the first one's x | B | C, `projected` its row, `y` its output.
void head_chunk(const SsdChunk& op, const ChunkRoom& room, float* base, int h, int Q, const float* token,
                const float* projected, float* state, float* y) {
  const Mamba2Shape& shape = op.shape;
  const int N = shape.ssm_state_size, inner = shape.inner(), conv_dim = shape.conv_dim(), head_dim = shape.head_dim;
  const int group = h / (shape.num_heads / shape.n_groups);
  const float* cb = base + room.cb;
  float *m = base + room.m, *x = base + room.x, *xd = base + room.xd, *sums = base + room.y;
  float *high = base + room.sums, *low = high + room.chunk, *grown = low + room.chunk, *left = grown + room.chunk;

  // s_i = high + low; X_i = Δ_i x_i; exp(s_i); exp(s_Q - s_i).
  double s = 0;
  for (int i = 0; i < Q; ++i) {
    const float dt = projected[int64_t{i} * shape.projected() + inner + conv_dim + h];
    const float delta = time_step(dt, op.weights.dt_bias[h], op.limit);
    s += static_cast<double>(delta * op.weights.a[h]);
    high[i] = static_cast<float>(s);
    low[i] = static_cast<float>(s - high[i]);
    const float* xi = token + int64_t{i} * conv_dim + h * head_dim;
    for (int p = 0; p < head_dim; ++p) x[i * room.head_dim + p] = delta * xi[p];
    for (int p = head_dim; p < room.head_dim; ++p) x[i * room.head_dim + p] = 0;
  }
  for (int64_t i = Q; i < room.chunk; ++i) high[i] = low[i] = 0;
  const auto last_high = hn::Set(df, high[Q - 1]), last_low = hn::Set(df, low[Q - 1]);
  for (int i = 0; i < Q; i += kLanes) {
    const auto hi = hn::LoadU(df, high + i), lo = hn::LoadU(df, low + i);
    hn::StoreU(hn::Exp(df, hi), df, grown + i);
    const auto rest = hn::Add(hn::Sub(last_high, hi), hn::Sub(last_low, lo));
    hn::StoreU(hn::Exp(df, hn::Min(rest, hn::Zero(df))), df, left + i);
  }

  // M_ij = (C_i · B_j) exp(s_i - s_j), zero for j > i up to the end of a row tile.
  for (int i = 0; i < Q; ++i) {
    const auto hi = hn::Set(df, high[i]), lo = hn::Set(df, low[i]);
    for (int j = 0; j < i + kTileRows && j < room.chunk; j += kLanes) {
      const auto difference = hn::Add(hn::Sub(hi, hn::LoadU(df, high + j)), hn::Sub(lo, hn::LoadU(df, low + j)));
      const auto decay = hn::Exp(df, hn::Min(difference, hn::Zero(df)));
      const auto product = hn::Mul(hn::LoadU(df, cb + i * room.chunk + j), decay);
      hn::StoreU(hn::IfThenElseZero(hn::FirstN(df, static_cast<size_t>(std::max(0, i + 1 - j))), product), df,
                 m + i * room.chunk + j);
    }
  }

  // y_i = exp(s_i) · (S · C_i) + Σ_j M_ij X_j + D x_i
  const float* C = token + inner + (shape.n_groups + group) * N;
  multiply(C, conv_dim, state, room.head_dim, Q, N, room.head_dim, sums, room.head_dim, false, false);
  for (int i = 0; i < Q; ++i) {
    const auto factor = hn::Set(df, grown[i]), tail = hn::Set(df, left[i]);
    for (int64_t p = i * room.head_dim; p < (i + 1) * room.head_dim; p += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(df, sums + p), factor), df, sums + p);
      hn::StoreU(hn::Mul(hn::LoadU(df, x + p), tail), df, xd + p);
    }
  }
  multiply(m, room.chunk, x, room.head_dim, Q, Q, room.head_dim, sums, room.head_dim, true, true);
  for (int i = 0; i < Q; ++i) {
    const float* xi = token + int64_t{i} * conv_dim + h * head_dim;
    float* yi = y + int64_t{i} * inner + h * head_dim;
    for (int p = 0; p < head_dim; ++p) yi[p] = sums[i * room.head_dim + p] + op.weights.d[h] * xi[p];
  }

  // S = exp(s_Q) S + Σ_j B_j ⊗ exp(s_Q - s_j) X_j
  const auto factor = hn::Set(df, grown[Q - 1]);
  for (int64_t i = 0; i < N * room.head_dim; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(df, state + i), factor), df, state + i);
  }
  multiply(base + room.bt, room.chunk, xd, room.head_dim, N, Q, room.head_dim, state, room.head_dim, true, false);
}

// State [head_dim, N] of a head to its transpose with padded rows, and back.
void load_state(const Mamba2Shape& shape, const ChunkRoom& room, const float* in, float* state) {
  const int N = shape.ssm_state_size;
  std::memset(state, 0, static_cast<size_t>(N * room.head_dim) * sizeof(float));
  for (int p = 0; in && p < shape.head_dim; ++p) {
    for (int n = 0; n < N; ++n) state[n * room.head_dim + p] = in[int64_t{p} * N + n];
  }
}

void store_state(const Mamba2Shape& shape, const ChunkRoom& room, const float* state, float* out) {
  const int N = shape.ssm_state_size;
  for (int p = 0; p < shape.head_dim; ++p) {
    for (int n = 0; n < N; ++n) out[int64_t{p} * N + n] = state[n * room.head_dim + p];
  }
}

}  // namespace

// Channels [begin, end) of the convolution, for all tokens of the batch.
void convolve_channels(const SsdChunk& op, int64_t begin, int64_t end, float* activated) {
  const Mamba2Shape& shape = op.shape;
  const int conv_dim = shape.conv_dim(), taps = shape.conv_kernel, kept = taps - 1;
  const size_t bytes = static_cast<size_t>(end - begin) * sizeof(float);
  const int first = static_cast<int>(begin), last = static_cast<int>(end);
  for (int s = 0; s < op.num_seqs; ++s) {
    const int T = op.query_start[s + 1] - op.query_start[s];
    const int64_t start = op.query_start[s] - op.query_start[0];
    const float* xbc = T > 0 ? op.projected + start * shape.projected() + shape.inner() : nullptr;
    float* out = activated + start * conv_dim;
    const int32_t slot_in = op.state_slot_in[s], slot_out = op.state_slot_out[s];
    // Rows before the first token: the slot's, or zeros, which the end of `activated` holds.
    const auto row = [&](int t) -> const float* {
      if (t >= 0) return xbc + int64_t{t} * shape.projected();
      if (slot_in < 0) return activated + int64_t{op.num_tokens} * conv_dim;
      return op.cache.conv + (int64_t{slot_in} * kept + kept + t) * conv_dim;
    };
    for (int t = 0; t < T; ++t) {
      const float* rows[kMaxConvKernel];
      for (int j = 0; j < taps; ++j) rows[j] = row(t - kept + j);
      convolve_token(taps, rows, op.weights.conv_weight, op.weights.conv_bias, first, last,
                     out + int64_t{t} * conv_dim);
    }
    if (slot_out < 0) continue;
    for (int j = 0; j < kept; ++j) {  // oldest first: a row is read before it is overwritten, also in place
      float* target = op.cache.conv + (int64_t{slot_out} * kept + j) * conv_dim + first;
      const float* source = row(T - kept + j) + first;
      if (target != source) std::memcpy(target, source, bytes);
    }
  }
}

void scan_item(const SsdChunk& op, const Item& item, const ChunkRoom& room, int chunk_size, const float* activated,
               float* base) {
  const Mamba2Shape& shape = op.shape;
  const int N = shape.ssm_state_size, inner = shape.inner(), conv_dim = shape.conv_dim();
  const int T = op.query_start[item.sequence + 1] - op.query_start[item.sequence];
  const int64_t start = op.query_start[item.sequence] - op.query_start[0];
  const float* tokens = activated + start * conv_dim;
  const float* projected = op.projected + start * shape.projected();
  float* y = op.y + start * inner;
  const int64_t head_floats = int64_t{shape.head_dim} * N;
  const auto slot_head = [&](int32_t slot, int h) -> float* {
    return slot < 0 ? nullptr : op.cache.ssm + (int64_t{slot} * shape.num_heads + h) * head_floats;
  };
  const int32_t slot_in = op.state_slot_in[item.sequence], slot_out = op.state_slot_out[item.sequence];

  if (T < kMinChunked) {
    for (int h = item.first_head; h < item.first_head + item.num_heads; ++h) {
      const float* in = slot_head(slot_in, h);
      float* out = slot_head(slot_out, h);
      if (T == 0) {
        if (out && in && out != in) std::memcpy(out, in, head_floats * sizeof(float));
        if (out && !in) std::memset(out, 0, head_floats * sizeof(float));
        continue;
      }
      float* target = out ? out : base + room.state;
      advance_head(
          shape, op.weights, op.limit, h, T, projected, tokens, in, [&](int) { return target; }, base + room.sums, y);
    }
    return;
  }

  const int group = item.first_head / (shape.num_heads / shape.n_groups);
  const int64_t state_floats = N * room.head_dim;
  for (int i = 0; i < item.num_heads; ++i) {
    load_state(shape, room, slot_head(slot_in, item.first_head + i), base + room.state + i * state_floats);
  }
  for (int first = 0; first < T; first += chunk_size) {
    const int Q = std::min(chunk_size, T - first);
    const float* token = tokens + int64_t{first} * conv_dim;
    float* bt = base + room.bt;  // B transposed, [N, chunk]
    for (int64_t j = 0; j < room.chunk; ++j) {
      const float* B = token + j * conv_dim + inner + group * N;
      for (int n = 0; n < N; ++n) bt[n * room.chunk + j] = j < Q ? B[n] : 0;
    }
    const float* C = token + inner + (shape.n_groups + group) * N;
    multiply(C, conv_dim, bt, room.chunk, Q, N, room.chunk, base + room.cb, room.chunk, false, false);
    for (int i = 0; i < item.num_heads; ++i) {
      head_chunk(op, room, base, item.first_head + i, Q, token, projected + int64_t{first} * shape.projected(),
                 base + room.state + i * state_floats, y + int64_t{first} * inner);
    }
  }
  for (int i = 0; slot_out >= 0 && i < item.num_heads; ++i) {
    store_state(shape, room, base + room.state + i * state_floats, slot_head(slot_out, item.first_head + i));
  }
}

}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace proa {

HWY_EXPORT(convolve_channels);
HWY_EXPORT(scan_item);

void CpuBackend::ssd_chunk(const SsdChunk& op) {
  if (op.num_seqs == 0) return;
  const Mamba2Shape& shape = op.shape;
  const int chunk_size = std::clamp(op.chunk_size, 1, kMaxChunk);
  // Heads of a group share C·B; they part only where there would be fewer items than threads.
  const int group_heads = shape.num_heads / shape.n_groups;
  const int64_t groups = int64_t{op.num_seqs} * shape.n_groups;
  const int parts = static_cast<int>(std::min<int64_t>(group_heads, (threads().num_threads() + groups - 1) / groups));
  const int heads_per_item = (group_heads + parts - 1) / parts;
  const int items_per_group = (group_heads + heads_per_item - 1) / heads_per_item;

  const ChunkRoom room(shape, chunk_size, heads_per_item);
  const int64_t conv_floats = int64_t{op.num_tokens + 1} * shape.conv_dim();
  const size_t bytes = Arena::padded<float>(conv_floats) + threads().num_threads() * Arena::padded<float>(room.floats);
  std::byte* memory = scratch(bytes);
  if (counting()) return;
  Arena arena(memory, bytes);
  float* activated = arena.take<float>(conv_floats);  // [num_tokens + 1, conv_dim], the last row zero
  float* rooms = arena.take<float>(threads().num_threads() * padded(room.floats));
  std::memset(activated + int64_t{op.num_tokens} * shape.conv_dim(), 0, shape.conv_dim() * sizeof(float));

  const auto convolve = PROA_DISPATCH(convolve_channels, target());
  threads().parallel_for(shape.conv_dim(), 64,
                         [&](int64_t begin, int64_t end, int) { convolve(op, begin, end, activated); });
  const auto scan = PROA_DISPATCH(scan_item, target());
  threads().parallel_for(groups * items_per_group, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const int group = static_cast<int>(i / items_per_group % shape.n_groups);
      const int skip = static_cast<int>(i % items_per_group) * heads_per_item;
      const Item item{static_cast<int>(i / items_per_group / shape.n_groups), group * group_heads + skip,
                      std::min(heads_per_item, group_heads - skip)};
      scan(op, item, room, chunk_size, activated, rooms + thread * padded(room.floats));
    }
  });
}

}  // namespace proa
#endif  // HWY_ONCE
