#include "backends/cpu/linear_vnni.h"

#include <algorithm>
#include <cassert>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>

#include "hwy/base.h"

// g++ 12 finds values without a beginning in its own headers (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define PROA_VNNI "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi"
#define PROA_VNNI_ATTR __attribute__((target(PROA_VNNI)))  // of lambdas, which clang's pragma leaves out
HWY_PUSH_ATTRIBUTES(PROA_VNNI)
namespace proa {
namespace {

// Bytes to fetch ahead of four rows' products; four streams of 72 bytes a step are more than the hardware follows.
constexpr int kAhead = 12288;
constexpr int kFew = 3;            // up to so many tokens weights are unpacked in registers
// A tile is 64 rows by up to 6 tokens: 24 sums of integers in 32 registers. Twelve, with the float sums beside them,
// left two multipliers idle for 15 % of the time: a product takes seven cycles or so from sum to sum.
constexpr int kTokens = 6;
constexpr int kVectors = 4;
constexpr int kTileRows = 16 * kVectors;
constexpr int kChunk = 3;           // groups that are unpacked at once: 30 KiB, most of the first-level cache
constexpr int kTokensAtOnce = 128;  // they and their sums, 1 KiB each, stay in the second-level cache

// --- formats ---

// Four blocks of a row: codes of their columns 0-15 and 16-31 (one block per 128-bit lane), and the four scales (and
// minima) as stored, in the low bits.
struct Codes {
  __m512i low, high;
  __m128i scale, min;
};

struct Bytes64 {
  alignas(64) uint8_t at[64];
};
struct Words32 {
  alignas(64) uint16_t at[32];
};

// For two loads, the second from byte `second` on: where byte begin + i of block b is, b in [0, 4), i in [0, 16).
constexpr Bytes64 bytes_of(int block_bytes, int begin, int first, int second) {
  Bytes64 index{};
  for (int i = 0; i < 64; ++i) {
    const int position = block_bytes * (i / 16) + begin + i % 16;
    index.at[i] = static_cast<uint8_t>(position - first < 64 ? position - first : position - second + 64);
  }
  return index;
}
constexpr Words32 words_of(int block_bytes, int begin, int second) {
  Words32 index{};
  for (int b = 0; b < 4; ++b) {
    const int position = block_bytes * b + begin;
    index.at[b] = static_cast<uint16_t>(position + 2 <= 64 ? position / 2 : (position - second) / 2 + 32);
  }
  return index;
}

template <int N>
HWY_INLINE __m512i load(const std::byte* p, int valid) {  // the bytes below `valid`; zero from there on
  if constexpr (N == 4) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, static_cast<unsigned>(std::clamp(valid, 0, 64))), p);
}

HWY_INLINE __m512i pick_bytes(const Bytes64& index, __m512i a, __m512i b) {
  return _mm512_permutex2var_epi8(a, _mm512_load_si512(index.at), b);
}
HWY_INLINE __m128i pick_words(const Words32& index, __m512i a, __m512i b) {
  return _mm512_castsi512_si128(_mm512_permutex2var_epi16(a, _mm512_load_si512(index.at), b));
}
HWY_INLINE __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
HWY_INLINE __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

// Formats of nibbles: what a code stands for is table[code], or code - kZero where there is no table.
// packed(p, valid): the stored nibbles of four blocks; N of them are there.
template <class F, int kBlock, int kScaleAt, int kMinAt, int kNibblesAt, int kSecond>
struct NibbleBase {
  static constexpr int kBytes = kBlock;
  static constexpr bool kMin = kMinAt >= 0;
  static constexpr Bytes64 kNibbles = bytes_of(kBlock, kNibblesAt, 0, kSecond);
  static constexpr Words32 kScales = words_of(kBlock, kScaleAt, kSecond);
  static constexpr Words32 kMins = words_of(kBlock, kMin ? kMinAt : 0, kSecond);

