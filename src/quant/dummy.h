// Dummy weights: bits = hash(seed, tensor name, index), for any format, the same on every machine and device. A tensor
// is made of units that do not depend on each other: one 32-bit word of a plain format (F32, F16, BF16, F8_E4M3, E2M1),
// one block of the others. Unit u takes the words u * words .. u * words + words - 1 of the tensor's stream.
//
// Values have zero mean each, whatever the codes of the format: activations after relu2 are all positive, so a common
// offset of weights would make all tokens alike. No bits of NaN or infinity ever come out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "core/half.h"
#include "quant/formats.h"

namespace proa {

// All that the bits of a tensor depend on. Copied to a device as it is.
struct DummyFill {
  Format format{};
  bool group_scales = false;    // F8_E4M3 that scale groups of others: positive
  uint16_t d = 0, dmin = 0;     // half: scale of a block, and what goes with its minima
  uint8_t code = 0;             // the lower of two neighbouring scales, E8M0 or E4M3
  uint8_t threshold = 0;        // of 256 scales so many are the higher one
  uint32_t key[2] = {};         // of the stream of words
  float centre = 0, reach = 0;  // plain floats are uniform within centre +- reach
};

// Values of a tensor of this name, uniform within [low, high] in plain floats and with the same deviation in blocks
// (there low must be -high). F8_E4M3 and E2M1 hold codes alone, whose deviation is dummy_code_rms().
DummyFill dummy_fill(Format format, uint64_t seed, std::string_view name, double low, double high);
// F8_E4M3 for the groups of an NVFP4 matrix, of deviation dummy_group_scale_rms().
DummyFill dummy_group_scales(uint64_t seed, std::string_view name);

double dummy_code_rms(Format format);  // F8_E4M3, E2M1
double dummy_group_scale_rms();

// Bytes [begin, begin + out.size()) of the tensor; begin is a multiple of dummy_unit_bytes(format). At the speed of
// memory on one thread or a few.
void fill_dummy(const DummyFill& fill, uint64_t begin, std::span<std::byte> out);
size_t dummy_unit_bytes(Format format);

// Word `index` of a tensor's stream: a counter through two rounds of multiply and xorshift, keyed between them.
PROA_HOST_DEVICE constexpr uint32_t dummy_word(uint32_t key0, uint32_t key1, uint32_t index) {
  uint32_t x = index + key0;
  x = (x ^ x >> 16) * 0x7feb352du ^ key1;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}
// The second key serves 2^32 words.
PROA_HOST_DEVICE constexpr uint32_t dummy_key1(const DummyFill& fill, uint64_t index) {
  return fill.key[1] + static_cast<uint32_t>(index >> 32) * 0x9e3779b9u;
}

namespace dummy_detail {

PROA_HOST_DEVICE inline void put(void* out, const uint32_t* words, int count) {
  memcpy(out, words, static_cast<size_t>(count) * sizeof(uint32_t));
}
PROA_HOST_DEVICE inline void put(void* out, const uint32_t* words, int count, uint32_t set) {  // with bits set in each
  for (int i = 0; i < count; ++i) {
    const uint32_t word = words[i] | set;
    memcpy(static_cast<uint8_t*>(out) + 4 * i, &word, sizeof word);
  }
}
PROA_HOST_DEVICE inline uint16_t with_sign(uint16_t half, uint32_t bit) {
  return static_cast<uint16_t>(half ^ (bit & 1u) << 15);
}

// Uniform within +-reach around the centre: 2 s + 1 over the range of s. On a device with contraction into FMA the
// result is the same where the centre is 0, as it is for every matrix.
PROA_HOST_DEVICE inline float uniform16(const DummyFill& f, uint32_t bits) {
  const int s = static_cast<int16_t>(bits);
  return f.centre + static_cast<float>(2 * s + 1) * (f.reach * 0x1p-16f);
}

}  // namespace dummy_detail

// How a unit is made of words. Every struct has words, the number that it takes, and make().
template <class F>
struct DummyUnit;

template <>
struct DummyUnit<F32> {
  PROA_HOST_DEVICE static uint32_t make(const DummyFill& f, uint32_t word) {
    const int s = static_cast<int32_t>(word) >> 8;
    return float_bits(f.centre + static_cast<float>(2 * s + 1) * (f.reach * 0x1p-24f));
  }
};

template <>
struct DummyUnit<BF16> {
  PROA_HOST_DEVICE static uint32_t make(const DummyFill& f, uint32_t word) {
    const uint32_t a = float_bits(dummy_detail::uniform16(f, word));
    const uint32_t b = float_bits(dummy_detail::uniform16(f, word >> 16));
    const uint32_t low = (a + 0x7fffu + (a >> 16 & 1u)) >> 16;  // as float_to_bfloat16 where there is no NaN
    const uint32_t high = (b + 0x7fffu + (b >> 16 & 1u)) & 0xffff0000u;
    return low | high;
  }
};

template <>
struct DummyUnit<F16> {
  PROA_HOST_DEVICE static uint32_t make(const DummyFill& f, uint32_t word) {
    const uint32_t low = float_to_half(dummy_detail::uniform16(f, word));
    const uint32_t high = float_to_half(dummy_detail::uniform16(f, word >> 16));
    return low | high << 16;
  }
};

// Uniform in value up to 240: half of the codes lie in the uppermost octave, half of the others in the next, and so on
// for five of them. Four codes per word: bit 7 is the sign, bits 0-2 are the mantissa, ones in a row from bit 3 on
// count octaves.
template <>
struct DummyUnit<F8_E4M3> {
  PROA_HOST_DEVICE static uint32_t make(const DummyFill& f, uint32_t word) {
    if (f.group_scales) return 0x70707070u | (word & 0x07070707u);
    const uint32_t one = word & 0x08080808u;
    const uint32_t two = one & word >> 1;
    const uint32_t three = two & word >> 2;
    const uint32_t four = three & word >> 3;
    return (0x70707070u - one - two - three - four) | (word & 0x87878787u);
  }
};

template <>
struct DummyUnit<E2M1> {  // symmetric as it is
  PROA_HOST_DEVICE static uint32_t make(const DummyFill&, uint32_t word) { return word; }
};

template <>
struct DummyUnit<Q8_0> {  // odd codes: -127, -125, .. 127
  static constexpr int words = 8;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q8_0::Block& block) {
    block.d = f.d;
    dummy_detail::put(block.qs, w, 8, 0x01010101u);
  }
};

