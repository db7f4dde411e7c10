// Weights as integers, eight bits each: the left side of the tensor cores' int8 product. Every GGUF format and E2M1 is
// integers times scales, so products with the digits of an activation (operands.cuh) are exact, and scales are applied
// to the sums of a group of 16 or 32 columns.
//
// What a Codes<F> has:
//   kOrder       code_column() says which columns lane l with l % 4 == j holds
//   kScaleGroup  16 or 32: columns that share scale()
//   kMin         minimum() is added to each value of the group
//   kFactor      of all values
//   pair<kAligned>(row, p, j, u, v)
//                eight codes of group 2p (u) and eight of group 2p + 1 (v), four to a register, the first in the lowest
//                byte. kAligned: `row`, an address in shared memory, is a multiple of four, and so is the row's stride.
//   scale(row, scales, group, half), minimum(row, group, half)
#pragma once

#include "backends/cuda/form.h"
#include "backends/cuda/fragment.cuh"

namespace proa::cuda {

__host__ __device__ constexpr int code_column(CodeOrder order, int j, int n) {
  switch (order) {
    case CodeOrder::apart:
      return 4 * j + n / 4 * 16 + n % 4;
    case CodeOrder::together:
      return 8 * j + n;
    case CodeOrder::pairs:
      return 4 * j + n / 2 + n % 2 * 16;
    case CodeOrder::eighths:
      return n / 4 * 16 + 2 * j + n % 4 / 2 + n % 2 * 8;
  }
  return 0;
}

template <uint32_t kSelector>
__device__ __forceinline__ uint32_t permute(uint32_t low, uint32_t high) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "n"(kSelector));
  return result;
}
__device__ __forceinline__ uint32_t look_up(uint32_t low, uint32_t high, uint32_t nibbles) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(nibbles));
  return result;
}
// Nibbles in the upper halves of bytes, their top bits turned: signed codes where they were offset by eight. In one
// instruction, which takes one of its two constants from a register.
__device__ __forceinline__ uint32_t signed_upper(uint32_t word) {
  uint32_t tops, result;
  asm("mov.b32 %0, 0x80808080;" : "=r"(tops));
  asm("lop3.b32 %0, %1, %2, 0xf0f0f0f0, 0x28;" : "=r"(result) : "r"(word), "r"(tops));  // (a ^ b) & c
  return result;
}
// Bytes 2 to 5 of two words.
__device__ __forceinline__ uint32_t middle(uint32_t low, uint32_t high) { return permute<0x5432>(low, high); }

// Four bits, each moved to bit kBit of a byte of its own.
template <int kBit>
__device__ __forceinline__ uint32_t spread(uint32_t four_bits) {
  return four_bits * (0x00204081u << kBit) & (0x01010101u << kBit);
}

struct CodesDefaults {
  static constexpr CodeOrder kOrder = CodeOrder::apart;
  static constexpr int kScaleGroup = 32;
  static constexpr bool kMin = false;
  static constexpr float kFactor = 1;
  __device__ static float minimum(uint32_t, int, int) { return 0; }
};

template <class F>
struct Codes;

template <>
struct Codes<Q4_0> : CodesDefaults {
  static constexpr float kFactor = 1.0f / 16;  // a code stands in the upper half of its byte, which makes it signed
  template <bool kAligned>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t at = row + 36 * p + 4 * j;
    uint32_t first, second;
    if constexpr (kAligned) {
      first = middle(load_word(at), load_word(at + 4)), second = load_word(at + 20);
    } else {
      first = load4(at + 2), second = load4(at + 20);
    }
    u[0] = signed_upper(first << 4), u[1] = signed_upper(first);
    v[0] = signed_upper(second << 4), v[1] = signed_upper(second);
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int) { return half_at(row + group * 18); }
};

template <>
struct Codes<Q4_1> : CodesDefaults {
  static constexpr bool kMin = true;
  template <bool kAligned>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t at = row + 40 * p + 4 * j + 4;
    const uint32_t first = kAligned ? load_word(at) : load4(at),
                   second = kAligned ? load_word(at + 20) : load4(at + 20);
    u[0] = first & 0x0f0f0f0fu, u[1] = first >> 4 & 0x0f0f0f0fu;
    v[0] = second & 0x0f0f0f0fu, v[1] = second >> 4 & 0x0f0f0f0fu;
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int) { return half_at(row + group * 20); }
  __device__ static float minimum(uint32_t row, int group, int) { return half_at(row + group * 20 + 2); }
};

