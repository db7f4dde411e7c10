// Products with weights and activations of BF16 by the matrix unit of Intel's processors (AMX), for any number of
// tokens: weights that linear_bf16.h multiplies, exact in BF16, and those of linear_vnni.h, whose scaled values are
// rounded to it. That rounds less than activations of 8 bits do, and leaves scales of blocks out of the inner loop:
// products of bytes, twice as fast in the unit, would wait for the scaling of every 32 columns' sums. Sums are F32 in
// the order of columns: a token has the same bits in any batch that is multiplied here.
#pragma once

#include "backends/cpu/linear.h"

namespace proa {

// What products the matrix unit of this machine has; none where the system refuses its registers to this process.
struct MatrixUnit {
  bool int8 = false, bf16 = false;
  bool kernels = false;  // bf16, and AVX-512 for half floats, which unpacking uses
};
MatrixUnit matrix_unit();

// Whether weights like these are multiplied so; the machine has to have the unit.
bool amx_multiplies(Format format, int64_t cols, const Scales& scales);

// Bytes of room that one thread needs, and rows that are multiplied at once.
size_t amx_room(int64_t cols, int64_t num_tokens);
constexpr int64_t kAmxRows = 32;

// Rows [begin, end) of one linear, by the calling thread. op.halves takes the place of op.x.
void amx_rows(const Linear& op, int64_t begin, int64_t end, std::byte* room);

}  // namespace proa
