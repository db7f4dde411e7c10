#include "ops/embed.h"

namespace proa {

void embed_reference(const Embed& op) {
  for (int t = 0; t < op.num_tokens; ++t) {
    decode_row(op.table, op.token_ids[t], op.x + t * op.table.cols);
  }
}

}  // namespace proa
