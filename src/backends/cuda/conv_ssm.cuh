// One token through the convolution and the SSM state, as a stage of a step. A block takes rows of the state, a part of
// one head; what the caches hold is fetched before predecessors end, and caches are written after y, which is what the
// next stage waits for.
#pragma once

#include "backends/cuda/mamba2.cuh"
#include "backends/cuda/operands.cuh"
#include "backends/cuda/step.h"

namespace proa::cuda {

constexpr int kStepTaps = 4;
constexpr int kStepLanes = 4;  // state columns of a lane
constexpr int kStepRows = 3;   // of a warp at once

// Rows of a head that a block takes.
inline int chunk_rows(const Mamba2Shape& shape, int blocks) {
  for (int rows = 1; rows < shape.head_dim; ++rows) {
    if (shape.head_dim % rows == 0 && rows * blocks >= shape.num_heads * shape.head_dim) return rows;
  }
  return shape.head_dim;
}
// Chunks of a block: its share of its crew's, or of all.
struct Turns {
  int first, end, step;
};
__device__ __forceinline__ Turns chunks_of_block(const Mamba2Shape& shape, int rows, bool of_crew) {
  const int chunks = shape.num_heads * shape.head_dim / rows;
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  if (!of_crew) return {block, chunks, blocks};
  const int size = blocks / kMostCrews, crew = block / size, of_each = chunks / kMostCrews;
  return {crew * of_each + block % size, (crew + 1) * of_each, size};
}
inline size_t conv_ssm_room(const Mamba2Shape& shape) {  // bytes of shared memory
  return sizeof(float) * (static_cast<size_t>(shape.head_dim) + 2 * static_cast<size_t>(shape.ssm_state_size));
}

// What the stage reads of the caches and of its weights, by one warp.
__device__ __forceinline__ void prefetch_conv_ssm(const ConvSsmStep& op, int rows, const Turns& turns) {
  const Mamba2Shape& shape = op.shape;
  const int N = shape.ssm_state_size;
  const int inner = shape.num_heads * shape.head_dim, chunks = inner / rows;
  const int conv_dim = inner + 2 * shape.n_groups * N;
  const int32_t slot = __ldcg(op.state_slot_in);
  for (int chunk = turns.first; chunk < turns.end; chunk += turns.step) {
    const int head = chunk * rows / shape.head_dim, first_row = chunk * rows % shape.head_dim;
    const int group = chunk / (chunks / shape.n_groups);
    if (slot >= 0) prefetch(head_state(op.cache, shape, slot, head) + first_row * N, 4 * rows * N);
    const int first[3] = {chunk * rows, inner + group * N, inner + (shape.n_groups + group) * N};
#pragma unroll 1
    for (int i = 0; i < 3; ++i) {
      const int count = i == 0 ? rows : N;
      prefetch(op.weights.conv_weight + first[i] * kStepTaps, 4 * count * kStepTaps);
      if (op.weights.conv_bias) prefetch(op.weights.conv_bias + first[i], 4 * count);
#pragma unroll 1
      for (int t = 0; slot >= 0 && t < kStepTaps - 1; ++t) {
        prefetch(op.cache.conv + (static_cast<int64_t>(slot) * (kStepTaps - 1) + t) * conv_dim + first[i], 4 * count);
      }
    }
  }
}

template <class Gate>
__device__ __forceinline__ void conv_ssm_stage(const ConvSsmStep& op, int rows, const Turns& turns, uint32_t* tickets,
                                               float* channels, bool& last, const Gate& gate) {
  const Mamba2Shape& shape = op.shape;
  const int tid = static_cast<int>(threadIdx.x), warp = warp_id(), lane = lane_id();
  const int N = shape.ssm_state_size;
  const int inner = shape.num_heads * shape.head_dim, conv_dim = inner + 2 * shape.n_groups * N;
  const int chunks = inner / rows, chunks_of_group = chunks / shape.n_groups, count = rows + 2 * N;
  const int32_t slot_in = __ldcg(op.state_slot_in), slot_out = __ldcg(op.state_slot_out);
  float* conv_out =
      slot_out < 0 ? nullptr : op.cache.conv + static_cast<int64_t>(slot_out) * (kStepTaps - 1) * conv_dim;
  bool waited = false;
#pragma unroll 1
  for (int chunk = turns.first; chunk < turns.end; chunk += turns.step) {
    const int head = chunk * rows / shape.head_dim, first_row = chunk * rows % shape.head_dim;
    const int group = chunk / chunks_of_group;
    const float* state_in = head_state(op.cache, shape, slot_in, head);
    float* state_out = head_state(op.cache, shape, slot_out, head);
    float s[kStepRows][kStepLanes] = {};
    const auto load = [&](int first) {  // rows of this warp from `first` on
#pragma unroll
      for (int r = 0; r < kStepRows; ++r) {
        const int row = first + r * kConsumers;
        const float* from = state_in + (first_row + row) * N + lane;
#pragma unroll
        for (int i = 0; i < kStepLanes; ++i) {
          s[r][i] = state_in && row < rows && lane + i * kWarp < N ? __ldcg(from + i * kWarp) : 0.0f;
        }
      }
    };
    load(warp);
    // A channel of each thread: x of these rows, then B and C of the group.
    const int channel = tid < rows       ? chunk * rows + tid
                        : tid < rows + N ? inner + group * N + tid - rows
                                         : inner + (shape.n_groups + group) * N + tid - rows - N;
    float sum = 0, weight = 0, second = 0, third = 0, current = 0;
    if (tid < count) {
      const float4 w = __ldg(reinterpret_cast<const float4*>(op.weights.conv_weight) + channel);
      if (op.weights.conv_bias) sum = __ldg(op.weights.conv_bias + channel);
      if (slot_in >= 0) {
        const float* history = op.cache.conv + static_cast<int64_t>(slot_in) * (kStepTaps - 1) * conv_dim + channel;
        second = __ldcg(history + conv_dim);
        third = __ldcg(history + 2 * conv_dim);
        sum += w.x * __ldcg(history) + w.y * second + w.z * third;
      }
      weight = w.w;
    }
    const float dt_bias = op.weights.dt_bias[head], a = op.weights.a[head], d = op.weights.d[head];
    if (!waited) gate.wait();
    waited = true;

    const float dt = __ldcg(op.projected + inner + conv_dim + head);
    if (tid < count) {
      current = __ldcg(op.projected + inner + channel);
      channels[tid] = silu(sum + weight * current);
    }
    const float delta = time_step(dt + dt_bias, op.limit), decay = expf(delta * a);
    consumers_sync();
    // B and C are convolved by every block of a group: the last to have read their state writes it.
    uint32_t before = 0;
    if (tid == 0 && conv_out) {
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(tickets + group) : "memory");
    }
    float b[kStepLanes], c[kStepLanes];
#pragma unroll
    for (int i = 0; i < kStepLanes; ++i) {
      const int n = lane + i * kWarp;
      b[i] = n < N ? channels[rows + n] : 0.0f;
      c[i] = n < N ? channels[rows + N + n] : 0.0f;
    }
    const bool final = chunk + turns.step >= turns.end;
#pragma unroll 1
    for (int first = warp;;) {
#pragma unroll
      for (int r = 0; r < kStepRows; ++r) {
        const int row = first + r * kConsumers;
        const float x = row < rows ? channels[row] : 0.0f;
        float y = 0;
#pragma unroll
        for (int i = 0; i < kStepLanes; ++i) {
          s[r][i] = decay * s[r][i] + delta * x * b[i];
          y += s[r][i] * c[i];
        }
        y = warp_sum(y);
        if (lane == 0 && row < rows) op.y[chunk * rows + row] = y + d * x;
      }
      const int next = first + kStepRows * kConsumers;
      const bool ends = next - warp >= rows;
      if (ends) {
        consumers_sync();
        if (warp == 0 && final) gate.done();
      }
#pragma unroll
      for (int r = 0; r < kStepRows; ++r) {
        const int row = first + r * kConsumers;
        float* to = state_out + (first_row + row) * N + lane;
#pragma unroll
        for (int i = 0; i < kStepLanes; ++i) {
          if (state_out && row < rows && lane + i * kWarp < N) to[i * kWarp] = s[r][i];
        }
      }
      if (ends) break;
      first = next;
      load(first);
    }
    if (!conv_out) continue;
    if (tid == 0) {
      last = before == static_cast<uint32_t>(chunks_of_group) - 1;
      if (last) tickets[group] = 0;
    }
    consumers_sync();
    if (tid < rows || (last && tid < count)) {
      conv_out[channel] = second;
      conv_out[conv_dim + channel] = third;
      conv_out[2 * conv_dim + channel] = current;
    }
  }
  if (waited) return;
  gate.wait();
  consumers_sync();  // what wait() has written is read next
  if (warp == 0) gate.done();
}

}  // namespace proa::cuda
