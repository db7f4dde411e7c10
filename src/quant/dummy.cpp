#include "quant/dummy.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace proa {
namespace {

// ---- the stream, at the speed of memory ----

constexpr size_t kChunkWords = 2048;  // stays in the first cache

[[gnu::always_inline]] inline void make_words(const DummyFill& f, uint64_t index, size_t count, uint32_t* words) {
  const uint32_t key0 = f.key[0] + static_cast<uint32_t>(index);
  const uint32_t key1 = dummy_key1(f, index);
  const auto n = static_cast<uint32_t>(count);
  for (uint32_t i = 0; i < n; ++i) words[i] = dummy_word(key0, key1, i);
}

template <class F>
[[gnu::always_inline]] inline void fill_units(const DummyFill& f, uint64_t unit, size_t count, std::byte* out) {
  uint32_t words[kChunkWords];
  if constexpr (dummy_is_plain<F>) {
    while (count > 0) {
      const size_t n = std::min(count, kChunkWords);
      make_words(f, unit, n, words);
      for (size_t i = 0; i < n; ++i) words[i] = DummyUnit<F>::make(f, words[i]);
      std::memcpy(out, words, n * sizeof(uint32_t));
      unit += n, count -= n, out += n * sizeof(uint32_t);
    }
  } else {
    constexpr size_t kWords = DummyUnit<F>::words;
    auto* block = reinterpret_cast<typename F::Block*>(out);
    while (count > 0) {
      const size_t n = std::min(count, kChunkWords / kWords);
      make_words(f, unit * kWords, n * kWords, words);
      for (size_t i = 0; i < n; ++i) DummyUnit<F>::make(f, words + i * kWords, block[i]);
      unit += n, count -= n, block += n;
    }
  }
}

template <class F>
using Fill = void (*)(const DummyFill&, uint64_t, size_t, std::byte*);

// The same loops for what the processor has; the compiler vectorises them.
template <class F>
void fill_plain(const DummyFill& f, uint64_t unit, size_t count, std::byte* out) {
  fill_units<F>(f, unit, count, out);
}
#if defined(__x86_64__)
#if defined(__clang__)
#define PROA_WIDEST ""
#else
#define PROA_WIDEST ",prefer-vector-width=512"
#endif
template <class F>
[[gnu::target("avx2,fma")]] void fill_avx2(const DummyFill& f, uint64_t unit, size_t count, std::byte* out) {
  fill_units<F>(f, unit, count, out);
}
template <class F>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl" PROA_WIDEST)]] void fill_avx512(const DummyFill& f, uint64_t unit,
                                                                                   size_t count, std::byte* out) {
  fill_units<F>(f, unit, count, out);
}
template <class F>
Fill<F> best_fill() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return fill_avx512<F>;
  }
  return __builtin_cpu_supports("avx2") ? fill_avx2<F> : fill_plain<F>;
}
#else
template <class F>
Fill<F> best_fill() {
  return fill_plain<F>;
}
#endif

template <class F>
void fill_bytes(const DummyFill& f, uint64_t begin, std::span<std::byte> out) {
  constexpr size_t unit_bytes = dummy_is_plain<F> ? sizeof(uint32_t) : sizeof(typename F::Block);
  assert(begin % unit_bytes == 0);
  const uint64_t unit = begin / unit_bytes;
  const size_t count = out.size() / unit_bytes;
  static const Fill<F> fill = best_fill<F>();
  // The second key changes after 2^32 words: cut there.
  constexpr uint64_t kWords = [] {
    if constexpr (dummy_is_plain<F>) {
      return 1;
    } else {
      return DummyUnit<F>::words;
    }
  }();
  const auto high = [&](uint64_t u) { return u * kWords >> 32; };
  if (count > 0 && high(unit) == (((unit + count) * kWords - 1) >> 32)) {
    fill(f, unit, count, out.data());
  } else {
    for (size_t i = 0; i < count; ++i) dummy_unit<F>(f, unit + i, out.data() + i * unit_bytes);
  }
  if (const size_t rest = out.size() % unit_bytes) {
    std::byte last[unit_bytes];
    dummy_unit<F>(f, unit + count, last);
    std::memcpy(out.data() + count * unit_bytes, last, rest);
  }
}

// ---- what the blocks hold ----

// Root mean square of code(0) .. code(count - 1).
template <class Code>
double rms(int count, Code code) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::pow(static_cast<double>(code(i)), 2);
  return std::sqrt(sum / count);
}

const double kE2M1 = rms(16, [](int i) { return 0.5 * e2m1_doubled(i); });
const double kOdd16 = rms(16, [](int i) { return 2 * i - 15; });  // odd codes of five bits
const double kParts8 = rms(8, [](int i) { return 8 + i; });       // scales of parts
const double kParts4 = rms(4, [](int i) { return 4 + i; });
const double kIq4 = rms(16, [](int i) { return iq4_value(i); });

