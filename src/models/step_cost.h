// What a step costs by the model's own account: bytes that must move and operations that must be done, whatever the
// kernels do. Speed is stated against these. Bytes per token = weights touched + state read and written + keys and
// values read.
#pragma once

#include <cstdint>

#include "models/model.h"

namespace proa {

struct ParameterCount {
  int64_t total = 0;
  int64_t active = 0;     // used for each token, the embedding apart unless it is the output matrix as well
  int64_t embedding = 0;  // of the embedding table
};
ParameterCount count_parameters(const Model& model);

// Weights that a step of num_tokens tokens reads, each once: of every MoE layer `distinct_experts` (an average may be
// broken), of the embedding a row per token; the output matrix always.
double weight_bytes_of_step(const Model& model, int64_t num_tokens, double distinct_experts);
// The same for one token.
double weight_bytes_per_token(const Model& model);

// Experts of a MoE layer that num_tokens tokens touch on average when each is as likely as another: E (1 - (1 -
// k/E)^n), for 128 and 6: 6 / 22.4 / 40.8 / 100.5 / 122 at 1 / 4 / 8 / 32 / 64 tokens. 0 without experts.
double expected_distinct_experts(int n_routed_experts, int num_experts_per_tok, int64_t num_tokens);
double expected_distinct_experts(const Model& model, int64_t num_tokens);

// Recurrent state of one sequence, over all layers. A step reads and writes it once, however many tokens it has.
struct StateBytes {
  int64_t ssm = 0;
  int64_t conv = 0;
  int64_t total() const { return ssm + conv; }
};
StateBytes state_bytes(const Model& model);

// Keys and values over all layers. At depth n a token reads those of n tokens, fewer in layers with a window.
int64_t kv_bytes_per_token(const Model& model, Format kv_cache_dtype);
int64_t kv_bytes_read(const Model& model, Format kv_cache_dtype, int64_t depth);

// Bytes of a step of num_seqs decodes, each at `depth`.
double decode_bytes(const Model& model, int64_t num_seqs, double distinct_experts, Format kv_cache_dtype,
                    int64_t depth);

// Operations, a multiplication and an addition being two: products with active weights, attention over what is visible,
// the recurrence (5 for each value of SSM state) and the convolution.
double decode_flops(const Model& model, int64_t depth);        // one token at this depth, logits included
double prefill_flops(const Model& model, int64_t num_tokens);  // a whole prompt, logits for its last token

}  // namespace proa
