// Cases of rope. Bound: cosine, sine and their product with the factor are exact to half an ulp of F32, then come two
// products and a sum: |error| <= 3 · 2^-24 · factor · (|a| + |b|).
#pragma once

#include <string>
#include <vector>

#include "ops/rope.h"
#include "ops/testing.h"

namespace proa::testing {

struct RopeCase {
  std::string name;
  int num_tokens = 3;
  int first_position = 5;
  int num_heads = 9;
  int num_kv_heads = 3;
  int head_dim = 64;
  int rotary_dim = 64;
  double theta = 10000;
  float attention_factor = 1;
  int offset = 0;
};

inline std::vector<RopeCase> rope_cases() {
  return {
      {.name = "base"},
      {.name = "no token", .num_tokens = 0},
      {.name = "one token", .num_tokens = 1},
      {.name = "67 tokens", .num_tokens = 67},
      {.name = "position 0", .num_tokens = 1, .first_position = 0},
      {.name = "position 1,000,000", .first_position = 1000000},
      {.name = "one head", .num_heads = 1, .num_kv_heads = 1},
      {.name = "as many KV heads", .num_heads = 4, .num_kv_heads = 4},
      {.name = "head_dim 128", .head_dim = 128, .rotary_dim = 128},
      {.name = "half of the head turns", .rotary_dim = 32},
      {.name = "odd head, odd pairs", .head_dim = 31, .rotary_dim = 30},
      {.name = "two channels", .head_dim = 2, .rotary_dim = 2},
      {.name = "nothing turns", .rotary_dim = 0},
      {.name = "theta 100,000", .theta = 100000},
      {.name = "attention factor", .attention_factor = 1.25f},
      {.name = "misaligned", .offset = 1},
  };
}

}  // namespace proa::testing
