// The choice of experts of one token, by one warp.
#pragma once

#include "backends/cuda/device.cuh"
#include "ops/route.h"

namespace proa::cuda {

struct Best {
  float value;
  int index;
};
__device__ inline Best warp_best(Best best) {  // the larger value, of equals the lower index
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float value = __shfl_xor_sync(~0u, best.value, step);
    const int index = __shfl_xor_sync(~0u, best.index, step);
    if (value > best.value || (value == best.value && index < best.index)) best = {value, index};
  }
  return best;
}

// `logits`, `ids` and `weights` are of this token. `room` holds 2 n_routed_experts floats of shared memory.
__device__ inline void choose(const Route& op, const float* logits, int32_t* ids, float* weights, bool count,
                              float* room) {
  const int n = op.n_routed_experts, lane = lane_id();
  float* score = room;
  float* choice = room + n;
  for (int e = lane; e < n; e += kWarp) {
    score[e] = 1.0f / (1.0f + expf(-__ldcg(logits + e)));
    choice[e] = score[e] + op.bias[e];
  }
  __syncwarp();
  const float never = -INFINITY;
  if (op.n_group > 1) {
    // Groups that may be chosen from are marked by turns; the others' experts then drop out.
    const int size = n / op.n_group;
    const auto group_score = [&](int g) {
      float first = never, second = never;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        const float v = choice[e];
        if (v > first) {
          second = first;
          first = v;
        } else if (v > second) {
          second = v;
        }
      }
      return size > 1 ? first + second : first;
    };
    // A group is out when topk_group others come before it.
    for (int g = lane; g < op.n_group; g += kWarp) {
      const float mine = group_score(g);
      int before = 0;
      for (int other = 0; other < op.n_group; ++other) {
        if (other == g) continue;
        const float theirs = group_score(other);
        if (theirs > mine || (theirs == mine && other < g)) ++before;
      }
      // Marked in a bit of the score's sign, which is never negative.
      if (before >= op.topk_group) {
        for (int e = g * size; e < (g + 1) * size; ++e) score[e] = -score[e];
      }
    }
    __syncwarp();
    for (int e = lane; e < n; e += kWarp) {
      if (signbit(score[e])) choice[e] = never;
    }
    __syncwarp();
  }

  float sum = 0;
  float mine[2] = {};  // weights of choices `lane` and `lane` + 32
  for (int k = 0; k < op.num_experts_per_tok; ++k) {
    Best best = {never, n};
    for (int e = lane; e < n; e += kWarp) {
      if (choice[e] > best.value) best = {choice[e], e};
    }
    best = warp_best(best);
    if (best.index >= n) best.index = n - 1;  // only NaN is left
    const float weight = score[best.index];
    sum += weight;
    if (k % kWarp == lane && k < 2 * kWarp) mine[k / kWarp] = weight;
    if (lane == 0) {
      ids[k] = best.index;
      if (k >= 2 * kWarp) weights[k] = weight;
      if (count && op.expert_tokens) atomicAdd(op.expert_tokens + best.index, 1);
    }
    __syncwarp();
    if (lane == 0) choice[best.index] = never;
    __syncwarp();
  }
  const float factor = op.routed_scaling_factor;
  for (int k = lane; k < op.num_experts_per_tok; k += kWarp) {
    float weight = k < 2 * kWarp ? mine[k / kWarp] : weights[k];
    if (op.norm_topk_prob) weight = weight / (sum + 1e-20f);
    weights[k] = weight * factor;
  }
}

// The same for one group of up to kMost experts, in registers. What does not depend on the logits is read by the
// constructor.
class ExpertChoice {
 public:
  static constexpr int kMost = 128;

  __device__ explicit ExpertChoice(const Route& op)
      : n_(op.n_routed_experts),
        per_token_(op.num_experts_per_tok),
        expert_tokens_(op.expert_tokens),
        factor_(op.routed_scaling_factor),
        normalised_(op.norm_topk_prob) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) bias_[i] = number(i) < n_ ? __ldg(op.bias + number(i)) : 0.0f;
  }
  // Choice `lane` and its weight, in the lanes below num_experts_per_tok.
  __device__ __forceinline__ void choose(const float* logits, int32_t* id, float* weight, bool count) const {
    const int lane = lane_id();
    float score[kEach];
    uint32_t key[kEach];  // grows with the choice; 0: none
#pragma unroll
    for (int i = 0; i < kEach; ++i) score[i] = number(i) < n_ ? __ldcg(logits + number(i)) : 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      score[i] = __fdividef(1.0f, 1.0f + expf(-score[i]));
      const uint32_t bits = __float_as_uint(score[i] + bias_[i]);
      key[i] = number(i) < n_ ? (bits & 0x80000000u ? ~bits : bits | 0x80000000u) : 0;
    }
    float sum = 0, kept = 0;
    int mine = 0;
#pragma unroll 1
    for (int k = 0; k < per_token_; ++k) {
      uint32_t best = key[0], index = lane;
      float of_best = score[0];
#pragma unroll
      for (int i = 1; i < kEach; ++i) {
        if (key[i] > best) best = key[i], index = number(i), of_best = score[i];
      }
      const uint32_t most = __reduce_max_sync(~0u, best);
      const uint32_t first = __reduce_min_sync(~0u, best == most && most > 0 ? index : 0xffffu);
      const auto chosen = static_cast<int>(min(first, static_cast<uint32_t>(n_ - 1)));  // only NaN is left
      of_best = __shfl_sync(~0u, of_best, chosen % kWarp);
#pragma unroll
      for (int i = 0; i < kEach; ++i) key[i] = number(i) == chosen ? 0 : key[i];
      sum += of_best;
      if (lane == k) kept = of_best, mine = chosen;
    }
    if (lane < per_token_) {
      *id = mine;
      *weight = (normalised_ ? __fdividef(kept, sum + 1e-20f) : kept) * factor_;
      if (count && expert_tokens_) atomicAdd(expert_tokens_ + mine, 1);
    }
  }

 private:
  static constexpr int kEach = kMost / kWarp;
  __device__ static int number(int i) { return lane_id() + i * kWarp; }

  int n_, per_token_;
  int32_t* expert_tokens_;
  float factor_;
  bool normalised_;
  float bias_[kEach];
};

}  // namespace proa::cuda