  template <int N>
  HWY_INLINE static __m512i packed(const std::byte* p, int n, __m128i& scale, __m128i& min) {
    const __m512i a = load<N>(p, n * kBlock), b = load<N>(p + kSecond, n * kBlock - kSecond);
    scale = F::scale(a, b);
    if constexpr (kMin) min = pick_words(kMins, a, b);
    return pick_bytes(kNibbles, a, b);
  }
  HWY_INLINE static __m128i scale(__m512i a, __m512i b) { return pick_words(kScales, a, b); }
  HWY_INLINE static __m512i value(__m512i code) { return code; }
  template <int N>
  HWY_INLINE static Codes codes(const std::byte* p, int n) {
    Codes c;
    const __m512i v = packed<N>(p, n, c.scale, c.min);
    c.low = F::value(low_nibbles(v));
    c.high = F::value(high_nibbles(v));
    return c;
  }
};

template <class F>
struct Integers;  // no others

template <>
struct Integers<Q4_0> : NibbleBase<Integers<Q4_0>, 18, 0, -1, 2, 8> {
  static constexpr int kZero = 8;
};
template <>
struct Integers<Q4_1> : NibbleBase<Integers<Q4_1>, 20, 0, 2, 4, 16> {
  static constexpr int kZero = 0;
};
template <>
struct Integers<IQ4_NL> : NibbleBase<Integers<IQ4_NL>, 18, 0, -1, 2, 8> {
  static constexpr int kZero = 0;
  HWY_INLINE static __m512i value(__m512i code) {
    const __m128i table = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), code);
  }
};
template <>
struct Integers<MXFP4> : NibbleBase<Integers<MXFP4>, 17, 0, -1, 1, 4> {
  static constexpr int kZero = 0;
  HWY_INLINE static __m512i value(__m512i code) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), code);
  }
  HWY_INLINE static __m128i scale(__m512i a, __m512i) {  // four bytes
    const __m128i index = _mm_setr_epi8(0, 17, 34, 51, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castsi512_si128(_mm512_permutexvar_epi8(_mm512_castsi128_si512(index), a));
  }
};

// Five bits: the fifth of 32 columns in four bytes.
template <class F, int kBlock, int kMinAt, int kBitsAt, int kNibblesAt, int kSecond>
struct FiveBase : NibbleBase<F, kBlock, 0, kMinAt, kNibblesAt, kSecond> {
  using Base = NibbleBase<F, kBlock, 0, kMinAt, kNibblesAt, kSecond>;
  template <int N>
  HWY_INLINE static Codes codes(const std::byte* p, int n) {
    Codes c = Base::template codes<N>(p, n);
    uint64_t low = 0, high = 0;
    for (int b = 0; b < n; ++b) {
      uint32_t bits;
      std::memcpy(&bits, p + b * kBlock + kBitsAt, sizeof bits);
      low |= uint64_t{bits & 0xffff} << 16 * b;
      high |= uint64_t{bits >> 16} << 16 * b;
    }
    const __m512i fifth = _mm512_set1_epi8(16);
    c.low = _mm512_mask_add_epi8(c.low, low, c.low, fifth);
    c.high = _mm512_mask_add_epi8(c.high, high, c.high, fifth);
    return c;
  }
};
template <>
struct Integers<Q5_0> : FiveBase<Integers<Q5_0>, 22, -1, 2, 6, 24> {
  static constexpr int kZero = 16;
};
template <>
struct Integers<Q5_1> : FiveBase<Integers<Q5_1>, 24, 2, 4, 8, 32> {
  static constexpr int kZero = 0;
};

template <>
struct Integers<Q8_0> {
  static constexpr int kBytes = 34;
  static constexpr bool kMin = false;
  static constexpr int kZero = 0;
  static constexpr Bytes64 kLow = bytes_of(34, 2, 0, 64), kHigh = bytes_of(34, 18, 8, 72);
  static constexpr Words32 kScales = words_of(34, 0, 64);
  template <int N>
  HWY_INLINE static Codes codes(const std::byte* p, int n) {
    const __m512i a = load<N>(p, n * 34), b = load<N>(p + 64, n * 34 - 64);
    Codes c;
    c.low = pick_bytes(kLow, a, b);
    c.high = pick_bytes(kHigh, load<N>(p + 8, n * 34 - 8), load<N>(p + 72, n * 34 - 72));
    c.scale = pick_words(kScales, a, b);
    return c;
  }
};

template <class F>
constexpr bool kNibbles = !std::is_same_v<F, Q8_0> && !std::is_same_v<F, Q5_0> && !std::is_same_v<F, Q5_1>;

