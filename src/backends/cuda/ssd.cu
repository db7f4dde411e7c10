// Within 64 tokens, with s the running sum of Δ·A from their beginning and S the state before them:
//   y_i = exp(s_i) C_i · S + Σ_{j <= i} (C_i · B_j) exp(s_i - s_j) Δ_j x_j + D x_i
//   S  <- exp(s_63) S + Σ_j exp(s_63 - s_j) Δ_j x_j ⊗ B_j
// which are four products of matrices. Each factor is two bfloat16, together 16 bits, and of their four products the
// smallest is left out: an error of 2^-16 of the product, where one bfloat16 would leave 2^-8.
//
// A block has 32 channels of a head and goes through the sequence; their state stays in its registers.
#include "backends/cuda/device.cuh"
#include "backends/cuda/mamba2.cuh"
#include "backends/cuda/ssd.h"

namespace proa::cuda {
namespace {

constexpr int kChunk = 64;
constexpr int kChannels = 32;
constexpr int kState = 128;
constexpr int kTaps = 4;
constexpr int kThreads = 256;
constexpr int kConvTokens = 16;  // of a thread
// Bytes between rows in shared memory: 16 modulo 128, or 80, so that eight rows' chunks of 16 bytes lie in all banks.
constexpr int kStatePitch = 2 * kState + 16, kInputPitch = 4 * kChannels + 16, kChannelPitch = 2 * kChannels + 16;
constexpr int kSumPitch = kChannels + 4;  // floats

struct Steps {  // of a chunk's tokens
  float delta[kChunk];
  float high[kChunk], low[kChunk];  // s as the sum of two
  float grown[kChunk];              // exp(s)
  float weight[kChunk];             // exp(s of the last - s) Δ
  float decay;                      // exp(s of the last)
};

struct Shared {
  uint8_t planes[2][4][kChunk * kStatePitch];  // B high, B low, C high, C low
  uint8_t inputs[2][kChunk * kInputPitch];     // x
  uint8_t parts[4][kChunk * kChannelPitch];    // x high, x low, weighted x high, weighted x low
  uint8_t state[2][kChannels * kStatePitch];   // high, low
  float sums[kChunk * kSumPitch];
  Steps steps[2];
};

__device__ __forceinline__ void split(float a, float b, uint32_t& high, uint32_t& low) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  high = bits_of(pair);
  low = bits_of(__floats2bfloat162_rn(a - __low2float(pair), b - __high2float(pair)));
}

// c += (a_high + a_low) · (b_high + b_low) but for the product of the low parts.
__device__ __forceinline__ void multiply_split(float (&c)[4], const uint4& high, const uint4& low, uint32_t b0,
                                               uint32_t b1, uint32_t b0_low, uint32_t b1_low) {
  multiply<true>(c, low.x, low.y, low.z, low.w, b0, b1);
  multiply<true>(c, high.x, high.y, high.z, high.w, b0_low, b1_low);
  multiply<true>(c, high.x, high.y, high.z, high.w, b0, b1);
}

struct Span {
  int start, length;
};
__device__ __forceinline__ Span span_of(const SsdChunk& op, int s) {
  const int start = __ldcg(op.query_start + s);
  return {start - __ldcg(op.query_start), __ldcg(op.query_start + s + 1) - start};
}

// A channel a thread, for kConvTokens tokens. Blocks count through the sequences' pieces.
__global__ void __launch_bounds__(128) convolve_kernel(const __grid_constant__ SsdChunk op, const SsdInputs out) {
  wait_for_predecessor();
  start_successor();
  const Mamba2Shape& shape = op.shape;
  const int inner = shape.num_heads * shape.head_dim, both = 2 * shape.n_groups * kState, conv_dim = inner + both;
  const int64_t stride = inner + conv_dim + shape.num_heads;
  const int channel = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  int piece = static_cast<int>(blockIdx.y), s = 0;
  Span span{};
  for (;; ++s) {
    if (s == op.num_seqs) return;
    span = span_of(op, s);
    const int pieces = (span.length + kConvTokens - 1) / kConvTokens;
    if (piece < pieces) break;
    piece -= pieces;
  }
  if (channel >= conv_dim) return;
  const int first = piece * kConvTokens, end = min(span.length, first + kConvTokens);
  const int32_t slot = __ldcg(op.state_slot_in + s);
  const float* xbc = op.projected + span.start * stride + inner + channel;
  const float* history =
      slot < 0 ? nullptr : op.cache.conv + static_cast<int64_t>(slot) * (kTaps - 1) * conv_dim + channel;
  float v[kConvTokens + kTaps - 1];
#pragma unroll
  for (int i = 0; i < kConvTokens + kTaps - 1; ++i) {
    const int t = first + i - (kTaps - 1);
    v[i] = 0;
    if (t >= 0 && t < end) v[i] = __ldcg(xbc + t * stride);
    if (t < 0 && history) v[i] = __ldcg(history + static_cast<int64_t>(t + kTaps - 1) * conv_dim);
  }
  const float* weight = op.weights.conv_weight + static_cast<int64_t>(channel) * kTaps;
  const float w[kTaps] = {weight[0], weight[1], weight[2], weight[3]};
  const float bias = op.weights.conv_bias ? op.weights.conv_bias[channel] : 0.0f;
#pragma unroll
  for (int i = 0; i < kConvTokens; ++i) {
    if (first + i >= end) break;
    const float value = silu(bias + w[0] * v[i] + w[1] * v[i + 1] + w[2] * v[i + 2] + w[3] * v[i + 3]);
    const int64_t token = span.start + first + i;
    if (channel < inner) {
      out.x[token * inner + channel] = value;
    } else {
      const __nv_bfloat16 high = __float2bfloat16_rn(value);
      const int64_t at = token * both + channel - inner;
      out.high[at] = __bfloat16_as_ushort(high);
      out.low[at] = __bfloat16_as_ushort(__float2bfloat16_rn(value - __bfloat162float(high)));
    }
  }
}

// Of one warp: two tokens a lane. Sums are in double precision: s may be -20,000 where differences of 0.01 count.
__device__ __forceinline__ void make_steps(Steps& out, const float (&dt)[2], const bool (&there)[2], float bias,
                                           float a, const TimeStepLimit& limit) {
  const int lane = lane_id();
  float delta[2];
  double s[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) delta[i] = there[i] ? time_step(dt[i] + bias, limit) : 0.0f;
  const double first = static_cast<double>(delta[0]) * a, both = first + static_cast<double>(delta[1]) * a;
  double before = both;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const double below = __shfl_up_sync(~0u, before, step);
    if (lane >= step) before += below;
  }
  const double last = __shfl_sync(~0u, before, kWarp - 1);
  s[1] = before;
  s[0] = before - both + first;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    out.delta[t] = delta[i];
    out.high[t] = static_cast<float>(s[i]);
    out.low[t] = static_cast<float>(s[i] - out.high[t]);
    out.grown[t] = expf(static_cast<float>(s[i]));
    out.weight[t] = delta[i] * expf(static_cast<float>(last - s[i]));
  }
  if (lane == 0) out.decay = expf(static_cast<float>(last));
}

