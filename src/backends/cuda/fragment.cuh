// Weights of every format as operands of the tensor cores, without loss.
//
// A weight is decoded 32 columns of 8 rows at a time: lane l of a warp holds eight values of row l / 4, which are the
// B operands of two products of 16 columns. Which eight columns lane l % 4 holds is the format's to choose (Order),
// because activations are put in the same order. Values are integers or short floats that a half or bfloat16 holds
// exactly; scales that are not are applied to the F32 sums of a group. Activations are split into two halves (after
// scaling by a power of two) or three bfloat16, which together carry all 24 bits. So products are exact, and sums are
// F32, as in arithmetic without tensor cores.
//
// What a Fragment<F> has:
//   kBf16         operands are bfloat16, not half
//   kPasses       products per value: a wide weight is a sum of short ones
//   kScaleGroup   16 or 32: scale() belongs to so many columns; 0: nothing to apply but kFactor
//   kMin          minimum() is added to each value of the group
//   kFactor       of all values
//   kLong         decoding a group takes so much code that loops over groups are better left as loops
//   kGroupScales  scales of 16 columns lie in a tensor of their own (E4M3), see `scales`
//   kOrder        column_of() says the column of value i of lane l with l % 4 == j; values 0-3 are of the first product
//   decode(...)   the values of one group, packed in pairs
// `row` is the address in shared memory of the first byte of a row's part, as aligned as the file has it; `group`
// counts from there.
#pragma once

#include "backends/cuda/device.cuh"
#include "quant/formats.h"

namespace proa::cuda {

// Shared memory by its 32-bit address: half the arithmetic of pointers.
__device__ __forceinline__ uint32_t load_word(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}
__device__ __forceinline__ uint32_t load_short(uint32_t address) {
  uint16_t value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ uint32_t load_byte(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}

// The same at even addresses.
__device__ __forceinline__ uint32_t load_even4(uint32_t address) {
  return load_short(address) | load_short(address + 2) << 16;
}
// 4 or 8 bytes at any address; reads the aligned words around them.
__device__ __forceinline__ uint32_t load4(uint32_t address) {
  const uint32_t words = address & ~3u;
  return __funnelshift_r(load_word(words), load_word(words + 4), address * 8);
}
__device__ __forceinline__ void load8(uint32_t address, uint32_t& low, uint32_t& high) {
  const uint32_t words = address & ~3u;
  const uint32_t middle = load_word(words + 4);
  low = __funnelshift_r(load_word(words), middle, address * 8);
  high = __funnelshift_r(middle, load_word(words + 8), address * 8);
}

__device__ __forceinline__ float half_at(uint32_t address) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(load_short(address))));
}

// (mask & word) with 1024 in the exponent, minus `offset`: two integers as halves. For bits 4-7 of either half, the
// sum is 1024 + 16 q and a fused product gives q - offset.
__device__ __forceinline__ uint32_t from_1024(uint32_t word, uint32_t mask) {
  uint32_t both;  // as one instruction, which is not what the two operators become
  asm("lop3.b32 %0, %1, %2, 0x64006400, 0xea;" : "=r"(both) : "r"(word), "r"(mask));
  return both;
}
__device__ __forceinline__ uint32_t low_integers(uint32_t word, uint32_t mask, float offset) {
  return bits_of(__hsub2(halves_of(from_1024(word, mask)), __float2half2_rn(1024.0f + offset)));
}
__device__ __forceinline__ uint32_t high_nibbles(uint32_t word, float offset) {
  return bits_of(
      __hfma2(halves_of(from_1024(word, 0x00f000f0u)), __float2half2_rn(0.0625f), __float2half2_rn(-64.0f - offset)));
}

// Two E2M1 whose lower bits begin at bit 0 of either half of `word` after a shift: the bits of 2^-14 of their value.
__device__ __forceinline__ uint32_t e2m1_pair(uint32_t sign_at_15, uint32_t magnitude_at_9) {
  return (sign_at_15 & 0x80008000u) | (magnitude_at_9 & 0x0e000e00u);
}

