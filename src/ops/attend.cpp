#include "ops/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace proa {
namespace {

// First byte of the vector that one head has at one slot (block * block_size + offset).
std::byte* cached(const Attend& op, std::byte* base, int64_t slot, int kv_head) {
  const int64_t block = slot / op.cache.block_size, offset = slot % op.cache.block_size;
  const int64_t row = (block * op.num_kv_heads + kv_head) * op.cache.block_size + offset;
  return base + row * static_cast<int64_t>(row_bytes(op.cache.format, op.head_dim));
}

void store(const Attend& op, const float* x, float scale, std::byte* out) {
  std::vector<float> scaled(x, x + op.head_dim);
  for (float& value : scaled) value /= scale;
  encode_row(op.cache.format, scaled.data(), op.head_dim, out);
}

}  // namespace

void attend_reference(const Attend& op) {
  const Batch& batch = *op.batch;
  for (int64_t t = 0; t < batch.num_tokens; ++t) {
    if (batch.slot_mapping[t] < 0) continue;
    for (int h = 0; h < op.num_kv_heads; ++h) {
      const int64_t row = (t * op.num_kv_heads + h) * op.head_dim;
      store(op, op.k + row, op.k_scale, cached(op, op.cache.k, batch.slot_mapping[t], h));
      store(op, op.v + row, op.v_scale, cached(op, op.cache.v, batch.slot_mapping[t], h));
    }
  }

  std::vector<float> vector(op.head_dim);
  for (int s = 0; s < batch.num_seqs; ++s) {
    const int32_t* table = batch.block_table + int64_t{s} * batch.block_table_stride;
    const auto slot = [&](int position) {
      return int64_t{table[position / op.cache.block_size]} * op.cache.block_size + position % op.cache.block_size;
    };
    for (int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t) {
      const int end = std::min(batch.positions[t] + 1, batch.seq_lens[s]);
      const int begin = op.window > 0 ? std::max(0, batch.positions[t] + 1 - op.window) : 0;
      for (int h = 0; h < op.num_heads; ++h) {
        const int kv_head = h / (op.num_heads / op.num_kv_heads);
        const float* q = op.q + (t * op.num_heads + h) * op.head_dim;
        std::vector<double> weight(std::max(0, end - begin));
        double best = -std::numeric_limits<double>::infinity(), total = 0;
        for (int p = begin; p < end; ++p) {
          decode_row(op.cache.format, cached(op, op.cache.k, slot(p), kv_head), op.head_dim, vector.data());
          double dot = 0;
          for (int d = 0; d < op.head_dim; ++d) dot += double{q[d]} * vector[d];
          weight[p - begin] = dot * op.scale * op.k_scale;
          best = std::max(best, weight[p - begin]);
        }
        for (double& w : weight) total += w = std::exp(w - best);
        std::vector<double> sum(op.head_dim, 0);
        for (int p = begin; p < end; ++p) {
          decode_row(op.cache.format, cached(op, op.cache.v, slot(p), kv_head), op.head_dim, vector.data());
          for (int d = 0; d < op.head_dim; ++d) sum[d] += weight[p - begin] * vector[d];
        }
        float* out = op.out + (t * op.num_heads + h) * op.head_dim;
        for (int d = 0; d < op.head_dim; ++d)
          out[d] = end > begin ? static_cast<float>(sum[d] / total * op.v_scale) : 0;
      }
    }
  }
}

}  // namespace proa
