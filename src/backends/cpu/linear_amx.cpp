#include "backends/cpu/linear_amx.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "backends/cpu/code_values.h"
#include "backends/cpu/linear_bf16.h"
#include "backends/cpu/linear_vnni.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hwy/base.h"

// g++ 12 finds values without a beginning in its own headers (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define PROA_AMX \
  "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx512fp16,amx-tile,amx-bf16"
#define PROA_AMX_ATTR __attribute__((target(PROA_AMX)))  // of lambdas, which clang's pragma leaves out
HWY_PUSH_ATTRIBUTES(PROA_AMX)
#include "backends/cpu/bf16_blocks-inl.h"
namespace proa {
namespace {

// Weights are the left factor, 16 rows by 32 columns as they come from their blocks; tokens the right one, 16 pairs of
// columns by up to 16 tokens. Two tiles of each feed four sums, which hides how long one takes to be added to. Tiles of
// the unit: sums 0-3, weights 4 and 5, tokens 6 and 7.
constexpr int kTokens = 16;
constexpr int kSteps = 8;         // of 32 columns that are unpacked at once: 16 KiB, a part of the first-level cache
constexpr int kAhead = 12;        // steps to fetch ahead
constexpr int kMostTokens = 128;  // at once
constexpr int64_t kTokenBytes = 3 << 18;  // and what they may take in the second-level cache

// --- formats of eight bits and less, each value times its scale rounded ---

struct Values16f {
  alignas(64) float at[16];
};
constexpr Values16f kCount = table_of<Values16f>([](int code) { return code; });
constexpr Values16f kCountQ4 = table_of<Values16f>([](int code) { return code - 8; });
constexpr Values16f kCountIq4 = table_of<Values16f>([](int code) { return iq4_value(code); });

HWY_INLINE __m512i short_values(__m512 low, __m512 high) {  // 16 and 16 floats
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// A stored half in all lanes as a float.
HWY_INLINE __m512 half_at(const std::byte* p) {
  _Float16 half;
  std::memcpy(&half, p, sizeof half);
  return _mm512_cvtxph_ps(_mm256_set1_ph(half));
}

// Two rows at a time: the values of both are rounded by one instruction, and looked up in one vector.
HWY_INLINE void by_nibbles(__m512i first, __m512 first_values, __m512i second, __m512 second_values, __m512i* w) {
  const __m512i values = short_values(first_values, second_values);
  const __m512i low = _mm512_set1_epi16(15);
  w[0] = _mm512_permutexvar_epi16(_mm512_and_si512(first, low), values);
  // (second & 15) | 16
  w[1] = _mm512_permutexvar_epi16(_mm512_ternarylogic_epi64(second, low, _mm512_set1_epi16(16), 0xea), values);
}
template <int kBytes>
HWY_INLINE void by_nibbles(const Values16f& codes, const Row* rows, int64_t i, __m512i* w) {
  const std::byte *a = rows[0].data + kBytes * i, *b = rows[1].data + kBytes * i;
  const __m512 values = _mm512_load_ps(codes.at);
  by_nibbles(nibbles(a + 2, kHalves), _mm512_mul_ps(values, half_at(a)), nibbles(b + 2, kHalves),
             _mm512_mul_ps(values, half_at(b)), w);
}

// Values of five bits: with the fifth of each column in four bytes.
HWY_INLINE __m512i by_fives(const std::byte* p, const std::byte* bits, __m512 low, __m512 high) {
  uint32_t fifth;
  std::memcpy(&fifth, bits, sizeof fifth);
  const __m512i code = _mm512_and_si512(nibbles(p, kHalves), _mm512_set1_epi16(15));
  return _mm512_permutexvar_epi16(_mm512_mask_add_epi16(code, fifth, code, _mm512_set1_epi16(16)),
                                  short_values(low, high));
}

// unpack(format, rows, i, w): block i of two rows, or of one as the others have it.
HWY_INLINE void unpack(Q4_0, const Row* rows, int64_t i, __m512i* w) { by_nibbles<18>(kCountQ4, rows, i, w); }
HWY_INLINE void unpack(IQ4_NL, const Row* rows, int64_t i, __m512i* w) { by_nibbles<18>(kCountIq4, rows, i, w); }
HWY_INLINE void unpack(Q4_1, const Row* rows, int64_t i, __m512i* w) {
  const std::byte *a = rows[0].data + 20 * i, *b = rows[1].data + 20 * i;
  const __m512 count = _mm512_load_ps(kCount.at);
  by_nibbles(nibbles(a + 4, kHalves), _mm512_fmadd_ps(count, half_at(a), half_at(a + 2)), nibbles(b + 4, kHalves),
             _mm512_fmadd_ps(count, half_at(b), half_at(b + 2)), w);
}
HWY_INLINE __m512i unpack(MXFP4, const Row& row, int64_t i) {
  const std::byte* p = row.data + 17 * i;
  const uint16_t* products = kE8M0Products.at[static_cast<uint8_t>(*p)];
  const __m512i values = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(products)));
  return _mm512_permutexvar_epi16(nibbles(p + 1, kHalves), values);  // bit 4 chooses between equals
}
HWY_INLINE __m512i unpack(Q5_0, const Row& row, int64_t i) {
  const std::byte* p = row.data + 22 * i;
  const __m512 scale = half_at(p), count = _mm512_load_ps(kCount.at);
  return by_fives(p + 6, p + 2, _mm512_mul_ps(_mm512_sub_ps(count, _mm512_set1_ps(16)), scale),
                  _mm512_mul_ps(count, scale));
}
HWY_INLINE __m512i unpack(Q5_1, const Row& row, int64_t i) {
  const std::byte* p = row.data + 24 * i;
  const __m512 scale = half_at(p), min = half_at(p + 2);
  const __m512 count = _mm512_load_ps(kCount.at);
  return by_fives(p + 8, p + 4, _mm512_fmadd_ps(count, scale, min),
                  _mm512_fmadd_ps(_mm512_add_ps(count, _mm512_set1_ps(16)), scale, min));
}
HWY_INLINE __m512i unpack(Q8_0, const Row& row, int64_t i) {
  const std::byte* p = row.data + 34 * i;
  const __m512 scale = half_at(p);
  const auto part = [&](int at) PROA_AMX_ATTR {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + at));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale);
  };
  return short_values(part(2), part(18));
}

