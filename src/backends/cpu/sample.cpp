// One row is one thread's work: a pass that copies and finds the best, a pass of exp for the log probability, another
// for the draw. Nothing sorts the vocabulary: top_k, top_p and the wanted logprobs count tokens in buckets of 1/32 nat
// below the best, and only the bucket that holds the cut is sorted.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/cpu_backend.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/sample.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
// clang-format on

#ifndef PROA_BACKENDS_CPU_SAMPLE_ONCE_
#define PROA_BACKENDS_CPU_SAMPLE_ONCE_
namespace proa {
namespace {

constexpr int kBlock = 1024;  // tokens whose weights are summed in float; blocks are summed in double

}  // namespace
}  // namespace proa
#endif

HWY_BEFORE_NAMESPACE();
namespace proa::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
constexpr hn::ScalableTag<float> d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));

}  // namespace

// Copies logits with NaN as -inf and +inf as the largest float; returns the largest.
float copy_finite(const float* logits, int count, float* out) {
  constexpr float kNever = -std::numeric_limits<float>::infinity(), kMost = std::numeric_limits<float>::max();
  const auto never = hn::Set(d, kNever), most = hn::Set(d, kMost);
  auto best = never;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto raw = hn::LoadU(d, logits + i);
    const auto x = hn::Min(hn::IfThenElse(hn::IsNaN(raw), never, raw), most);
    best = hn::Max(best, x);
    hn::StoreU(x, d, out + i);
  }
  float result = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; i < count; ++i) {
    out[i] = std::isnan(logits[i]) ? kNever : std::min(logits[i], kMost);
    result = std::max(result, out[i]);
  }
  return result;
}

float largest(const float* x, int count) {
  auto best = hn::Set(d, -std::numeric_limits<float>::infinity());
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) best = hn::Max(best, hn::LoadU(d, x + i));
  float result = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; i < count; ++i) result = std::max(result, x[i]);
  return result;
}

// The first index of `value`, which occurs.
int find_first(const float* x, int count, float value) {
  const auto wanted = hn::Set(d, value);
  int i = 0;
  while (i + kLanes <= count && hn::AllFalse(d, hn::Eq(hn::LoadU(d, x + i), wanted))) i += kLanes;
  while (i + 1 < count && x[i] != value) ++i;
  return i;
}

// weights[i] = exp((x[i] - best) / temperature), where `weights` is given; `sums` takes the sum of each block of
// kBlock. Returns the sum of all.
double exponentials(const float* x, int count, float best, float temperature, float* weights, double* sums) {
  const auto vbest = hn::Set(d, best), vtemperature = hn::Set(d, temperature);
  double total = 0;
  for (int first = 0; first < count; first += kBlock) {
    const int end = std::min(count, first + kBlock);
    auto sum = hn::Zero(d);
    int i = first;
    for (; i + kLanes <= end; i += kLanes) {
      const auto w = hn::Exp(d, hn::Div(hn::Sub(hn::LoadU(d, x + i), vbest), vtemperature));
      sum = hn::Add(sum, w);
      if (weights) hn::StoreU(w, d, weights + i);
    }
    double block = hn::GetLane(hn::SumOfLanes(d, sum));
    for (; i < end; ++i) {
      const float w = std::exp((x[i] - best) / temperature);
      block += w;
      if (weights) weights[i] = w;
    }
    sums[first / kBlock] = block;
    total += block;
  }
  return total;
}

}  // namespace proa::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace proa {

HWY_EXPORT(copy_finite);
HWY_EXPORT(largest);
HWY_EXPORT(find_first);
HWY_EXPORT(exponentials);

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Buckets by distance below the best logit; the last one holds all the rest.
constexpr int kBuckets = 1024;
int bucket_of(float best, float x) { return static_cast<int>(std::min((best - x) * 32, kBuckets - 1.0f)); }

struct Room {
  float* x;        // [vocab_size]
  float* weights;  // [vocab_size]
  int32_t* ids;    // [vocab_size]
  double* sums;    // [vocab_size / kBlock + 1]
  int32_t* count;  // [kBuckets]
  double* mass;    // [kBuckets]

  Room(Arena& arena, int vocab_size)
      : x(arena.take<float>(vocab_size)),
        weights(arena.take<float>(vocab_size)),
        ids(arena.take<int32_t>(vocab_size)),
        sums(arena.take<double>(vocab_size / kBlock + 1)),
        count(arena.take<int32_t>(kBuckets)),
        mass(arena.take<double>(kBuckets)) {}
  static size_t bytes(int vocab_size) {
    return 2 * Arena::padded<float>(vocab_size) + Arena::padded<int32_t>(vocab_size) +
           Arena::padded<double>(vocab_size / kBlock + 1) + Arena::padded<int32_t>(kBuckets) +
           Arena::padded<double>(kBuckets);
  }
};