// Two E4M3 in the upper bytes of either half: 2^-8 of their value.
__device__ __forceinline__ uint32_t e4m3_pair(uint32_t word) {
  return (word & 0x80008000u) | ((word >> 1) & 0x3f803f80u);
}

// The order of columns, for kernels that put activations in order without knowing the format.
enum class Order : uint8_t { nibbles, bytes, plain, parts, nvfp4 };

__host__ __device__ constexpr int column_of(Order order, int j, int i) {
  switch (order) {
    case Order::nibbles:  // pairs (4j, 4j + 2), (4j + 16, 4j + 18), (4j + 1, 4j + 3), (4j + 17, 4j + 19)
      return 4 * j + 16 * (i / 2 % 2) + i / 4 + i % 2 * 2;
    case Order::bytes:  // bytes (0, 2), (1, 3) of either word
      return 8 * j + i / 4 * 4 + i % 4 / 2 + i % 2 * 2;
    case Order::plain:
      return 8 * j + i;
    case Order::parts:  // of 16 columns, one for each product
      return i / 4 * 16 + 4 * j + i % 4;
    case Order::nvfp4:  // byte k of a part of 16 holds values k and k + 8
      return i / 4 * 16 + 2 * j + i % 4 / 2 + i % 2 * 8;
  }
  return 0;
}

struct FragmentDefaults {
  static constexpr bool kBf16 = false;
  static constexpr int kPasses = 1;
  static constexpr int kScaleGroup = 0;
  static constexpr bool kMin = false;
  static constexpr bool kLong = false;
  static constexpr bool kGroupScales = false;
  static constexpr float kFactor = 1;
  __device__ static float scale(uint32_t, int, int) { return 1; }
  __device__ static float minimum(uint32_t, int, int) { return 0; }
};

template <class F>
struct Fragment;

// Blocks of 32 whose byte j holds value j in its low nibble and value j + 16 in its high one.
struct NibbleOrder : FragmentDefaults {
  static constexpr int kScaleGroup = 32;
  static constexpr Order kOrder = Order::nibbles;
  __device__ static void unpack(uint32_t word, float offset, uint32_t (&b)[4]) {
    b[0] = low_integers(word, 0x000f000fu, offset);
    b[1] = high_nibbles(word, offset);
    b[2] = low_integers(word >> 8, 0x000f000fu, offset);
    b[3] = high_nibbles(word >> 8, offset);
  }
};

template <>
struct Fragment<Q4_0> : NibbleOrder {
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    unpack(load_even4(row + group * 18 + 2 + 4 * j), 8, b);
  }
  __device__ static float scale(uint32_t row, int group, int) { return half_at(row + group * 18); }
};

template <>
struct Fragment<Q4_1> : NibbleOrder {
  static constexpr bool kMin = true;
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    unpack(load4(row + group * 20 + 4 + 4 * j), 0, b);
  }
  __device__ static float scale(uint32_t row, int group, int) { return half_at(row + group * 20); }
  __device__ static float minimum(uint32_t row, int group, int) { return half_at(row + group * 20 + 2); }
};

// The fifth bits of a block are bits of a word of their own: bit v belongs to value v.
struct FiveBits : NibbleOrder {
  __device__ static void unpack(uint32_t word, uint32_t fifth, int j, float offset, uint32_t (&b)[4]) {
    const uint32_t low = fifth >> (4 * j);        // bits 0-3: values 4j .. 4j + 3
    const uint32_t high = fifth >> (4 * j + 16);  // bits 0-3: values 4j + 16 ..
    const auto spread = [](uint32_t bits) { return (bits & 1) << 4 | (bits & 4) << 18; };  // bits 0 and 2
    const uint32_t words[4] = {word, word >> 4, word >> 8, word >> 12};
    const uint32_t tops[4] = {spread(low), spread(high), spread(low >> 1), spread(high >> 1)};
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = low_integers((words[i] & 0x000f000fu) | tops[i], 0x001f001fu, offset);
  }
};

