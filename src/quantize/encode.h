// The arithmetic of ModelOpt's FP8 and NVFP4, in F32 (reference nemotron-h 4.1, 4.3). The block formats of GGUF have
// their encoders in quant/.
#pragma once

#include <cstddef>
#include <cstdint>

namespace proa {

inline constexpr float kE4m3Max = 448, kE2m1Max = 6;

// Of a matrix whose largest magnitude is amax; 1 where all values are 0.
float fp8_scale(float amax);    // amax / 448
float nvfp4_scale(float amax);  // amax / (6 · 448)

// out [cols]: x / scale as E4M3, nearest, ties to even.
void encode_fp8(const float* x, int64_t cols, float scale, uint8_t* out);

// codes [cols / 2], the first of two in the low nibble; group_scales [cols / 16] E4M3: amax of the group / (6 · scale),
// 1 for a group of zeros, within [2^-9, 448]. A code is the E2M1 value nearest to x / (group scale · scale), ties to
// the even code. cols is a multiple of 16.
void encode_nvfp4(const float* x, int64_t cols, float scale, uint8_t* codes, uint8_t* group_scales);

}  // namespace proa
