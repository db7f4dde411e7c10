// A checksum of large data at the speed of memory: it finds damage and confusion, not attacks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

namespace proa {

// Four lanes of multiply and rotate over eight bytes each (little-endian), then mixed with the length. The result does
// not depend on how the data are cut into calls.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes) {
    length_ += bytes.size();
    if (held_ > 0) {
      const size_t n = std::min(bytes.size(), sizeof block_ - held_);
      std::memcpy(block_ + held_, bytes.data(), n);
      held_ += n;
      bytes = bytes.subspan(n);
      if (held_ < sizeof block_) return;
      take(block_);
      held_ = 0;
    }
    for (; bytes.size() >= sizeof block_; bytes = bytes.subspan(sizeof block_)) take(bytes.data());
    if (!bytes.empty()) std::memcpy(block_, bytes.data(), bytes.size());
    held_ = bytes.size();
  }

  uint64_t value() const {
    Checksum rest = *this;
    std::memset(rest.block_ + held_, 0, sizeof block_ - held_);
    rest.take(rest.block_);
    uint64_t h = length_ * kPrime;
    for (const uint64_t lane : rest.lanes_) {
      h = (h ^ lane ^ lane >> 29) * 0xbf58476d1ce4e5b9u;
      h ^= h >> 32;
    }
    return h;
  }

 private:
  static constexpr uint64_t kPrime = 0x9e3779b97f4a7c15u;

  void take(const std::byte* block) {
    for (int i = 0; i < 4; ++i) {
      uint64_t word;
      std::memcpy(&word, block + 8 * i, sizeof word);
      const uint64_t lane = (lanes_[i] ^ word) * kPrime;
      lanes_[i] = lane << 31 | lane >> 33;
    }
  }

  uint64_t lanes_[4] = {1, 2, 3, 4};
  uint64_t length_ = 0;
  std::byte block_[32];
  size_t held_ = 0;
};

inline std::string hex(uint64_t value) {  // sixteen digits
  std::string text(16, '0');
  for (size_t i = 0; i < 16; ++i) text[i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
  return text;
}

}  // namespace proa
