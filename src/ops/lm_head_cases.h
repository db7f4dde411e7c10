#pragma once

#include <string>
#include <vector>

#include "ops/testing.h"

namespace proa::testing {

struct LmHeadCase {
  std::string name;
  Format format = Format::F32;
  int num_tokens = 6;
  std::vector<int32_t> rows = {5, 0, 3};
  int hidden_size = 64;
  int vocab_size = 130;
  int offset = 0;
};

inline std::vector<LmHeadCase> lm_head_cases() {
  std::vector<LmHeadCase> cases = {
      {.name = "base"},
      {.name = "no row", .rows = {}},
      {.name = "one row", .rows = {5}},
      {.name = "the same row twice", .rows = {2, 2}},
      {.name = "odd hidden size", .hidden_size = 35},
      {.name = "odd vocabulary", .vocab_size = 131},
      {.name = "vocabulary of one", .rows = {0, 1, 2, 3, 4, 5}, .vocab_size = 1},
      {.name = "misaligned", .format = Format::Q8_0, .offset = 1},
  };
  for (Format format : kFormats) {
    const std::string name(info(format).name);
    const int hidden_size = whole_blocks(format, 64);
    cases.push_back({.name = name, .format = format, .hidden_size = hidden_size});
    cases.push_back({.name = name + ", one row", .format = format, .rows = {4}, .hidden_size = hidden_size});
  }
  return cases;
}

}  // namespace proa::testing