template <>
struct Fragment<Q5_0> : FiveBits {
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    const uint32_t block = row + group * 22;
    unpack(load_even4(block + 6 + 4 * j), load_even4(block + 2), j, 16, b);
  }
  __device__ static float scale(uint32_t row, int group, int) { return half_at(row + group * 22); }
};

template <>
struct Fragment<Q5_1> : FiveBits {
  static constexpr bool kMin = true;
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    const uint32_t block = row + group * 24;
    unpack(load4(block + 8 + 4 * j), load4(block + 4), j, 0, b);
  }
  __device__ static float scale(uint32_t row, int group, int) { return half_at(row + group * 24); }
  __device__ static float minimum(uint32_t row, int group, int) { return half_at(row + group * 24 + 2); }
};

struct PlainOrder : FragmentDefaults {
  static constexpr Order kOrder = Order::plain;
};

template <>
struct Fragment<Q8_0> : FragmentDefaults {
  static constexpr int kScaleGroup = 32;
  static constexpr Order kOrder = Order::bytes;
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    const uint32_t bytes = row + group * 34 + 2 + 8 * j;
    const uint32_t word[2] = {load_even4(bytes), load_even4(bytes + 4)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t biased = word[i] ^ 0x80808080u;
      b[2 * i] = low_integers(biased, 0x00ff00ffu, 128);
      b[2 * i + 1] = low_integers(biased >> 8, 0x00ff00ffu, 128);
    }
  }
  __device__ static float scale(uint32_t row, int group, int) { return half_at(row + group * 34); }
};

template <>
struct Fragment<F8_E4M3> : FragmentDefaults {
  static constexpr float kFactor = 256;
  static constexpr Order kOrder = Order::bytes;
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    uint32_t word[2];
    load8(row + group * 32 + 8 * j, word[0], word[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      b[2 * i] = e4m3_pair(word[i] << 8);
      b[2 * i + 1] = e4m3_pair(word[i]);
    }
  }
};

template <>
struct Fragment<MXFP4> : NibbleOrder {
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    const uint32_t w = load4(row + group * 17 + 1 + 4 * j);
    const __half2 twice = __float2half2_rn(32768.0f);  // 2^-14 of the value becomes twice the value
    b[0] = bits_of(__hmul2(halves_of(e2m1_pair(w << 12, w << 9)), twice));
    b[1] = bits_of(__hmul2(halves_of(e2m1_pair(w << 8, w << 5)), twice));
    b[2] = bits_of(__hmul2(halves_of(e2m1_pair(w << 4, w << 1)), twice));
    b[3] = bits_of(__hmul2(halves_of(e2m1_pair(w, w >> 3)), twice));
  }
  __device__ static float scale(uint32_t row, int group, int) {
    return e8m0_half(static_cast<uint8_t>(load_byte(row + group * 17)));
  }
};

// E2M1 with E4M3 scales of 16: a value and its scale have six bits together, so their product is exact.
struct ScaledE2M1 : FragmentDefaults {
  static constexpr float kFactor = 128;
  // Four codes, the first in the lowest nibble; `scale` as E4M3 without sign.
  __device__ static void unpack(uint32_t codes, uint32_t scale, uint32_t& first, uint32_t& second) {
    const uint32_t s = codes | codes << 12;
    // 2^-14 value · 2^7 scale
    const __half2 factor = __hmul2(halves_of((scale << 7) * 0x10001u), __float2half2_rn(32768.0f));
    first = bits_of(__hmul2(halves_of(e2m1_pair(s << 12, s << 9)), factor));
    second = bits_of(__hmul2(halves_of(e2m1_pair(s << 4, s << 1)), factor));
  }
};

