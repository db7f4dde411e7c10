// Cases of attend and how far float may be from the reference.
//
// Bound. A score is a dot product of head_dim terms: it is off by at most (head_dim + 4) u · scale · Σ|q k|, u = 2^-24,
// which moves every weight by twice the largest of these relative to their sum; the sum over n keys adds n + 16
// roundings, the weights' exp among them (its argument is off by |score| u, covered by the first term). So
//   |error| <= (2 (head_dim + 4) · max_key scale Σ|q k| + n + 16) u · Σ weight |v|,
// and where weights and results leave the range of float, 2^-126 (1 + Σ|v|) besides.
// Where a device rounds queries and weights to r of themselves (Backend::attend_rounding), a score is off by as much as
// r scale Σ|q k| + 2^-25 Σ|k| besides, which moves every weight by twice that, and each weight by r or 2^-40, the
// largest being 1: where the value of the key that takes all is 0 in E4M3, those that count as none are all there is.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ops/attend.h"
#include "ops/testing.h"

namespace proa::testing {

struct AttendSequence {
  int history = 0;     // tokens in the cache before this step
  int num_tokens = 1;  // of this step
};

struct AttendCase {
  std::string name;
  int num_heads = 6;
  int num_kv_heads = 2;
  int head_dim = 64;
  int window = 0;
  float scale = 0.125f;
  float q_scale = 1;  // large: one key takes all the weight
  Format format = Format::F16;
  float k_scale = 1, v_scale = 1;
  int block_size = 16;
  int stored_until = 1 << 30;  // tokens from this position on have slot_mapping -1: their keys are in the cache already
  int padded_sequences = 0;    // at the end: one token each, seq_lens 0
  std::vector<AttendSequence> sequences = {{20, 1}};
};

// One token a sequence, BF16 or FP8: for which a backend may have another kernel. Keys are worked on in tiles and
// shared out: lengths meet borders of 16, of 128, and of shares of many keys.
inline void add_one_token_cases(std::vector<AttendCase>& cases, Format format) {
  const auto add = [&](const std::string& name, const std::function<void(AttendCase&)>& change) {
    AttendCase c;
    c.name = std::string(info(format).name) + ", one token, " + name;
    if (format == Format::F8_E4M3) c.k_scale = 0.7f, c.v_scale = 1.3f;
    c.format = format, c.num_heads = 8, c.head_dim = 128, c.scale = 0.088388f, c.sequences = {{200, 1}};
    change(c);
    cases.push_back(c);
  };
  add("base", [](auto&) {});
  for (int length : {1, 2, 15, 16, 17, 127, 128, 129, 144, 145, 255, 256, 257, 385}) {
    add("keys " + std::to_string(length), [&](auto& c) { c.sequences = {{length - 1, 1}}; });
  }
  for (int group = 1; group <= 17; ++group) {
    add("heads per KV head " + std::to_string(group), [&](auto& c) { c.num_heads = 2 * group; });
  }
  for (int head_dim : {16, 32, 48, 64, 80, 96, 112, 128, 144, 72}) {
    add("head_dim " + std::to_string(head_dim), [&](auto& c) { c.head_dim = head_dim; });
  }
  for (int block_size : {1, 7, 16, 32, 100, 256}) {
    add("block_size " + std::to_string(block_size), [&](auto& c) {
      c.block_size = block_size, c.sequences = {{300, 1}};
    });
  }
  for (int num_kv_heads : {1, 3, 8, 66, 140}) {
    add("KV heads " + std::to_string(num_kv_heads), [&](auto& c) {
      c.num_kv_heads = num_kv_heads, c.num_heads = 2 * num_kv_heads, c.head_dim = 32, c.sequences = {{600, 1}};
    });
  }
  for (int window : {1, 5, 16, 100, 128, 1000}) {
    add("window " + std::to_string(window), [&](auto& c) { c.window = window, c.sequences = {{700, 1}}; });
  }
  add("depth 3,000", [](auto& c) { c.num_heads = 32, c.sequences = {{2999, 1}}; });
  add("depth 3,001, blocks of 7", [](auto& c) { c.block_size = 7, c.sequences = {{3000, 1}}; });
  add("depth 20,000, several rounds", [](auto& c) {
    c.num_heads = 4, c.head_dim = 64, c.block_size = 32, c.sequences = {{19999, 1}};
  });
  add("16 KV heads at depth 5,003, several rounds", [](auto& c) {
    c.num_heads = c.num_kv_heads = 16, c.head_dim = 16, c.block_size = 32, c.sequences = {{5002, 1}};
  });
  add("one key takes all", [](auto& c) { c.q_scale = 100, c.sequences = {{700, 1}}; });
  add("all keys alike", [](auto& c) { c.q_scale = 0, c.sequences = {{700, 1}}; });
  add("negative scale", [](auto& c) { c.scale = -0.3f; });
  add("its key is stored already", [](auto& c) { c.stored_until = 12; });
  add("a padded row", [](auto& c) { c.padded_sequences = 1, c.sequences = {}; });
  add("five sequences", [](auto& c) { c.sequences = {{200, 1}, {0, 1}, {31, 1}, {1500, 1}, {64, 1}}; });
  add("two long sequences", [](auto& c) { c.num_heads = 32, c.sequences = {{2999, 1}, {1, 1}}; });
  add("seventy sequences", [](auto& c) {
    c.num_heads = 6, c.head_dim = 32, c.sequences.clear();
    for (int i = 0; i < 70; ++i) c.sequences.push_back({3 * i, 1});
  });
  add("sequences and padded rows, a window", [](auto& c) {
    c.window = 100, c.padded_sequences = 3, c.sequences = {{400, 1}, {20, 1}, {129, 1}};
  });
}

// Prefill, for which a backend may have another kernel too.
inline void add_many_tokens_cases(std::vector<AttendCase>& cases, Format format) {
  const auto add = [&](const std::string& name, const std::function<void(AttendCase&)>& change) {
    AttendCase c;
    c.name = std::string(info(format).name) + ", many tokens, " + name;
    if (format == Format::F8_E4M3) c.k_scale = 0.7f, c.v_scale = 1.3f;
    c.format = format, c.num_heads = 32, c.head_dim = 128, c.scale = 0.088388f, c.sequences = {{0, 100}};
    change(c);
    cases.push_back(c);
  };
  add("base", [](auto&) {});
  add("with history", [](auto& c) { c.sequences = {{333, 65}}; });
  add("decodes and prefills", [](auto& c) { c.sequences = {{70, 1}, {0, 70}, {129, 1}, {64, 64}, {1, 2}}; });
  for (int head_dim : {16, 40, 64, 72, 80}) {
    add("head_dim " + std::to_string(head_dim), [&](auto& c) { c.head_dim = head_dim; });
  }
  for (int group : {1, 3, 7, 20}) {
    add("heads per KV head " + std::to_string(group), [&](auto& c) { c.num_heads = 2 * group; });
  }
  for (int block_size : {1, 7, 100}) {
    add("block_size " + std::to_string(block_size), [&](auto& c) { c.block_size = block_size; });
  }
  for (int window : {1, 5, 64, 90}) {
    add("window " + std::to_string(window), [&](auto& c) { c.window = window, c.sequences = {{80, 70}}; });
  }
  add("one key takes all", [](auto& c) { c.q_scale = 100; });
  add("keys of some tokens are stored already", [](auto& c) { c.stored_until = 50; });
  add("padded rows", [](auto& c) { c.padded_sequences = 3; });
}

inline std::vector<AttendCase> attend_cases() {
  std::vector<AttendCase> cases;
  const auto add = [&](const char* name, const std::function<void(AttendCase&)>& change) {
    AttendCase c;
    c.name = name;
    change(c);
    cases.push_back(c);
  };
  add("base", [](auto&) {});
  add("no sequence", [](auto& c) { c.sequences = {}; });
  add("the first token sees itself", [](auto& c) { c.sequences = {{0, 1}}; });
  for (Format format : {Format::F32, Format::F16, Format::BF16, Format::F8_E4M3}) {
    for (int head_dim : {64, 128, 80, 33, 1}) {
      add("format and head_dim", [&](auto& c) {
        c.name = std::string(info(format).name) + ", head_dim " + std::to_string(head_dim);
        c.format = format, c.head_dim = head_dim, c.sequences = {{70, 1}, {3, 5}, {0, 19}};
      });
    }
  }
  for (int group : {1, 2, 3, 4, 5, 8, 16}) {
    add("heads per KV head", [&](auto& c) {
      c.name += ": " + std::to_string(group);
      c.num_heads = 2 * group, c.sequences = {{45, 1}, {10, 30}};
    });
  }
  add("300 heads on one", [](auto& c) { c.num_heads = 300, c.num_kv_heads = 1, c.sequences = {{5, 1}, {2, 3}}; });
  for (int block_size : {1, 8, 64, 100}) {
    add("block_size", [&](auto& c) {
      c.name += " " + std::to_string(block_size);
      c.block_size = block_size, c.sequences = {{130, 1}, {7, 20}};
    });
  }
  for (int length : {15, 16, 17, 63, 64, 65, 127}) {
    add("history", [&](auto& c) { c.name += " " + std::to_string(length), c.sequences = {{length, 1}, {length, 2}}; });
  }
  add("prefill", [](auto& c) { c.sequences = {{0, 150}}; });
  add("prefill in several tiles of queries", [](auto& c) { c.num_heads = 32, c.sequences = {{0, 70}}; });
  add("chunked prefill, the second chunk", [](auto& c) { c.sequences = {{75, 75}}; });
  add("decode and prefill mixed", [](auto& c) { c.sequences = {{33, 1}, {0, 1}, {90, 1}, {0, 40}, {16, 17}}; });
  add("decode at depth 1,500: keys are split", [](auto& c) { c.sequences = {{1500, 1}}; });
  add("one KV head, decode at depth 3,000", [](auto& c) {
    c.num_heads = 4, c.num_kv_heads = 1, c.head_dim = 16, c.scale = 0.25f, c.sequences = {{3000, 1}};
  });
  add("few queries at depth 1,100", [](auto& c) { c.num_kv_heads = 1, c.sequences = {{1100, 7}}; });
  for (int window : {1, 5, 16, 64, 1000}) {
    add("window", [&](auto& c) {
      c.name += " " + std::to_string(window);
      c.window = window, c.sequences = {{100, 1}, {0, 90}, {50, 20}};
    });
  }
  add("window of 1,000 at depth 2,000", [](auto& c) { c.window = 1000, c.sequences = {{2000, 1}}; });
  add("one key takes all", [](auto& c) { c.q_scale = 100, c.sequences = {{80, 1}, {0, 30}}; });
  add("all keys alike", [](auto& c) { c.q_scale = 0, c.sequences = {{80, 1}, {0, 30}}; });
  add("negative scale", [](auto& c) { c.scale = -0.3f, c.sequences = {{80, 1}}; });
  add("keys of some tokens are stored already", [](auto& c) { c.stored_until = 12, c.sequences = {{0, 20}, {30, 1}}; });
  add("padded rows", [](auto& c) { c.padded_sequences = 3, c.sequences = {{9, 1}, {25, 1}}; });
  add("scales", [](auto& c) {
    c.format = Format::F8_E4M3, c.k_scale = 0.013f, c.v_scale = 17, c.sequences = {{80, 1}, {0, 30}};
  });
  add("scales of F16", [](auto& c) { c.k_scale = 3, c.v_scale = 0.3f, c.sequences = {{80, 1}, {0, 30}}; });
  add_one_token_cases(cases, Format::BF16);
  add_one_token_cases(cases, Format::F8_E4M3);
  add_many_tokens_cases(cases, Format::BF16);
  add_many_tokens_cases(cases, Format::F16);
  add_many_tokens_cases(cases, Format::F8_E4M3);
  return cases;
}

}  // namespace proa::testing