// C · B of the pairs of 16 tokens of a chunk, the second not behind the first, as ssd_kernel's lanes take them: the
// heads of a group share them.
constexpr int kPairs = 10, kPairFloats = 8 * kWarp;
__device__ __forceinline__ int pair_of(int row, int tile) { return row * (row + 1) / 2 + tile; }
__device__ __forceinline__ int64_t pairs_at(const SsdChunk& op, int64_t chunk, int group) {
  return (chunk * op.shape.n_groups + group) * (kPairs * kPairFloats);
}

__global__ void __launch_bounds__(kThreads) pairs_kernel(const __grid_constant__ SsdChunk op, const SsdInputs in) {
  extern __shared__ __align__(128) uint8_t memory[];  // B high, B low, C high, C low
  wait_for_predecessor();
  start_successor();
  const Mamba2Shape& shape = op.shape;
  const int tid = static_cast<int>(threadIdx.x), lane = lane_id(), group = static_cast<int>(blockIdx.x);
  const int both = 2 * shape.n_groups * kState;
  int chunk = static_cast<int>(blockIdx.y);
  Span span{};
  for (int s = 0;; ++s) {
    if (s == op.num_seqs) return;
    span = span_of(op, s);
    const int chunks = (span.length + kChunk - 1) / kChunk;
    if (chunk < chunks) break;
    chunk -= chunks;
  }
  const int first = chunk * kChunk;
#pragma unroll
  for (int i = 0; i < 4 * kChunk * (kState / 8) / kThreads; ++i) {
    const int at = tid + i * kThreads, plane = at / (kChunk * kState / 8), t = at / (kState / 8) % kChunk;
    const int part = at % (kState / 8);
    const uint16_t* from = (plane % 2 ? in.low : in.high) + static_cast<int64_t>(span.start + first + t) * both +
                           (plane / 2 * shape.n_groups + group) * kState + 8 * part;
    const bool there = first + t < span.length;
    copy_async_or_zero(shared_address(memory + (plane * kChunk + t) * kStatePitch + 16 * part), there ? from : in.high,
                       there);
  }
  close_copies();
  wait_for_copies<0>();
  __syncthreads();
  const int row = warp_id() % 4, half = warp_id() / 4, quad = lane / 8, in_quad = lane % 8;
  uint32_t planes[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) planes[p] = shared_address(memory + p * kChunk * kStatePitch);
  const uint32_t as_left = (quad % 2 * 8 + in_quad) * kStatePitch + quad / 2 * 16;
  const uint32_t as_right = (quad / 2 * 8 + in_quad) * kStatePitch + quad % 2 * 16;
  float among[2][2][4] = {};
#pragma unroll
  for (int k = 0; k < kState / 16; ++k) {
    const uint4 high = load_matrices(planes[2] + 16 * row * kStatePitch + as_left + 32 * k);
    const uint4 low = load_matrices(planes[3] + 16 * row * kStatePitch + as_left + 32 * k);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int tile = half + 2 * i;
      if (tile > row) continue;
      const uint4 b = load_matrices(planes[0] + 16 * tile * kStatePitch + as_right + 32 * k);
      const uint4 b_low = load_matrices(planes[1] + 16 * tile * kStatePitch + as_right + 32 * k);
      multiply_split(among[i][0], high, low, b.x, b.y, b_low.x, b_low.y);
      multiply_split(among[i][1], high, low, b.z, b.w, b_low.z, b_low.w);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int tile = half + 2 * i;
    if (tile > row) continue;
    auto* to = reinterpret_cast<float4*>(in.pairs + pairs_at(op, blockIdx.y, group) + pair_of(row, tile) * kPairFloats);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      to[n * kWarp + lane] = {among[i][n][0], among[i][n][1], among[i][n][2], among[i][n][3]};
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1) ssd_kernel(const __grid_constant__ SsdChunk op, const SsdInputs in) {
  extern __shared__ __align__(128) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  wait_for_predecessor();
  start_successor();
  const Mamba2Shape& shape = op.shape;
  const int tid = static_cast<int>(threadIdx.x), lane = lane_id(), warp = warp_id();
  const int head = static_cast<int>(blockIdx.y), first_channel = static_cast<int>(blockIdx.x) * kChannels;
  const Span span = span_of(op, static_cast<int>(blockIdx.z));
  const int inner = shape.num_heads * shape.head_dim, both = 2 * shape.n_groups * kState;
  const int group = head / (shape.num_heads / shape.n_groups), chunks = (span.length + kChunk - 1) / kChunk;
  const int64_t stride = 2 * inner + both + shape.num_heads;
  const float dt_bias = op.weights.dt_bias[head], a = op.weights.a[head], d = op.weights.d[head];
  // Of the output, a warp has 16 tokens, and half the terms of both sums. Of the state, 16 columns.
  const int row = warp % 4, half = warp / 4;
  const int quad = lane / 8, in_quad = lane % 8, j = lane % 4;

  const auto fetch = [&](int chunk) {
    const int first = chunk * kChunk;
#pragma unroll
    for (int i = 0; i < 4 * kChunk * (kState / 8) / kThreads; ++i) {
      const int at = tid + i * kThreads, plane = at / (kChunk * kState / 8), t = at / (kState / 8) % kChunk;
      const int part = at % (kState / 8);
      const uint16_t* from = (plane % 2 ? in.low : in.high) + static_cast<int64_t>(span.start + first + t) * both +
                             (plane / 2 * shape.n_groups + group) * kState + 8 * part;
      const bool there = first + t < span.length;
      copy_async_or_zero(shared_address(shared.planes[chunk % 2][plane] + t * kStatePitch + 16 * part),
                         there ? from : in.high, there);
    }
#pragma unroll
    for (int i = 0; i < kChunk * (kChannels / 4) / kThreads; ++i) {
      const int at = tid + i * kThreads, t = at / (kChannels / 4), part = at % (kChannels / 4);
      const float* from = in.x + static_cast<int64_t>(span.start + first + t) * inner + head * shape.head_dim +
                          first_channel + 4 * part;
      const bool there = first + t < span.length;
      copy_async_or_zero(shared_address(shared.inputs[chunk % 2] + t * kInputPitch + 16 * part), there ? from : in.x,
                         there);
    }
  };
  float dt[2] = {};
  bool there[2] = {};
  const auto load_dt = [&](int chunk) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = chunk * kChunk + 2 * lane + i;
      there[i] = t < span.length;
      if (there[i]) dt[i] = __ldcg(op.projected + (span.start + t) * stride + stride - shape.num_heads + head);
    }
  };

  float state[2][2][4];  // channels 16 m + 8 h + lane / 4, columns 16 warp + 8 n + 2 j + e
  const auto for_state = [&](float* base, auto&& f) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int channel = 16 * m + 8 * h + lane / 4, column = 16 * warp + 8 * n + 2 * j;
          f(base ? reinterpret_cast<float2*>(base + (first_channel + channel) * kState + column) : nullptr, channel,
            column, state[m][n][2 * h], state[m][n][2 * h + 1]);
        }
      }
    }
  };
  const auto show_state = [&] {
    for_state(nullptr, [&](float2*, int channel, int column, float& first, float& second) {
      uint32_t high, low;
      split(first, second, high, low);
      *reinterpret_cast<uint32_t*>(shared.state[0] + channel * kStatePitch + 2 * column) = high;
      *reinterpret_cast<uint32_t*>(shared.state[1] + channel * kStatePitch + 2 * column) = low;
    });
  };
  int64_t chunks_before = 0;
  for (int s = 0; s < static_cast<int>(blockIdx.z); ++s) {
    chunks_before += (span_of(op, s).length + kChunk - 1) / kChunk;
  }
  float next[2][2][4] = {};  // C · B of the next chunk
  const auto load_pairs = [&](int chunk) {
    const float* pairs = in.pairs + pairs_at(op, chunks_before + chunk, group);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int tile = half + 2 * i;
      if (tile > row) continue;
      const auto* from = reinterpret_cast<const float4*>(pairs + pair_of(row, tile) * kPairFloats);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float4 v = __ldcg(from + n * kWarp + lane);
        next[i][n][0] = v.x, next[i][n][1] = v.y, next[i][n][2] = v.z, next[i][n][3] = v.w;
      }
    }
  };
  if (chunks > 0) fetch(0), load_pairs(0);
  close_copies();
  if (warp == 0) {
    load_dt(0);
    make_steps(shared.steps[0], dt, there, dt_bias, a, op.limit);
    load_dt(1);
  }
  for_state(head_state(op.cache, shape, __ldcg(op.state_slot_in + blockIdx.z), head),
            [](const float2* from, int, int, float& first, float& second) {
              const float2 both = from ? __ldcg(from) : float2{0, 0};
              first = both.x, second = both.y;
            });
  show_state();

