// Products of integer weights with activations of 8 bits (digits.h) on AVX-512 with VNNI and VBMI: Q4_0, Q4_1, Q5_0,
// Q5_1, Q8_0, IQ4_NL, MXFP4. Sums of 32 products are exact; those of a row's blocks are added in four parts, block i in
// part i mod 4, in both kernels below: a token's result has the same bits in any batch.
#pragma once

#include "backends/cpu/digits.h"
#include "backends/cpu/linear.h"

namespace proa {

// Whether weights of a format are multiplied so; the machine has to have the instructions.
bool vnni_multiplies(Format format);

// Columns [begin, end) of a token to its row of digits; both are multiples of 32 or the end of x, which is zero from
// `cols` to padded_cols(cols). Whoever comes to the end fills the last group.
void vnni_round(const float* x, int64_t begin, int64_t end, int64_t cols, bool fine, std::byte* row);

// Bytes of room that one thread needs.
size_t vnni_room(int64_t num_tokens);

// Rows that are multiplied at once.
int64_t vnni_row_unit(int64_t num_tokens);

// Rows [begin, end) of one linear, by the calling thread. op.digits takes the place of op.x.
void vnni_rows(const Linear& op, int64_t begin, int64_t end, std::byte* room);

}  // namespace proa
