// attend: stores this step's keys and values, then causal attention of every query over all that its sequence has
// stored.
//   out = softmax(scale · q · Kᵀ) · V, softmax in F32, query head h reads KV head h / (num_heads / num_kv_heads).
// A query at position p sees keys at positions in (p - window, p], or [0, p] where window is 0. No positions are added
// here: Nemotron-H has none, others turn q and k before (rope). The cache holds k / k_scale and v / v_scale as its
// format rounds them; keys and values, those of this step too, count as that times the scale. Entries of the block
// table that no query sees are not read; a query whose slot_mapping is -1 sees what the block table holds at its
// position; one that sees nothing (a padded row: seq_lens 0) gets 0.
#pragma once

#include "ops/batch.h"
#include "ops/cache_spec.h"

namespace proa {

struct Attend {
  const Batch* batch;  // num_tokens, num_seqs, query_start, seq_lens, positions, block_table, slot_mapping
  int num_heads;
  int num_kv_heads;
  int head_dim;
  int window;
  float scale;
  const float* q;  // [num_tokens, num_heads, head_dim]
  const float* k;  // [num_tokens, num_kv_heads, head_dim]
  const float* v;  // [num_tokens, num_kv_heads, head_dim]
  KvCacheView cache;
  float* out;  // [num_tokens, num_heads, head_dim]
  float k_scale = 1, v_scale = 1;
};

void attend_reference(const Attend& op);

}  // namespace proa
