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

// The same for one group of up to 512 experts, in registers. What does not depend on the logits is read by the
// constructor.
class ExpertChoice {
 public:
  __device__ explicit ExpertChoice(const Route& op) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i * kWarp >= op.n_routed_experts) break;
      const int e = lane_id() + i * kWarp;
      if (e < op.n_routed_experts) bias_[i] = __ldg(op.bias + e);
    }
  }
  __device__ __forceinline__ void choose(const Route& op, const float* logits, int32_t* ids, float* weights,
                                         bool count) const {
    const int n = op.n_routed_experts, lane = lane_id();
    float score[kMost] = {};
    uint32_t key[kMost] = {};  // grows with the choice; 0: none
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i * kWarp >= n) break;
      const int e = lane + i * kWarp;
      if (e >= n) continue;
      score[i] = __fdividef(1.0f, 1.0f + expf(-__ldcg(logits + e)));
      const uint32_t bits = __float_as_uint(score[i] + bias_[i]);
      key[i] = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    }
    float sum = 0, kept = 0;
#pragma unroll 1
    for (int k = 0; k < op.num_experts_per_tok; ++k) {
      uint32_t best = 0, index = 0xffffu;
      float weight = 0;
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
        if (i * kWarp >= n) break;
        if (key[i] > best) best = key[i], index = lane + i * kWarp, weight = score[i];
      }
      const uint32_t most = __reduce_max_sync(~0u, best);
      const uint32_t first = __reduce_min_sync(~0u, best == most ? index : 0xffffu);
      const auto chosen = static_cast<int>(min(first, static_cast<uint32_t>(n - 1)));
      weight = __shfl_sync(~0u, weight, chosen % kWarp);
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
        if (i * kWarp >= n) break;
        if (lane + i * kWarp == chosen) key[i] = 0;
      }
      sum += weight;
      if (lane == k) kept = weight;
      if (lane == 0) {
        ids[k] = chosen;
        if (count && op.expert_tokens) atomicAdd(op.expert_tokens + chosen, 1);
      }
    }
    if (lane < op.num_experts_per_tok) {
      weights[lane] = (op.norm_topk_prob ? __fdividef(kept, sum + 1e-20f) : kept) * op.routed_scaling_factor;
    }
  }

 private:
  static constexpr int kMost = 16;  // of a lane
  float bias_[kMost] = {};
};

}  // namespace proa::cuda
