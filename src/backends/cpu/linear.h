// linear: y = W · x for any number of tokens, under every matrix op of this backend. A weight row is decoded in
// registers for few tokens, and once into a panel that stays in cache for many. The sum of one (row, token) is taken in
// the same order whatever the number of tokens, so prefill in chunks and decode give the same bits.
//
// Where the machine multiplies bytes (linear_vnni.h), integer weights meet activations of 8 bits, where it multiplies
// BF16 (linear_bf16.h), short floats meet activations of that, and where it has a matrix unit (linear_amx.h) both kinds
// do; all other products are those of decoded weights and F32 activations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/digits.h"

namespace proa {

// Tokens rounded to BF16, [num_tokens, stride]; `low`, if it is there, holds what that leaves of them.
struct Halves {
  uint16_t *high = nullptr, *low = nullptr;
  int64_t stride = 0;

  Halves from(int64_t token) const {
    return {high ? high + token * stride : nullptr, low ? low + token * stride : nullptr, stride};
  }
};

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
  Digits digits = {};               // the rows of x once more, where there is data
  Halves halves = {};               // and once more
};

// Kernels read x in blocks of 32 columns.
inline int64_t padded_cols(int64_t cols) { return (cols + 31) / 32 * 32; }

// The forms beside F32 that products with some weights read.
struct Forms {
  bool digits = false, halves = false;
  bool fine = false;  // twice the bits
};
// How many tokens a matrix meets; the experts of a step some each.
struct Tokens {
  int64_t fewest, most;
  Tokens(int64_t count) : fewest(count), most(count) {}  // NOLINT: a number of tokens is one
  Tokens(int64_t fewest, int64_t most) : fewest(fewest), most(most) {}
};
Forms forms_of(const CpuBackend& backend, std::initializer_list<Weight> weights, Tokens tokens, bool fine = false);
// A matrix of the experts, but for its bytes.
inline Weight any_of(const ExpertWeights& experts) {
  return {.rows = experts.rows, .cols = experts.cols, .format = experts.format, .scales = experts.scales};
}

// What products read: tokens in F32, and in the forms that the weights they meet ask for.
struct Input {
  float* x;        // [num_tokens, stride]
  int64_t stride;  // floats: padded_cols(cols)
  Digits digits;
  Halves halves;

  Input(Arena& arena, int64_t num_tokens, int64_t cols, const Forms& forms)
      : x(arena.take<float>(num_tokens * padded_cols(cols))), stride(padded_cols(cols)) {
    digits = {nullptr, Digits::groups_of(cols), forms.fine};
    if (forms.digits) digits.data = arena.take<std::byte>(num_tokens * static_cast<int64_t>(digits.row_bytes()));
    halves.stride = stride;
    if (forms.halves) halves.high = arena.take<uint16_t>(num_tokens * stride);
    if (forms.halves && forms.fine) halves.low = arena.take<uint16_t>(num_tokens * stride);
  }
  static size_t bytes(int64_t num_tokens, int64_t cols, const Forms& forms) {
    const Digits digits{nullptr, Digits::groups_of(cols), forms.fine};
    return Arena::padded<float>(num_tokens * padded_cols(cols)) +
           (forms.digits ? Arena::padded<std::byte>(num_tokens * static_cast<int64_t>(digits.row_bytes())) : 0) +
           (forms.halves ? (1 + forms.fine) * Arena::padded<uint16_t>(num_tokens * padded_cols(cols)) : 0);
  }
  // Columns [begin, end) of a token to its other forms; as vnni_round().
  void round(int64_t token, int64_t begin, int64_t end, int64_t cols) const;
  // What a Linear reads: from a token on.
  Linear read_by(Linear linear, int64_t first_token = 0) const;
};

// Floats of room that one thread needs for weights of so many columns.
int64_t room_floats(int64_t cols, int64_t num_tokens);

// Rows [begin, end) of one linear, by the calling thread.
void linear_rows(const CpuBackend& backend, const Linear& linear, int64_t begin, int64_t end, float* room);

// All of them in one loop of all threads. Rows are shared out in the same way for each, so that those that add to the
// same y do not race. `rooms` holds num_threads · room_floats(the largest cols, the most tokens).
void linear(CpuBackend& backend, std::span<const Linear> linears, float* rooms);

// Loops over the rows of several matrices at once: kRowShares shares of each, cut at multiples of `unit` rows.
constexpr int kRowShares = 64;
struct RowRange {
  int64_t begin;
  int64_t end;
};
inline RowRange shares_of(int64_t rows, int64_t unit, int64_t begin, int64_t end) {
  const int64_t tiles = (rows + unit - 1) / unit;
  const auto cut = [&](int64_t share) { return std::min(rows, tiles * share / kRowShares * unit); };
  return {cut(begin), cut(end)};
}
// Where rows become the columns of a next product, they are cut where its blocks begin: a row tile rounds its own.
constexpr int64_t kBlockRows = 64;
// Rows that a kernel takes at once, and how many of them a thread is given at least: a range begins with the ordering
// of tokens for the matrix unit, which is worth many rows.
int64_t row_unit(const CpuBackend& backend, const Weight& weight, int64_t num_tokens);
int64_t row_grain(CpuBackend& backend, const Weight& weight, int64_t num_tokens);

}  // namespace proa
