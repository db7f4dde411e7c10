#include "backends/cpu/linear_bf16.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "backends/cpu/code_values.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "hwy/base.h"

// g++ 12 finds values without a beginning in its own headers (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define PROA_BF16 "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16"
#define PROA_BF16_ATTR __attribute__((target(PROA_BF16)))  // of lambdas, which clang's pragma leaves out
HWY_PUSH_ATTRIBUTES(PROA_BF16)
#include "backends/cpu/bf16_blocks-inl.h"
namespace proa {
namespace {

constexpr int kFew = 3;     // up to so many tokens weights are unpacked in registers
constexpr int kTokens = 6;  // a tile is 64 rows by up to 6 tokens, 24 sums in 32 registers
constexpr int kVectors = 4;
constexpr int kTileRows = 16 * kVectors;
constexpr int kChunk = 8;   // blocks that are unpacked at once: 32 KiB
constexpr int kAhead = 12;  // blocks of 16 rows to fetch ahead: 12 KiB of BF16
constexpr int kTokensAtOnce = 128;
constexpr int kSums = 4 * kTileRows;

// Block i of 16 rows: w[p][l] holds columns 8 l + 2 p and the next of each row.
template <class F>
HWY_INLINE void unpack_rows(const Row* rows, int64_t i, int64_t ahead, __m512i (&w)[4][4]) {
  __m512i v[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    __builtin_prefetch(rows[r].data + i * kBlockBytes<F> + ahead);
    v[r] = unpack(F(), rows[r], i);
  }
  transpose(v, w);
}

HWY_INLINE __m512i word(const uint16_t* x) {  // two columns, in all lanes
  int32_t value;
  std::memcpy(&value, x, sizeof value);
  return _mm512_set1_epi32(value);
}
HWY_INLINE __m512 add_products(__m512 sum, __m512i w, __m512i x) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}

// From block i of 16 rows to what is read kAhead blocks later, of these rows or of the next 16.
template <class F>
HWY_INLINE int64_t ahead_of(const Weight& weight, int64_t i, int64_t blocks) {
  if (i + kAhead < blocks) return kAhead * kBlockBytes<F>;
  return 16 * static_cast<int64_t>(weight.row_stride) + (kAhead - blocks) * kBlockBytes<F>;
}

// T tokens by 16 rows at a time.
template <class F, int T, bool kFine>
void few_tokens(const Linear& op, int64_t begin, int64_t end) {
  const int64_t blocks = op.weight.cols / 32;
  const uint16_t *x[T], *low[T];
  for (int t = 0; t < T; ++t) {
    x[t] = input(op, t, false);
    if constexpr (kFine) low[t] = input(op, t, true);
  }
  for (int64_t row = begin; row < end; row += 16) {
    Row rows[16];
    rows_from<16>(op.weight, row, end, rows);
    __m512 sum[T][4];
    for (int t = 0; t < T; ++t) {
      for (int p = 0; p < 4; ++p) sum[t][p] = _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < blocks; ++i) {
      __m512i w[4][4];
      unpack_rows<F>(rows, i, ahead_of<F>(op.weight, i, blocks), w);
#pragma GCC unroll 4
      for (int l = 0; l < 4; ++l) {
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) {
          const int64_t column = 32 * i + 8 * l + 2 * p;
          for (int t = 0; t < T; ++t) {
            sum[t][p] = add_products(sum[t][p], w[p][l], word(x[t] + column));
            if constexpr (kFine) sum[t][p] = add_products(sum[t][p], w[p][l], word(low[t] + column));
          }
        }
      }
    }
    const __m512 factors = factors_of(op.weight, row, end);
    for (int t = 0; t < T; ++t) {
      put(op, t, row, end, factors,
          _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(sum[t][0], sum[t][1]), sum[t][2]), sum[t][3]));
    }
  }
}

// Of each part, the blocks of a chunk: 64 rows by 4 times two columns.
struct Panel {
  alignas(64) uint16_t values[4][kChunk][4][kVectors][32];
};

