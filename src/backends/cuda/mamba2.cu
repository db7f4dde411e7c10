// conv_ssm_step and ssd_chunk. A decode with four taps is one kernel; a long run of a shape that ssd.h takes is there;
// everything else is a convolution over all tokens, the update of the convolution's state, and a scan that keeps the
// SSM state in registers, token by token.
#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/mamba2.cuh"
#include "backends/cuda/ssd.h"

namespace proa::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 4;                    // state rows of a warp
constexpr int kBlockRows = kWarps * kRows;  // of a block

// Per lane kLanes values of each of kRows rows: columns lane, lane + 32, ...
template <int kLanes>
struct State {
  float s[kRows][kLanes];

  __device__ void load(const float* head, int first_row, int rows, int width) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const int n = lane_id() + i * kWarp;
        s[r][i] = head && first_row + r < rows && n < width
                      ? __ldcg(head + static_cast<int64_t>(first_row + r) * width + n)
                      : 0.0f;
      }
    }
  }
  __device__ void store(float* head, int first_row, int rows, int width) const {
    if (!head) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const int n = lane_id() + i * kWarp;
        if (first_row + r < rows && n < width) head[static_cast<int64_t>(first_row + r) * width + n] = s[r][i];
      }
    }
  }
  // One token; x[r] is that of the row, B and C of this lane's columns. y[r] comes out in every lane.
  __device__ void step(float delta, float decay, const float (&x)[kRows], const float (&b)[kLanes],
                       const float (&c)[kLanes], float (&y)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float dx = delta * x[r];
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        s[r][i] = decay * s[r][i] + dx * b[i];
        sum += s[r][i] * c[i];
      }
      y[r] = warp_sum(sum);
    }
  }
};

constexpr int kFusedTaps = 4;
constexpr int kMaxChannels = 5;  // of a thread: (16 + 2 · 256) / 128

// One token of each sequence. What the state holds is fetched before the predecessor ends. B and C are convolved by
// every block of a group; the last of them to have read their state writes it.
template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    fused_step_kernel(const __grid_constant__ ConvSsmStep op, uint32_t* tickets) {
  __shared__ float channels[kBlockRows + 2 * kLanes * kWarp];
  __shared__ bool last;
  const Mamba2Shape& shape = op.shape;
  const int tid = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.y);
  const int64_t seq = blockIdx.z;
  const int N = shape.ssm_state_size, heads_of_group = shape.num_heads / shape.n_groups;
  const int group = head / heads_of_group, conv_dim = shape.num_heads * shape.head_dim + 2 * shape.n_groups * N;
  const int inner = shape.num_heads * shape.head_dim;
  const int block_row = static_cast<int>(blockIdx.x) * kBlockRows;
  const int first_row = block_row + warp_id() * kRows;
  const int32_t slot_in = __ldcg(op.state_slot_in + seq), slot_out = __ldcg(op.state_slot_out + seq);

  State<kLanes> state;
  state.load(head_state(op.cache, shape, slot_in, head), first_row, shape.head_dim, N);
  const int count = kBlockRows + 2 * N;
  const auto channel_of = [&](int c) {
    if (c < kBlockRows) return block_row + c < shape.head_dim ? head * shape.head_dim + block_row + c : -1;
    c -= kBlockRows;
    return c < N ? inner + group * N + c : inner + (shape.n_groups + group) * N + c - N;
  };
  float sum[kMaxChannels], weight[kMaxChannels], second[kMaxChannels], third[kMaxChannels];
  int channel[kMaxChannels];
