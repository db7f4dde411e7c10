// What one step computes, passed explicitly: nothing else of a request reaches the model.
// Every array is device memory that the step may not change in shape, so that a step can be captured as a graph.
#pragma once

#include <cstdint>

namespace proa {

// Sequences of a batch stand in this order: first `num_decodes` of exactly one token each, then those that prefill.
// Tokens of a sequence are consecutive, in order of position.
struct Batch {
  int num_tokens = 0;
  int num_seqs = 0;
  int num_decodes = 0;
  int num_logit_rows = 0;

  const int32_t* token_ids = nullptr;    // [num_tokens]
  const float* embeddings = nullptr;     // [num_tokens, hidden_size] replaces token_ids where given (vision), else null
  const int32_t* positions = nullptr;    // [num_tokens] position within its sequence, from 0
  const int32_t* query_start = nullptr;  // [num_seqs + 1] first token of each sequence in this batch
  const int32_t* seq_lens = nullptr;     // [num_seqs] tokens of the sequence including this step's

  const int32_t* block_table = nullptr;  // [num_seqs, block_table_stride] KV blocks of each sequence, in order
  int block_table_stride = 0;            // entries
  const int32_t* slot_mapping =
      nullptr;  // [num_tokens] where a token's K and V go: block * block_size + offset; -1: nowhere

  const int32_t* state_slot_in =
      nullptr;  // [num_seqs] slot that holds the state before this step; -1: starts from zero
  const int32_t* state_slot_out = nullptr;  // [num_seqs] slot that takes the state after this step; -1: nowhere

  const int32_t* logit_rows = nullptr;  // [num_logit_rows] tokens whose logits are wanted

  int32_t* expert_tokens = nullptr;  // [MoE layers, n_routed_experts] tokens of this step that chose each expert are
                                     // added here; null: not counted
};

}  // namespace proa