template <>
struct Fragment<E2M1> : ScaledE2M1 {
  static constexpr bool kGroupScales = true;
  static constexpr Order kOrder = Order::parts;
  __device__ static void decode(uint32_t row, uint32_t scales, int group, int j, int, int, uint32_t (&b)[4]) {
    const uint32_t codes = row + group * 16 + 2 * j;
    const uint32_t scale = scales + group * 2;
    // An E4M3 of 0x7f is NaN, which no checkpoint holds; it counts as 480.
    const uint32_t first = load_byte(scale), second = load_byte(scale + 1);
    unpack(load_byte(codes) | load_byte(codes + 1) << 8, first & 0x7fu, b[0], b[1]);
    unpack(load_byte(codes + 8) | load_byte(codes + 9) << 8, second & 0x7fu, b[2], b[3]);
    if (first & 0x80u) b[0] ^= 0x80008000u, b[1] ^= 0x80008000u;
    if (second & 0x80u) b[2] ^= 0x80008000u, b[3] ^= 0x80008000u;
  }
};

template <>
struct Fragment<NVFP4> : ScaledE2M1 {
  static constexpr Order kOrder = Order::nvfp4;
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    const uint32_t block = row + group / 2 * 36;
    const int part = group % 2 * 2;
    const uint32_t codes = block + 4 + 8 * part + 2 * j;
    const auto scale = [&](int i) {
      const uint32_t bits = load_byte(block + part + i);
      return bits == 0x7f ? 0u : bits & 0x7fu;
    };
    unpack(load_byte(codes) | load_byte(codes + 1) << 8, scale(0), b[0], b[1]);
    unpack(load_byte(codes + 8) | load_byte(codes + 9) << 8, scale(1), b[2], b[3]);
  }
};

// 32 or 16 bits a value. Past the last of `valid` columns lies whatever comes next, which may be NaN.
template <>
struct Fragment<BF16> : PlainOrder {
  static constexpr bool kBf16 = true;
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int valid, int, uint32_t (&b)[4]) {
    const uint32_t p = row + group * 64 + 16 * j;
    if (p % 16 == 0) {
      const uint4 words = load_shared(p);
      b[0] = words.x, b[1] = words.y, b[2] = words.z, b[3] = words.w;
    } else {
      load8(p, b[0], b[1]);
      load8(p + 8, b[2], b[3]);
    }
    if (valid >= 32) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * j + 2 * i >= valid) b[i] = 0;
      if (8 * j + 2 * i + 1 >= valid) b[i] &= 0xffffu;
    }
  }
};

template <>
struct Fragment<F16> : PlainOrder {
  __device__ static void decode(uint32_t row, uint32_t scales, int group, int j, int valid, int pass,
                                uint32_t (&b)[4]) {
    Fragment<BF16>::decode(row, scales, group, j, valid, pass, b);
  }
};

template <>
struct Fragment<F32> : PlainOrder {
  static constexpr bool kLong = true;
  static constexpr bool kBf16 = true;
  static constexpr int kPasses = 3;
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int valid, int pass, uint32_t (&b)[4]) {
    const uint32_t values = row + (group * 32 + 8 * j) * 4;
    const auto part = [&](int i) {
      float rest = 8 * j + i < valid ? __uint_as_float(load_word(values + 4 * i)) : 0.0f;
      __nv_bfloat16 short_value = __float2bfloat16_rn(rest);
      for (int p = 0; p < pass; ++p) {
        rest -= __bfloat162float(short_value);
        short_value = __float2bfloat16_rn(rest);
      }
      return short_value;
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = bits_of(__halves2bfloat162(part(2 * i), part(2 * i + 1)));
  }
};

// Formats that have no order of their own: values one by one as integers.
//   Integers<F>::value(block, i), scale(block, i), minimum(block, i) of value i of a block
template <class F>
struct Integers;

__device__ __forceinline__ int iq4_integer(int q) {
  constexpr uint64_t kLow = 0xf6eaddcfbfad9881ull, kHigh = 0x7159453526190d01ull;  // iq4_value() as bytes
  return static_cast<int8_t>((q & 8 ? kHigh : kLow) >> (8 * (q & 7)));
}

template <>
struct Integers<IQ4_NL> {
  static constexpr int kScaleGroup = 32;
  static constexpr bool kMin = false;
  __device__ static int value(const IQ4_NL::Block& block, int i) {
    return iq4_integer(block.qs[i % 16] >> (i / 16 * 4) & 15);
  }
  __device__ static float scale(const IQ4_NL::Block& block, int) { return half_to_float(block.d); }
};