// Stored scales of four rows as floats: lane b holds rows 0-3 of block b.
template <class F>
HWY_INLINE __m512 scales_of(const __m128i (&row)[4]) {
  const __m512i by_block = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if constexpr (std::is_same_v<F, MXFP4>) {
    const __m128i all =
        _mm_unpacklo_epi64(_mm_unpacklo_epi32(row[0], row[1]), _mm_unpacklo_epi32(row[2], row[3]));
    const __m512i e = _mm512_cvtepu8_epi32(all);
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __m512i bits = _mm512_mask_sllv_epi32(normal, _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2)),
                                                _mm512_set1_epi32(0x00200000), e);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi32(by_block, bits));
  } else {
    const __m256i all = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi64(row[0], row[1])),
                                                _mm_unpacklo_epi64(row[2], row[3]), 1);
    return _mm512_permutexvar_ps(by_block, _mm512_cvtph_ps(all));
  }
}

// --- one to three tokens: four rows at a time ---

// Lane b: the sums of the four 32-bit parts of lane b of each row.
HWY_INLINE __m512i sum_lanes(const __m512i (&v)[4]) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

HWY_INLINE __m512i products(__m512i sum, const uint8_t* q, const Codes& w) {
  sum = _mm512_dpbusd_epi32(sum, _mm512_load_si512(q), w.low);
  return _mm512_dpbusd_epi32(sum, _mm512_load_si512(q + 64), w.high);
}

template <class F, int T, bool kFine, int N>
HWY_INLINE void add_group(const std::byte* const* rows, int64_t offset, int n, const std::byte* const* x, __m512* sum) {
  using I = Integers<F>;
  Codes w[4];
  __m128i scale[4], min[4];
  for (int r = 0; r < 4; ++r) {
    for (int i = 0; i < 4 * I::kBytes; i += 64) __builtin_prefetch(rows[r] + offset + kAhead + i);
    w[r] = I::template codes<N>(rows[r] + offset, n);
    scale[r] = w[r].scale;
    min[r] = w[r].min;
  }
  const __m512 scales = scales_of<F>(scale);
  const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
  const __m512i ones = _mm512_set1_epi32(1);
  for (int t = 0; t < T; ++t) {
    const auto* group = reinterpret_cast<const DigitGroup*>(x[t]);
    const __m512i about = _mm512_load_si512(group->block);
    const __m512i zs = _mm512_permutexvar_epi32(_mm512_add_epi32(lane, ones), about);
    const __m512i z = _mm512_shuffle_epi8(zs, _mm512_setzero_si512());  // byte 0 of the lane's first
    __m512i s[4];
    for (int r = 0; r < 4; ++r) {
      s[r] = products(_mm512_setzero_si512(), group->q[0][0], w[r]);
      const __m512i minus =
          _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), z, w[r].low), z, w[r].high);
      s[r] = _mm512_sub_epi32(s[r], minus);
    }
    __m512i total = sum_lanes(s);
    if constexpr (I::kZero != 0) {
      total = _mm512_sub_epi32(total, _mm512_slli_epi32(_mm512_srai_epi32(zs, 16), I::kZero == 8 ? 3 : 4));
    }
    if constexpr (kFine) {
      const __m512i half = _mm512_set1_epi8(-128);
      for (int r = 0; r < 4; ++r) {
        s[r] = products(_mm512_setzero_si512(), static_cast<const FineDigitGroup*>(group)->low[0][0], w[r]);
        const __m512i minus =
            _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), half, w[r].low), half, w[r].high);
        s[r] = _mm512_sub_epi32(s[r], minus);
      }
      total = _mm512_add_epi32(_mm512_slli_epi32(total, 8), sum_lanes(s));
      if constexpr (I::kZero != 0) {
        const __m512i low = _mm512_permutexvar_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(3)), about);
        total = _mm512_sub_epi32(total, _mm512_slli_epi32(_mm512_srai_epi32(low, 16), I::kZero == 8 ? 3 : 4));
      }
    }
    const __m512 d = _mm512_castsi512_ps(_mm512_permutexvar_epi32(lane, about));
    sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_mul_ps(scales, d), sum[t]);
    if constexpr (I::kMin) {
      const __m512i x_sum = _mm512_permutexvar_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(2)), about);
      sum[t] = _mm512_fmadd_ps(scales_of<F>(min), _mm512_castsi512_ps(x_sum), sum[t]);
    }
  }
}

