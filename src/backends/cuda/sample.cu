// sample: many blocks a row find the best logit and the sum of exponentials; then one block a row draws. Greedy rows
// end there at once. Otherwise the kept set is found by descending through the bits of the logits' order, eight at a
// time, counting tokens (top_k) or their weights (top_p); no sort. Compiled without fused multiply-add, so that
// penalties give the same logits as everywhere.
#include "backends/cuda/device.cuh"
#include "backends/cuda/kernels.h"

namespace proa::cuda {
namespace {

constexpr int kScanThreads = 256;
constexpr int kDrawThreads = 1024;

__device__ __forceinline__ float finite(float logit) {
  if (isnan(logit)) return -INFINITY;
  return fminf(logit, 3.402823466e38f);
}

struct Row {
  const float* logits;
  const TokenCount* counts;  // or null
  const float* bias;         // or null
  SamplingRow row;
  int vocab_size;

  __device__ float raw(int i) const { return finite(__ldcg(logits + i)); }
  __device__ float adjusted(int i) const {
    float x = raw(i);
    if (bias) x = finite(x + __ldcg(bias + i));
    if (counts) {
      const TokenCount count = __ldcg(counts + i);
      if (count != 0) {
        x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
        if (const TokenCount output = count & ~kInPrompt) {
          x -= row.presence_penalty;
          x -= row.frequency_penalty * static_cast<float>(output);
        }
        x = finite(x);
      }
    }
    return x;
  }
  __device__ bool forced() const { return row.forced >= 0 && row.forced < vocab_size; }
};

__device__ Row row_of(const Sample& op, int r) {
  const SamplingRow row = op.rows[r];
  const TokenCount* counts =
      op.counts && row.counts_slot >= 0 ? op.counts + static_cast<int64_t>(row.counts_slot) * op.vocab_size : nullptr;
  const float* bias =
      op.biases && row.bias_slot >= 0 ? op.biases + static_cast<int64_t>(row.bias_slot) * op.vocab_size : nullptr;
  return {op.logits + static_cast<int64_t>(r) * op.vocab_size, counts, bias, row, op.vocab_size};
}

struct Best {
  float value;
  int id;
};
__device__ __forceinline__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}
__device__ Best warp_best(Best best) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    best = better(best, {__shfl_xor_sync(~0u, best.value, step), __shfl_xor_sync(~0u, best.id, step)});
  }
  return best;
}
// To every thread; `room` holds one per warp.
__device__ Best block_best(Best best, Best* room) {
  best = warp_best(best);
  __syncthreads();
  if (lane_id() == 0) room[warp_id()] = best;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  return warp_best(lane_id() < warps ? room[lane_id()] : Best{-INFINITY, 0x7fffffff});
}
__device__ double block_sum(double value, double* room) {
  value = warp_sum(value);
  __syncthreads();
  if (lane_id() == 0) room[warp_id()] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  return warp_sum(lane_id() < warps ? room[lane_id()] : 0.0);
}
// Sum of the values of the threads before this one.
template <typename T>
__device__ T block_before(T value, T* room) {
  T sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const T other = __shfl_up_sync(~0u, sum, step);
    if (lane_id() >= step) sum += other;
  }
  __syncthreads();
  if (lane_id() == kWarp - 1) room[warp_id()] = sum;
  __syncthreads();
  T before = sum - value;
  for (int w = 0; w < warp_id(); ++w) before += room[w];
  return before;
}