template <>
struct DummyUnit<Q4_0> {  // the code without a counterpart, -8, becomes 0
  static constexpr int words = 4;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q4_0::Block& block) {
    block.d = f.d;
    for (int i = 0; i < 4; ++i) {
      const uint32_t some = w[i] | w[i] >> 1;
      const uint32_t word = w[i] | (~(some | some >> 2) & 0x11111111u) << 3;
      memcpy(block.qs + 4 * i, &word, sizeof word);
    }
  }
};

template <>
struct DummyUnit<Q4_1> {  // the minimum is -7.5 scales
  static constexpr int words = 4;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q4_1::Block& block) {
    block.d = f.d;
    block.m = f.dmin ^ 0x8000u;
    dummy_detail::put(block.qs, w, 4);
  }
};

template <>
struct DummyUnit<Q5_0> {  // odd codes: -15, -13, .. 15
  static constexpr int words = 5;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q5_0::Block& block) {
    block.d = f.d;
    dummy_detail::put(block.qh, w + 4, 1);
    dummy_detail::put(block.qs, w, 4, 0x11111111u);
  }
};

template <>
struct DummyUnit<Q5_1> {  // the minimum is -15.5 scales
  static constexpr int words = 5;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q5_1::Block& block) {
    block.d = f.d;
    block.m = f.dmin ^ 0x8000u;
    dummy_detail::put(block.qh, w + 4, 1);
    dummy_detail::put(block.qs, w, 4);
  }
};

template <>
struct DummyUnit<IQ4_NL> {  // the table is not symmetric, so the scale has a sign
  static constexpr int words = 5;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, IQ4_NL::Block& block) {
    block.d = dummy_detail::with_sign(f.d, w[4]);
    dummy_detail::put(block.qs, w, 4);
  }
};

template <>
struct DummyUnit<MXFP4> {  // between two powers of two, the share of either gives the deviation
  static constexpr int words = 5;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, MXFP4::Block& block) {
    block.e = static_cast<uint8_t>(f.code + ((w[4] & 255u) < f.threshold ? 1 : 0));
    dummy_detail::put(block.qs, w, 4);
  }
};

template <>
struct DummyUnit<NVFP4> {
  static constexpr int words = 9;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, NVFP4::Block& block) {
    for (int i = 0; i < 4; ++i) {
      block.scales[i] = static_cast<uint8_t>(f.code + ((w[8] >> 8 * i & 255u) < f.threshold ? 1 : 0));
    }
    dummy_detail::put(block.qs, w, 8);
  }
};

template <>
struct DummyUnit<Q2_K> {  // minimum and scale of a part are equal, dmin is 1.5 d
  static constexpr int words = 20;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q2_K::Block& block) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t scales = ((w[16 + i] & 0x07070707u) | 0x08080808u) * 0x11u;
      memcpy(block.scales + 4 * i, &scales, sizeof scales);
    }
    dummy_detail::put(block.qs, w, 16);
    block.d = f.d;
    block.dmin = f.dmin;
  }
};

