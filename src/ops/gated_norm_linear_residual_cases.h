// Cases of gated_norm_linear_residual. The bound is that of a linear over `inner` terms (sum_bound) plus what gate and
// norm add to each of its inputs: exp, quotient, square, mean, root and two products, 16 roundings at most.
#pragma once

#include <string>
#include <vector>

#include "ops/testing.h"

namespace proa::testing {

struct GatedNormCase {
  std::string name;
  int num_tokens = 3;
  int inner = 256;
  int n_groups = 2;
  int hidden_size = 96;
  int z_padding = 40;  // floats between rows of z, beyond inner
  float z_scale = 1;
  float y_scale = 1;
  float eps = 1e-5f;
  Format format = Format::F32;
  int offset = 0;
};

inline std::vector<GatedNormCase> gated_norm_cases() {
  std::vector<GatedNormCase> cases = {
      {.name = "base"},
      {.name = "no token", .num_tokens = 0},
      {.name = "one token", .num_tokens = 1},
      {.name = "37 tokens", .num_tokens = 37},
      {.name = "one group", .n_groups = 1},
      {.name = "8 groups of 32", .n_groups = 8},
      {.name = "groups of one channel: v / |v|", .inner = 32, .n_groups = 32},
      {.name = "odd widths", .inner = 57, .n_groups = 3, .hidden_size = 5},
      {.name = "Nemotron's width", .num_tokens = 2, .inner = 4096, .n_groups = 8, .hidden_size = 24},
      {.name = "z without padding", .z_padding = 0},
      {.name = "gates wide open and shut", .z_scale = 60},
      {.name = "exp would overflow", .z_scale = 1000},
      {.name = "tiny y: eps decides", .y_scale = 1e-4f},
      {.name = "large y", .y_scale = 1e6f},
      {.name = "misaligned", .offset = 1},
  };
  for (Format format : kFormats) cases.push_back({.name = std::string(info(format).name), .format = format});
  cases.push_back({.name = "prefill", .num_tokens = 131, .hidden_size = 270, .format = Format::Q4_0});
  cases.push_back(
      {.name = "prefill, odd widths", .num_tokens = 131, .inner = 57, .n_groups = 3, .format = Format::BF16});
  cases.push_back({.name = "prefill, tiny y", .num_tokens = 131, .y_scale = 1e-4f, .format = Format::Q8_0});
  return cases;
}

inline double gated_norm_bound(const GatedNormCase& c) { return sum_bound(c.inner) + 16 * 0x1p-24; }

}  // namespace proa::testing
