// One token through the convolution and the SSM state, as a stage of a step. A block takes rows of the state, a part of
// one head; what the caches hold is fetched before predecessors end, and caches are written after y, which is what the
// next stage waits for.
#pragma once

#include "backends/cuda/mamba2.cuh"
#include "backends/cuda/operands.cuh"
#include "backends/cuda/step.h"

namespace proa::cuda {

constexpr int kStepTaps = 4;
constexpr int kStepRows = 3;  // of a warp at once

// Rows of a head that a block takes.
__host__ __device__ inline int chunk_rows(const Mamba2Shape& shape, int blocks) {
  for (int rows = 1; rows < shape.head_dim; ++rows) {
    if (shape.head_dim % rows == 0 && rows * blocks >= shape.num_heads * shape.head_dim) return rows;
  }
  return shape.head_dim;
}
inline size_t conv_ssm_room(const Mamba2Shape& shape) {  // bytes of shared memory
  return sizeof(float) * (static_cast<size_t>(shape.head_dim) + 2 * static_cast<size_t>(shape.ssm_state_size));
}

template <int kLanes, typename Wait, typename Done>
__device__ void conv_ssm_stage(const ConvSsmStep& op, int rows, uint32_t* tickets, float* channels, Wait&& wait,
                               Done&& done) {
  constexpr int kChannels = 2;  // of a thread
  __shared__ bool last;
  const Mamba2Shape& shape = op.shape;
  const int tid = static_cast<int>(threadIdx.x), warp = warp_id(), lane = lane_id();
  const int N = shape.ssm_state_size, inner = shape.num_heads * shape.head_dim;
  const int conv_dim = inner + 2 * shape.n_groups * N, chunks = inner / rows;
  const int chunks_of_group = chunks / shape.n_groups;
  const int32_t slot_in = __ldcg(op.state_slot_in), slot_out = __ldcg(op.state_slot_out);
  float* conv_out =
      slot_out < 0 ? nullptr : op.cache.conv + static_cast<int64_t>(slot_out) * (kStepTaps - 1) * conv_dim;
  bool waited = false;
  for (int chunk = static_cast<int>(blockIdx.x); chunk < chunks; chunk += static_cast<int>(gridDim.x)) {
    const int head = chunk * rows / shape.head_dim, first_row = chunk * rows % shape.head_dim;
    const int group = chunk / chunks_of_group;
    const float* state_in = head_state(op.cache, shape, slot_in, head);
    float* state_out = head_state(op.cache, shape, slot_out, head);
    const auto load = [&](int batch, float(&s)[kStepRows][kLanes]) {
#pragma unroll
      for (int r = 0; r < kStepRows; ++r) {
        const int row = warp + (batch * kStepRows + r) * kConsumers;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          const int n = lane + i * kWarp;
          s[r][i] =
              state_in && row < rows && n < N ? __ldcg(state_in + static_cast<int64_t>(first_row + row) * N + n) : 0.0f;
        }
      }
    };
    float s[kStepRows][kLanes];
    load(0, s);
    const int count = rows + 2 * N;
    float sum[kChannels], weight[kChannels], second[kChannels], third[kChannels], current[kChannels] = {};
    int channel[kChannels];
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int c = tid + i * kConsumerThreads;
      channel[i] = -1;
      if (c >= count) continue;
      channel[i] = c < rows       ? head * shape.head_dim + first_row + c
                   : c < rows + N ? inner + group * N + c - rows
                                  : inner + (shape.n_groups + group) * N + c - rows - N;
      const float* w = op.weights.conv_weight + static_cast<int64_t>(channel[i]) * kStepTaps;
      const float* history =
          slot_in < 0 ? nullptr
                      : op.cache.conv + static_cast<int64_t>(slot_in) * (kStepTaps - 1) * conv_dim + channel[i];
      const float h0 = history ? __ldcg(history) : 0.0f;
      second[i] = history ? __ldcg(history + conv_dim) : 0.0f;
      third[i] = history ? __ldcg(history + 2 * conv_dim) : 0.0f;
      sum[i] = (op.weights.conv_bias ? op.weights.conv_bias[channel[i]] : 0.0f) + w[0] * h0 + w[1] * second[i] +
               w[2] * third[i];
      weight[i] = w[3];
    }
    const float dt_bias = op.weights.dt_bias[head], a = op.weights.a[head], d = op.weights.d[head];
    if (!waited) wait();
    waited = true;

    const auto keep = [&](int i) {
      conv_out[channel[i]] = second[i];
      conv_out[conv_dim + channel[i]] = third[i];
      conv_out[2 * conv_dim + channel[i]] = current[i];
    };
    const float dt = __ldcg(op.projected + inner + conv_dim + head);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      if (channel[i] < 0) continue;
      current[i] = __ldcg(op.projected + inner + channel[i]);
      channels[tid + i * kConsumerThreads] = silu(sum[i] + weight[i] * current[i]);
    }
    const float delta = time_step(dt + dt_bias, op.limit), decay = expf(delta * a);
    consumers_sync();
    // B and C are convolved by every block of a group: the last to have read their state writes it.
    uint32_t before = 0;
    if (tid == 0 && conv_out) {
      __threadfence();
      before = atomicAdd(tickets + group, 1u);
    }
    float b[kLanes], c[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const int n = lane + i * kWarp;
      b[i] = n < N ? channels[rows + n] : 0.0f;
      c[i] = n < N ? channels[rows + N + n] : 0.0f;
    }
    const auto advance = [&](int batch) {
#pragma unroll
      for (int r = 0; r < kStepRows; ++r) {
        const int row = warp + (batch * kStepRows + r) * kConsumers;
        const float x = row < rows ? channels[row] : 0.0f;
        float y = 0;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          s[r][i] = decay * s[r][i] + delta * x * b[i];
          y += s[r][i] * c[i];
        }
        y = warp_sum(y);
        if (lane == 0 && row < rows) op.y[head * shape.head_dim + first_row + row] = y + d * x;
      }
    };
    const auto store = [&](int batch) {
#pragma unroll
      for (int r = 0; r < kStepRows; ++r) {
        const int row = warp + (batch * kStepRows + r) * kConsumers;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          const int n = lane + i * kWarp;
          if (state_out && row < rows && n < N) state_out[static_cast<int64_t>(first_row + row) * N + n] = s[r][i];
        }
      }
    };
    const int batches = (rows + kStepRows * kConsumers - 1) / (kStepRows * kConsumers);
    advance(0);
    for (int batch = 1; batch < batches; ++batch) {
      store(batch - 1);
      load(batch, s);
      advance(batch);
    }
    consumers_sync();
    if (warp == 0 && chunk + static_cast<int>(gridDim.x) >= chunks) done();
    store(batches - 1);
    if (!conv_out) continue;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      if (channel[i] >= 0 && tid + i * kConsumerThreads < rows) keep(i);
    }
    if (tid == 0) {
      last = before == static_cast<uint32_t>(chunks_of_group) - 1;
      if (last) tickets[group] = 0;
    }
    consumers_sync();
    if (last) {
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        if (channel[i] >= 0 && tid + i * kConsumerThreads >= rows) keep(i);
      }
    }
  }
  if (waited) return;
  wait();
  if (warp == 0) done();
}

}  // namespace proa::cuda
