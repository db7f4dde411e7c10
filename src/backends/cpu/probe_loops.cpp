#include "backends/cpu/probe_loops.h"

#include <cstring>
#include <vector>

#include "backends/cpu/linear_amx.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

// A loop that the compiler unrolls no further than it is written: an iteration is an iteration in machine code too.
#if defined(__clang__)
#define PROA_AS_WRITTEN _Pragma("clang loop unroll(disable)")
#define PROA_UNROLLED _Pragma("clang loop unroll(full)")
#else
#define PROA_AS_WRITTEN _Pragma("GCC unroll 1")
#define PROA_UNROLLED _Pragma("GCC unroll 32")
#endif
#define PROA_LOOP(...) __attribute__((target(__VA_ARGS__), noinline, no_sanitize("address", "undefined", "thread")))

namespace proa {

// Not anonymous: the symbols must be found in the program.
namespace probe_loop {

// Vectors of 16 bytes as compilers write them for any machine.
using U = uint64_t __attribute__((vector_size(16)));
using F = float __attribute__((vector_size(16)));

__attribute__((noinline)) uint64_t fold_bytes(const void* bytes, size_t count) {
  uint64_t result = 0;
  for (size_t i = 0; i < count; i += 8) {
    uint64_t word;
    std::memcpy(&word, static_cast<const char*>(bytes) + i, sizeof word);
    result = result * 31 + word;
  }
  return result;
}

// One number that depends on all sums. They are copied, since an array whose address is taken stays in memory.
template <typename Vector, int kCount>
__attribute__((always_inline)) inline uint64_t fold(const Vector (&sums)[kCount]) {
  Vector copy[kCount];
  PROA_UNROLLED
  for (int i = 0; i < kCount; ++i) copy[i] = sums[i];
  return fold_bytes(copy, sizeof copy);
}

// The compiler may assume nothing of `x` from here on, so it computes what follows from it every time.
#if defined(__x86_64__)
#define PROA_OPAQUE(x) asm volatile("" : "+v"(x))
#elif defined(__aarch64__)
#define PROA_OPAQUE(x) asm volatile("" : "+w"(x))
#else
#define PROA_OPAQUE(x) asm volatile("" : "+m"(x))
#endif

// Sums that begin alike and grow alike are one sum to a compiler.
#define PROA_DISTINCT(sums) \
  PROA_UNROLLED             \
  for (auto& sum : sums) PROA_OPAQUE(sum)

// Each iteration reads 256 bytes, more would spill: kStreams places at once, kAhead bytes fetched ahead of each (0:
// left to the hardware).
template <int kStreams, int kAhead>
__attribute__((noinline, no_sanitize("address", "undefined", "thread"))) uint64_t read_plain(const std::byte* memory,
                                                                                             size_t bytes) {
  constexpr int kStep = 256 / kStreams;
  constexpr int kSums = 8;
  const size_t part = bytes / kStreams;
  U sums[kSums] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (size_t i = 0; i < part; i += kStep) {
    PROA_UNROLLED
    for (int j = 0; j < 16; ++j) {
      const int stream = j / (16 / kStreams), offset = j % (16 / kStreams) * 16;
      const std::byte* p = memory + static_cast<size_t>(stream) * part + i + offset;
      if (kAhead && offset % 64 == 0) __builtin_prefetch(p + kAhead);
      sums[j % kSums] ^= *reinterpret_cast<const U*>(p);
    }
  }
  return fold(sums);
}

#if !defined(__aarch64__)

// Products and sums of machines without a better loop here: two instructions each.
__attribute__((noinline)) uint64_t f32_plain(int64_t iterations) {
  constexpr int kSums = 8;
  F a = {1.5f, 1.5f, 1.5f, 1.5f}, sums[kSums] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSums; ++i) {
      F product = a * a;
      sums[i] += product;
      PROA_OPAQUE(a);
    }
  }
  return fold(sums);
}

#endif

#if defined(__x86_64__)