#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_for_copies<0>();
    __syncthreads();
    if (chunk + 1 < chunks) fetch(chunk + 1);
    close_copies();
    const Steps& steps = shared.steps[chunk % 2];
    if (warp == 0 && chunk + 1 < chunks) {
      make_steps(shared.steps[(chunk + 1) % 2], dt, there, dt_bias, a, op.limit);
      load_dt(chunk + 2);
    }
    const uint8_t* inputs = shared.inputs[chunk % 2];
    {
      const int t = tid / 4, part = tid % 4;
      const float weight = steps.weight[t];
      const auto* from = reinterpret_cast<const float4*>(inputs + t * kInputPitch + 32 * part);
      const float4 v[2] = {from[0], from[1]};
      uint32_t out[4][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        split(v[i].x, v[i].y, out[0][2 * i], out[1][2 * i]);
        split(v[i].z, v[i].w, out[0][2 * i + 1], out[1][2 * i + 1]);
        split(weight * v[i].x, weight * v[i].y, out[2][2 * i], out[3][2 * i]);
        split(weight * v[i].z, weight * v[i].w, out[2][2 * i + 1], out[3][2 * i + 1]);
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        *reinterpret_cast<uint4*>(shared.parts[p] + t * kChannelPitch + 16 * part) = {out[p][0], out[p][1], out[p][2],
                                                                                      out[p][3]};
      }
    }

    // C · B of every second 16 tokens before these, and C · S of half the columns.
    uint32_t planes[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) planes[p] = shared_address(shared.planes[chunk % 2][p]);
    const uint32_t as_left = (quad % 2 * 8 + in_quad) * kStatePitch + quad / 2 * 16;
    const uint32_t as_right = (quad / 2 * 8 + in_quad) * kStatePitch + quad % 2 * 16;
    const uint32_t state_planes[2] = {shared_address(shared.state[0]), shared_address(shared.state[1])};
    float among[2][2][4], y[4][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) among[i][n][e] = next[i][n][e];
      }
    }
    if (chunk + 1 < chunks) load_pairs(chunk + 1);
