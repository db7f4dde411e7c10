#pragma once

#include <string>
#include <vector>

#include "ops/testing.h"

namespace proa::testing {

struct EmbedCase {
  std::string name;
  Format format = Format::F32;
  int num_tokens = 5;
  int vocab_size = 11;
  int hidden_size = 64;
  int offset = 0;
};

inline std::vector<EmbedCase> embed_cases() {
  std::vector<EmbedCase> cases = {
      {.name = "base"},
      {.name = "no token", .num_tokens = 0},
      {.name = "one token", .num_tokens = 1},
      {.name = "more tokens than a thread takes at once", .num_tokens = 67},
      {.name = "odd hidden size", .hidden_size = 37},
      {.name = "vocabulary of one", .vocab_size = 1},
      {.name = "misaligned", .format = Format::Q4_1, .offset = 1},
  };
  for (Format format : kFormats) {
    cases.push_back(
        {.name = std::string(info(format).name), .format = format, .hidden_size = whole_blocks(format, 64)});
  }
  return cases;
}

}  // namespace proa::testing
