// Cases of conv_ssm_step and ssd_chunk, their inputs, and how far float may be from the reference.
//
// Bound. With u = 2^-24, every contribution C_i · exp(s_i - s_j) · Δ_j x_j · B_j to an output passes at most 2
// roundings per token it lives, N in the dot product, and a few hundred in convolution, SiLU, softplus and exp (an
// argument v is off by |v| u, |v| < 40, and that is the relative error of exp; Δ·A is of the same kind). So
//   |error| <= (2 T + N + 512) u · magnitude,
// where the magnitude is the same recurrence run over absolute values, with Σ|w||x| + |b| for the convolution's output.
// States and outputs obey the same bound.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "ops/mamba2.h"

namespace proa {

struct Mamba2Case {
  std::string name;
  Mamba2Shape shape{8, 64, 2, 128, 4};
  bool conv_bias = true;
  TimeStepLimit limit;
  float dt_mean = -3, dt_spread = 1.5f;  // of dt + dt_bias, before softplus
  float a_least = 0.5f, a_most = 16;     // of -A
  int chunk_size = 64;                   // ssd_chunk
  int first_row = 0;                     // ssd_chunk: query_start[0], the tokens before belong to others
  std::vector<int> lengths = {37};       // tokens of each sequence; all the same for conv_ssm_step
  std::vector<int32_t> slot_in = {-1};   // per sequence
  std::vector<int32_t> slot_out = {0};   // per sequence; conv_ssm_step: per token
};

inline void add(std::vector<Mamba2Case>& cases, const char* name, const std::function<void(Mamba2Case&)>& change) {
  Mamba2Case c;
  c.name = name;
  change(c);
  cases.push_back(c);
}

// Rows that change the function that is computed; both ops have them.
inline void add_common_cases(std::vector<Mamba2Case>& cases) {
  add(cases, "base", [](auto&) {});
  add(cases, "no conv bias", [](auto& c) { c.conv_bias = false; });
  add(cases, "conv_kernel 2", [](auto& c) { c.shape.conv_kernel = 2; });
  add(cases, "conv_kernel 3", [](auto& c) { c.shape.conv_kernel = 3; });
  add(cases, "1 group", [](auto& c) { c.shape.n_groups = 1; });
  add(cases, "8 groups, one head each", [](auto& c) { c.shape.n_groups = 8; });
  add(cases, "Nemotron: 64 heads of 64, 8 groups", [](auto& c) { c.shape = {64, 64, 8, 128, 4}; });
  add(cases, "head_dim 80", [](auto& c) { c.shape.head_dim = 80; });
  add(cases, "odd head_dim", [](auto& c) { c.shape.head_dim = 5; });
  add(cases, "one head of one channel", [](auto& c) { c.shape = {1, 1, 1, 128, 4}; });
  add(cases, "state 16", [](auto& c) { c.shape.ssm_state_size = 16; });
  add(cases, "odd state", [](auto& c) { c.shape.ssm_state_size = 19; });
  add(cases, "state of 1", [](auto& c) { c.shape.ssm_state_size = 1; });
  add(cases, "time_step_limit cuts both ends", [](auto& c) { c.limit = {0.02f, 0.06f}; });
  add(cases, "time_step_limit of zero width", [](auto& c) { c.limit = {0.05f, 0.05f}; });
  // Softplus of -12 is 6e-6: such a head forgets 1e-5 per token, and a floor on Δ would show.
  add(cases, "long memory", [](auto& c) { c.dt_mean = -12, c.a_most = 1; });
  add(cases, "large dt, softplus is the identity", [](auto& c) { c.dt_mean = 25, c.dt_spread = 3; });
  // Prefix sums near -20,000 whose differences decide: catches sums that lose their low bits.
  add(cases, "large and tiny dt mixed",
      [](auto& c) { c.dt_mean = 0, c.dt_spread = 50, c.a_least = c.a_most = 16, c.lengths = {64}; });
  add(cases, "reads a slot, writes another", [](auto& c) { c.slot_in = {2}; });
  add(cases, "in place", [](auto& c) { c.slot_in = {3}, c.slot_out.back() = 3; });
  add(cases, "state is dropped", [](auto& c) { std::fill(c.slot_out.begin(), c.slot_out.end(), -1); });
}

inline std::vector<Mamba2Case> ssd_chunk_cases() {
  std::vector<Mamba2Case> cases;
  add_common_cases(cases);
  for (int size : {1, 7, 36, 37, 38, 128}) {
    add(cases, "chunk_size", [&](auto& c) { c.chunk_size = size, c.name += " " + std::to_string(size); });
  }
  add(cases, "one token", [](auto& c) { c.lengths = {1}; });
  add(cases, "one token with history", [](auto& c) { c.lengths = {1}, c.slot_in = {1}; });
  add(cases, "shorter than the convolution", [](auto& c) { c.lengths = {2}, c.slot_in = {1}; });
  add(cases, "two chunks and a bit", [](auto& c) { c.lengths = {129}, c.slot_in = {1}; });
  add(cases, "1,027 tokens", [](auto& c) { c.lengths = {1027}, c.shape = {4, 16, 2, 32, 4}, c.chunk_size = 128; });
  add(cases, "1,027 tokens, long memory", [](auto& c) {
    c.lengths = {1027}, c.shape = {4, 16, 2, 32, 4}, c.chunk_size = 128, c.dt_mean = -9, c.a_most = 1;
  });
  add(cases, "no sequence", [](auto& c) { c.lengths = {}, c.slot_in = {}, c.slot_out = {}; });
  add(cases, "a sequence of no tokens copies its state", [](auto& c) { c.lengths = {0}, c.slot_in = {1}; });
  add(cases, "a sequence of no tokens from zero", [](auto& c) { c.lengths = {0}; });
  add(cases, "lengths differ", [](auto& c) {
    c.lengths = {5, 1, 0, 65, 64, 3}, c.slot_in = {-1, 0, 1, 2, -1, 4}, c.slot_out = {5, 0, 1, 6, 7, -1};
  });
  add(cases, "two sequences fork one state", [](auto& c) {
    c.lengths = {9, 12}, c.slot_in = {0, 0}, c.slot_out = {1, 2}, c.first_row = 3;
  });
  return cases;
}

inline std::vector<Mamba2Case> conv_ssm_step_cases() {
  std::vector<Mamba2Case> cases;
  add_common_cases(cases);
  for (Mamba2Case& c : cases) c.lengths = {1};
  add(cases, "no sequence", [](auto& c) { c.lengths = {}, c.slot_in = {}, c.slot_out = {}; });
  add(cases, "five sequences", [](auto& c) {
    c.lengths.assign(5, 1), c.slot_in = {1, -1, 2, 0, 2}, c.slot_out = {1, 3, 4, 0, -1};
  });
  add(cases, "a speculated run, all states kept", [](auto& c) {
    c.lengths = {5}, c.slot_in = {1}, c.slot_out = {2, 3, 4, 5, 6};
  });
  add(cases, "a run that overwrites its own slot in the middle", [](auto& c) {
    c.lengths = {4}, c.slot_in = {1}, c.slot_out = {2, 1, -1, 5};
  });
  add(cases, "three runs, some states kept", [](auto& c) {
    c.lengths = {2, 2, 2}, c.slot_in = {1, -1, 2}, c.slot_out = {1, -1, -1, 3, 4, 2};
  });
  return cases;
}

constexpr int kMamba2Slots = 8;

struct Mamba2Inputs {
  std::vector<float> conv_weight, conv_bias, dt_bias, a, d;
  std::vector<float> projected;  // [num_tokens, projected]
  std::vector<int32_t> query_start;
  std::vector<float> conv, ssm;  // cache: NaN but in the slots that are read
  int num_tokens = 0;

