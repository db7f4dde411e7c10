// attend for one token of a sequence, as attend_one.cuh takes it.
#pragma once

#include <cmath>

#include "ops/attend.h"

namespace proa::cuda {

constexpr int kAttendHeads = 16;  // query heads of a KV head, at most
constexpr int kAttendTile = 16;   // BF16 keys of a warp at a time; twice as many FP8 ones

struct AttendOne {
  int num_heads = 0;     // a multiple of num_kv_heads, up to kAttendHeads times that
  int num_kv_heads = 0;  // up to the number of blocks
  int head_dim = 0;      // a multiple of 16
  int window = 0;        // 0: none
  int splits = 0;        // blocks of a KV head
  int tile = 0;          // keys of a warp at a time
  float scale = 0;       // of q, times log2 e
  float k_scale = 1, v_scale = 1;
  const float* q = nullptr;  // [num_heads, head_dim], 16-byte aligned
  const float* k = nullptr;  // [num_kv_heads, head_dim]
  const float* v = nullptr;  // [num_kv_heads, head_dim]
  const int32_t* position = nullptr;
  const int32_t* seq_len = nullptr;
  const int32_t* slot = nullptr;         // of this token, or -1
  const int32_t* block_table = nullptr;  // of this sequence
  KvCacheView cache;                     // BF16 or F8_E4M3, 16-byte aligned, fewer than 2^31 rows
  float* out = nullptr;                  // [num_heads, head_dim], 16-byte aligned
  float* partial = nullptr;              // attend_partial_size() floats, 16-byte aligned
};

// [num_kv_heads, splits, 16, head_dim] sums, then [num_kv_heads, 16, splits, 2] the largest score and the sum of
// weights
inline size_t attend_partial_size(const AttendOne& a) {
  return static_cast<size_t>(a.num_kv_heads) * a.splits * kAttendHeads * (a.head_dim + 2);
}

// Tokens of as many sequences, one or many.
inline bool takes_attend_one(const Attend& op) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return op.batch->num_tokens > 0 && op.batch->num_tokens == op.batch->num_seqs &&
         (op.cache.format == Format::BF16 || op.cache.format == Format::F8_E4M3) &&
         op.num_heads <= kAttendHeads * op.num_kv_heads && op.head_dim % 16 == 0 && op.head_dim <= 128 &&
         int64_t{op.cache.num_blocks} * op.cache.block_size * op.num_kv_heads < int64_t{1} << 31 && aligned(op.q) &&
         aligned(op.out) && aligned(op.cache.k) && aligned(op.cache.v);
}

// Of the first sequence.
inline AttendOne make_attend_one(const Attend& op, int splits, float* partial) {
  return {.num_heads = op.num_heads,
          .num_kv_heads = op.num_kv_heads,
          .head_dim = op.head_dim,
          .window = op.window,
          .splits = splits,
          .tile = op.cache.format == Format::BF16 ? kAttendTile : 2 * kAttendTile,
          .scale = static_cast<float>(op.scale * M_LOG2E),
          .k_scale = op.k_scale,
          .v_scale = op.v_scale,
          .q = op.q,
          .k = op.k,
          .v = op.v,
          .position = op.batch->positions,
          .seq_len = op.batch->seq_lens,
          .slot = op.batch->slot_mapping,
          .block_table = op.batch->block_table,
          .cache = op.cache,
          .out = op.out,
          .partial = partial};
}

}  // namespace proa::cuda
