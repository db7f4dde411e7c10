// For the readers' tests: a small valid file damaged in every way that is cheap to try. No crash, under the sanitizers,
// is what is asked of each attempt; what a damaged file says is in the tables of the tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace proa {

inline volatile uint64_t sink;  // where tests leave what they read, so that the reads stay

// Calls try_bytes with every proper prefix of `good`. The copies are as long as the prefix, so that a read beyond its
// end is a heap overflow.
template <class F>
void for_each_truncation(const std::vector<std::byte>& good, F try_bytes) {
  for (size_t size = 0; size < good.size(); ++size) {
    const std::vector<std::byte> bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size));
    try_bytes(bytes);
  }
}

// Calls try_bytes with `good` after each single-bit flip, and after each byte set to 0x00, 0x7f, 0x80 and 0xff.
template <class F>
void for_each_damage(const std::vector<std::byte>& good, F try_bytes) {
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<std::byte> bytes = good;
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] = good[i] ^ static_cast<std::byte>(1 << bit);
      try_bytes(bytes);
    }
    for (int value : {0x00, 0x7f, 0x80, 0xff}) {
      bytes[i] = static_cast<std::byte>(value);
      try_bytes(bytes);
    }
  }
}

}  // namespace proa
