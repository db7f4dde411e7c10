#pragma once

#include <string>
#include <vector>

#include "ops/testing.h"

namespace proa::testing {

// Of norm_linear, with one matrix per entry of `rows`; linear_residual uses the first.
struct NormLinearCase {
  std::string name;
  Format format = Format::F32;
  int num_tokens = 3;
  int hidden_size = 96;
  std::vector<int> rows = {40, 12, 12};
  float eps = 1e-5f;
  float scale = 1;  // of x
  int offset = 0;
  size_t padding = 0;  // bytes between weight rows
};

inline std::vector<NormLinearCase> norm_linear_cases() {
  std::vector<NormLinearCase> cases = {
      {.name = "base"},
      {.name = "no token", .num_tokens = 0},
      {.name = "one token", .num_tokens = 1},
      {.name = "two tokens", .num_tokens = 2},
      {.name = "a whole tile and one", .num_tokens = 7},
      {.name = "many tokens", .num_tokens = 61},
      {.name = "one matrix of one row", .rows = {1}},
      {.name = "one row, one token", .num_tokens = 1, .rows = {1}},
      {.name = "odd rows", .rows = {5, 7, 3}},
      {.name = "odd rows, one token", .num_tokens = 1, .rows = {5, 7, 3}},
      {.name = "more rows than a panel", .num_tokens = 2, .rows = {277}},
      {.name = "long rows: small panels", .num_tokens = 2, .hidden_size = 17 * 1024, .rows = {6}},
      {.name = "one column", .hidden_size = 1},
      {.name = "odd hidden size", .hidden_size = 37},
      {.name = "odd hidden size, one token", .num_tokens = 1, .hidden_size = 37},
      {.name = "odd hidden size, F16", .format = Format::F16, .hidden_size = 45},
      {.name = "odd hidden size, F16, one token", .format = Format::F16, .num_tokens = 1, .hidden_size = 45},
      {.name = "odd hidden size, BF16", .format = Format::BF16, .hidden_size = 33},
      {.name = "odd hidden size, BF16, one token", .format = Format::BF16, .num_tokens = 1, .hidden_size = 33},
      {.name = "eps dominates", .eps = 1e-2f, .scale = 1e-3f},
      {.name = "large x", .scale = 1e6f},
      {.name = "misaligned", .offset = 1},
      {.name = "misaligned Q4_1", .format = Format::Q4_1, .offset = 1},
      {.name = "misaligned Q8_0, one token", .format = Format::Q8_0, .num_tokens = 1, .offset = 1},
      {.name = "rows apart", .format = Format::Q4_0, .padding = 4},
  };
  for (Format format : kFormats) {
    const std::string name(info(format).name);
    const int hidden_size = whole_blocks(format, 96);
    cases.push_back({.name = name, .format = format, .hidden_size = hidden_size});
    cases.push_back({.name = name + ", one token", .format = format, .num_tokens = 1, .hidden_size = hidden_size});
    cases.push_back({.name = name + ", sizes of a small model",
                     .format = format,
                     .num_tokens = 14,
                     .hidden_size = whole_blocks(format, 576),
                     .rows = {576, 192}});
    cases.push_back({.name = name + ", prefill",
                     .format = format,
                     .num_tokens = 150,
                     .hidden_size = whole_blocks(format, 160),
                     .rows = {280, 12}});
  }
  // Prefill: tiles of 64 or 128 tokens and 128 or 256 rows, stages of 64 columns.
  const NormLinearCase prefill = {
      .name = "prefill", .format = Format::Q4_0, .num_tokens = 150, .hidden_size = 160, .rows = {280, 12}};
  const auto add = [&](const char* what, auto change) {
    NormLinearCase c = prefill;
    change(c);
    c.name += std::string(", ") + what;
    cases.push_back(c);
  };
  add("a whole tile", [](auto& c) { c.num_tokens = 128, c.rows = {256}; });
  add("a tile and one", [](auto& c) { c.num_tokens = 129, c.rows = {257}; });
  add("one row", [](auto& c) { c.rows = {1}; });
  add("one stage", [](auto& c) { c.hidden_size = 64; });
  add("half a stage", [](auto& c) { c.hidden_size = 32; });
  add("more stages than the ring", [](auto& c) { c.hidden_size = 1056, c.rows = {65}; });
  add("large x", [](auto& c) { c.scale = 1e6f; });
  add("tiny x", [](auto& c) { c.scale = 1e-6f; });
  add("misaligned, rows apart", [](auto& c) { c.offset = 1, c.padding = 6; });
  add("odd sizes, BF16", [](auto& c) { c.format = Format::BF16, c.hidden_size = 75, c.rows = {5, 77}, c.offset = 1; });
  add("odd sizes, F16", [](auto& c) { c.format = Format::F16, c.hidden_size = 1, c.rows = {3}; });
  add("odd sizes, F8_E4M3", [](auto& c) { c.format = Format::F8_E4M3, c.hidden_size = 101, c.rows = {130}; });
  return cases;
}

}  // namespace proa::testing
