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

#define PROA_BF16 "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
#define PROA_BF16_ATTR __attribute__((target(PROA_BF16)))  // of lambdas, which clang's pragma leaves out
HWY_PUSH_ATTRIBUTES(PROA_BF16)
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

struct Row {
  const std::byte* data;
  const std::byte* scales;
};

// Codes of E2M1, a 16-bit word each, times a scale for each 16 of them.
HWY_INLINE __m512i scaled_e2m1(__m512i codes, float first, float second) {
  const __m512i values = _mm512_setr_epi32(0x3f800000, 0x40404000, 0x40c04080, 0x41404100, static_cast<int>(0xbf808000),
                                           static_cast<int>(0xc040c000), static_cast<int>(0xc0c0c080),
                                           static_cast<int>(0xc140c100), 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i v = _mm512_permutexvar_epi16(codes, values);  // bfloat16 of twice the value
  const __m512 scale = _mm512_insertf32x8(_mm512_set1_ps(first), _mm256_set1_ps(second), 1);
  const __m512i low = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(v, 16)), scale));
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  const __m512i high = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(v, upper)), scale));
  return _mm512_or_si512(_mm512_srli_epi32(low, 16), _mm512_and_si512(high, upper));
}

// Block `i` of 32 columns of a row as bfloat16.
HWY_INLINE __m512i unpack(BF16, const Row& row, int64_t i) { return _mm512_loadu_si512(row.data + 64 * i); }

HWY_INLINE __m512i unpack(F8_E4M3, const Row& row, int64_t i) {
  const __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.data + 32 * i)));
  const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
  const __m512i sign = _mm512_slli_epi16(_mm512_andnot_si512(_mm512_set1_epi16(0x7f), code), 8);
  __m512i v = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  // Below 8 the value is the code times 2^-9.
  const __m512i small =
      _mm512_setr_epi32(0x3b000000, 0x3bc03b80, 0x3c203c00, 0x3c603c40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  v = _mm512_mask_permutexvar_epi16(v, _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8)), magnitude, small);
  v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f)), _mm512_set1_epi16(0x7fc0));
  return _mm512_or_si512(v, sign);
}

HWY_INLINE __m512i unpack(E2M1, const Row& row, int64_t i) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row.data + 16 * i)));
  const __m512i codes = _mm512_or_si512(_mm512_and_si512(bytes, _mm512_set1_epi32(15)),
                                        _mm512_slli_epi32(_mm512_srli_epi32(bytes, 4), 16));
  const auto* scales = reinterpret_cast<const uint8_t*>(row.scales) + 2 * i;
  return scaled_e2m1(codes, kE4M3Halves.at[scales[0]], kE4M3Halves.at[scales[1]]);
}

HWY_INLINE __m512i unpack(NVFP4, const Row& row, int64_t i) {
  const std::byte* block = row.data + i / 2 * 36;
  const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 4 + i % 2 * 16)));
  const __m512i low = _mm512_castsi256_si512(_mm256_and_si256(bytes, _mm256_set1_epi16(15)));
  const __m512i high = _mm512_castsi256_si512(_mm256_srli_epi16(bytes, 4));
  const __m512i codes = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
  const auto* scales = reinterpret_cast<const uint8_t*>(block) + i % 2 * 2;
  return scaled_e2m1(codes, kUE4M3Halves.at[scales[0]], kUE4M3Halves.at[scales[1]]);
}

template <class F>
constexpr int64_t kBlockBytes = std::is_same_v<F, BF16>      ? 64
                                : std::is_same_v<F, F8_E4M3> ? 32
                                                             : 16;