// 512 bytes each.
template <int kStreams, int kAhead>
PROA_LOOP("avx2")
uint64_t read_avx2(const std::byte* memory, size_t bytes) {
  constexpr int kStep = 512 / kStreams;
  constexpr int kSums = 8;
  const size_t part = bytes / kStreams;
  __m256i sums[kSums] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (size_t i = 0; i < part; i += kStep) {
    PROA_UNROLLED
    for (int j = 0; j < 16; ++j) {
      const int stream = j / (16 / kStreams), offset = j % (16 / kStreams) * 32;
      const std::byte* p = memory + static_cast<size_t>(stream) * part + i + offset;
      if (kAhead && offset % 64 == 0) _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
      sums[j % kSums] = _mm256_xor_si256(sums[j % kSums], _mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
    }
  }
  return fold(sums);
}

template <int kStreams, int kAhead>
PROA_LOOP("avx512f")
uint64_t read_avx512(const std::byte* memory, size_t bytes) {
  constexpr int kStep = 512 / kStreams;
  constexpr int kSums = 8;
  const size_t part = bytes / kStreams;
  __m512i sums[kSums] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (size_t i = 0; i < part; i += kStep) {
    PROA_UNROLLED
    for (int j = 0; j < 8; ++j) {
      const int stream = j / (8 / kStreams), offset = j % (8 / kStreams) * 64;
      const std::byte* p = memory + static_cast<size_t>(stream) * part + i + offset;
      if (kAhead) _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
      sums[j] = _mm512_xor_si512(sums[j], _mm512_load_si512(p));
    }
  }
  return fold(sums);
}

// Two units of four to five cycles each want ten sums under way; sixteen registers hold twelve and the factors.
PROA_LOOP("avx2,fma") uint64_t f32_avx2(int64_t iterations) {
  constexpr int kSums = 12;
  __m256 a = _mm256_set1_ps(1.5f), b = _mm256_set1_ps(0.25f), sums[kSums] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_fmadd_ps(a, b, sums[i]);
  }
  return fold(sums);
}

constexpr int kSums512 = 16;

PROA_LOOP("avx512f") uint64_t f32_avx512(int64_t iterations) {
  __m512 a = _mm512_set1_ps(1.5f), b = _mm512_set1_ps(0.25f), sums[kSums512] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSums512; ++i) sums[i] = _mm512_fmadd_ps(a, b, sums[i]);
  }
  return fold(sums);
}

// Products of bytes to 16 bits, pairs of those to 32 bits, and their sum: three instructions.
PROA_LOOP("avx2") uint64_t int8_avx2(int64_t iterations) {
  constexpr int kSums = 8;
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1), sums[kSums] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSums; ++i) {
      PROA_OPAQUE(a);
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  }
  return fold(sums);
}

PROA_LOOP("avx2,avxvnni") uint64_t int8_avxvnni(int64_t iterations) {
  constexpr int kSums = 12;
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5), sums[kSums] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_dpbusd_avx_epi32(sums[i], a, b);
  }
  return fold(sums);
}

PROA_LOOP("avx512f,avx512vnni") uint64_t int8_avx512(int64_t iterations) {
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5), sums[kSums512] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSums512; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
  }
  return fold(sums);
}

PROA_LOOP("avx512f,avx512bw,avx512vl,avx512bf16") uint64_t bf16_avx512(int64_t iterations) {
  const __m512i words = _mm512_set1_epi16(0x3f80);  // 1.0
  __m512bh a, b;
  std::memcpy(&a, &words, sizeof a);
  std::memcpy(&b, &words, sizeof b);
  __m512 sums[kSums512] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSums512; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
  }
  return fold(sums);
}

// Eight tiles of 16 rows of 64 bytes. Four sums cover the latency of the unit, which takes a product every 16 cycles.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