#pragma unroll
  for (int i = 0; i < kMaxChannels; ++i) {
    const int c = tid + i * kThreads;
    channel[i] = c < count ? channel_of(c) : -1;
    if (channel[i] < 0) continue;
    const float* w = op.weights.conv_weight + static_cast<int64_t>(channel[i]) * kFusedTaps;
    const float* history =
        slot_in < 0 ? nullptr
                    : op.cache.conv + static_cast<int64_t>(slot_in) * (kFusedTaps - 1) * conv_dim + channel[i];
    const float h0 = history ? __ldcg(history) : 0.0f;
    second[i] = history ? __ldcg(history + conv_dim) : 0.0f;
    third[i] = history ? __ldcg(history + 2 * conv_dim) : 0.0f;
    sum[i] = (op.weights.conv_bias ? op.weights.conv_bias[channel[i]] : 0.0f) + w[0] * h0 + w[1] * second[i] +
             w[2] * third[i];
    weight[i] = w[3];
  }
  const float dt_bias = op.weights.dt_bias[head], a = op.weights.a[head], d = op.weights.d[head];
  wait_for_predecessor();
  start_successor();

  const float* projected = op.projected + seq * (inner + conv_dim + shape.num_heads);
  float* conv_out =
      slot_out < 0 ? nullptr : op.cache.conv + static_cast<int64_t>(slot_out) * (kFusedTaps - 1) * conv_dim;
  const auto keep = [&](int i, float current) {
    conv_out[channel[i]] = second[i];
    conv_out[conv_dim + channel[i]] = third[i];
    conv_out[2 * conv_dim + channel[i]] = current;
  };
  float current[kMaxChannels];
#pragma unroll
  for (int i = 0; i < kMaxChannels; ++i) {
    const int c = tid + i * kThreads;
    if (c >= count) continue;
    float value = 0;
    if (channel[i] >= 0) {
      current[i] = __ldcg(projected + inner + channel[i]);
      value = silu(sum[i] + weight[i] * current[i]);
      if (c < kBlockRows && conv_out) keep(i, current[i]);
    }
    channels[c] = value;
  }
  const float delta = time_step(__ldcg(projected + inner + conv_dim + head) + dt_bias, op.limit);
  __syncthreads();
  if (tid == 0 && conv_out) {
    __threadfence();
    const uint32_t blocks = gridDim.x * static_cast<uint32_t>(heads_of_group);
    uint32_t* ticket = tickets + seq * shape.n_groups + group;
    last = atomicAdd(ticket, 1u) == blocks - 1;
    if (last) *ticket = 0;
  }

  float x[kRows], b[kLanes], c[kLanes], y[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) x[r] = channels[warp_id() * kRows + r];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const int n = lane_id() + i * kWarp;
    b[i] = n < N ? channels[kBlockRows + n] : 0.0f;
    c[i] = n < N ? channels[kBlockRows + N + n] : 0.0f;
  }
  state.step(delta, expf(delta * a), x, b, c, y);
  state.store(head_state(op.cache, shape, slot_out, head), first_row, shape.head_dim, N);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (lane_id() == r && first_row + r < shape.head_dim) {
      op.y[seq * inner + head * shape.head_dim + first_row + r] = y[r] + d * x[r];
    }
  }
  if (!conv_out) return;
  __syncthreads();
  if (!last) return;
#pragma unroll
  for (int i = 0; i < kMaxChannels; ++i) {
    const int n = tid + i * kThreads;
    if (n >= kBlockRows && n < count) keep(i, current[i]);
  }
}

// Sequences of a call: those of ssd_chunk by query_start, those of conv_ssm_step all of one length.
struct Sequences {
  Mamba2Shape shape;
  Mamba2Weights weights;
  TimeStepLimit limit;
  int num_seqs;
  int num_tokens;
  int length;                  // of each sequence; 0: as query_start says
  const int32_t* query_start;  // or null
  const float* projected;
  StateCacheView cache;
  const int32_t* slot_in;
  const int32_t* slot_out;  // per sequence; with `length` per token
  float* activated;         // [num_tokens, conv_dim]
  float* y;

  __device__ int begin(int s) const { return query_start ? __ldcg(query_start + s) - __ldcg(query_start) : s * length; }
};

constexpr int kConvTokens = 16;  // of a thread

