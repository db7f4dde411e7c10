#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace proa {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double finite(float logit) {
  if (std::isnan(logit)) return kNever;
  return std::min<double>(logit, std::numeric_limits<float>::max());
}

// Ids by value, best first, ties to the lower id.
std::vector<int32_t> ranked(const std::vector<double>& value) {
  std::vector<int32_t> ids(value.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return value[a] > value[b]; });
  return ids;
}

int32_t draw(const SamplingRow& row, const std::vector<double>& logits) {
  const int vocab_size = static_cast<int>(logits.size());
  const std::vector<int32_t> ids = ranked(logits);
  const double best = logits[ids[0]];
  if (best == kNever) return 0;
  if (row.temperature == 0) return ids[0];

  std::vector<double> weight(vocab_size);
  for (int i = 0; i < vocab_size; ++i) weight[i] = std::exp((logits[i] - best) / row.temperature);
  int kept = row.top_k > 0 ? std::min(row.top_k, vocab_size) : vocab_size;
  if (row.top_p < 1) {
    double total = 0, reached = 0;
    for (int i = 0; i < kept; ++i) total += weight[ids[i]];
    for (int i = 0; i < kept; ++i) {
      reached += weight[ids[i]];
      if (reached >= row.top_p * total) kept = i + 1;
    }
  }
  for (int i = 0; i < vocab_size; ++i) {
    if (i >= kept || weight[ids[i]] < row.min_p) weight[ids[i]] = 0;
  }

  double total = 0;
  for (double w : weight) total += w;
  const double target = uniform_draw(row) * total;
  double sum = 0;
  for (int i = 0; i < vocab_size; ++i) {
    sum += weight[i];
    if (sum > target) return i;
  }
  int32_t last = vocab_size - 1;  // rounding passed the end: the last that can be drawn
  while (weight[last] == 0) --last;
  return last;
}

}  // namespace

PhiloxWords philox4x32(uint64_t key, const uint32_t counter[4]) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  PhiloxWords c{{counter[0], counter[1], counter[2], counter[3]}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c.word[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c.word[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.word[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.word[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

double uniform_draw(const SamplingRow& row) {
  const uint32_t counter[4] = {row.sequence, row.position, 0, 0};
  const PhiloxWords words = philox4x32(row.seed, counter);
  return static_cast<double>((uint64_t{words.word[0]} << 32 | words.word[1]) >> 11) * 0x1p-53;
}

void sample_reference(const Sample& op) {
  for (int r = 0; r < op.num_rows; ++r) {
    const SamplingRow& row = op.rows[r];
    std::vector<double> logits(op.vocab_size);
    for (int i = 0; i < op.vocab_size; ++i) logits[i] = finite(op.logits[int64_t{r} * op.vocab_size + i]);
    const double best = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (double x : logits) total += best == kNever ? 0 : std::exp(x - best);
    const auto logprob = [&](int32_t id) {
      return static_cast<float>(logits[id] == kNever ? kNever : logits[id] - best - std::log(total));
    };

    TokenCount* counts =
        op.counts && row.counts_slot >= 0 ? op.counts + int64_t{row.counts_slot} * op.vocab_size : nullptr;
    std::vector<double> adjusted = logits;
    const float* bias = op.biases && row.bias_slot >= 0 ? op.biases + int64_t{row.bias_slot} * op.vocab_size : nullptr;
    for (int i = 0; bias && i < op.vocab_size; ++i) adjusted[i] = finite(static_cast<float>(logits[i]) + bias[i]);
    for (int i = 0; counts && i < op.vocab_size; ++i) {
      if (counts[i] == 0) continue;
      float x = static_cast<float>(adjusted[i]);
      x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
      if (const TokenCount output = counts[i] & ~kInPrompt) {
        x -= row.presence_penalty;
        x -= row.frequency_penalty * static_cast<float>(output);
      }
      adjusted[i] = finite(x);
    }

    const bool forced = row.forced >= 0 && row.forced < op.vocab_size;
    const int32_t token = forced ? row.forced : draw(row, adjusted);
    if (forced && op.ranks) {
      op.ranks[r] = 1;
      for (int i = 0; i < op.vocab_size; ++i) {
        op.ranks[r] += logits[i] > logits[token] || (logits[i] == logits[token] && i < token) ? 1 : 0;
      }
    }
    op.tokens[r] = token;
    op.logprobs[r] = logprob(token);
    if (counts) ++counts[token];
    if (op.num_top_logprobs > 0 && op.top_ids) {
      const std::vector<int32_t> ids = ranked(logits);
      for (int i = 0; i < op.num_top_logprobs; ++i) {
        op.top_ids[int64_t{r} * op.num_top_logprobs + i] = ids[i];
        op.top_logprobs[int64_t{r} * op.num_top_logprobs + i] = logprob(ids[i]);
      }
    }
  }
}

}  // namespace proa