// The half nearest to `value` such that `times` (a number of five bits) of it is a half too.
uint16_t round_scale(double value, double times, uint16_t& product) {
  int exponent = 0;
  std::frexp(value, &exponent);
  const double step = std::max(std::ldexp(1.0, exponent - 6), 0x1p-23);
  const double d = std::max(1.0, std::round(value / step)) * step;
  product = float_to_half(static_cast<float>(d * times));
  return float_to_half(static_cast<float>(d));
}

// The lower of two neighbouring codes, and how often the higher one is taken, that give a mean square together.
template <class Value>
void split(double square, int least, int most, Value value, DummyFill& fill) {
  int code = least;
  while (code + 1 < most && std::pow(value(code + 1), 2) <= square) ++code;
  const double low = std::pow(value(code), 2), high = std::pow(value(code + 1), 2);
  fill.code = static_cast<uint8_t>(code);
  fill.threshold = static_cast<uint8_t>(std::clamp(std::round(256 * (square - low) / (high - low)), 0.0, 255.0));
}

uint64_t hash_name(uint64_t seed, std::string_view name) {  // FNV-1a, then the finaliser of SplitMix64
  uint64_t h = 0xcbf29ce484222325u ^ seed * 0x9e3779b97f4a7c15u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
  h = (h ^ h >> 27) * 0x94d049bb133111ebu;
  return h ^ h >> 31;
}

}  // namespace

double dummy_group_scale_rms() {
  return rms(8, [](int i) { return e4m3_to_float(static_cast<uint8_t>(0x70 + i)); });
}

double dummy_code_rms(Format format) {
  if (format == Format::E2M1) return kE2M1;
  assert(format == Format::F8_E4M3);
  return rms(256, [](int i) {
    return e4m3_to_float(static_cast<uint8_t>(DummyUnit<F8_E4M3>::make({}, static_cast<uint32_t>(i)) & 255u));
  });
}

DummyFill dummy_fill(Format format, uint64_t seed, std::string_view name, double low, double high) {
  DummyFill fill{.format = format};
  const uint64_t h = hash_name(seed, name);
  fill.key[0] = static_cast<uint32_t>(h);
  fill.key[1] = static_cast<uint32_t>(h >> 32);
  fill.centre = static_cast<float>((low + high) / 2);
  fill.reach = static_cast<float>((high - low) / 2);

  const double deviation = (high - low) / std::sqrt(12.0);
  const auto scale = [&](double code_rms) { fill.d = float_to_half(static_cast<float>(deviation / code_rms)); };
  const auto scale_and_min = [&](double code_rms, double times) {
    fill.d = round_scale(deviation / code_rms, times, fill.dmin);
  };
  const auto steps = [](int levels) { return std::sqrt((levels * levels - 1) / 12.0); };  // of 0 .. levels - 1
  switch (format) {
    case Format::F32:
    case Format::F16:
    case Format::BF16:
    case Format::F8_E4M3:
    case Format::E2M1:
      break;
    case Format::Q8_0:
      scale(rms(128, [](int i) { return 2 * i - 127; }));
      break;
    case Format::Q4_0:
      scale(rms(16, [](int i) { return i == 0 ? 0 : i - 8; }));
      break;
    case Format::Q5_0:
      scale(kOdd16);
      break;
    case Format::IQ4_NL:
      scale(kIq4);
      break;
    case Format::Q4_1:
      scale_and_min(steps(16), 7.5);
      break;
    case Format::Q5_1:
      scale_and_min(steps(32), 15.5);
      break;
    case Format::Q2_K:
      scale_and_min(steps(4) * kParts8, 1.5);
      break;
    case Format::Q4_K:
      scale_and_min(steps(16) * kParts8, 7.5);
      break;
    case Format::Q5_K:
      scale_and_min(steps(32) * kParts8, 15.5);
      break;
    case Format::Q3_K:
      scale(rms(4, [](int i) { return 2 * i - 3; }) * kParts4);
      break;
    case Format::Q6_K:
      scale(rms(64, [](int i) { return 2 * (i / 2) - 31; }) * kParts8);
      break;
    case Format::IQ4_XS:
      scale(kIq4 * kParts4);
      break;
    case Format::MXFP4:
      split(
          std::pow(deviation / kE2M1, 2), 1, 254, [](int e) { return 2.0 * e8m0_half(static_cast<uint8_t>(e)); }, fill);
      break;
    case Format::NVFP4:
      split(
          std::pow(deviation / kE2M1, 2), 1, 0x7e, [](int e) { return 2.0 * ue4m3_half(static_cast<uint8_t>(e)); },
          fill);
      break;
  }
  return fill;
}

DummyFill dummy_group_scales(uint64_t seed, std::string_view name) {
  DummyFill fill = dummy_fill(Format::F8_E4M3, seed, name, 0, 0);
  fill.group_scales = true;
  return fill;
}

size_t dummy_unit_bytes(Format format) {
  return visit_format(format, [](auto f) {
    using F = decltype(f);
    return dummy_is_plain<F> ? sizeof(uint32_t) : sizeof(typename F::Block);
  });
}

void fill_dummy(const DummyFill& fill, uint64_t begin, std::span<std::byte> out) {
  visit_format(fill.format, [&](auto f) { fill_bytes<decltype(f)>(fill, begin, out); });
}

}  // namespace proa
