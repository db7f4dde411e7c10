// Bound by the state's bytes, read and written once: first the convolution of all channels (1 % of them), then the
// recurrence, row by row of the state.
#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/conv_ssm_step.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "backends/cpu/mamba2-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {
namespace {

// Channels [begin, end) of one sequence: all its tokens' convolutions, then the rows that its slots keep.
//   activated  [num_seqs · tokens_per_seq, conv_dim] out
//   history    [num_seqs, conv_kernel - 1, conv_dim] room for the rows before the first token
void convolve_sequence(const ConvSsmStep& op, int s, int begin, int end, float* activated, float* history) {
  const int conv_dim = op.shape.conv_dim(), taps = op.shape.conv_kernel, kept = taps - 1, T = op.tokens_per_seq;
  const size_t bytes = static_cast<size_t>(end - begin) * sizeof(float);
  history += int64_t{s} * kept * conv_dim;
  const float* xbc = op.projected + int64_t{s} * T * op.shape.projected() + op.shape.inner();
  // A copy: the slots written below may be the one that is read.
  for (int j = 0; j < kept; ++j) {
    float* row = history + j * conv_dim + begin;
    if (op.state_slot_in[s] < 0) {
      std::memset(row, 0, bytes);
    } else {
      std::memcpy(row, op.cache.conv + (int64_t{op.state_slot_in[s]} * kept + j) * conv_dim + begin, bytes);
    }
  }
  const auto row = [&](int t) -> const float* {  // input of token t of this call; t < 0: of earlier ones
    return t < 0 ? history + (kept + t) * conv_dim : xbc + int64_t{t} * op.shape.projected();
  };
  for (int t = 0; t < T; ++t) {
    const float* rows[kMaxConvKernel];
    for (int j = 0; j < taps; ++j) rows[j] = row(t - kept + j);
    convolve_token(taps, rows, op.weights.conv_weight, op.weights.conv_bias, begin, end,
                   activated + (int64_t{s} * T + t) * conv_dim);
    const int32_t slot = op.state_slot_out[int64_t{s} * T + t];
    if (slot < 0) continue;
    for (int j = 0; j < kept; ++j) {
      std::memcpy(op.cache.conv + (int64_t{slot} * kept + j) * conv_dim + begin, row(t + 1 - kept + j) + begin, bytes);
    }
  }
}

// One head of one sequence. `room` holds a head's state, for tokens whose state nobody keeps, and 2 · tokens_per_seq.
void advance_sequence(const ConvSsmStep& op, int s, int h, const float* activated, float* room) {
  const Mamba2Shape& shape = op.shape;
  const int T = op.tokens_per_seq;
  const int64_t head = int64_t{shape.head_dim} * shape.ssm_state_size;
  const auto state = [&](int32_t slot) { return op.cache.ssm + (int64_t{slot} * shape.num_heads + h) * head; };
  const float* in = op.state_slot_in[s] < 0 ? nullptr : state(op.state_slot_in[s]);
  const int32_t* slots = op.state_slot_out + int64_t{s} * T;
  const auto out = [&](int t) { return slots[t] < 0 ? room : state(slots[t]); };
  const int64_t first = int64_t{s} * T;
  advance_head(shape, op.weights, op.limit, h, T, op.projected + first * shape.projected(),
               activated + first * shape.conv_dim(), in, out, room + head, op.y + first * shape.inner());
}

}  // namespace

// Channels [begin, end) of all sequences, counted on from one sequence to the next.
void convolve_channels(const ConvSsmStep& op, int64_t begin, int64_t end, float* activated, float* history) {
  const int conv_dim = op.shape.conv_dim();
  while (begin < end) {
    const int s = static_cast<int>(begin / conv_dim), c = static_cast<int>(begin % conv_dim);
    const int stop = static_cast<int>(std::min<int64_t>(conv_dim, c + (end - begin)));
    convolve_sequence(op, s, c, stop, activated, history);
    begin += stop - c;
  }
}

// Heads [begin, end) of all sequences, counted alike.
void advance_heads(const ConvSsmStep& op, int64_t begin, int64_t end, const float* activated, float* room) {
  for (int64_t i = begin; i < end; ++i) {
    advance_sequence(op, static_cast<int>(i / op.shape.num_heads), static_cast<int>(i % op.shape.num_heads), activated,
                     room);
  }
}

}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace proa {

HWY_EXPORT(convolve_channels);
HWY_EXPORT(advance_heads);

void CpuBackend::conv_ssm_step(const ConvSsmStep& op) {
  const Mamba2Shape& shape = op.shape;
  const int64_t num_tokens = int64_t{op.num_seqs} * op.tokens_per_seq;
  const int64_t conv_floats = num_tokens * shape.conv_dim();
  const int64_t history_floats = int64_t{op.num_seqs} * (shape.conv_kernel - 1) * shape.conv_dim();
  const int64_t room_floats = int64_t{shape.head_dim} * shape.ssm_state_size + 2 * op.tokens_per_seq;
  const size_t bytes = Arena::padded<float>(conv_floats) + Arena::padded<float>(history_floats) +
                       threads().num_threads() * Arena::padded<float>(room_floats);
  std::byte* memory = scratch(bytes);
  if (counting()) return;
  Arena arena(memory, bytes);
  float* activated = arena.take<float>(conv_floats);
  float* history = arena.take<float>(history_floats);
  float* rooms = arena.take<float>(0);
  const size_t room_stride = Arena::padded<float>(room_floats) / sizeof(float);

  const auto convolve = PROA_DISPATCH(convolve_channels, target());
  threads().parallel_for(int64_t{op.num_seqs} * shape.conv_dim(), 64,
                         [&](int64_t begin, int64_t end, int) { convolve(op, begin, end, activated, history); });
  const auto advance = PROA_DISPATCH(advance_heads, target());
  threads().parallel_for(int64_t{op.num_seqs} * shape.num_heads, 1, [&](int64_t begin, int64_t end, int thread) {
    advance(op, begin, end, activated, rooms + thread * room_stride);
  });
}

}  // namespace proa
#endif  // HWY_ONCE