template <>
struct DummyUnit<Q3_K> {  // odd codes: -3, -1, 1, 3; scales 4..7 of either sign
  static constexpr int words = 26;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q3_K::Block& block) {
    dummy_detail::put(block.hmask, w, 8);
    dummy_detail::put(block.qs, w + 8, 16, 0x55555555u);
    for (int i = 0; i < 12; ++i) block.scales[i] = 0;
    for (int i = 0; i < 16; ++i) {
      const uint32_t r = w[24 + i / 8] >> 4 * (i % 8);
      const uint32_t size = 4u + (r & 3u);
      const uint32_t scale = r & 4u ? 32u - size : 32u + size;
      block.scales[i % 8] = static_cast<uint8_t>(block.scales[i % 8] | (scale & 15u) << (i / 8 * 4));
      block.scales[8 + i % 4] = static_cast<uint8_t>(block.scales[8 + i % 4] | (scale >> 4) << (i / 4 * 2));
    }
    block.d = f.d;
  }
};

namespace dummy_detail {

// Scale and minimum of a part are equal and 8..15, so the upper bits are all 0.
PROA_HOST_DEVICE inline void put_scales(ScalesAndMins& scales, const uint32_t* w) {
  const uint32_t first = (w[0] & 0x07070707u) | 0x08080808u;
  const uint32_t second = ((w[1] & 0x07070707u) | 0x08080808u) * 0x11u;
  memcpy(scales.bytes, &first, sizeof first);
  memcpy(scales.bytes + 4, &first, sizeof first);
  memcpy(scales.bytes + 8, &second, sizeof second);
}

}  // namespace dummy_detail

template <>
struct DummyUnit<Q4_K> {  // dmin is 7.5 d
  static constexpr int words = 34;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q4_K::Block& block) {
    block.d = f.d;
    block.dmin = f.dmin;
    dummy_detail::put_scales(block.scales, w + 32);
    dummy_detail::put(block.qs, w, 32);
  }
};

template <>
struct DummyUnit<Q5_K> {  // dmin is 15.5 d
  static constexpr int words = 42;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q5_K::Block& block) {
    block.d = f.d;
    block.dmin = f.dmin;
    dummy_detail::put_scales(block.scales, w + 40);
    dummy_detail::put(block.qh, w + 32, 8);
    dummy_detail::put(block.qs, w, 32);
  }
};

template <>
struct DummyUnit<Q6_K> {  // odd codes: -31, -29, .. 31; scales 8..15 of either sign
  static constexpr int words = 52;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, Q6_K::Block& block) {
    dummy_detail::put(block.ql, w, 32, 0x11111111u);
    dummy_detail::put(block.qh, w + 32, 16);
    for (int i = 0; i < 16; ++i) {
      const uint32_t r = w[48 + i / 4] >> 8 * (i % 4);
      const int size = 8 + static_cast<int>(r & 7u);
      block.scales[i] = static_cast<int8_t>(r & 8u ? -size : size);
    }
    block.d = f.d;
  }
};

template <>
struct DummyUnit<IQ4_XS> {  // scales 4..7 of either sign
  static constexpr int words = 33;
  PROA_HOST_DEVICE static void make(const DummyFill& f, const uint32_t* w, IQ4_XS::Block& block) {
    uint32_t low = 0, high = 0;
    for (int i = 0; i < 8; ++i) {
      const uint32_t r = w[32] >> 4 * i;
      const uint32_t size = 4u + (r & 3u);
      const uint32_t scale = r & 4u ? 32u - size : 32u + size;
      low |= (scale & 15u) << 4 * i;
      high |= (scale >> 4) << 2 * i;
    }
    block.d = f.d;
    block.scales_h = static_cast<uint16_t>(high);
    memcpy(block.scales_l, &low, sizeof low);
    dummy_detail::put(block.qs, w, 32);
  }
};

template <class F>
inline constexpr bool dummy_is_plain = sizeof(typename F::Block) <= 4;

// Unit `unit` of a tensor, for a thread of a device: of a plain format a word, otherwise a block. Bytes of a plain
// tensor beyond its end are not there: the caller cuts.
template <class F>
PROA_HOST_DEVICE inline void dummy_unit(const DummyFill& f, uint64_t unit, void* out) {
  if constexpr (dummy_is_plain<F>) {
    const uint32_t word = DummyUnit<F>::make(f, dummy_word(f.key[0], dummy_key1(f, unit), static_cast<uint32_t>(unit)));
    memcpy(out, &word, sizeof word);
  } else {
    constexpr int n = DummyUnit<F>::words;
    uint32_t words[n];
    for (int i = 0; i < n; ++i) {
      const uint64_t index = unit * n + static_cast<uint64_t>(i);
      words[i] = dummy_word(f.key[0], dummy_key1(f, index), static_cast<uint32_t>(index));
    }
    typename F::Block block;
    DummyUnit<F>::make(f, words, block);
    memcpy(out, &block, sizeof block);
  }
}

}  // namespace proa