__global__ void __launch_bounds__(kScanThreads) scan_kernel(const __grid_constant__ Sample op, SamplePart* parts) {
  __shared__ Best room[kWarp];
  __shared__ double sums[kWarp];
  wait_for_predecessor();
  start_successor();
  const int r = static_cast<int>(blockIdx.y);
  const Row row = row_of(op, r);
  const int share = (op.vocab_size + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int begin = static_cast<int>(blockIdx.x) * share, end = min(op.vocab_size, begin + share);
  Best raw = {-INFINITY, 0x7fffffff}, best = raw;
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kScanThreads) {
    raw = better(raw, {row.raw(i), i});
    best = better(best, {row.adjusted(i), i});
  }
  raw = block_best(raw, room);
  best = block_best(best, room);
  double sum = 0;
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kScanThreads) {
    if (raw.value > -INFINITY) sum += static_cast<double>(expf(row.raw(i) - raw.value));
  }
  sum = block_sum(sum, sums);
  double above = 0;
  if (op.ranks && row.forced()) {
    const Best forced = {row.raw(row.row.forced), row.row.forced};
    for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kScanThreads) {
      above += i != forced.id && better(forced, {row.raw(i), i}).id == i ? 1 : 0;
    }
    above = block_sum(above, sums);
  }
  if (threadIdx.x == 0) {
    parts[r * kSampleParts + static_cast<int>(blockIdx.x)] = {sum, raw.value, best.value, best.id,
                                                              static_cast<int32_t>(above)};
  }
}

// Larger logits have larger keys.
__device__ __forceinline__ uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 is 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct DrawRoom {
  Best best[kWarp];
  double sums[kWarp];
  int counts[kWarp];
  double weights[256];
  uint32_t histogram[256];
  double above;  // what lies in bins above the chosen one
  int bin;
  int token;
};

// Tokens kept: those with a larger key, and the first `ties` with this one.
struct Cut {
  uint32_t key;
  int ties;
};

// The weight of a token before any filter.
__device__ __forceinline__ float weight_of(float logit, float best, float temperature) {
  const double exponent = (static_cast<double>(logit) - static_cast<double>(best)) / static_cast<double>(temperature);
  return exponent < -104.0 ? 0.0f : expf(static_cast<float>(exponent));
}

// The `wanted`-th largest key and how many of its tokens belong to the `wanted` best.
__device__ Cut cut_by_count(const Row& row, int wanted, DrawRoom& room) {
  uint32_t prefix = 0;
  int left = wanted;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) room.histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < row.vocab_size; i += kDrawThreads) {
      const uint32_t key = key_of(row.adjusted(i));
      if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&room.histogram[key >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 255;
      for (; bin > 0 && static_cast<int>(room.histogram[bin]) < left; --bin)
        left -= static_cast<int>(room.histogram[bin]);
      room.bin = bin;
      room.counts[0] = left;
    }
    __syncthreads();
    prefix = prefix << 8 | static_cast<uint32_t>(room.bin);
    left = room.counts[0];
    __syncthreads();
  }
  return {prefix, left};
}

// The smallest set of best tokens of `kept` whose weights reach `share` of all its weights.
__device__ Cut cut_by_weight(const Row& row, Cut kept, float best, float share, DrawRoom& room) {
  const float temperature = row.row.temperature;
  const auto logit_of = [](uint32_t key) { return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key); };
  const double tie_weight = static_cast<double>(weight_of(logit_of(kept.key), best, temperature)) * kept.ties;
  double target = 0, above = 0;
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) room.weights[threadIdx.x] = 0, room.histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < row.vocab_size; i += kDrawThreads) {
      const float logit = row.adjusted(i);
      const uint32_t key = key_of(logit);
      if (key <= kept.key || (shift < 24 && key >> (shift + 8) != prefix)) continue;
      atomicAdd(&room.weights[key >> shift & 255], static_cast<double>(weight_of(logit, best, temperature)));
      atomicAdd(&room.histogram[key >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      if (shift == 24 || kept.key >> (shift + 8) == prefix) {
        room.weights[kept.key >> shift & 255] += tie_weight;
        room.histogram[kept.key >> shift & 255] += static_cast<uint32_t>(kept.ties);
      }
      if (shift == 24) {
        for (int bin = 255; bin >= 0; --bin) target += room.weights[bin];
        target = static_cast<double>(share) * target;
      }
      // The bin in which the sum reaches the target; rounding may leave it to the last that holds anything.
      int chosen = -1;
      double chosen_above = above, sum = above;
      for (int bin = 255; bin >= 0; --bin) {
        if (room.histogram[bin] == 0) continue;
        chosen = bin;
        chosen_above = sum;
        sum += room.weights[bin];
        if (sum >= target) break;
      }
      room.bin = chosen;
      room.above = above = chosen_above;
      room.counts[0] = static_cast<int>(room.histogram[chosen]);
      room.sums[0] = target;
    }
    __syncthreads();
    prefix = prefix << 8 | static_cast<uint32_t>(room.bin);
    __syncthreads();
  }
  const double weight = weight_of(logit_of(prefix), best, temperature);
  int ties = room.counts[0];
  if (weight > 0) {
    const double needed = ceil((room.sums[0] - room.above) / weight);
    if (needed < ties) ties = needed < 1 ? 1 : static_cast<int>(needed);
  }
  __syncthreads();
  return {prefix, ties};
}