template <>
struct Codes<Q5_0> : CodesDefaults {
  static constexpr float kFactor = 1.0f / 8;  // as in Q4_0: the upper five bits of a byte
  __device__ static void unpack(uint32_t w, uint32_t fifth, int j, uint32_t (&u)[2]) {
    const uint32_t bits = fifth >> (4 * j);
    u[0] = (w << 3 & 0x78787878u) | (spread<7>(bits & 15) ^ 0x80808080u);
    u[1] = (w >> 1 & 0x78787878u) | (spread<7>(bits >> 16 & 15) ^ 0x80808080u);
  }
  template <bool kAligned>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t block = row + 44 * p, at = block + 4 * j;
    if constexpr (kAligned) {
      unpack(middle(load_word(at + 4), load_word(at + 8)), middle(load_word(block), load_word(block + 4)), j, u);
      unpack(load_word(at + 28), load_word(block + 24), j, v);
    } else {
      unpack(load4(at + 6), load4(block + 2), j, u);
      unpack(load4(at + 28), load4(block + 24), j, v);
    }
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int) { return half_at(row + group * 22); }
};

template <>
struct Codes<Q5_1> : CodesDefaults {
  static constexpr bool kMin = true;
  __device__ static void unpack(uint32_t w, uint32_t fifth, int j, uint32_t (&u)[2]) {
    const uint32_t bits = fifth >> (4 * j);
    u[0] = (w & 0x0f0f0f0fu) | spread<4>(bits & 15);
    u[1] = (w >> 4 & 0x0f0f0f0fu) | spread<4>(bits >> 16 & 15);
  }
  template <bool kAligned>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t block = row + 48 * p, at = block + 4 * j;
    const auto load = [](uint32_t address) { return kAligned ? load_word(address) : load4(address); };
    unpack(load(at + 8), load(block + 4), j, u);
    unpack(load(at + 32), load(block + 28), j, v);
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int) { return half_at(row + group * 24); }
  __device__ static float minimum(uint32_t row, int group, int) { return half_at(row + group * 24 + 2); }
};

template <>
struct Codes<Q8_0> : CodesDefaults {
  static constexpr CodeOrder kOrder = CodeOrder::together;
  template <bool kAligned>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t at = row + 68 * p + 8 * j;
    if constexpr (kAligned) {
      const uint32_t words[3] = {load_word(at), load_word(at + 4), load_word(at + 8)};
      u[0] = middle(words[0], words[1]), u[1] = middle(words[1], words[2]);
      v[0] = load_word(at + 36), v[1] = load_word(at + 40);
    } else {
      load8(at + 2, u[0], u[1]);
      load8(at + 36, v[0], v[1]);
    }
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int) { return half_at(row + group * 34); }
};

// Codes of four bits by a table of 16 bytes, the first four entries in the lowest word. Values come out in the order of
// nibbles.
template <uint32_t k0, uint32_t k1, uint32_t k2, uint32_t k3>
struct Table {
  // `word` shifted left by four shows the top bits of even nibbles where bytes have their sign.
  __device__ static void look_up_8(uint32_t word, uint32_t (&out)[2]) {
    const uint32_t index = word & 0x77777777u, even = word << 4;
    const uint32_t upper[2] = {permute<0xd9c8>(even, word), permute<0xfbea>(even, word)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t nibbles = i ? index >> 16 : index;
      out[i] = (look_up(k0, k1, nibbles) & ~upper[i]) | (look_up(k2, k3, nibbles) & upper[i]);
    }
  }
};
using Iq4Table = Table<0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u>;
using E2m1Table = Table<0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu>;  // twice the values

template <>
struct Codes<IQ4_NL> : CodesDefaults {
  static constexpr CodeOrder kOrder = CodeOrder::pairs;
  template <bool kAligned>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t at = row + 36 * p + 4 * j;
    Iq4Table::look_up_8(kAligned ? middle(load_word(at), load_word(at + 4)) : load4(at + 2), u);
    Iq4Table::look_up_8(kAligned ? load_word(at + 20) : load4(at + 20), v);
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int) { return half_at(row + group * 18); }
};