// sums [N, 4, 64] += the chunk · x for N tokens, or = with `first`.
template <int N, bool kFine>
HWY_NOINLINE void multiply_tile(const Panel& panel, int64_t blocks, const uint16_t* const* tokens,
                                const uint16_t* const* low_tokens, float* sums, bool first) {
  const uint16_t *x[N], *low[N];
  for (int n = 0; n < N; ++n) {
    x[n] = tokens[n];
    if constexpr (kFine) low[n] = low_tokens[n];
  }
  for (int p = 0; p < 4; ++p) {
    float* to = sums + p * kTileRows;
    __m512 acc[N][kVectors];
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        acc[n][v] = first ? _mm512_setzero_ps() : _mm512_load_ps(to + n * kSums + 16 * v);
      }
    }
    const uint16_t(*w)[kVectors][32] = panel.values[p][0];
    for (int64_t column = 2 * p; column < 32 * blocks; column += 8, ++w) {
      __m512i values[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) values[v] = _mm512_load_si512((*w)[v]);
#pragma GCC unroll 6
      for (int n = 0; n < N; ++n) {
        const __m512i q = word(x[n] + column);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[n][v] = add_products(acc[n][v], values[v], q);
        if constexpr (kFine) {
          const __m512i rest = word(low[n] + column);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) acc[n][v] = add_products(acc[n][v], values[v], rest);
        }
      }
    }
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) _mm512_store_ps(to + n * kSums + 16 * v, acc[n][v]);
    }
  }
}

template <bool kFine>
void multiply_tokens(int n, const Panel& panel, int64_t blocks, const uint16_t* const* x, const uint16_t* const* low,
                     float* sums, bool first) {
  switch (n) {
    case 1:
      return multiply_tile<1, kFine>(panel, blocks, x, low, sums, first);
    case 2:
      return multiply_tile<2, kFine>(panel, blocks, x, low, sums, first);
    case 3:
      return multiply_tile<3, kFine>(panel, blocks, x, low, sums, first);
    case 4:
      return multiply_tile<4, kFine>(panel, blocks, x, low, sums, first);
    case 5:
      return multiply_tile<5, kFine>(panel, blocks, x, low, sums, first);
    default:
      return multiply_tile<6, kFine>(panel, blocks, x, low, sums, first);
  }
}

template <class F>
void unpack_panel(const Weight& weight, int64_t row, int64_t end, int64_t first, int64_t count, Panel& panel) {
  const int64_t blocks = weight.cols / 32;
  const int64_t ahead = first + count < blocks
                            ? count * kBlockBytes<F>
                            : kTileRows * static_cast<int64_t>(weight.row_stride) - first * kBlockBytes<F>;
  for (int v = 0; v < kVectors; ++v) {
    Row rows[16];
    rows_from<16>(weight, row + 16 * v, end, rows);
    for (int64_t i = 0; i < count; ++i) {
      __m512i w[4][4];
      unpack_rows<F>(rows, first + i, ahead, w);
      for (int p = 0; p < 4; ++p) {
        for (int l = 0; l < 4; ++l) _mm512_store_si512(panel.values[p][i][l][v], w[p][l]);
      }
    }
  }
}