template <class F, int T, bool kFine>
void few_tokens(const Linear& op, int first, int64_t begin, int64_t end) {
  const int64_t blocks = op.weight.cols / 32;
  constexpr int64_t kGroupBytes = 4 * Integers<F>::kBytes;
  constexpr size_t kDigitBytes = kFine ? sizeof(FineDigitGroup) : sizeof(DigitGroup);
  for (int64_t row = begin; row < end; row += 4) {
    const std::byte* rows[4];
    for (int r = 0; r < 4; ++r) rows[r] = op.weight.row(std::min(row + r, end - 1));
    const std::byte* x[T];
    for (int t = 0; t < T; ++t) x[t] = op.digits.row(op.x_rows ? op.x_rows[first + t] : first + t);
    __m512 sum[T];
    for (int t = 0; t < T; ++t) sum[t] = _mm512_setzero_ps();
    const int64_t whole = blocks / 4 * kGroupBytes;
    for (int64_t offset = 0; offset < whole; offset += kGroupBytes) {
      add_group<F, T, kFine, 4>(rows, offset, 4, x, sum);
      for (int t = 0; t < T; ++t) x[t] += kDigitBytes;
    }
    if (blocks % 4) add_group<F, T, kFine, 0>(rows, whole, static_cast<int>(blocks % 4), x, sum);
    for (int t = 0; t < T; ++t) {
      __m128 v = _mm_add_ps(_mm512_castps512_ps128(sum[t]), _mm512_extractf32x4_ps(sum[t], 1));
      v = _mm_add_ps(_mm_add_ps(v, _mm512_extractf32x4_ps(sum[t], 2)), _mm512_extractf32x4_ps(sum[t], 3));
      v = _mm_mul_ps(v, _mm_set1_ps(op.weight.scale));
      if (op.scale) v = _mm_mul_ps(v, _mm_set1_ps(op.scale[first + t]));
      float* y = op.y + (op.y_rows ? op.y_rows[first + t] : first + t) * op.y_stride + row;
      const auto mask = static_cast<__mmask8>((1 << std::min<int64_t>(4, end - row)) - 1);
      if (op.add) v = _mm_add_ps(_mm_maskz_loadu_ps(mask, y), v);
      _mm_mask_storeu_ps(y, mask, v);
    }
  }
}

// --- many tokens: 64 rows unpacked to a panel, by six tokens ---

// 64 rows by 32 columns: of each four columns the codes of 16 rows and the next 16, then what belongs to rows.
struct alignas(64) PanelBlock {
  int8_t codes[8][kVectors][64];
  int16_t zero[kVectors][16][2];  // -Σ codes, -kZero: what z and the sum of digits are multiplied with
  float scale[kVectors][16];
  float min[kVectors][16];
};

HWY_INLINE void transpose_quads(__m512i (&v)[4]) {  // 4 x 4 words of 32 bits in each lane
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}
HWY_INLINE void transpose_lanes(__m512i a, __m512i b, __m512i c, __m512i d, __m512i (&out)[4]) {
  const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
  out[0] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
  out[1] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
  out[2] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
  out[3] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
}