#define PROA_TILES(product)                                               \
  const TileConfig config;                                                \
  _tile_loadconfig(&config);                                              \
  alignas(64) uint8_t tile[16 * 64];                                      \
  for (size_t i = 0; i < sizeof tile; ++i) tile[i] = i % 2 ? 0x3f : 0x80; \
  _tile_zero(0);                                                          \
  _tile_zero(1);                                                          \
  _tile_zero(2);                                                          \
  _tile_zero(3);                                                          \
  _tile_loadd(4, tile, 64);                                               \
  _tile_loadd(5, tile, 64);                                               \
  _tile_loadd(6, tile, 64);                                               \
  _tile_loadd(7, tile, 64);                                               \
  PROA_AS_WRITTEN                                                         \
  for (; iterations > 0; --iterations) {                                  \
    product(0, 4, 6);                                                     \
    product(1, 4, 7);                                                     \
    product(2, 5, 6);                                                     \
    product(3, 5, 7);                                                     \
  }                                                                       \
  uint64_t result = 0;                                                    \
  _tile_stored(0, tile, 64);                                              \
  result = result * 31 + fold_bytes(tile, sizeof tile);                   \
  _tile_stored(1, tile, 64);                                              \
  result = result * 31 + fold_bytes(tile, sizeof tile);                   \
  _tile_stored(2, tile, 64);                                              \
  result = result * 31 + fold_bytes(tile, sizeof tile);                   \
  _tile_stored(3, tile, 64);                                              \
  result = result * 31 + fold_bytes(tile, sizeof tile);                   \
  _tile_release();                                                        \
  return result

PROA_LOOP("amx-tile,amx-int8") uint64_t int8_amx(int64_t iterations) { PROA_TILES(_tile_dpbssd); }
PROA_LOOP("amx-tile,amx-bf16") uint64_t bf16_amx(int64_t iterations) { PROA_TILES(_tile_dpbf16ps); }

#elif defined(__aarch64__)

constexpr int kSumsNeon = 16;

__attribute__((noinline)) uint64_t f32_neon(int64_t iterations) {
  float32x4_t a = vdupq_n_f32(1.5f), b = vdupq_n_f32(0.25f), sums[kSumsNeon] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSumsNeon; ++i) sums[i] = vfmaq_f32(sums[i], a, b);
  }
  return fold(sums);
}

PROA_LOOP("arch=armv8.2-a+fp16+dotprod") uint64_t int8_dotprod(int64_t iterations) {
  int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(5);
  int32x4_t sums[kSumsNeon] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSumsNeon; ++i) sums[i] = vdotq_s32(sums[i], a, b);
  }
  return fold(sums);
}

PROA_LOOP("arch=armv8.2-a+fp16+i8mm") uint64_t int8_i8mm(int64_t iterations) {
  int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(5);
  int32x4_t sums[kSumsNeon] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSumsNeon; ++i) sums[i] = vmmlaq_s32(sums[i], a, b);
  }
  return fold(sums);
}

PROA_LOOP("arch=armv8.2-a+fp16+bf16") uint64_t bf16_mmla(int64_t iterations) {
  bfloat16x8_t a = vreinterpretq_bf16_u16(vdupq_n_u16(0x3f80)), b = a;
  float32x4_t sums[kSumsNeon] = {};
  PROA_DISTINCT(sums);
  PROA_AS_WRITTEN
  for (; iterations > 0; --iterations) {
    PROA_UNROLLED
    for (int i = 0; i < kSumsNeon; ++i) sums[i] = vbfmmlaq_f32(sums[i], a, b);
  }
  return fold(sums);
}

#endif

}  // namespace probe_loop

namespace {

#if defined(__x86_64__)

struct Has {
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  bool avx512_vnni = false, avx512_bf16 = false, avx_vnni = false, amx_int8 = matrix_unit().int8,
       amx_bf16 = matrix_unit().bf16;

  Has() {
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
      avx512_vnni = avx512 && (ecx >> 11 & 1);
    }
    if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
      avx_vnni = avx2 && (eax >> 4 & 1);
      avx512_bf16 = avx512 && (eax >> 5 & 1);
    }
  }
};