#pragma unroll
    for (int at = 0; at < kState / 32; ++at) {
      const int k = half * (kState / 32) + at;
      const uint4 high = load_matrices(planes[2] + 16 * row * kStatePitch + as_left + 32 * k);
      const uint4 low = load_matrices(planes[3] + 16 * row * kStatePitch + as_left + 32 * k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 b = load_matrices(state_planes[0] + 16 * i * kStatePitch + as_right + 32 * k);
        const uint4 b_low = load_matrices(state_planes[1] + 16 * i * kStatePitch + as_right + 32 * k);
        multiply_split(y[2 * i], high, low, b.x, b.y, b_low.x, b_low.y);
        multiply_split(y[2 * i + 1], high, low, b.z, b.w, b_low.z, b_low.w);
      }
    }
    const int my_token[2] = {16 * row + lane / 4, 16 * row + lane / 4 + 8};
    const float high_of[2] = {steps.high[my_token[0]], steps.high[my_token[1]]};
    const float low_of[2] = {steps.low[my_token[0]], steps.low[my_token[1]]};
    const float grown[2] = {steps.grown[my_token[0]], steps.grown[my_token[1]]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) y[i][e] *= grown[e / 2];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int t = 16 * (half + 2 * i) + 8 * n + 2 * j + e % 2;
          float factor = 0;
          if (t <= my_token[e / 2]) {
            factor = steps.delta[t] * expf((high_of[e / 2] - steps.high[t]) + (low_of[e / 2] - steps.low[t]));
          }
          among[i][n][e] *= factor;
        }
      }
    }
    __syncthreads();

    const uint32_t parts[4] = {shared_address(shared.parts[0]), shared_address(shared.parts[1]),
                               shared_address(shared.parts[2]), shared_address(shared.parts[3])};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int tile = half + 2 * i;
      if (tile > row) continue;
      uint4 high, low;
      split(among[i][0][0], among[i][0][1], high.x, low.x);
      split(among[i][0][2], among[i][0][3], high.y, low.y);
      split(among[i][1][0], among[i][1][1], high.z, low.z);
      split(among[i][1][2], among[i][1][3], high.w, low.w);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const uint32_t at = (16 * tile + quad % 2 * 8 + in_quad) * kChannelPitch + 32 * p + quad / 2 * 16;
        const uint4 b = load_matrices_transposed(parts[0] + at), b_low = load_matrices_transposed(parts[1] + at);
        multiply_split(y[2 * p], high, low, b.x, b.y, b_low.x, b_low.y);
        multiply_split(y[2 * p + 1], high, low, b.z, b.w, b_low.z, b_low.w);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) state[m][n][e] *= steps.decay;
      }
    }
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      const uint32_t at = (16 * k + quad % 2 * 8 + in_quad) * kStatePitch + 32 * warp + quad / 2 * 16;
      const uint4 b = load_matrices_transposed(planes[0] + at), b_low = load_matrices_transposed(planes[1] + at);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint32_t left = (16 * k + quad / 2 * 8 + in_quad) * kChannelPitch + 32 * m + quad % 2 * 16;
        const uint4 high = load_matrices_transposed(parts[2] + left), low = load_matrices_transposed(parts[3] + left);
        multiply_split(state[m][0], high, low, b.x, b.y, b_low.x, b_low.y);
        multiply_split(state[m][1], high, low, b.z, b.w, b_low.z, b_low.w);
      }
    }
    show_state();
    if (half == 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          *reinterpret_cast<float2*>(shared.sums + my_token[h] * kSumPitch + 8 * i + 2 * j) = {y[i][2 * h],
                                                                                               y[i][2 * h + 1]};
        }
      }
    }
    __syncthreads();
    if (half == 1) continue;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = my_token[h];
      if (chunk * kChunk + t >= span.length) continue;
      float* out = op.y + static_cast<int64_t>(span.start + chunk * kChunk + t) * inner + head * shape.head_dim +
                   first_channel + 2 * j;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 other = *reinterpret_cast<const float2*>(shared.sums + t * kSumPitch + 8 * i + 2 * j);
        const float2 x = *reinterpret_cast<const float2*>(inputs + t * kInputPitch + 4 * (8 * i + 2 * j));
        // Rows of y may lie at odd addresses.
        out[8 * i] = y[i][2 * h] + other.x + d * x.x;
        out[8 * i + 1] = y[i][2 * h + 1] + other.y + d * x.y;
      }
    }
  }
  if (float* to = head_state(op.cache, shape, __ldcg(op.state_slot_out + blockIdx.z), head)) {
    for_state(to, [](float2* at, int, int, float first, float second) { *at = {first, second}; });
  }
}

}  // namespace

