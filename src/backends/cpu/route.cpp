#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "backends/cpu/elementwise.h"
#include "backends/cpu/linear.h"

namespace proa {
namespace {

// Index of the largest value, the first of equals; `taken` values are -infinity.
int best_of(const float* values, int count) {
  return static_cast<int>(std::max_element(values, values + count) - values);
}

// One token: `score` holds the logits and then the sigmoids, `choice` and `group` are room for the selection.
void choose(const Route& op, float* score, float* choice, float* group, int32_t* ids, float* weights) {
  constexpr float kTaken = -std::numeric_limits<float>::infinity();
  const int n = op.n_routed_experts;
  for (int e = 0; e < n; ++e) {
    score[e] = 1 / (1 + std::exp(-score[e]));
    choice[e] = score[e] + op.bias[e];
  }

  if (op.n_group > 1) {
    const int size = n / op.n_group;
    for (int g = 0; g < op.n_group; ++g) {
      float first = kTaken;
      float second = kTaken;
      for (const float* c = choice + g * size; c < choice + (g + 1) * size; ++c) {
        if (*c > first) {
          second = first;
          first = *c;
        } else if (*c > second) {
          second = *c;
        }
      }
      group[g] = size > 1 ? first + second : first;
    }
    for (int left = op.n_group - op.topk_group; left > 0; --left) {
      // The worst group goes; of equals the last, since the lower one is preferred.
      int worst = 0;
      while (group[worst] == -kTaken) ++worst;
      for (int g = worst + 1; g < op.n_group; ++g) {
        if (group[g] != -kTaken && group[g] <= group[worst]) worst = g;
      }
      group[worst] = -kTaken;
      std::fill_n(choice + worst * size, size, kTaken);
    }
  }

  double sum = 0;
  for (int k = 0; k < op.num_experts_per_tok; ++k) {
    ids[k] = best_of(choice, n);
    choice[ids[k]] = kTaken;
    sum += score[ids[k]];
  }
  const double factor = op.routed_scaling_factor / (op.norm_topk_prob ? sum + 1e-20 : 1.0);
  for (int k = 0; k < op.num_experts_per_tok; ++k) weights[k] = static_cast<float>(score[ids[k]] * factor);
}

}  // namespace

void CpuBackend::route(const Route& op) {
  const int n = op.n_routed_experts;
  const int k = op.num_experts_per_tok;
  assert(op.n_group >= 1 && n % op.n_group == 0 && op.topk_group >= 1 && op.topk_group <= op.n_group);
  assert(k <= op.topk_group * (n / op.n_group));
  const int num_threads = threads().num_threads();
  const int64_t rooms_size = num_threads * room_floats(op.hidden_size, op.num_tokens);
  const int64_t room = n + op.n_group;  // floats per thread
  const auto needed = Input::bytes(op.num_tokens, op.hidden_size, {}) +
                      Arena::padded<float>(int64_t{op.num_tokens} * n) + Arena::padded<float>(rooms_size) +
                      Arena::padded<float>(num_threads * room);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  const Input u(arena, op.num_tokens, op.hidden_size, {});  // never rounded: two experts may all but tie
  float* score = arena.take<float>(int64_t{op.num_tokens} * n);  // [num_tokens, n]
  float* linear_rooms = arena.take<float>(rooms_size);
  float* rooms = arena.take<float>(num_threads * room);

  rms_norm(*this, op.num_tokens, op.hidden_size, op.x, nullptr, op.norm, op.eps, u);
  const Linear gate{
      .weight = op.gate, .num_tokens = op.num_tokens, .x = u.x, .x_stride = u.stride, .y = score, .y_stride = n};
  linear(*this, {&gate, 1}, linear_rooms);
  threads().parallel_for(op.num_tokens, 4, [&](int64_t begin, int64_t end, int thread) {
    float* choice = rooms + thread * room;
    for (int64_t t = begin; t < end; ++t) {
      choose(op, score + t * n, choice, choice + n, op.topk_ids + t * k, op.topk_weights + t * k);
    }
  });
  if (!op.expert_tokens) return;
  for (int64_t i = 0; i < int64_t{op.num_tokens} * k; ++i) ++op.expert_tokens[op.topk_ids[i]];
}

}  // namespace proa
