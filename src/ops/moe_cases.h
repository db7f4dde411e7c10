#pragma once

#include <string>
#include <vector>

#include "ops/testing.h"

namespace proa::testing {

struct MoeCase {
  std::string name;
  Format format = Format::F32;
  int num_tokens = 5;
  int hidden_size = 64;
  int n_routed_experts = 8;
  int num_experts_per_tok = 3;
  int intermediate_size = 32;
  int latent_size = 0;                // 0: no latent
  int shared_intermediate_size = 96;  // 0: no shared expert
  Activation activation = Activation::relu2;
  bool same_expert = false;  // all tokens choose experts 0, 1, ...
  int offset = 0;
};

inline std::vector<MoeCase> moe_cases() {
  std::vector<MoeCase> cases = {
      {.name = "base"},
      {.name = "no token", .num_tokens = 0},
      {.name = "one token", .num_tokens = 1},
      {.name = "many tokens", .num_tokens = 40},
      {.name = "one expert for all tokens", .num_experts_per_tok = 1, .same_expert = true},
      {.name = "all experts", .num_experts_per_tok = 8},
      {.name = "more experts than tokens", .num_tokens = 2, .n_routed_experts = 64},
      {.name = "no shared expert", .shared_intermediate_size = 0},
      {.name = "latent", .latent_size = 32},
      {.name = "latent, one token", .num_tokens = 1, .latent_size = 32},
      {.name = "latent, no shared expert", .latent_size = 32, .shared_intermediate_size = 0},
      {.name = "silu", .activation = Activation::silu},
      {.name = "odd sizes", .hidden_size = 37, .intermediate_size = 19, .shared_intermediate_size = 45},
      {.name = "odd latent", .hidden_size = 37, .latent_size = 21},
      {.name = "misaligned", .offset = 1},
      {.name = "misaligned Q4_0", .format = Format::Q4_0, .offset = 1},
  };
  for (Format format : kFormats) {
    const std::string name(info(format).name);
    MoeCase c = {.name = name,
                 .format = format,
                 .hidden_size = whole_blocks(format, 64),
                 .intermediate_size = whole_blocks(format, 32),
                 .shared_intermediate_size = whole_blocks(format, 96)};
    cases.push_back(c);
    c.name = name + ", one token", c.num_tokens = 1;
    cases.push_back(c);
    c.name = name + ", prefill", c.num_tokens = 130;
    cases.push_back(c);
    c.name = name + ", latent", c.num_tokens = 9, c.latent_size = whole_blocks(format, 32);
    cases.push_back(c);
  }
  const MoeCase prefill = {.name = "prefill", .format = Format::Q4_0, .num_tokens = 160};
  const auto add = [&](const char* what, auto change) {
    MoeCase c = prefill;
    change(c);
    c.name += std::string(", ") + what;
    cases.push_back(c);
  };
  add("all choose the same", [](auto& c) { c.same_expert = true; });
  add("64 experts", [](auto& c) { c.n_routed_experts = 64, c.num_experts_per_tok = 6; });
  add("latent", [](auto& c) { c.latent_size = 32; });
  add("no shared expert", [](auto& c) { c.shared_intermediate_size = 0; });
  add("more rows than a tile", [](auto& c) { c.intermediate_size = 288, c.hidden_size = 320; });
  add("formats mixed", [](auto& c) { c.format = Format::BF16, c.hidden_size = 72, c.intermediate_size = 40; });
  return cases;
}

}  // namespace proa::testing