#elif defined(__aarch64__)

struct Has {
  bool dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  bool i8mm = getauxval(AT_HWCAP2) & HWCAP2_I8MM;
  bool bf16 = getauxval(AT_HWCAP2) & HWCAP2_BF16;
};

#endif

std::vector<ProbeLoop> find_loops() {
  using namespace probe_loop;
  std::vector<ProbeLoop> loops;
  const auto read = [&](const char* name, double work, uint64_t (*loop)(const std::byte*, size_t)) {
    loops.push_back({name, Probe::read, work, loop, nullptr});
  };
  const auto compute = [&](bool has, const char* name, Probe what, double work, uint64_t (*loop)(int64_t)) {
    if (has) loops.push_back({name, what, work, nullptr, loop});
  };
#if defined(__x86_64__)
  const Has has;
  if (has.avx512) {
    read("read_avx512<1, 0>", 512, read_avx512<1, 0>);
    read("read_avx512<1, 1024>", 512, read_avx512<1, 1024>);
    read("read_avx512<1, 4096>", 512, read_avx512<1, 4096>);
    read("read_avx512<4, 0>", 512, read_avx512<4, 0>);
    read("read_avx512<4, 1024>", 512, read_avx512<4, 1024>);
  }
  if (has.avx2) {
    read("read_avx2<1, 0>", 512, read_avx2<1, 0>);
    read("read_avx2<1, 1024>", 512, read_avx2<1, 1024>);
    read("read_avx2<4, 0>", 512, read_avx2<4, 0>);
  } else {
    read("read_plain<1, 0>", 256, read_plain<1, 0>);
    read("read_plain<1, 1024>", 256, read_plain<1, 1024>);
    read("read_plain<4, 0>", 256, read_plain<4, 0>);
  }
  compute(has.amx_int8, "int8_amx", Probe::int8, 4 * 32768, int8_amx);
  compute(has.avx512_vnni, "int8_avx512", Probe::int8, 16 * 128, int8_avx512);
  compute(has.avx_vnni, "int8_avxvnni", Probe::int8, 12 * 64, int8_avxvnni);
  compute(has.avx2, "int8_avx2", Probe::int8, 8 * 64, int8_avx2);
  compute(has.amx_bf16, "bf16_amx", Probe::bf16, 4 * 16384, bf16_amx);
  compute(has.avx512_bf16, "bf16_avx512", Probe::bf16, 16 * 64, bf16_avx512);
  compute(has.avx512, "f32_avx512", Probe::f32, 16 * 32, f32_avx512);
  compute(has.avx2, "f32_avx2", Probe::f32, 12 * 16, f32_avx2);
  compute(!has.avx2, "f32_plain", Probe::f32, 8 * 8, f32_plain);
#else
  read("read_plain<1, 0>", 256, read_plain<1, 0>);
  read("read_plain<1, 1024>", 256, read_plain<1, 1024>);
  read("read_plain<1, 4096>", 256, read_plain<1, 4096>);
  read("read_plain<4, 0>", 256, read_plain<4, 0>);
  read("read_plain<4, 1024>", 256, read_plain<4, 1024>);
#if defined(__aarch64__)
  const Has has;
  compute(has.i8mm, "int8_i8mm", Probe::int8, 16 * 64, int8_i8mm);
  compute(has.dotprod, "int8_dotprod", Probe::int8, 16 * 32, int8_dotprod);
  compute(has.bf16, "bf16_mmla", Probe::bf16, 16 * 32, bf16_mmla);
  compute(true, "f32_neon", Probe::f32, 16 * 8, f32_neon);
#else
  compute(true, "f32_plain", Probe::f32, 8 * 8, f32_plain);
#endif
#endif
  return loops;
}

}  // namespace

std::span<const ProbeLoop> probe_loops() {
  static const std::vector<ProbeLoop> loops = find_loops();
  return loops;
}

}  // namespace proa