// A channel a thread, for kConvTokens tokens. Blocks count through the sequences' pieces.
__global__ void __launch_bounds__(128) convolve_kernel(const __grid_constant__ Sequences op) {
  wait_for_predecessor();
  start_successor();
  const Mamba2Shape& shape = op.shape;
  const int inner = shape.num_heads * shape.head_dim, taps = shape.conv_kernel;
  const int conv_dim = inner + 2 * shape.n_groups * shape.ssm_state_size;
  const int64_t stride = inner + conv_dim + shape.num_heads;
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  int piece = static_cast<int>(blockIdx.y), s = 0, start = 0, length = 0;
  for (;; ++s) {
    if (s == op.num_seqs) return;
    start = op.begin(s);
    length = op.begin(s + 1) - start;
    const int pieces = (length + kConvTokens - 1) / kConvTokens;
    if (piece < pieces) break;
    piece -= pieces;
  }
  if (channel >= conv_dim) return;
  const int first = piece * kConvTokens, end = min(length, first + kConvTokens);
  const int32_t slot = __ldcg(op.slot_in + s);
  const float* xbc = op.projected + start * stride + inner + channel;
  const float* history =
      slot < 0 ? nullptr : op.cache.conv + static_cast<int64_t>(slot) * (taps - 1) * conv_dim + channel;
  const auto row = [&](int t) {
    if (t >= 0) return __ldcg(xbc + t * stride);
    return history ? __ldcg(history + static_cast<int64_t>(t + taps - 1) * conv_dim) : 0.0f;
  };
  const float* weight = op.weights.conv_weight + static_cast<int64_t>(channel) * taps;
  const float bias = op.weights.conv_bias ? op.weights.conv_bias[channel] : 0.0f;
  for (int t = first; t < end; ++t) {
    float sum = bias;
    for (int k = 0; k < taps; ++k) sum += weight[k] * row(t - taps + 1 + k);
    op.activated[static_cast<int64_t>(start + t) * conv_dim + channel] = silu(sum);
  }
}

// The last inputs of the convolution, after all have been read. Oldest first: a row is read before it is overwritten.
__global__ void __launch_bounds__(128) conv_state_kernel(const __grid_constant__ Sequences op) {
  wait_for_predecessor();
  start_successor();
  const Mamba2Shape& shape = op.shape;
  const int inner = shape.num_heads * shape.head_dim, kept = shape.conv_kernel - 1;
  const int conv_dim = inner + 2 * shape.n_groups * shape.ssm_state_size;
  const int64_t stride = inner + conv_dim + shape.num_heads;
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), s = static_cast<int>(blockIdx.y);
  if (channel >= conv_dim) return;
  const int start = op.begin(s), length = op.begin(s + 1) - start;
  const int32_t slot_in = __ldcg(op.slot_in + s);
  float history[kMaxConvKernel];
  for (int k = 0; k < kept; ++k) {
    history[k] =
        slot_in < 0 ? 0.0f : __ldcg(op.cache.conv + (static_cast<int64_t>(slot_in) * kept + k) * conv_dim + channel);
  }
  const int states = op.length ? length : 1;
  for (int i = 0; i < states; ++i) {
    const int32_t slot_out = __ldcg(op.slot_out + (op.length ? start + i : s));
    if (slot_out < 0) continue;
    const int done = op.length ? i + 1 : length;
    for (int k = 0; k < kept; ++k) {
      const int t = done - kept + k;
      op.cache.conv[(static_cast<int64_t>(slot_out) * kept + k) * conv_dim + channel] =
          t >= 0 ? __ldcg(op.projected + (start + t) * stride + inner + channel) : history[kept + t];
    }
  }
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads) scan_kernel(const __grid_constant__ Sequences op) {
  wait_for_predecessor();
  start_successor();
  const Mamba2Shape& shape = op.shape;
  const int head = static_cast<int>(blockIdx.y), s = static_cast<int>(blockIdx.z), lane = lane_id();
  const int N = shape.ssm_state_size, inner = shape.num_heads * shape.head_dim;
  const int conv_dim = inner + 2 * shape.n_groups * N, group = head / (shape.num_heads / shape.n_groups);
  const int64_t stride = inner + conv_dim + shape.num_heads;
  const int first_row = static_cast<int>(blockIdx.x) * kBlockRows + warp_id() * kRows;
  const int start = op.begin(s), length = op.begin(s + 1) - start;
  State<kLanes> state;
  state.load(head_state(op.cache, shape, __ldcg(op.slot_in + s), head), first_row, shape.head_dim, N);
  const float dt_bias = op.weights.dt_bias[head], a = op.weights.a[head], d = op.weights.d[head];

  struct Inputs {
    float x[kRows], b[kLanes], c[kLanes], dt;
  };
  const auto load = [&](int t, Inputs& in) {
    if (t >= length) return;
    const float* token = op.activated + static_cast<int64_t>(start + t) * conv_dim;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      in.x[r] = first_row + r < shape.head_dim ? __ldcg(token + head * shape.head_dim + first_row + r) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const int n = lane + i * kWarp;
      in.b[i] = n < N ? __ldcg(token + inner + group * N + n) : 0.0f;
      in.c[i] = n < N ? __ldcg(token + inner + (shape.n_groups + group) * N + n) : 0.0f;
    }
    in.dt = __ldcg(op.projected + (start + t) * stride + inner + conv_dim + head);
  };
  Inputs next = {};
  load(0, next);
  for (int t = 0; t < length; ++t) {
    const Inputs in = next;
    load(t + 1, next);
    const float delta = time_step(in.dt + dt_bias, op.limit);
    float y[kRows];
    state.step(delta, expf(delta * a), in.x, in.b, in.c, y);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (lane == r && first_row + r < shape.head_dim) {
        op.y[static_cast<int64_t>(start + t) * inner + head * shape.head_dim + first_row + r] = y[r] + d * in.x[r];
      }
    }
    if (op.length) {
      state.store(head_state(op.cache, shape, __ldcg(op.slot_out + start + t), head), first_row, shape.head_dim, N);
    }
  }
  if (!op.length) {
    state.store(head_state(op.cache, shape, __ldcg(op.slot_out + s), head), first_row, shape.head_dim, N);
  }
}

