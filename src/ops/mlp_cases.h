#pragma once

#include <string>
#include <vector>

#include "ops/testing.h"

namespace proa::testing {

struct MlpCase {
  std::string name;
  Format format = Format::F32;
  int num_tokens = 3;
  int hidden_size = 64;
  int intermediate_size = 96;
  Activation activation = Activation::silu;
  bool gated = true;
  float scale = 1;  // of the norm: how far the activation is driven
  int offset = 0;
};

inline std::vector<MlpCase> mlp_cases() {
  std::vector<MlpCase> cases = {
      {.name = "base"},
      {.name = "no token", .num_tokens = 0},
      {.name = "one token", .num_tokens = 1},
      {.name = "a whole tile and one", .num_tokens = 7},
      {.name = "many tokens", .num_tokens = 65},
      {.name = "not gated", .gated = false},
      {.name = "relu2, gated", .activation = Activation::relu2},
      {.name = "relu2, not gated", .activation = Activation::relu2, .gated = false},
      {.name = "relu2, not gated, one token", .num_tokens = 1, .activation = Activation::relu2, .gated = false},
      {.name = "saturated silu", .scale = 60},
      {.name = "odd sizes", .hidden_size = 37, .intermediate_size = 51},
      {.name = "odd sizes, one token", .num_tokens = 1, .hidden_size = 37, .intermediate_size = 51},
      {.name = "intermediate size of one", .intermediate_size = 1},
      {.name = "misaligned", .offset = 1},
      {.name = "misaligned Q4_1, one token", .format = Format::Q4_1, .num_tokens = 1, .offset = 1},
  };
  for (bool gated : {false, true}) {
    cases.push_back({.name = gated ? "prefill, gated" : "prefill",
                     .format = Format::Q8_0,
                     .num_tokens = 140,
                     .intermediate_size = 320,
                     .activation = gated ? Activation::silu : Activation::relu2,
                     .gated = gated});
  }
  for (Format format : kFormats) {
    const std::string name(info(format).name);
    for (int num_tokens : {3, 1}) {
      cases.push_back({.name = name + ", " + std::to_string(num_tokens),
                       .format = format,
                       .num_tokens = num_tokens,
                       .hidden_size = whole_blocks(format, 64),
                       .intermediate_size = whole_blocks(format, 96)});
    }
  }
  return cases;
}

}  // namespace proa::testing
