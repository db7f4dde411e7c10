// Products of short floats with activations of BF16, on AVX-512 with BF16: weights of BF16, F8_E4M3 (with a scale per
// row or none), NVFP4, and E2M1 with E4M3 scales of 16, all of which are exact in BF16. Sums are F32; those of a row are
// added in four parts, columns 8 i + 2 p and the next in part p, in both kernels: a token has the same bits in any batch.
// Rounding inputs is what the official implementation does between layers.
#pragma once

#include "backends/cpu/linear.h"

namespace proa {

// Whether weights like these are multiplied so; the machine has to have the instructions.
bool bf16_multiplies(Format format, int64_t cols, const Scales& scales);

// `count` values, a multiple of 32, to `high`; with `low` also what that leaves of them.
void bf16_round(const float* x, int64_t count, uint16_t* high, uint16_t* low);

// Bytes of room that one thread needs, and rows that are multiplied at once.
size_t bf16_room(int64_t num_tokens);
int64_t bf16_row_unit(int64_t num_tokens);

// Rows [begin, end) of one linear, by the calling thread. op.halves takes the place of op.x.
void bf16_rows(const Linear& op, int64_t begin, int64_t end, std::byte* room);

}  // namespace proa