__device__ int draw(const Row& row, float best, DrawRoom& room) {
  const int vocab_size = row.vocab_size;
  Cut cut = {0, vocab_size};  // everything
  const bool limited = row.row.top_k > 0 && row.row.top_k < vocab_size;
  if (limited) cut = cut_by_count(row, row.row.top_k, room);
  if (row.row.top_p < 1) {
    if (!limited) cut = cut_by_count(row, vocab_size, room);
    cut = cut_by_weight(row, cut, best, row.row.top_p, room);
  }

  // Each thread has a run of tokens, in order of id.
  const int run = (vocab_size + kDrawThreads - 1) / kDrawThreads;
  const int begin = min(vocab_size, static_cast<int>(threadIdx.x) * run), end = min(vocab_size, begin + run);
  int ties = 0;
  for (int i = begin; i < end; ++i) ties += key_of(row.adjusted(i)) == cut.key;
  const int first_tie = block_before(ties, room.counts);
  const auto kept_weight = [&](int i, int& tie) {
    const float logit = row.adjusted(i);
    const uint32_t key = key_of(logit);
    if (key < cut.key || (key == cut.key && tie++ >= cut.ties)) return 0.0f;
    const float weight = weight_of(logit, best, row.row.temperature);
    return weight < row.row.min_p ? 0.0f : weight;
  };
  double sum = 0;
  int tie = first_tie, last_kept = -1;
  for (int i = begin; i < end; ++i) {
    const float weight = kept_weight(i, tie);
    sum += static_cast<double>(weight);
    if (weight > 0) last_kept = i;
  }
  const double before = block_before(sum, room.sums);
  __syncthreads();
  if (threadIdx.x == kDrawThreads - 1) room.above = before + sum;
  if (threadIdx.x == 0) room.token = vocab_size;
  __syncthreads();
  const uint32_t counter[4] = {row.row.sequence, row.row.position, 0, 0};
  uint32_t k0 = static_cast<uint32_t>(row.row.seed), k1 = static_cast<uint32_t>(row.row.seed >> 32);
  uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
                              static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  const double uniform = static_cast<double>((static_cast<uint64_t>(c[0]) << 32 | c[1]) >> 11) * 0x1p-53;
  const double target = uniform * room.above;
  if (before <= target && before + sum > target) {
    double reached = before;
    tie = first_tie;
    for (int i = begin; i < end; ++i) {
      reached += static_cast<double>(kept_weight(i, tie));
      if (reached > target) {
        atomicMin(&room.token, i);
        break;
      }
    }
  }
  __syncthreads();
  int token = room.token;
  if (token == vocab_size) {  // rounding passed the end: the last that can be drawn
    __syncthreads();
    if (threadIdx.x == 0) room.token = 0;
    __syncthreads();
    atomicMax(&room.token, last_kept);
    __syncthreads();
    token = room.token;
  }
  return token;
}