// Calls f(n) with the number of state columns per lane, as a type.
template <typename F>
void with_lanes(int state_size, F&& f) {
  if (state_size <= 32) return f(std::integral_constant<int, 1>());
  if (state_size <= 64) return f(std::integral_constant<int, 2>());
  if (state_size <= 128) return f(std::integral_constant<int, 4>());
  f(std::integral_constant<int, 8>());
}

dim3 scan_blocks(const Mamba2Shape& shape, int num_seqs) {
  return dim3((shape.head_dim + kBlockRows - 1) / kBlockRows, shape.num_heads, num_seqs);
}

void keep_conv_state(const Sequences& op, const Launch& launch) {
  launch(conv_state_kernel, dim3((op.shape.conv_dim() + 127) / 128, op.num_seqs), dim3(128), 0, op);
}

void run(const Sequences& op, const Launch& launch) {
  if (op.num_tokens > 0) {
    const int pieces = (op.num_tokens + kConvTokens - 1) / kConvTokens + op.num_seqs;
    launch(convolve_kernel, dim3((op.shape.conv_dim() + 127) / 128, pieces), dim3(128), 0, op);
  }
  keep_conv_state(op, launch);
  with_lanes(op.shape.ssm_state_size, [&](auto lanes) {
    launch(scan_kernel<decltype(lanes)::value>, scan_blocks(op.shape, op.num_seqs), dim3(kThreads), 0, op);
  });
}

}  // namespace

void conv_ssm_step(const ConvSsmStep& op, float* activated, uint32_t* tickets, const Launch& launch) {
  if (op.num_seqs == 0) return;
  if (op.tokens_per_seq == 1 && op.shape.conv_kernel == kFusedTaps) {
    with_lanes(op.shape.ssm_state_size, [&](auto lanes) {
      launch(fused_step_kernel<decltype(lanes)::value>, scan_blocks(op.shape, op.num_seqs), dim3(kThreads), 0, op,
             tickets);
    });
    return;
  }
  run({op.shape, op.weights, op.limit, op.num_seqs, op.num_seqs * op.tokens_per_seq, op.tokens_per_seq, nullptr,
       op.projected, op.cache, op.state_slot_in, op.state_slot_out, activated, op.y},
      launch);
}

void ssd_chunk(const SsdChunk& op, float* activated, const Launch& launch) {
  if (op.num_seqs == 0) return;
  const Sequences all{op.shape,     op.weights, op.limit,         op.num_seqs,       op.num_tokens, 0,   op.query_start,
                      op.projected, op.cache,   op.state_slot_in, op.state_slot_out, activated,     op.y};
  if (!takes_ssd(op, launch)) return run(all, launch);
  ssd(op, activated, launch);
  keep_conv_state(all, launch);
}

}  // namespace proa::cuda
