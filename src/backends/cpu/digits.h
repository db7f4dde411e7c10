// Activations as 8-bit integers, for products with integer weights: within 32 columns of a token x ≈ d · (q - z), with q
// and z in [0, 255]. The zero point uses all 256 steps whichever sign the values have: on SmolLM2 it takes the KL that
// rounding costs from 3.1e-3 to 1.4e-3, and what relu² puts out, which is never negative, gets one bit more.
// Products that decide which token comes next (lm_head) take a second digit: x ≈ d · (256 (q - z) + low - 128).
#pragma once

#include <cstddef>
#include <cstdint>

namespace proa {

constexpr int kDigitGroup = 128;  // columns: four blocks of 32

// Four blocks side by side, so that a vector of 64 bytes is half of each: columns 0-15 of the four, then 16-31.
struct alignas(64) DigitGroup {
  uint8_t q[2][4][16];
  struct Block {
    float d;
    int16_t z, sum;  // sum = Σ (q - z)
    float x_sum;     // d · Σ of the integers: what a weight's minimum is multiplied with
    int16_t low_zero, low_sum;  // 128 and Σ (low - 128)
  } block[4];
};
struct FineDigitGroup : DigitGroup {
  uint8_t low[2][4][16];
};
static_assert(sizeof(DigitGroup) == 192 && sizeof(FineDigitGroup) == 320);

// Tokens in this form, [num_tokens, groups].
struct Digits {
  std::byte* data = nullptr;
  int64_t groups = 0;  // per token; columns behind the last are zeros
  bool fine = false;   // FineDigitGroup

  static int64_t groups_of(int64_t cols) { return (cols + kDigitGroup - 1) / kDigitGroup; }
  size_t group_bytes() const { return fine ? sizeof(FineDigitGroup) : sizeof(DigitGroup); }
  size_t row_bytes() const { return static_cast<size_t>(groups) * group_bytes(); }
  std::byte* row(int64_t token) const { return data + static_cast<size_t>(token) * row_bytes(); }
  Digits from(int64_t token) const { return {data ? row(token) : nullptr, groups, fine}; }
};

}  // namespace proa