// Four blocks of 16 rows into a quarter of four panel blocks; the bytes `ahead` of them are fetched. N as in load().
template <class F, int N>
HWY_INLINE void unpack_rows(const std::byte* const* rows, int64_t offset, int n, int64_t ahead, int quarter,
                            PanelBlock* panel) {
  using I = Integers<F>;
  constexpr int kParts = kNibbles<F> ? 1 : 2;  // what is transposed: nibbles, or the codes of either half
  __m512i quads[kParts][4][4];                 // [part][rows / 4][columns / 4], lanes are blocks
  __m512i scales[4], mins[4];
  for (int quad = 0; quad < 4; ++quad) {
    __m128i scale[4], min[4];
    for (int r = 0; r < 4; ++r) {
      const std::byte* p = rows[4 * quad + r] + offset;
      for (int i = 0; i < 4 * I::kBytes; i += 64) __builtin_prefetch(p + ahead + i);
      if constexpr (kNibbles<F>) {
        quads[0][quad][r] = I::template packed<N>(p, n, scale[r], min[r]);
      } else {
        const Codes c = I::template codes<N>(p, n);
        quads[0][quad][r] = c.low;
        quads[1][quad][r] = c.high;
        scale[r] = c.scale;
        min[r] = c.min;
      }
    }
    for (int part = 0; part < kParts; ++part) transpose_quads(quads[part][quad]);
    scales[quad] = _mm512_castps_si512(scales_of<F>(scale));
    if constexpr (I::kMin) mins[quad] = _mm512_castps_si512(scales_of<F>(min));
  }
  __m512i sums[4], by_block[4];
  for (int b = 0; b < 4; ++b) sums[b] = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  const auto store = [&](int step, int b, __m512i codes) PROA_VNNI_ATTR {
    _mm512_store_si512(panel[b].codes[step][quarter], codes);
    sums[b] = _mm512_dpbusd_epi32(sums[b], ones, codes);
  };
  for (int part = 0; part < kParts; ++part) {
    for (int j = 0; j < 4; ++j) {
      transpose_lanes(quads[part][0][j], quads[part][1][j], quads[part][2][j], quads[part][3][j], by_block);
      for (int b = 0; b < 4; ++b) {
        if constexpr (kNibbles<F>) {
          store(j, b, I::value(low_nibbles(by_block[b])));
          store(4 + j, b, I::value(high_nibbles(by_block[b])));
        } else {
          store(4 * part + j, b, by_block[b]);
        }
      }
    }
  }
  for (int b = 0; b < 4; ++b) {
    const __m512i minus = _mm512_and_si512(_mm512_sub_epi32(_mm512_setzero_si512(), sums[b]), _mm512_set1_epi32(0xffff));
    _mm512_store_si512(panel[b].zero[quarter], _mm512_or_si512(minus, _mm512_set1_epi32(-I::kZero * 65536)));
  }
  transpose_lanes(scales[0], scales[1], scales[2], scales[3], by_block);
  for (int b = 0; b < 4; ++b) _mm512_store_si512(panel[b].scale[quarter], by_block[b]);
  if constexpr (I::kMin) {
    transpose_lanes(mins[0], mins[1], mins[2], mins[3], by_block);
    for (int b = 0; b < 4; ++b) _mm512_store_si512(panel[b].min[quarter], by_block[b]);
  }
}

// Groups [begin, end) of 64 rows from `row` on, panel [end - begin, 4]; rows from `last` on repeat the one before. What
// will be unpacked next is fetched: the next groups of these rows, or the first of the next rows.
template <class F>
void unpack_panel(const Weight& weight, int64_t row, int64_t last, int64_t begin, int64_t end, PanelBlock* panel) {
  const int64_t blocks = weight.cols / 32;
  constexpr int64_t kGroupBytes = 4 * Integers<F>::kBytes;
  const int64_t ahead = 4 * end < blocks ? (end - begin) * kGroupBytes
                                         : kTileRows * static_cast<int64_t>(weight.row_stride) - begin * kGroupBytes;
  for (int quarter = 0; quarter < kVectors; ++quarter) {
    const std::byte* rows[16];
    for (int r = 0; r < 16; ++r) rows[r] = weight.row(std::min(row + 16 * quarter + r, last - 1));
    for (int64_t g = begin; g < end; ++g) {
      const int64_t left = blocks - 4 * g;
      if (left >= 4) {
        unpack_rows<F, 4>(rows, g * kGroupBytes, 4, ahead, quarter, panel + 4 * (g - begin));
      } else {
        unpack_rows<F, 0>(rows, g * kGroupBytes, static_cast<int>(left), ahead, quarter, panel + 4 * (g - begin));
      }
    }
  }
}

HWY_INLINE __m512i word(const std::byte* p) {  // in all lanes
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return _mm512_set1_epi32(value);
}

constexpr int kSums = 4 * kTileRows;  // of a token: four parts