// --- products ---

// g++'s intrinsics do not say that tiles and their configuration are read from memory: what was stored before is there.
HWY_INLINE void written() { asm volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// For `tokens` in a tile.
void configure(int tokens) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = 16;
    config.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? 64 : 4 * tokens);
  }
  written();
  _tile_loadconfig(&config);
}

// Weights: of each step of 32 columns the rows of the left tiles.
struct Panel {
  alignas(64) uint16_t at[kSteps][kAmxRows][32];
};
// Four sums: first or second 16 rows, by first or second tokens.
struct Sums {
  alignas(64) float at[2][2][16][kTokens];
};

// Tokens: of each kSteps steps all tiles, each [steps][16 pairs of columns][tokens of a tile], so that what follows
// each other in time follows in memory. `low`, if it is there, has what `high` leaves of them.
struct Right {
  const std::byte* high = nullptr;
  const std::byte* low = nullptr;
  int width = 0;  // tokens of a tile
  int tiles = 0;

  int64_t step_bytes() const { return 64 * width; }
  int64_t tile_bytes() const { return kSteps * step_bytes(); }
  int64_t offset(int64_t step, int tile) const { return (step / kSteps * tiles + tile) * tile_bytes(); }
};

template <int kTiles>
HWY_INLINE void multiply_step(const std::byte* right, int64_t tile_bytes, int64_t stride) {
  _tile_loadd(6, right, stride);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 5, 6);
  if constexpr (kTiles == 2) {
    _tile_loadd(7, right + tile_bytes, stride);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// The panel by one or two tiles of tokens, for `steps`: sums += or, with `first`, =.
template <int kTiles, bool kFine>
HWY_NOINLINE void multiply(const Panel& panel, int64_t steps, const Right& right, int64_t offset, bool first,
                           Sums& sums) {
  written();
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTiles == 2) _tile_zero(2);
    if constexpr (kTiles == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, sums.at[0][0], 64);
    _tile_loadd(1, sums.at[1][0], 64);
    if constexpr (kTiles == 2) _tile_loadd(2, sums.at[0][1], 64);
    if constexpr (kTiles == 2) _tile_loadd(3, sums.at[1][1], 64);
  }
  const int64_t step_bytes = right.step_bytes(), tile_bytes = right.tile_bytes(), stride = step_bytes / 16;
  for (int64_t step = 0; step < steps; ++step, offset += step_bytes) {
    _tile_loadd(4, panel.at[step], 64);
    _tile_loadd(5, panel.at[step][16], 64);
    multiply_step<kTiles>(right.high + offset, tile_bytes, stride);
    if constexpr (kFine) multiply_step<kTiles>(right.low + offset, tile_bytes, stride);
  }
  _tile_stored(0, sums.at[0][0], 64);
  _tile_stored(1, sums.at[1][0], 64);
  if constexpr (kTiles == 2) _tile_stored(2, sums.at[0][1], 64);
  if constexpr (kTiles == 2) _tile_stored(3, sums.at[1][1], 64);
}