  Mamba2Weights weights(const Mamba2Case& c) const {
    return {conv_weight.data(), c.conv_bias ? conv_bias.data() : nullptr, dt_bias.data(), a.data(), d.data()};
  }
};

inline Mamba2Inputs mamba2_inputs(const Mamba2Case& c, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto normals = [&](size_t count, float scale) {
    std::vector<float> values(count);
    for (float& value : values) value = scale * normal(random);
    return values;
  };
  const Mamba2Shape& shape = c.shape;
  Mamba2Inputs in;
  in.conv_weight = normals(static_cast<size_t>(shape.conv_dim()) * shape.conv_kernel, 0.6f);
  in.conv_bias = normals(shape.conv_dim(), 0.3f);
  in.dt_bias = normals(shape.num_heads, c.dt_spread / 2);
  for (float& bias : in.dt_bias) bias += c.dt_mean;
  std::uniform_real_distribution<float> log_a(std::log(c.a_least), std::log(c.a_most));
  for (int h = 0; h < shape.num_heads; ++h) in.a.push_back(-std::exp(log_a(random)));
  in.d = normals(shape.num_heads, 1);

  in.query_start = {c.first_row};
  for (int length : c.lengths) in.query_start.push_back(in.query_start.back() + length);
  in.num_tokens = in.query_start.back() - c.first_row;
  in.projected = normals(static_cast<size_t>(in.num_tokens) * shape.projected(), 1);
  for (int t = 0; t < in.num_tokens; ++t) {
    float* dt = in.projected.data() + static_cast<size_t>(t + 1) * shape.projected() - shape.num_heads;
    for (int h = 0; h < shape.num_heads; ++h) dt[h] *= c.dt_spread;
  }

  const size_t conv_size = static_cast<size_t>(shape.conv_kernel - 1) * shape.conv_dim();
  const size_t ssm_size = static_cast<size_t>(shape.inner()) * shape.ssm_state_size;
  in.conv.assign(kMamba2Slots * conv_size, std::nanf(""));
  in.ssm.assign(kMamba2Slots * ssm_size, std::nanf(""));
  for (int32_t slot : c.slot_in) {
    if (slot < 0) continue;
    std::ranges::copy(normals(conv_size, 1), in.conv.begin() + slot * conv_size);
    std::ranges::copy(normals(ssm_size, 1), in.ssm.begin() + slot * ssm_size);
  }
  return in;
}

// Largest error allowed for `length` tokens that start from slot `slot_in`: per token and channel, and per element of
// the state, after each token or after all.
struct Mamba2Bound {
  std::vector<double> y;    // [length, inner]
  std::vector<double> ssm;  // [length, inner, N], or [1, inner, N] of the final state
};

inline Mamba2Bound mamba2_bound(const Mamba2Case& c, const Mamba2Inputs& in, int first, int length, int32_t slot_in,
                                bool every_state) {
  const Mamba2Shape& shape = c.shape;
  const int conv_dim = shape.conv_dim(), inner = shape.inner(), N = shape.ssm_state_size, K = shape.conv_kernel;
  const double factor = (2.0 * length + N + 512) * 0x1p-24;
  const float* history = slot_in < 0 ? nullptr : in.conv.data() + static_cast<size_t>(slot_in) * (K - 1) * conv_dim;
  const auto xbc = [&](int t, int channel) -> double {  // t from -(K - 1)
    if (t >= 0) return in.projected[static_cast<size_t>(first + t) * shape.projected() + inner + channel];
    return history ? history[static_cast<size_t>(t + K - 1) * conv_dim + channel] : 0;
  };
  Mamba2Bound bound;
  std::vector<double> S(static_cast<size_t>(inner) * N, 0), mass(conv_dim);
  for (size_t i = 0; slot_in >= 0 && i < S.size(); ++i) S[i] = std::abs(in.ssm[slot_in * S.size() + i]);
  for (int t = 0; t < length; ++t) {
    for (int i = 0; i < conv_dim; ++i) {
      mass[i] = c.conv_bias ? std::abs(in.conv_bias[i]) : 0;
      for (int j = 0; j < K; ++j) mass[i] += std::abs(in.conv_weight[i * K + j] * xbc(t - K + 1 + j, i));
    }
    for (int row = 0; row < inner; ++row) {
      const int h = row / shape.head_dim, g = h / (shape.num_heads / shape.n_groups);
      const double v = in.projected[static_cast<size_t>(first + t + 1) * shape.projected() - shape.num_heads + h] +
                       double{in.dt_bias[h]};
      const double delta = std::clamp<double>(v > 20 ? v : std::log1p(std::exp(v)), c.limit.min, c.limit.max);
      const double decay = std::exp(delta * in.a[h]);
      double y = std::abs(in.d[h]) * mass[row];
      for (int n = 0; n < N; ++n) {
        double& s = S[static_cast<size_t>(row) * N + n];
        s = decay * s + delta * mass[row] * mass[inner + g * N + n];
        y += s * mass[inner + (shape.n_groups + g) * N + n];
      }
      bound.y.push_back(factor * y);
    }
    for (double s : S) {
      if (every_state) bound.ssm.push_back(factor * s);
    }
  }
  for (double s : S) {
    if (!every_state) bound.ssm.push_back(factor * s);
  }
  return bound;
}

}  // namespace proa