// sums [N, 4, 64] += panel [groups, 4] · x[n] for N tokens, or = with `first`.
template <int N, bool kFine, bool kMin>
HWY_NOINLINE void multiply_tile(const PanelBlock* block, int64_t groups, const std::byte* const* tokens, float* sums,
                                bool first) {
  constexpr size_t kDigitBytes = kFine ? sizeof(FineDigitGroup) : sizeof(DigitGroup);
  if (first) std::memset(sums, 0, N * kSums * sizeof(float));
  const std::byte* x[N];
  for (int n = 0; n < N; ++n) x[n] = tokens[n];
  const size_t end = static_cast<size_t>(groups) * kDigitBytes;
  for (size_t group = 0; group != end; group += kDigitBytes) {
    for (size_t b = 0; b < 4; ++b, ++block) {
      const size_t at = group + 16 * b;  // both the digits and what is said of a block are 16 bytes
      __m512i acc[N][kVectors];
      const auto multiply = [&](size_t digits) PROA_VNNI_ATTR {
#pragma GCC unroll 8
        for (int step = 0; step < 8; ++step) {
          __m512i w[kVectors];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(block->codes[step][v]);
          const size_t column = digits + static_cast<size_t>(step / 4 * 64 + step % 4 * 4);
#pragma GCC unroll 6
          for (int n = 0; n < N; ++n) {
            const __m512i q = word(x[n] + at + column);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) acc[n][v] = _mm512_dpbusd_epi32(acc[n][v], q, w[v]);
          }
        }
      };
#pragma GCC unroll 6
      for (int n = 0; n < N; ++n) {
        const __m512i zs = word(x[n] + at + 128 + 4);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[n][v] = _mm512_madd_epi16(_mm512_load_si512(block->zero[v]), zs);
      }
      multiply(0);
      if constexpr (kFine) {
#pragma GCC unroll 6
        for (int n = 0; n < N; ++n) {
          const __m512i zs = word(x[n] + at + 128 + 12);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            acc[n][v] = _mm512_add_epi32(_mm512_slli_epi32(acc[n][v], 8),
                                         _mm512_madd_epi16(_mm512_load_si512(block->zero[v]), zs));
          }
        }
        multiply(sizeof(DigitGroup));
      }
      float* sum = sums + b * kTileRows;
#pragma GCC unroll 6
      for (int n = 0; n < N; ++n) {
        const __m512 d = _mm512_castsi512_ps(word(x[n] + at + 128));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          float* to = sum + n * kSums + 16 * v;
          __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[n][v]), _mm512_mul_ps(_mm512_load_ps(block->scale[v]), d),
                                         _mm512_load_ps(to));
          if constexpr (kMin) {
            const __m512 x_sum = _mm512_castsi512_ps(word(x[n] + at + 128 + 8));
            value = _mm512_fmadd_ps(_mm512_load_ps(block->min[v]), x_sum, value);
          }
          _mm512_store_ps(to, value);
        }
      }
    }
  }
}

template <bool kFine, bool kMin>
void multiply_tokens(int n, const PanelBlock* panel, int64_t groups, const std::byte* const* x, float* sums, bool first) {
  switch (n) {
    case 1: return multiply_tile<1, kFine, kMin>(panel, groups, x, sums, first);
    case 2: return multiply_tile<2, kFine, kMin>(panel, groups, x, sums, first);
    case 3: return multiply_tile<3, kFine, kMin>(panel, groups, x, sums, first);
    case 4: return multiply_tile<4, kFine, kMin>(panel, groups, x, sums, first);
    case 5: return multiply_tile<5, kFine, kMin>(panel, groups, x, sums, first);
    default: return multiply_tile<6, kFine, kMin>(panel, groups, x, sums, first);
  }
}