// unpack(), for one row or two.
template <class F>
constexpr bool kByTwo = requires(__m512i* w) { unpack(F(), static_cast<const Row*>(nullptr), int64_t(), w); };

// Steps [begin, end), at most kSteps.
template <class F>
void unpack_panel(const Row* rows, const Weight& weight, int64_t begin, int64_t end, Panel& panel) {
  const int64_t steps = weight.cols / 32;
  for (int64_t step = begin; step < end; ++step) {
    // What is read kAhead steps later, of these rows or of the next.
    const int64_t ahead = step + kAhead < steps
                              ? kAhead * kBlockBytes<F>
                              : kAmxRows * static_cast<int64_t>(weight.row_stride) + (kAhead - steps) * kBlockBytes<F>;
    uint16_t(*to)[32] = panel.at[step - begin];
#pragma GCC unroll 2
    for (int r = 0; r < kAmxRows; r += 2) {
      __m512i w[2];
      if constexpr (kByTwo<F>) {
        unpack(F(), rows + r, step, w);
      } else {
        for (int i = 0; i < 2; ++i) w[i] = unpack(F(), rows[r + i], step);
      }
      for (int i = 0; i < 2; ++i) {
        __builtin_prefetch(rows[r + i].data + step * kBlockBytes<F> + ahead);
        _mm512_store_si512(to[r + i], w[i]);
      }
    }
  }
}

// 16 rows of tokens [token, token + count) to y.
void put_tile(const Linear& op, int token, int count, int64_t row, int64_t end, __m512 factors,
              const float (*sums)[kTokens]) {
  __m512i v[16], w[4][4];
  for (int r = 0; r < 16; ++r) v[r] = _mm512_load_si512(sums[r]);
  transpose(v, w);
  for (int t = 0; t < count; ++t) put(op, token + t, row, end, factors, _mm512_castsi512_ps(w[t % 4][t / 4]));
}

// Tokens from `first` on, `count` of them, side by side as Right has them.
void pack(const Linear& op, int first, int count, bool low, const Right& right, std::byte* to) {
  const int64_t steps = op.weight.cols / 32;
  const auto mask = static_cast<__mmask16>((1u << right.width) - 1);
  for (int tile = 0; tile < right.tiles; ++tile) {
    const int begin = tile * right.width;
    const uint16_t* x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = begin + t < count ? input(op, first + begin + t, low) : nullptr;
    for (int64_t step = 0; step < steps; ++step) {
      __m512i v[16], w[4][4];
      for (int t = 0; t < kTokens; ++t) v[t] = x[t] ? _mm512_loadu_si512(x[t] + 32 * step) : _mm512_setzero_si512();
      transpose(v, w);
      std::byte* pairs = to + right.offset(step, tile) + step % kSteps * right.step_bytes();
      for (int pair = 0; pair < 16; ++pair, pairs += 4 * right.width) {
        _mm512_mask_storeu_epi32(pairs, mask, w[pair % 4][pair / 4]);
      }
    }
  }
}

int64_t tokens_at_once(int64_t cols) {
  return std::clamp<int64_t>(kTokenBytes / (2 * std::max<int64_t>(cols, 1)) / (2 * kTokens) * (2 * kTokens),
                             2 * kTokens, kMostTokens);
}

int64_t pairs_of(int64_t tokens) { return (tokens + 2 * kTokens - 1) / (2 * kTokens); }

