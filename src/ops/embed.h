// embed: rows of the embedding table, decoded to F32. Packed rows are allowed (some checkpoints quantise the table).
#pragma once

#include "ops/weight.h"

namespace proa {

struct Embed {
  int num_tokens;
  const int32_t* token_ids;  // [num_tokens], each in [0, table.rows)
  Weight table;              // [vocab_size, hidden_size]
  float* x;                  // [num_tokens, hidden_size] out
};

void embed_reference(const Embed& op);

}  // namespace proa