__global__ void __launch_bounds__(kDrawThreads)
    draw_kernel(const __grid_constant__ Sample op, const SamplePart* parts, int num_parts) {
  __shared__ DrawRoom room;
  wait_for_predecessor();
  start_successor();
  const int r = static_cast<int>(blockIdx.x), tid = static_cast<int>(threadIdx.x);
  const Row row = row_of(op, r);
  SamplePart mine = {0, -INFINITY, -INFINITY, 0x7fffffff, 0};
  if (tid < num_parts) mine = parts[r * kSampleParts + tid];
  const float best_raw = block_best({mine.best, tid}, room.best).value;
  const Best best = block_best({mine.value, mine.id}, room.best);
  const double total = block_sum(
      mine.best > -INFINITY ? mine.sum * exp(static_cast<double>(mine.best) - static_cast<double>(best_raw)) : 0.0,
      room.sums);
  const double log_total = log(total);
  const auto logprob = [&](float logit) {
    if (logit == -INFINITY) return -INFINITY;
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(best_raw) - log_total);
  };
  __syncthreads();

  int token = best.value == -INFINITY ? 0 : best.id;
  if (row.forced()) {
    token = row.row.forced;
    const double above = block_sum(mine.above, room.sums);
    if (tid == 0 && op.ranks) op.ranks[r] = 1 + static_cast<int32_t>(above);
  } else if (best.value > -INFINITY && row.row.temperature != 0) {
    token = draw(row, best.value, room);
  }
  __syncthreads();
  if (tid == 0) {
    op.tokens[r] = token;
    op.logprobs[r] = logprob(row.raw(token));
    if (row.counts) ++const_cast<TokenCount*>(row.counts)[token];
  }
  if (op.num_top_logprobs == 0 || !op.top_ids) return;
  Best after = {INFINITY, -1};
  for (int n = 0; n < op.num_top_logprobs; ++n) {
    Best next = {-INFINITY, 0x7fffffff};
    for (int i = tid; i < op.vocab_size; i += kDrawThreads) {
      const float x = row.raw(i);
      if (x > after.value || (x == after.value && i <= after.id)) continue;  // had already
      next = better(next, {x, i});
    }
    after = block_best(next, room.best);
    if (tid == 0) {
      op.top_ids[static_cast<int64_t>(r) * op.num_top_logprobs + n] = after.id;
      op.top_logprobs[static_cast<int64_t>(r) * op.num_top_logprobs + n] = logprob(after.value);
    }
  }
}

}  // namespace

void sample(const Sample& op, SamplePart* partial, const Launch& launch) {
  if (op.num_rows == 0) return;
  const int parts =
      op.vocab_size < kSampleParts * kScanThreads ? (op.vocab_size + kScanThreads - 1) / kScanThreads : kSampleParts;
  for (int first = 0; first < op.num_rows; first += 32768) {  // blockIdx.y ends at 65535
    Sample some = op;
    some.num_rows = op.num_rows - first < 32768 ? op.num_rows - first : 32768;
    some.logits += static_cast<int64_t>(first) * op.vocab_size;
    some.rows += first;
    some.tokens += first;
    some.logprobs += first;
    if (op.ranks) some.ranks += first;
    if (op.top_ids) some.top_ids += static_cast<int64_t>(first) * op.num_top_logprobs;
    if (op.top_logprobs) some.top_logprobs += static_cast<int64_t>(first) * op.num_top_logprobs;
    SamplePart* part = partial + static_cast<int64_t>(first) * kSampleParts;
    launch(scan_kernel, dim3(parts, some.num_rows), dim3(kScanThreads), 0, some, part);
    launch(draw_kernel, dim3(some.num_rows), dim3(kDrawThreads), 0, some, static_cast<const SamplePart*>(part), parts);
  }
}

}  // namespace proa::cuda