template <class F, bool kFine>
void rows_of(const Linear& op, int64_t begin, int64_t end, std::byte* room) {
  const int64_t steps = op.weight.cols / 32;
  const auto at_once = static_cast<int>(std::min<int64_t>(op.num_tokens, tokens_at_once(op.weight.cols)));
  Panel& panel = *reinterpret_cast<Panel*>(room);
  auto* sums = reinterpret_cast<Sums*>(room + sizeof(Panel));  // [pairs of tiles]
  std::byte* packed = room + sizeof(Panel) + static_cast<size_t>(pairs_of(at_once)) * sizeof(Sums);
  for (int token = 0; token < op.num_tokens; token += at_once) {
    const int count = std::min(at_once, op.num_tokens - token), width = std::min(count, kTokens);
    Right right{.high = packed, .width = width, .tiles = (count + width - 1) / width};
    if constexpr (kFine) right.low = packed + right.offset(steps + kSteps - 1, 0);
    if (count == 1) {  // side by side as they are
      right.high = reinterpret_cast<const std::byte*>(input(op, token, false));
      if constexpr (kFine) right.low = reinterpret_cast<const std::byte*>(input(op, token, true));
    } else {
      pack(op, token, count, false, right, packed);
      if constexpr (kFine) pack(op, token, count, true, right, packed + (right.low - right.high));
    }
    configure(width);
    for (int64_t row = begin; row < end; row += kAmxRows) {
      Row rows[kAmxRows];
      rows_from<kAmxRows>(op.weight, row, end, rows);
      for (int64_t from = 0; from < steps; from += kSteps) {
        const int64_t to = std::min(steps, from + kSteps);
        unpack_panel<F>(rows, op.weight, from, to, panel);
        for (int tile = 0; tile < right.tiles; tile += 2) {
          const auto run = tile + 1 < right.tiles ? multiply<2, kFine> : multiply<1, kFine>;
          run(panel, to - from, right, right.offset(from, tile), from == 0, sums[tile / 2]);
        }
      }
      for (int half = 0; half < 2; ++half) {
        const int64_t first_row = row + 16 * half;
        if (first_row >= end) break;
        const __m512 factors = factors_of(op.weight, first_row, end);
        for (int tile = 0; tile < right.tiles; ++tile) {
          const int first = tile * width;
          put_tile(op, token + first, std::min(width, count - first), first_row, end, factors,
                   sums[tile / 2].at[half][tile % 2]);
        }
      }
    }
  }
  _tile_release();
}

}  // namespace

MatrixUnit matrix_unit() {
  static const MatrixUnit unit = [] {
    unsigned eax, ebx, ecx, edx;
    MatrixUnit found;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx >> 24 & 1)) return found;
    // The system keeps tiles for a process only once that has asked: ARCH_REQ_XCOMP_PERM for component 18.
    if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return found;
    found = {.int8 = (edx >> 25 & 1) != 0, .bf16 = (edx >> 22 & 1) != 0};
    found.kernels = found.bf16 && (edx >> 23 & 1);
    return found;
  }();
  return unit;
}

bool amx_multiplies(Format format, int64_t cols, const Scales& scales) {
  return bf16_multiplies(format, cols, scales) || (vnni_multiplies(format) && scales.group == 0);
}

size_t amx_room(int64_t cols, int64_t num_tokens) {
  const auto pairs = static_cast<size_t>(pairs_of(std::min(num_tokens, tokens_at_once(cols))));
  const auto padded = static_cast<size_t>((cols / 32 + kSteps - 1) / kSteps * kSteps * 32);
  return sizeof(Panel) + pairs * (sizeof(Sums) + 2 * kTokens * 2 * sizeof(uint16_t) * padded);  // high and low
}

void amx_rows(const Linear& op, int64_t begin, int64_t end, std::byte* room) {
  if (begin >= end || op.num_tokens == 0) return;
  const auto rows = [&](auto format) PROA_AMX_ATTR {
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
    case Format::Q4_0:
      return rows(Q4_0());
    case Format::Q4_1:
      return rows(Q4_1());
    case Format::Q5_0:
      return rows(Q5_0());
    case Format::Q5_1:
      return rows(Q5_1());
    case Format::Q8_0:
      return rows(Q8_0());
    case Format::IQ4_NL:
      return rows(IQ4_NL());
    case Format::MXFP4:
      return rows(MXFP4());
    default:
      assert(false && "a format that amx_multiplies() refuses");
  }
}

}  // namespace proa
HWY_POP_ATTRIBUTES

#else

namespace proa {

MatrixUnit matrix_unit() { return {}; }
bool amx_multiplies(Format, int64_t, const Scales&) { return false; }
size_t amx_room(int64_t, int64_t) { return 0; }
void amx_rows(const Linear&, int64_t, int64_t, std::byte*) {}

}  // namespace proa

#endif
