// What the plain references share. Everything in double, in the order the formulas are written; may allocate.
#pragma once

#include <cmath>
#include <vector>

#include "ops/weight.h"

namespace proa::reference {

// Row r of a weight, decoded.
inline std::vector<double> decode(const Weight& weight, int64_t r) {
  std::vector<float> row(static_cast<size_t>(weight.cols));
  decode_row(weight, r, row.data());
  return {row.begin(), row.end()};
}

// W · x for `num_tokens` rows of x: [num_tokens, weight.rows]. A weight row is decoded once.
inline std::vector<double> linear(const Weight& weight, const std::vector<double>& x, int64_t num_tokens) {
  std::vector<double> y(static_cast<size_t>(num_tokens * weight.rows));
  for (int64_t r = 0; r < weight.rows && num_tokens > 0; ++r) {
    const std::vector<double> w = decode(weight, r);
    for (int64_t t = 0; t < num_tokens; ++t) {
      double sum = 0;
      for (int64_t c = 0; c < weight.cols; ++c) {
        sum += w[static_cast<size_t>(c)] * x[static_cast<size_t>(t * weight.cols + c)];
      }
      y[static_cast<size_t>(t * weight.rows + r)] = sum;
    }
  }
  return y;
}

// norm · x / sqrt(mean(x²) + eps) of each row.
inline std::vector<double> rms_norm(const float* x, const float* norm, double eps, int64_t num_tokens, int64_t size) {
  std::vector<double> y(static_cast<size_t>(num_tokens * size));
  for (int64_t t = 0; t < num_tokens; ++t) {
    const float* row = x + t * size;
    double squares = 0;
    for (int64_t i = 0; i < size; ++i) squares += double{row[i]} * row[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(size) + eps);
    for (int64_t i = 0; i < size; ++i) y[static_cast<size_t>(t * size + i)] = norm[i] * (row[i] * scale);
  }
  return y;
}

}  // namespace proa::reference
