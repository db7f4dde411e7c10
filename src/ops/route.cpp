#include "ops/route.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <functional>
#include <numeric>

#include "ops/reference.h"

namespace proa {
namespace {

// Indices of the `count` largest values, best first; equal values in order of index.
std::vector<int> largest(const std::vector<double>& values, int count) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

}  // namespace

void route_reference(const Route& op) {
  const int n = op.n_routed_experts;
  assert(op.n_group >= 1 && n % op.n_group == 0 && op.topk_group >= 1 && op.topk_group <= op.n_group);
  const int group_size = n / op.n_group;
  assert(op.num_experts_per_tok <= op.topk_group * group_size);

  for (int t = 0; t < op.num_tokens; ++t) {
    const auto u = reference::rms_norm(op.x + int64_t{t} * op.hidden_size, op.norm, op.eps, 1, op.hidden_size);
    std::vector<double> score = reference::linear(op.gate, u, 1);
    for (double& s : score) s = 1 / (1 + std::exp(-s));
    std::vector<double> choice(score);
    for (int e = 0; e < n; ++e) choice[static_cast<size_t>(e)] += op.bias[e];

    if (op.n_group > 1) {
      std::vector<double> group_score;
      for (int g = 0; g < op.n_group; ++g) {
        std::vector<double> group(choice.begin() + g * group_size, choice.begin() + (g + 1) * group_size);
        std::sort(group.begin(), group.end(), std::greater<>());
        group_score.push_back(group_size > 1 ? group[0] + group[1] : group[0]);
      }
      std::vector<double> allowed(choice.size(), -INFINITY);
      for (int g : largest(group_score, op.topk_group)) {
        std::copy_n(choice.begin() + g * group_size, group_size, allowed.begin() + g * group_size);
      }
      choice = allowed;
    }

    const std::vector<int> chosen = largest(choice, op.num_experts_per_tok);
    double sum = 0;
    for (int e : chosen) sum += score[static_cast<size_t>(e)];
    for (int k = 0; k < op.num_experts_per_tok; ++k) {
      const int e = chosen[static_cast<size_t>(k)];
      double weight = score[static_cast<size_t>(e)];
      if (op.norm_topk_prob) weight /= sum + 1e-20;
      op.topk_ids[t * op.num_experts_per_tok + k] = e;
      if (op.expert_tokens) ++op.expert_tokens[e];
      op.topk_weights[t * op.num_experts_per_tok + k] = static_cast<float>(weight * op.routed_scaling_factor);
    }
  }
}

}  // namespace proa