struct ByLogit {  // best first, ties to the lower id
  const float* x;
  bool operator()(int32_t a, int32_t b) const { return x[a] != x[b] ? x[a] > x[b] : a < b; }
};

// Ids of the tokens in buckets [first_bucket, last_bucket] to room.ids, ascending; returns how many.
int gather(const Room& room, int vocab_size, float best, int first_bucket, int last_bucket) {
  int found = 0;
  for (int i = 0; i < vocab_size; ++i) {
    const int bucket = bucket_of(best, room.x[i]);
    room.ids[found] = i;
    found += bucket >= first_bucket && bucket <= last_bucket;
    if (found == vocab_size) break;
  }
  return found;
}

// The worst token that top_k and top_p keep, in the order of ByLogit.
int32_t last_kept(const SamplingRow& row, const Room& room, int vocab_size, float best) {
  std::memset(room.count, 0, kBuckets * sizeof(int32_t));
  std::fill_n(room.mass, kBuckets, 0.0);
  for (int i = 0; i < vocab_size; ++i) {
    const int bucket = bucket_of(best, room.x[i]);
    ++room.count[bucket];
    room.mass[bucket] += room.weights[i];
  }

  // top_k cuts bucket `cut` after its best `room_left`.
  int64_t room_left = row.top_k > 0 && row.top_k < vocab_size ? row.top_k : vocab_size;
  int cut = 0;
  double total = 0;
  while (room_left > room.count[cut]) {
    total += room.mass[cut];
    room_left -= room.count[cut++];
  }
  // Sorts the best `wanted` of one bucket into room.ids.
  const auto sort_bucket = [&](int bucket, int64_t wanted) {
    const int found = gather(room, vocab_size, best, bucket, bucket);
    std::partial_sort(room.ids, room.ids + wanted, room.ids + found, ByLogit{room.x});
  };
  if (row.top_p >= 1) {
    sort_bucket(cut, room_left);
    return room.ids[room_left - 1];
  }
  if (room_left == room.count[cut]) {
    total += room.mass[cut];
  } else {
    sort_bucket(cut, room_left);
    for (int64_t i = 0; i < room_left; ++i) total += room.weights[room.ids[i]];
  }

  // top_p cuts the same bucket or a better one.
  const double target = row.top_p * total;
  double reached = 0;
  int bucket = 0;
  while (bucket < cut && reached + room.mass[bucket] < target) reached += room.mass[bucket++];
  const int64_t length = bucket < cut ? room.count[bucket] : room_left;
  sort_bucket(bucket, length);
  for (int64_t i = 0; i < length; ++i) {
    reached += room.weights[room.ids[i]];
    if (reached >= target) return room.ids[i];
  }
  return room.ids[length - 1];  // rounding only
}

int32_t draw(const SamplingRow& row, const Room& room, int vocab_size, float best, double total) {
  if (row.top_k > 0 || row.top_p < 1 || row.min_p > 0) {
    int32_t last = -1;
    const bool ranked = (row.top_k > 0 && row.top_k < vocab_size) || row.top_p < 1;
    if (ranked) last = last_kept(row, room, vocab_size, best);
    const ByLogit better{room.x};
    total = 0;
    for (int first = 0; first < vocab_size; first += kBlock) {
      double sum = 0;
      for (int i = first; i < std::min(vocab_size, first + kBlock); ++i) {
        const bool kept = room.weights[i] >= row.min_p && (!ranked || !better(last, i));
        if (!kept) room.weights[i] = 0;
        sum += room.weights[i];
      }
      room.sums[first / kBlock] = sum;
      total += sum;
    }
  }
  const double target = uniform_draw(row) * total;
  double sum = 0;
  int first = 0;
  while (first + kBlock < vocab_size && sum + room.sums[first / kBlock] <= target) {
    sum += room.sums[first / kBlock];
    first += kBlock;
  }
  for (int i = first; i < vocab_size; ++i) {
    sum += room.weights[i];
    if (sum > target) return i;
  }
  int32_t token = vocab_size - 1;  // rounding passed the end: the last that can be drawn
  while (token > 0 && room.weights[token] == 0) --token;
  return token;
}

