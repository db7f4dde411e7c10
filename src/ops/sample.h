// sample: the next token of each row. The draw is Philox4x32-10 keyed by the seed, counter (sequence, position): the
// same on every backend, whatever the batch.
//   logits → bias → penalties → greedy if temperature == 0, else / temperature → top_k → top_p → min_p → draw
// repetition_penalty divides positive and multiplies negative logits of tokens in prompt or output; presence_penalty
// and frequency_penalty · count are subtracted for tokens of the output (vLLM's and OpenAI's meaning). logprobs are
// those of the model: log softmax of the logits before bias, penalties and temperature.
//
// Order is by logit, ties to the lower id; top_k keeps exactly k tokens, and top_p counts the probability of those.
// The draw is the first token, in order of id, at which the sum of kept probabilities exceeds uniform_draw(row).
// Bias and penalties are applied in F32, in the order above (all backends agree on ties); a bias of -inf bans a token.
// Logits from a broken model do no harm: NaN counts as -inf and +inf as the largest float. Where every token is -inf or
// banned the token is 0, with log probability -inf unless token 0 was only banned.
#pragma once

#include <cstdint>

namespace proa {

struct SamplingRow {
  float temperature = 1;         // 0: greedy; ties go to the lower id
  float top_p = 1;               // (0, 1]: smallest set of best tokens whose probability reaches top_p
  float min_p = 0;               // [0, 1]: drop tokens below min_p times the best probability
  float repetition_penalty = 1;  // > 0
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t top_k = 0;         // 0: all
  int32_t counts_slot = -1;  // row of `counts`, of this row alone; -1: no penalties for this row
  uint64_t seed = 0;
  uint32_t sequence = 0;   // which of the sequences that share the seed (n > 1)
  uint32_t position = 0;   // of the token that is drawn
  int32_t bias_slot = -1;  // row of `biases`; -1: none
  int32_t forced = -1;     // a token that is taken whatever the logits say; -1: none
};

// Occurrences per token: low 31 bits count the output, the top bit says that the prompt contains it.
using TokenCount = uint32_t;
constexpr TokenCount kInPrompt = TokenCount{1} << 31;

struct Sample {
  int num_rows;
  int vocab_size;
  int num_top_logprobs;           // 0..vocab_size alternatives wanted per row
  const float* logits;            // [num_rows, vocab_size]
  const SamplingRow* rows;        // [num_rows]
  TokenCount* counts;             // [num_count_slots, vocab_size] or null; the drawn token is counted here
  int32_t* tokens;                // [num_rows] out
  float* logprobs;                // [num_rows] out, of the drawn token
  int32_t* top_ids;               // [num_rows, num_top_logprobs] out, best first, or null
  float* top_logprobs;            // [num_rows, num_top_logprobs] out, or null
  const float* biases = nullptr;  // [num_bias_slots, vocab_size] finite or -inf, or null
  int32_t* ranks = nullptr;       // [num_rows] out of forced tokens among the logits, 1 for the best; or null
};

// Four 32-bit words of Philox4x32 with 10 rounds (Salmon et al. 2011). The low half of `key` is its first word.
struct PhiloxWords {
  uint32_t word[4];
};
PhiloxWords philox4x32(uint64_t key, const uint32_t counter[4]);

// The number in [0, 1) that decides a row: the first 53 bits of philox4x32(seed, {sequence, position, 0, 0}).
double uniform_draw(const SamplingRow& row);

void sample_reference(const Sample& op);

}  // namespace proa