template <class F, bool kFine>
void many_tokens(const Linear& op, int64_t begin, int64_t end, std::byte* room) {
  Panel& panel = *reinterpret_cast<Panel*>(room);
  auto* sums = reinterpret_cast<float*>(room + sizeof(Panel));  // [tokens, 4, 64]
  const int64_t blocks = op.weight.cols / 32;
  for (int first = 0; first < op.num_tokens; first += kTokensAtOnce) {
    const int count = std::min(kTokensAtOnce, op.num_tokens - first);
    const int tiles = (count + kTokens - 1) / kTokens;
    for (int64_t row = begin; row < end; row += kTileRows) {
      for (int64_t i = 0; i < blocks; i += kChunk) {
        const int64_t chunk = std::min<int64_t>(kChunk, blocks - i);
        unpack_panel<F>(op.weight, row, end, i, chunk, panel);
        for (int tile = 0; tile < tiles; ++tile) {
          const int from = count * tile / tiles, to = count * (tile + 1) / tiles;
          const uint16_t *x[kTokens], *low[kTokens];
          for (int t = from; t < to; ++t) {
            x[t - from] = input(op, first + t, false) + 32 * i;
            if constexpr (kFine) low[t - from] = input(op, first + t, true) + 32 * i;
          }
          multiply_tokens<kFine>(to - from, panel, chunk, x, low, sums + kSums * from, i == 0);
        }
      }
      __m512 factors[kVectors];
      for (int v = 0; v < kVectors; ++v) factors[v] = factors_of(op.weight, row + 16 * v, end);
      for (int t = 0; t < count; ++t) {
        for (int v = 0; v < kVectors; ++v) {
          const float* c = sums + kSums * t + 16 * v;
          const __m512 sum =
              _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(_mm512_load_ps(c), _mm512_load_ps(c + kTileRows)),
                                          _mm512_load_ps(c + 2 * kTileRows)),
                            _mm512_load_ps(c + 3 * kTileRows));
          put(op, first + t, row + 16 * v, end, factors[v], sum);
        }
      }
    }
  }
}

template <class F, bool kFine>
void rows_of(const Linear& op, int64_t begin, int64_t end, std::byte* room) {
  switch (op.num_tokens) {
    case 0:
      return;
    case 1:
      return few_tokens<F, 1, kFine>(op, begin, end);
    case 2:
      return few_tokens<F, 2, kFine>(op, begin, end);
    case 3:
      return few_tokens<F, 3, kFine>(op, begin, end);
    default:
      return many_tokens<F, kFine>(op, begin, end, room);
  }
}

}  // namespace

bool bf16_multiplies(Format format, int64_t cols, const Scales& scales) {
  if (cols % 32 != 0) return false;
  switch (format) {
    case Format::BF16:
    case Format::NVFP4:
      return scales.group == 0;
    case Format::F8_E4M3:
      return scales.group == 0 || (scales.format == Format::F32 && scales.group >= cols);
    case Format::E2M1:
      return scales.format == Format::F8_E4M3 && scales.group == 16;
    default:
      return false;
  }
}

void bf16_round(const float* x, int64_t count, uint16_t* high, uint16_t* low) {
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    const __m256i h = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + i), h);
    if (!low) continue;
    const __m512 rest = _mm512_sub_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + i), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rest)));
  }
}

size_t bf16_room(int64_t num_tokens) {
  if (num_tokens <= kFew) return 0;
  return sizeof(Panel) + kSums * sizeof(float) * static_cast<size_t>(std::min<int64_t>(num_tokens, kTokensAtOnce));
}

int64_t bf16_row_unit(int64_t num_tokens) { return num_tokens <= kFew ? 16 : kTileRows; }

void bf16_rows(const Linear& op, int64_t begin, int64_t end, std::byte* room) {
  if (begin >= end) return;
  const auto rows = [&](auto format) PROA_BF16_ATTR {
    using F = decltype(format);
    return op.halves.low ? rows_of<F, true>(op, begin, end, room) : rows_of<F, false>(op, begin, end, room);
  };
  switch (op.weight.format) {
    case Format::BF16:
      return rows(BF16());
    case Format::F8_E4M3:
      return rows(F8_E4M3());
    case Format::E2M1:
      return rows(E2M1());
    case Format::NVFP4:
      return rows(NVFP4());
    default:
      assert(false && "a format that bf16_multiplies() refuses");
  }
}

}  // namespace proa
HWY_POP_ATTRIBUTES

#else

namespace proa {

bool bf16_multiplies(Format, int64_t, const Scales&) { return false; }
void bf16_round(const float*, int64_t, uint16_t*, uint16_t*) {}
size_t bf16_room(int64_t) { return 0; }
int64_t bf16_row_unit(int64_t) { return 4; }
void bf16_rows(const Linear&, int64_t, int64_t, std::byte*) {}

}  // namespace proa

#endif
