#include "backends/cpu/cpu_backend.h"

namespace proa {

void CpuBackend::embed(const Embed& op) {
  if (counting()) return;  // it needs no scratch
  threads().parallel_for(op.num_tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      decode_row(op.table, op.token_ids[t], op.x + t * op.table.cols);
    }
  });
}

}  // namespace proa