template <>
struct Integers<IQ4_XS> {
  static constexpr int kScaleGroup = 32;
  static constexpr bool kMin = false;
  __device__ static int value(const IQ4_XS::Block& block, int i) {
    return iq4_integer(block.qs[i / 32 * 16 + i % 16] >> (i / 16 % 2 * 4) & 15);
  }
  __device__ static float scale(const IQ4_XS::Block& block, int i) {
    const int part = i / 32;
    const int scale = (block.scales_l[part / 2] >> 4 * (part % 2) & 15) | (block.scales_h >> 2 * part & 3) << 4;
    return half_to_float(block.d) * static_cast<float>(scale - 32);
  }
};

template <>
struct Integers<Q2_K> {
  static constexpr int kScaleGroup = 16;
  static constexpr bool kMin = true;
  __device__ static int value(const Q2_K::Block& block, int i) {
    return block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
  }
  __device__ static float scale(const Q2_K::Block& block, int i) {
    return half_to_float(block.d) * static_cast<float>(block.scales[i / 16] & 15);
  }
  __device__ static float minimum(const Q2_K::Block& block, int i) {
    return -half_to_float(block.dmin) * static_cast<float>(block.scales[i / 16] >> 4);
  }
};

template <>
struct Integers<Q3_K> {
  static constexpr int kScaleGroup = 16;
  static constexpr bool kMin = false;
  __device__ static int value(const Q3_K::Block& block, int i) {
    const int part = i / 32;
    return ((block.qs[i / 128 * 32 + i % 32] >> (part % 4 * 2) & 3) | (block.hmask[i % 32] >> part & 1) << 2) - 4;
  }
  __device__ static float scale(const Q3_K::Block& block, int i) {
    const int s = i / 16;
    const int scale = (block.scales[s % 8] >> (s / 8 * 4) & 15) | (block.scales[8 + s % 4] >> (s / 4 * 2) & 3) << 4;
    return half_to_float(block.d) * static_cast<float>(scale - 32);
  }
};

template <>
struct Integers<Q4_K> {
  static constexpr int kScaleGroup = 32;
  static constexpr bool kMin = true;
  __device__ static int value(const Q4_K::Block& block, int i) {
    return block.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
  }
  __device__ static float scale(const Q4_K::Block& block, int i) {
    return half_to_float(block.d) * static_cast<float>(block.scales.scale(i / 32));
  }
  __device__ static float minimum(const Q4_K::Block& block, int i) {
    return -half_to_float(block.dmin) * static_cast<float>(block.scales.min(i / 32));
  }
};

template <>
struct Integers<Q5_K> {
  static constexpr int kScaleGroup = 32;
  static constexpr bool kMin = true;
  __device__ static int value(const Q5_K::Block& block, int i) {
    return (block.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15) | (block.qh[i % 32] >> (i / 32) & 1) << 4;
  }
  __device__ static float scale(const Q5_K::Block& block, int i) {
    return half_to_float(block.d) * static_cast<float>(block.scales.scale(i / 32));
  }
  __device__ static float minimum(const Q5_K::Block& block, int i) {
    return -half_to_float(block.dmin) * static_cast<float>(block.scales.min(i / 32));
  }
};