bool takes_ssd(const SsdChunk& op, const Launch& launch) {
  return op.shape.ssm_state_size == kState && op.shape.head_dim % kChannels == 0 && op.shape.conv_kernel == kTaps &&
         op.num_tokens >= kChunk / 2 && reinterpret_cast<uintptr_t>(op.cache.ssm) % sizeof(float2) == 0 &&
         launch.shared_limit() >= static_cast<int>(sizeof(Shared));
}

int64_t ssd_floats(const SsdChunk& op) {
  const int64_t chunks = op.num_tokens / kChunk + op.num_seqs;
  return int64_t{op.num_tokens} * op.shape.conv_dim() + 4 + chunks * op.shape.n_groups * kPairs * kPairFloats;
}

void ssd(const SsdChunk& op, float* activated, const Launch& launch) {
  const Mamba2Shape& shape = op.shape;
  const int64_t both = int64_t{2} * shape.n_groups * kState;
  SsdInputs in;
  in.x = activated;
  in.high = reinterpret_cast<uint16_t*>(activated + static_cast<int64_t>(op.num_tokens) * shape.inner());
  in.low = in.high + op.num_tokens * both;
  in.pairs = activated + (int64_t{op.num_tokens} * shape.conv_dim() + 3) / 4 * 4;
  const int pieces = (op.num_tokens + kConvTokens - 1) / kConvTokens + op.num_seqs;
  launch(convolve_kernel, dim3((shape.conv_dim() + 127) / 128, pieces), dim3(128), 0, op, in);
  launch(pairs_kernel, dim3(shape.n_groups, op.num_tokens / kChunk + op.num_seqs), dim3(kThreads),
         size_t{4} * kChunk * kStatePitch, op, in);
  launch(ssd_kernel, dim3(shape.head_dim / kChannels, shape.num_heads, op.num_seqs), dim3(kThreads), sizeof(Shared), op,
         in);
}

}  // namespace proa::cuda