void add_bias(const float* bias, int vocab_size, float* x) {
  for (int i = 0; i < vocab_size; ++i) x[i] = std::min(x[i] + bias[i], std::numeric_limits<float>::max());
}

// 1 for the best.
int32_t rank_of(int32_t token, int vocab_size, const float* x) {
  const ByLogit better{x};
  int32_t rank = 1;
  for (int32_t i = 0; i < vocab_size; ++i) rank += better(i, token) ? 1 : 0;
  return rank;
}

void penalize(const SamplingRow& row, const TokenCount* counts, int vocab_size, float* x) {
  for (int i = 0; i < vocab_size; ++i) {
    if (counts[i] == 0) continue;
    float value = x[i] > 0 ? x[i] / row.repetition_penalty : x[i] * row.repetition_penalty;
    if (const TokenCount output = counts[i] & ~kInPrompt) {
      value -= row.presence_penalty;
      value -= row.frequency_penalty * static_cast<float>(output);
    }
    x[i] = std::isnan(value) ? kNever : std::min(value, std::numeric_limits<float>::max());
  }
}

void sample_row(const Sample& op, int r, const Room& room, int64_t target) {
  const auto find = PROA_DISPATCH(find_first, target);
  const auto exponentiate = PROA_DISPATCH(exponentials, target);
  const SamplingRow& row = op.rows[r];
  const int vocab_size = op.vocab_size;
  const float* logits = op.logits + int64_t{r} * vocab_size;
  const float best = PROA_DISPATCH(copy_finite, target)(logits, vocab_size, room.x);
  const double log_total = best == kNever ? 0 : std::log(exponentiate(room.x, vocab_size, best, 1, nullptr, room.sums));
  const auto logprob = [&](float logit) {
    return logit == kNever ? kNever : static_cast<float>(double{logit} - best - log_total);
  };

  if (op.num_top_logprobs > 0 && op.top_ids) {
    const int wanted = op.num_top_logprobs;
    std::memset(room.count, 0, kBuckets * sizeof(int32_t));
    const float top = best == kNever ? 0 : best;
    for (int i = 0; i < vocab_size; ++i) ++room.count[bucket_of(top, room.x[i])];
    int last = 0;
    for (int64_t held = room.count[0]; held < wanted;) held += room.count[++last];
    const int found = gather(room, vocab_size, top, 0, last);
    std::partial_sort(room.ids, room.ids + wanted, room.ids + found, ByLogit{room.x});
    for (int i = 0; i < wanted; ++i) {
      op.top_ids[int64_t{r} * wanted + i] = room.ids[i];
      op.top_logprobs[int64_t{r} * wanted + i] = logprob(room.x[room.ids[i]]);
    }
  }

  TokenCount* counts = op.counts && row.counts_slot >= 0 ? op.counts + int64_t{row.counts_slot} * vocab_size : nullptr;
  const float* bias = op.biases && row.bias_slot >= 0 ? op.biases + int64_t{row.bias_slot} * vocab_size : nullptr;
  const bool forced = row.forced >= 0 && row.forced < vocab_size;
  if (forced && op.ranks) op.ranks[r] = rank_of(row.forced, vocab_size, room.x);
  if (bias) add_bias(bias, vocab_size, room.x);
  if (counts) penalize(row, counts, vocab_size, room.x);

  float most = best;
  if (counts || bias) most = PROA_DISPATCH(largest, target)(room.x, vocab_size);
  int32_t token = 0;
  if (forced) {
    token = row.forced;
  } else if (most != kNever && row.temperature == 0) {
    token = find(room.x, vocab_size, most);
  } else if (most != kNever) {
    const double total = exponentiate(room.x, vocab_size, most, row.temperature, room.weights, room.sums);
    token = draw(row, room, vocab_size, most, total);
  }
  op.tokens[r] = token;
  float logit;
  PROA_DISPATCH(copy_finite, target)(logits + token, 1, &logit);
  op.logprobs[r] = logprob(logit);
  if (counts) ++counts[token];
}

}  // namespace

void CpuBackend::sample(const Sample& op) {
  const size_t bytes = Room::bytes(op.vocab_size);
  std::byte* rooms = scratch(bytes * threads().num_threads());
  if (counting()) return;
  threads().parallel_for(op.num_rows, 1, [&](int64_t begin, int64_t end, int thread) {
    Arena arena(rooms + thread * bytes, bytes);
    const Room room(arena, op.vocab_size);
    for (int64_t r = begin; r < end; ++r) sample_row(op, static_cast<int>(r), room, target());
  });
}

}  // namespace proa
#endif  // HWY_ONCE