template <>
struct Integers<Q6_K> {
  static constexpr int kScaleGroup = 16;
  static constexpr bool kMin = false;
  __device__ static int value(const Q6_K::Block& block, int i) {
    const int low = block.ql[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
    const int high = block.qh[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    return (low | high << 4) - 32;
  }
  __device__ static float scale(const Q6_K::Block& block, int i) {
    return half_to_float(block.d) * static_cast<float>(block.scales[i / 16]);
  }
};

template <class F>
struct Fragment : FragmentDefaults {
  static constexpr bool kLong = true;
  static constexpr int kScaleGroup = Integers<F>::kScaleGroup;
  static constexpr bool kMin = Integers<F>::kMin;
  static constexpr int kParts = F::block_elements / 32;
  static constexpr Order kOrder = Order::parts;
  __device__ static const typename F::Block& block(uint32_t row, int group) {
    return static_cast<const typename F::Block*>(__cvta_shared_to_generic(row))[group / kParts];
  }
  __device__ static void decode(uint32_t row, uint32_t, int group, int j, int, int, uint32_t (&b)[4]) {
    const auto value = [&](int i) {
      return static_cast<float>(Integers<F>::value(block(row, group), group % kParts * 32 + column_of(kOrder, j, i)));
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = bits_of(__floats2half2_rn(value(2 * i), value(2 * i + 1)));
  }
  __device__ static float scale(uint32_t row, int group, int half) {
    return Integers<F>::scale(block(row, group), group % kParts * 32 + half * 16);
  }
  __device__ static float minimum(uint32_t row, int group, int half) {
    if constexpr (kMin) return Integers<F>::minimum(block(row, group), group % kParts * 32 + half * 16);
    return 0;
  }
};

// Columns that a part of a row may begin at.
template <class F>
constexpr int kUnit = F::block_elements > 32 ? F::block_elements : 32;

template <class F>
constexpr int kSplits = Fragment<F>::kBf16 ? 3 : 2;  // short numbers that make an activation

// One value's short parts, of x already scaled by the vector's power of two.
template <bool kBf16>
__device__ __forceinline__ void split_pair(float x0, float x1, uint32_t (&parts)[kBf16 ? 3 : 2]) {
  if constexpr (kBf16) {
#pragma unroll
    for (int p = 0; p < 3; ++p) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x0, x1);
      parts[p] = bits_of(pair);
      x0 -= __low2float(pair);
      x1 -= __high2float(pair);
    }
  } else {
    const __half2 high = __floats2half2_rn(x0, x1);
    parts[0] = bits_of(high);
    parts[1] = bits_of(__floats2half2_rn(x0 - __low2float(high), x1 - __high2float(high)));
  }
}

// c += 16 rows · 16 columns · 8 vectors: rows' values of one half as decode() has them (rows lane / 4, and 8 more), all
// parts of the vectors as Operands (matmul.h) has them: `first` and, of bfloat16, two units on the third. c of a lane:
// rows lane / 4 and 8 more (c[2], c[3]), vectors 2 (lane % 4) and one more.
template <bool kBf16>
__device__ __forceinline__ void multiply_parts(float (&c)[4], const uint32_t (&low)[4], const uint32_t (&high)[4],
                                               int half, const uint4& parts, const uint4& third) {
  const uint32_t a0 = low[2 * half], a1 = high[2 * half], a2 = low[2 * half + 1], a3 = high[2 * half + 1];
  multiply<kBf16>(c, a0, a1, a2, a3, parts.x, parts.y);
  multiply<kBf16>(c, a0, a1, a2, a3, parts.z, parts.w);
  if constexpr (kBf16) multiply<true>(c, a0, a1, a2, a3, third.x, third.y);
}
template <bool kBf16>
__device__ __forceinline__ void multiply_parts(float (&c)[4], const uint32_t (&low)[4], const uint32_t (&high)[4],
                                               int half, uint32_t operand) {
  uint4 third = {};
  if constexpr (kBf16) third = load_shared(operand + 1024);
  multiply_parts<kBf16>(c, low, high, half, load_shared(operand), third);
}
// to[row][vector] += scale of the row · c.
__device__ __forceinline__ void add_scaled(float (&to)[2][2], float low, float high, const float (&c)[4]) {
  to[0][0] += low * c[0];
  to[0][1] += low * c[1];
  to[1][0] += high * c[2];
  to[1][1] += high * c[3];
}

constexpr int kLargestExponent = 100;

// The power of two that brings a vector of this largest magnitude below 2^14.
__device__ __forceinline__ float half_scale(float largest) {
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23 & 255) - 127;
  return __uint_as_float(static_cast<uint32_t>(max(-100, min(kLargestExponent, 13 - exponent)) + 127) << 23);
}

}  // namespace proa::cuda
