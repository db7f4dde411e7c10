#pragma once

#include <string>
#include <vector>

#include "ops/testing.h"

namespace proa::testing {

struct RouteCase {
  std::string name;
  Format format = Format::F32;
  int num_tokens = 5;
  int hidden_size = 64;
  int n_routed_experts = 16;
  int num_experts_per_tok = 3;
  int n_group = 1;
  int topk_group = 1;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 2.5f;
  float bias = 0.3f;      // RMS
  bool equal = false;     // every expert has the same row and bias, so that only the order decides
  bool in_pairs = false;  // expert 2i + 1 equals expert 2i
  int offset = 0;
};

inline std::vector<RouteCase> route_cases() {
  std::vector<RouteCase> cases = {
      {.name = "base"},
      {.name = "no token", .num_tokens = 0},
      {.name = "one token", .num_tokens = 1},
      {.name = "many tokens", .num_tokens = 70},
      {.name = "one expert chosen", .num_experts_per_tok = 1},
      {.name = "all experts chosen", .num_experts_per_tok = 16},
      {.name = "one expert there", .n_routed_experts = 1, .num_experts_per_tok = 1},
      {.name = "sizes of a large model", .hidden_size = 2688, .n_routed_experts = 128, .num_experts_per_tok = 6},
      {.name = "prefill", .num_tokens = 130, .hidden_size = 344, .n_routed_experts = 128, .num_experts_per_tok = 6},
      {.name = "prefill, 150 experts", .num_tokens = 65, .hidden_size = 96, .n_routed_experts = 150},
      {.name = "odd sizes", .hidden_size = 37, .n_routed_experts = 13},
      {.name = "no bias", .bias = 0},
      {.name = "bias decides", .bias = 20},
      {.name = "groups", .n_group = 4, .topk_group = 2},
      {.name = "one group of many", .n_group = 4, .topk_group = 1},
      {.name = "all groups", .n_group = 4, .topk_group = 4},
      {.name = "groups of one expert", .n_group = 16, .topk_group = 5},
      {.name = "weights not normed", .norm_topk_prob = false},
      {.name = "scaling of one", .routed_scaling_factor = 1},
      {.name = "all experts tie", .equal = true},
      {.name = "all experts tie, groups", .n_group = 4, .topk_group = 2, .equal = true},
      {.name = "experts tie in pairs", .in_pairs = true},
      {.name = "misaligned", .offset = 1},
  };
  for (Format format : kFormats) {
    cases.push_back(
        {.name = std::string(info(format).name), .format = format, .hidden_size = whole_blocks(format, 64)});
  }
  return cases;
}

}  // namespace proa::testing
