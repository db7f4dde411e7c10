// Cases of sample. Tokens, counts and the order of alternatives must equal the reference's: a draw would differ only
// where the uniform number falls within about 1e-7 of the border between two tokens, which the fixed seeds do not hit.
//
// Bound of a log probability: its sum of exponentials is made of float sums of at most 1,024 terms, each exp within 2
// ulp and its argument within |x - best| u (at most 0.4 u of the sum): |error| <= (1024 + 8 + |logprob|) 2^-24.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ops/sample.h"
#include "ops/testing.h"

namespace proa::testing {

struct SampleCase {
  std::string name;
  int num_rows = 40;
  int vocab_size = 1000;
  int num_top_logprobs = 0;
  float scale = 3;      // of normal logits
  SamplingRow row;      // every row; the position counts up
  bool counts = false;  // a count slot per row, a tenth of the vocabulary in it
  bool ranks = false;
  std::function<void(float*, int)> bias{};    // makes the bias of each row, which begins as zeros
  std::function<void(float*, int)> logits{};  // changes the logits of each row
};

inline std::vector<SampleCase> sample_cases() {
  std::vector<SampleCase> cases;
  const auto add = [&](const char* name, const std::function<void(SampleCase&)>& change) {
    SampleCase c;
    c.name = name;
    c.row.seed = 17 + cases.size();
    change(c);
    cases.push_back(c);
  };
  add("base", [](auto&) {});
  add("no row", [](auto& c) { c.num_rows = 0; });
  add("greedy", [](auto& c) { c.row.temperature = 0; });
  for (int vocab_size : {1, 2, 15, 16, 17, 1023, 1024, 1025, 49152}) {
    add("vocab_size", [&](auto& c) {
      c.name += " " + std::to_string(vocab_size);
      c.vocab_size = vocab_size, c.num_rows = 5, c.num_top_logprobs = std::min(vocab_size, 5);
    });
    add("greedy, vocab_size", [&](auto& c) {
      c.name += " " + std::to_string(vocab_size);
      c.vocab_size = vocab_size, c.num_rows = 5, c.row.temperature = 0;
    });
  }
  for (float temperature : {1e-30f, 0.1f, 0.7f, 2.0f, 100.0f}) {
    add("temperature", [&](auto& c) { c.name += " " + std::to_string(temperature), c.row.temperature = temperature; });
  }
  for (int top_k : {1, 2, 50, 999, 1000, 5000}) {
    add("top_k", [&](auto& c) { c.name += " " + std::to_string(top_k), c.row.top_k = top_k; });
  }
  for (float top_p : {1e-6f, 0.1f, 0.5f, 0.9f, 0.999f}) {
    add("top_p", [&](auto& c) { c.name += " " + std::to_string(top_p), c.row.top_p = top_p; });
  }
  for (float min_p : {1e-6f, 0.05f, 0.5f, 1.0f}) {
    add("min_p", [&](auto& c) { c.name += " " + std::to_string(min_p), c.row.min_p = min_p; });
  }
  add("top_k, then top_p of what is left", [](auto& c) { c.row.top_k = 20, c.row.top_p = 0.7f; });
  add("top_p cuts before top_k", [](auto& c) { c.row.top_k = 500, c.row.top_p = 0.3f; });
  add("all filters",
      [](auto& c) { c.row.temperature = 0.8f, c.row.top_k = 40, c.row.top_p = 0.95f, c.row.min_p = 0.02f; });
  add("all filters, large vocabulary", [](auto& c) {
    c.vocab_size = 49152, c.num_rows = 4, c.row.top_k = 40, c.row.top_p = 0.95f, c.row.min_p = 0.02f;
  });
  add("logits spread beyond the float range of exp", [](auto& c) { c.scale = 300, c.row.top_k = 50; });
  add("top_p over logits far apart", [](auto& c) { c.scale = 300, c.row.top_p = 0.9f, c.row.temperature = 200; });
  add("all logits alike", [](auto& c) { c.scale = 0; });
  add("all logits alike, greedy: token 0", [](auto& c) { c.scale = 0, c.row.temperature = 0; });
  add("all logits alike, top_k: the lower ids", [](auto& c) { c.scale = 0, c.row.top_k = 7; });
  add("all logits alike, top_p: the lower ids", [](auto& c) { c.scale = 0, c.row.top_p = 0.25f; });
  add("ties in runs", [](auto& c) {
    c.row.top_k = 33, c.row.top_p = 0.8f, c.num_top_logprobs = 9;
    c.logits = [](float* x, int n) {
      for (int i = 0; i < n; ++i) x[i] = static_cast<float>(i * 7 % 5);
    };
  });
  add("greedy tie between the first vector and the last element", [](auto& c) {
    c.row.temperature = 0;
    c.logits = [](float* x, int n) { x[3] = x[n - 1] = 50; };
  });
  for (int wanted : {1, 20, 1000}) {
    add("alternatives", [&](auto& c) { c.name += " " + std::to_string(wanted), c.num_top_logprobs = wanted; });
  }
  add("repetition_penalty", [](auto& c) { c.counts = true, c.row.repetition_penalty = 1.3f; });
  add("repetition_penalty below 1", [](auto& c) { c.counts = true, c.row.repetition_penalty = 0.7f; });
  add("presence_penalty", [](auto& c) { c.counts = true, c.row.presence_penalty = 1.5f; });
  add("frequency_penalty", [](auto& c) { c.counts = true, c.row.frequency_penalty = 0.6f; });
  add("negative penalties",
      [](auto& c) { c.counts = true, c.row.presence_penalty = -2, c.row.frequency_penalty = -0.3f; });
  add("all penalties, greedy", [](auto& c) {
    c.counts = true, c.row.temperature = 0, c.num_top_logprobs = 3;
    c.row.repetition_penalty = 1.2f, c.row.presence_penalty = 0.4f, c.row.frequency_penalty = 0.2f;
  });
  add("counts without penalties", [](auto& c) { c.counts = true; });
  const auto ban_5 = [](float* bias, int) { bias[5] = -INFINITY; };
  add("the best token is banned", [&](auto& c) {
    c.bias = ban_5, c.row.temperature = 0, c.num_top_logprobs = 2;
    c.logits = [](float* x, int) { x[5] = 99; };
  });
  add("the likeliest token is banned", [&](auto& c) {
    c.bias = ban_5;
    c.logits = [](float* x, int) { x[5] = 99; };
  });
  add("the only token is banned",
      [](auto& c) { c.vocab_size = 1, c.bias = [](float* bias, int) { bias[0] = -INFINITY; }; });
  const auto some = [](float* bias, int n) {
    for (int i = 0; i < n; i += 3) bias[i] = static_cast<float>(i % 11 - 5);
  };
  for (float temperature : {0.0f, 1.0f}) {
    add("a bias on every third token", [&](auto& c) {
      c.name += ", temperature " + std::to_string(temperature);
      c.row.temperature = temperature, c.bias = some, c.num_top_logprobs = 3;
    });
    add("three tokens are allowed", [&](auto& c) {
      c.name += ", temperature " + std::to_string(temperature);
      c.row.temperature = temperature;
      c.bias = [](float* bias, int n) {
        for (int i = 0; i < n; ++i) bias[i] = i == 0 || i == 400 || i == n - 1 ? 0 : -INFINITY;
      };
    });
    add("every token is banned", [&](auto& c) {
      c.name += ", temperature " + std::to_string(temperature);
      c.row.temperature = temperature, c.bias = [](float* bias, int n) { std::fill(bias, bias + n, -INFINITY); };
    });
  }
  add("bias before filters, large vocabulary", [&](auto& c) {
    c.vocab_size = 49152, c.num_rows = 4, c.bias = some;
    c.row.top_k = 40, c.row.top_p = 0.95f, c.row.min_p = 0.02f;
  });
  add("bias before penalties", [&](auto& c) {
    c.counts = true, c.bias = some, c.row.temperature = 0;
    c.row.repetition_penalty = 1.2f, c.row.presence_penalty = 0.4f, c.row.frequency_penalty = 0.2f;
  });
  add("a bias over the largest float", [&](auto& c) {
    c.bias = [](float* bias, int n) { std::fill(bias, bias + n, 100.0f); };
    c.logits = [](float* x, int n) { x[1] = x[n - 1] = std::numeric_limits<float>::max(); };
  });
  for (int32_t forced : {0, 517, 999, 1000}) {
    add("forced", [&](auto& c) {
      c.name += " " + std::to_string(forced) + " of 1000 tokens";
      c.row.forced = forced, c.ranks = true, c.counts = true, c.num_top_logprobs = 2, c.bias = some;
    });
  }
  add("a forced token among ties, large vocabulary", [](auto& c) {
    c.vocab_size = 49152, c.num_rows = 3, c.row.forced = 30000, c.ranks = true;
    c.logits = [](float* x, int n) {
      for (int i = 0; i < n; ++i) x[i] = static_cast<float>(i * 7 % 5);
    };
  });
  add("a forced token of a broken model", [](auto& c) {
    c.row.forced = 7, c.ranks = true;
    c.logits = [](float* x, int n) {
      for (int i = 0; i < n; ++i) x[i] = i % 2 ? std::nanf("") : INFINITY;
    };
  });
  add("NaN among the logits", [](auto& c) {
    c.num_top_logprobs = 4;
    c.logits = [](float* x, int n) {
      for (int i = 0; i < n; i += 3) x[i] = std::nanf("");
    };
  });
  for (float temperature : {0.0f, 1.0f}) {
    for (float value : {std::nanf(""), -INFINITY, INFINITY, std::numeric_limits<float>::max(), -3.4e38f}) {
      add("all logits are", [&](auto& c) {
        c.name += " " + std::to_string(value) + ", temperature " + std::to_string(temperature);
        c.row.temperature = temperature, c.num_top_logprobs = 3;
        c.logits = [value](float* x, int n) { std::fill(x, x + n, value); };
      });
      add("two logits are", [&](auto& c) {
        c.name += " " + std::to_string(value) + ", temperature " + std::to_string(temperature);
        c.row.temperature = temperature, c.row.top_k = 3, c.row.top_p = 0.9f, c.num_top_logprobs = 3;
        c.logits = [value](float* x, int) { x[17] = x[400] = value; };
      });
    }
  }
  add("infinities under penalties", [](auto& c) {
    c.counts = true, c.row.repetition_penalty = 0.5f;
    c.logits = [](float* x, int n) {
      for (int i = 0; i < n; ++i) x[i] = i % 2 ? INFINITY : -INFINITY;
    };
  });
  return cases;
}

inline double logprob_bound(float logprob) { return (1024 + 8 + std::abs(double{logprob})) * 0x1p-24; }

}  // namespace proa::testing