template <>
struct Codes<MXFP4> : CodesDefaults {
  static constexpr CodeOrder kOrder = CodeOrder::pairs;
  template <bool>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t at = row + 34 * p + 4 * j;
    E2m1Table::look_up_8(load4(at + 1), u);
    E2m1Table::look_up_8(load4(at + 18), v);
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int) {
    return e8m0_half(static_cast<uint8_t>(load_byte(row + group * 17)));
  }
};

// An E4M3 as a half has 2^-8 of its value; codes are twice theirs.
constexpr float kE4m3Factor = 128;
__device__ __forceinline__ float e4m3_as_half(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>((bits & 0x80u) << 8 | (bits & 0x7fu) << 7)));
}

template <>
struct Codes<E2M1> : CodesDefaults {
  static constexpr int kScaleGroup = 16;
  static constexpr float kFactor = kE4m3Factor;
  template <bool>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t at = row + 32 * p + 2 * j;
    E2m1Table::look_up_8(load_short2(at, at + 8), u);
    E2m1Table::look_up_8(load_short2(at + 16, at + 24), v);
  }
  // Of two bytes each; rows may begin anywhere.
  __device__ static uint32_t load_short2(uint32_t low, uint32_t high) {
    if (low % 2 == 0) return load_short(low) | load_short(high) << 16;
    return load_byte(low) | load_byte(low + 1) << 8 | load_byte(high) << 16 | load_byte(high + 1) << 24;
  }
  __device__ static float scale(uint32_t, uint32_t scales, int group, int half) {
    return e4m3_as_half(load_byte(scales + 2 * group + half));
  }
};

template <>
struct Codes<NVFP4> : CodesDefaults {
  static constexpr CodeOrder kOrder = CodeOrder::eighths;
  static constexpr int kScaleGroup = 16;
  static constexpr float kFactor = kE4m3Factor;
  template <bool>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
    const uint32_t at = row + 36 * p + 4 + 2 * j;  // blocks of 36 bytes keep the row's alignment, which is even
    E2m1Table::look_up_8(load_short(at) | load_short(at + 8) << 16, u);
    E2m1Table::look_up_8(load_short(at + 16) | load_short(at + 24) << 16, v);
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int half) {
    const uint32_t bits = load_byte(row + group / 2 * 36 + group % 2 * 2 + half);
    return bits == 0x7f ? 0.0f : e4m3_as_half(bits & 0x7fu);
  }
};

// The others, value by value.
template <class F>
struct Codes : CodesDefaults {
  static constexpr int kScaleGroup = Integers<F>::kScaleGroup;
  static constexpr bool kMin = Integers<F>::kMin;
  static constexpr int kParts = F::block_elements / 32;
  __device__ static const typename F::Block& block(uint32_t row, int group) {
    return static_cast<const typename F::Block*>(__cvta_shared_to_generic(row))[group / kParts];
  }
  __device__ static uint32_t four(uint32_t row, int group, int first) {
    uint32_t codes = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int value = Integers<F>::value(block(row, group), group % kParts * 32 + first + n);
      codes |= (static_cast<uint32_t>(value) & 0xffu) << (8 * n);
    }
    return codes;
  }
  template <bool>
  __device__ static void pair(uint32_t row, int p, int j, uint32_t (&u)[2], uint32_t (&v)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      u[half] = four(row, 2 * p, 16 * half + 4 * j);
      v[half] = four(row, 2 * p + 1, 16 * half + 4 * j);
    }
  }
  __device__ static float scale(uint32_t row, uint32_t, int group, int half) {
    return Integers<F>::scale(block(row, group), group % kParts * 32 + half * 16);
  }
  __device__ static float minimum(uint32_t row, int group, int half) {
    if constexpr (kMin) return Integers<F>::minimum(block(row, group), group % kParts * 32 + half * 16);
    return 0;
  }
};

// Whether pair() gains by words that are whole.
template <class F>
inline constexpr bool kPairsOfWords = F::block_elements == 32 && F::ggml_type >= 0 && sizeof(typename F::Block) != 17;

// Formats that are no integers: short floats as they are.
template <class F>
inline constexpr bool kHasCodes = true;
template <>
inline constexpr bool kHasCodes<F32> = false;
template <>
inline constexpr bool kHasCodes<F16> = false;
template <>
inline constexpr bool kHasCodes<BF16> = false;
template <>
inline constexpr bool kHasCodes<F8_E4M3> = false;

}  // namespace proa::cuda
