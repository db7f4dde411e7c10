// linear: y = W · x for any number of tokens, under every matrix op of this backend. A weight row is decoded in
// registers for one token, and once into a panel that stays in cache for many. The sum of one (row, token) is taken in
// the same order whatever the number of tokens, so prefill in chunks and decode give the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "backends/cpu/cpu_backend.h"

namespace proa {

struct Linear {
  Weight weight;  // [rows, cols]
  int num_tokens;
  const float* x;    // [.., x_stride]
  int64_t x_stride;  // floats; at least padded_cols(weight.cols), and zero from weight.cols up to there
  float* y;          // [.., y_stride]
  int64_t y_stride;  // floats; at least weight.rows
  bool add = false;  // y += instead of y =

  const int32_t* x_rows = nullptr;  // [num_tokens] row of x a token reads; null: its own number
  const int32_t* y_rows = nullptr;  // [num_tokens] row of y a token writes; null: its own number
  const float* scale = nullptr;     // [num_tokens] factor of a token's result; null: 1
};

// Kernels read x in blocks of 32 columns.
inline int64_t padded_cols(int64_t cols) { return (cols + 31) / 32 * 32; }

// Floats of panel that one thread needs for a weight of so many columns.
int64_t panel_floats(int64_t cols);

// Rows [begin, end) of one linear, by the calling thread.
void linear_rows(int64_t target, const Linear& linear, int64_t begin, int64_t end, float* panel);

// All of them in one loop of all threads. Rows are shared out in the same way for each, so that those that add to the
// same y do not race. `panels` holds num_threads · panel_floats(the largest cols).
void linear(CpuBackend& backend, std::span<const Linear> linears, float* panels);

// Loops over the rows of several matrices at once: kRowShares shares of each, cut at multiples of four rows.
constexpr int kRowShares = 64;
struct RowRange {
  int64_t begin;
  int64_t end;
};
inline RowRange shares_of(int64_t rows, int64_t begin, int64_t end) {
  const int64_t tiles = (rows + 3) / 4;
  const auto cut = [&](int64_t share) { return std::min(rows, tiles * share / kRowShares * 4); };
  return {cut(begin), cut(end)};
}

}  // namespace proa