template <class F, bool kFine>
void many_tokens(const Linear& op, int64_t begin, int64_t end, std::byte* room) {
  auto* panel = reinterpret_cast<PanelBlock*>(room);
  auto* sums = reinterpret_cast<float*>(room + 4 * kChunk * sizeof(PanelBlock));  // [tokens, 4, 64]
  const int64_t groups = Digits::groups_of(op.weight.cols);
  const size_t digit_bytes = op.digits.group_bytes();
  for (int first = 0; first < op.num_tokens; first += kTokensAtOnce) {
    for (int64_t row = begin; row < end; row += kTileRows) {
      const int count = std::min(kTokensAtOnce, op.num_tokens - first);
      const int tiles = (count + kTokens - 1) / kTokens;
      for (int64_t g = 0; g < groups; g += kChunk) {
        const int64_t chunk = std::min<int64_t>(kChunk, groups - g);
        unpack_panel<F>(op.weight, row, end, g, g + chunk, panel);
        for (int tile = 0; tile < tiles; ++tile) {
          const int from = count * tile / tiles, to = count * (tile + 1) / tiles;
          const std::byte* x[kTokens];
          for (int t = from; t < to; ++t) {
            const int64_t x_row = op.x_rows ? op.x_rows[first + t] : first + t;
            x[t - from] = op.digits.row(x_row) + static_cast<size_t>(g) * digit_bytes;
          }
          multiply_tokens<kFine, Integers<F>::kMin>(to - from, panel, chunk, x, sums + kSums * from, g == 0);
        }
      }
      for (int t = 0; t < count; ++t) {
        const float factor = op.scale ? op.scale[first + t] : 1;
        float* y = op.y + (op.y_rows ? op.y_rows[first + t] : first + t) * op.y_stride + row;
        for (int v = 0; v < kVectors; ++v) {
          const float* c = sums + kSums * t + 16 * v;
          const int64_t left = std::clamp<int64_t>(end - row - 16 * v, 0, 16);
          const auto mask = static_cast<__mmask16>((1u << left) - 1);
          __m512 sum = _mm512_add_ps(_mm512_load_ps(c), _mm512_load_ps(c + kTileRows));
          sum = _mm512_add_ps(_mm512_add_ps(sum, _mm512_load_ps(c + 2 * kTileRows)), _mm512_load_ps(c + 3 * kTileRows));
          sum = _mm512_mul_ps(sum, _mm512_set1_ps(op.weight.scale));
          if (op.scale) sum = _mm512_mul_ps(sum, _mm512_set1_ps(factor));
          if (op.add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + 16 * v), sum);
          _mm512_mask_storeu_ps(y + 16 * v, mask, sum);
        }
      }
    }
  }
}

template <class F, bool kFine>
void rows_of(const Linear& op, int64_t begin, int64_t end, std::byte* room) {
  if (op.num_tokens > kFew) return many_tokens<F, kFine>(op, begin, end, room);
  switch (op.num_tokens) {
    case 1: return few_tokens<F, 1, kFine>(op, 0, begin, end);
    case 2: return few_tokens<F, 2, kFine>(op, 0, begin, end);
    case 3: return few_tokens<F, 3, kFine>(op, 0, begin, end);
    default: return;
  }
}

// 32 columns to block b of a group.
void round_block(const float* x, bool fine, DigitGroup& group, int b) {
  const __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16), none = _mm512_setzero_ps();
  const float least = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(x0, x1), none));
  const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(x0, x1), none));
  float d = (most - least) / 255;
  const float inverse = d >= FLT_MIN ? 1 / d : 0;
  if (inverse == 0 && d < 1) d = 0;  // subnormal
  const __m512 factor = _mm512_set1_ps(inverse);
  const __m512i z = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_set1_ps(-least), factor));
  const __m512i zero = _mm512_setzero_si512(), most_code = _mm512_set1_epi32(255);
  const auto bounded = [&](__m512i v) PROA_VNNI_ATTR { return _mm512_min_epi32(_mm512_max_epi32(v, zero), most_code); };
  const __m512 y0 = _mm512_mul_ps(x0, factor), y1 = _mm512_mul_ps(x1, factor);
  const __m512i q0 = bounded(_mm512_add_epi32(_mm512_cvtps_epi32(y0), z));
  const __m512i q1 = bounded(_mm512_add_epi32(_mm512_cvtps_epi32(y1), z));
  _mm_store_si128(reinterpret_cast<__m128i*>(group.q[0][b]), _mm512_cvtepi32_epi8(q0));
  _mm_store_si128(reinterpret_cast<__m128i*>(group.q[1][b]), _mm512_cvtepi32_epi8(q1));
  const int z_code = _mm512_cvtsi512_si32(z);
  const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1)) - 32 * z_code;
  DigitGroup::Block& about = group.block[b];
  about = {.d = d, .z = static_cast<int16_t>(z_code), .sum = static_cast<int16_t>(sum), .low_zero = 128, .low_sum = 0};
  int64_t all = sum;
  if (fine) {
    const __m512 parts = _mm512_set1_ps(256);
    const auto rest = [&](__m512 y, __m512i q) PROA_VNNI_ATTR {
      const __m512 left = _mm512_sub_ps(y, _mm512_cvtepi32_ps(_mm512_sub_epi32(q, z)));
      return bounded(_mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(left, parts)), _mm512_set1_epi32(128)));
    };
    const __m512i r0 = rest(y0, q0), r1 = rest(y1, q1);
    auto& low = static_cast<FineDigitGroup&>(group).low;
    _mm_store_si128(reinterpret_cast<__m128i*>(low[0][b]), _mm512_cvtepi32_epi8(r0));
    _mm_store_si128(reinterpret_cast<__m128i*>(low[1][b]), _mm512_cvtepi32_epi8(r1));
    about.d = d / 256;
    about.low_sum = static_cast<int16_t>(_mm512_reduce_add_epi32(_mm512_add_epi32(r0, r1)) - 32 * 128);
    all = 256 * all + about.low_sum;
  }
  // What is not finite shows in the result.
  const auto nan = static_cast<unsigned>(_mm512_cmp_ps_mask(x0, x0, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(x1, x1, _CMP_UNORD_Q));
  if (nan) about.d = std::numeric_limits<float>::quiet_NaN();
  about.x_sum = about.d * static_cast<float>(all);
}

}  // namespace