HWY_INLINE void transpose_quads(__m512i* v) {  // 4 x 4 words of 32 bits in each lane
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

// Block i of 16 rows: w[p][l] holds columns 8 l + 2 p and the next of each row.
template <class F>
HWY_INLINE void unpack_rows(const Row* rows, int64_t i, int64_t ahead, __m512i (&w)[4][4]) {
  __m512i v[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    __builtin_prefetch(rows[r].data + i * kBlockBytes<F> + ahead);
    v[r] = unpack(F(), rows[r], i);
  }
#pragma GCC unroll 4
  for (int quad = 0; quad < 4; ++quad) transpose_quads(v + 4 * quad);
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    const __m512i ab_low = _mm512_shuffle_i32x4(v[p], v[4 + p], 0x44),
                  ab_high = _mm512_shuffle_i32x4(v[p], v[4 + p], 0xee);
    const __m512i cd_low = _mm512_shuffle_i32x4(v[8 + p], v[12 + p], 0x44);
    const __m512i cd_high = _mm512_shuffle_i32x4(v[8 + p], v[12 + p], 0xee);
    w[p][0] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
    w[p][1] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
    w[p][2] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
    w[p][3] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
  }
}

HWY_INLINE __m512i word(const uint16_t* x) {  // two columns, in all lanes
  int32_t value;
  std::memcpy(&value, x, sizeof value);
  return _mm512_set1_epi32(value);
}
HWY_INLINE __m512 add_products(__m512 sum, __m512i w, __m512i x) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}

void rows_from(const Weight& weight, int64_t row, int64_t end, Row* rows) {
  for (int r = 0; r < 16; ++r) {
    const int64_t at = std::min(row + r, end - 1);
    rows[r] = {weight.row(at), weight.scales ? weight.scales.row(at) : nullptr};
  }
}

// From block i of 16 rows to what is read kAhead blocks later, of these rows or of the next 16.
template <class F>
HWY_INLINE int64_t ahead_of(const Weight& weight, int64_t i, int64_t blocks) {
  if (i + kAhead < blocks) return kAhead * kBlockBytes<F>;
  return 16 * static_cast<int64_t>(weight.row_stride) + (kAhead - blocks) * kBlockBytes<F>;
}

// 16 sums of one token to y.
void put(const Linear& op, int token, int64_t row, int64_t end, __m512 sum) {
  if (row >= end) return;
  const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(16, end - row)) - 1);
  if (op.weight.scales && op.weight.format == Format::F8_E4M3) {  // one F32 per row
    alignas(64) float scales[16] = {};
    for (int64_t r = row; r < std::min(end, row + 16); ++r) {
      std::memcpy(&scales[r - row], op.weight.scales.row(r), sizeof(float));
    }
    sum = _mm512_mul_ps(sum, _mm512_load_ps(scales));
  }
  sum = _mm512_mul_ps(sum, _mm512_set1_ps(op.weight.scale));
  if (op.scale) sum = _mm512_mul_ps(sum, _mm512_set1_ps(op.scale[token]));
  float* y = op.y + (op.y_rows ? op.y_rows[token] : token) * op.y_stride + row;
  if (op.add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
  _mm512_mask_storeu_ps(y, mask, sum);
}

HWY_INLINE const uint16_t* input(const Linear& op, int token, bool low) {
  const int64_t row = op.x_rows ? op.x_rows[token] : token;
  return (low ? op.halves.low : op.halves.high) + row * op.halves.stride;
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
    rows_from(op.weight, row, end, rows);
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
    for (int t = 0; t < T; ++t) {
      put(op, t, row, end, _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(sum[t][0], sum[t][1]), sum[t][2]), sum[t][3]));
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
    rows_from(weight, row + 16 * v, end, rows);
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
      for (int t = 0; t < count; ++t) {
        for (int v = 0; v < kVectors; ++v) {
          const float* c = sums + kSums * t + 16 * v;
          const __m512 sum =
              _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(_mm512_load_ps(c), _mm512_load_ps(c + kTileRows)),
                                          _mm512_load_ps(c + 2 * kTileRows)),
                            _mm512_load_ps(c + 3 * kTileRows));
          put(op, first + t, row + 16 * v, end, sum);
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