bool vnni_multiplies(Format format) {
  switch (format) {
    case Format::Q4_0:
    case Format::Q4_1:
    case Format::Q5_0:
    case Format::Q5_1:
    case Format::Q8_0:
    case Format::IQ4_NL:
    case Format::MXFP4: return true;
    default: return false;
  }
}

void vnni_round(const float* x, int64_t begin, int64_t end, int64_t cols, bool fine, std::byte* row) {
  const size_t group_bytes = fine ? sizeof(FineDigitGroup) : sizeof(DigitGroup);
  const auto group_of = [&](int64_t column) {
    return reinterpret_cast<DigitGroup*>(row + static_cast<size_t>(column / kDigitGroup) * group_bytes);
  };
  const auto block_of = [](int64_t column) { return static_cast<int>(column / 32 % 4); };
  for (int64_t c = begin; c < end; c += 32) round_block(x + c, fine, *group_of(c), block_of(c));
  if (end < cols) return;
  alignas(64) static constexpr float kZeros[32] = {};
  for (int64_t c = padded_cols(cols); c % kDigitGroup != 0; c += 32) round_block(kZeros, fine, *group_of(c), block_of(c));
}

size_t vnni_room(int64_t num_tokens) {
  if (num_tokens <= kFew) return 0;
  return 4 * kChunk * sizeof(PanelBlock) + kSums * sizeof(float) * static_cast<size_t>(std::min<int64_t>(num_tokens, kTokensAtOnce));
}

int64_t vnni_row_unit(int64_t num_tokens) { return num_tokens <= kFew ? 4 : kTileRows; }

void vnni_rows(const Linear& op, int64_t begin, int64_t end, std::byte* room) {
  if (begin >= end) return;
  const auto rows = [&](auto format) PROA_VNNI_ATTR {
    using F = decltype(format);
    return op.digits.fine ? rows_of<F, true>(op, begin, end, room) : rows_of<F, false>(op, begin, end, room);
  };
  switch (op.weight.format) {
    case Format::Q4_0: return rows(Q4_0());
    case Format::Q4_1: return rows(Q4_1());
    case Format::Q5_0: return rows(Q5_0());
    case Format::Q5_1: return rows(Q5_1());
    case Format::Q8_0: return rows(Q8_0());
    case Format::IQ4_NL: return rows(IQ4_NL());
    case Format::MXFP4: return rows(MXFP4());
    default: assert(false && "a format that vnni_multiplies() refuses");
  }
}

}  // namespace proa
HWY_POP_ATTRIBUTES

#else

namespace proa {

bool vnni_multiplies(Format) { return false; }
void vnni_round(const float*, int64_t, int64_t, int64_t, bool, std::byte*) {}
size_t vnni_room(int64_t) { return 0; }
int64_t vnni_row_unit(int64_t) { return 4; }
void vnni_rows(const Linear&, int64_t, int64_t, std::byte*) {}

}  // namespace proa

#endif
