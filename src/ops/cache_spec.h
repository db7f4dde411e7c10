// What a layer keeps from step to step, and the views of it that kernels take. The memory belongs to cache/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/formats.h"

namespace proa {

// What one layer keeps: K and V per token, or a recurrent state per sequence, or nothing.
struct CacheSpec {
  enum class Kind : uint8_t { none, kv, state } kind = Kind::none;

  // kind == kv
  int num_kv_heads = 0;
  int head_dim = 0;
  int window = 0;  // tokens that stay visible; 0: all

  // kind == state
  int conv_dim = 0;     // channels
  int conv_kernel = 0;  // taps; conv_kernel - 1 rows are kept
  int num_heads = 0;    // SSM heads
  int ssm_head_dim = 0;
  int ssm_state_size = 0;

  int64_t kv_elements_per_token() const { return int64_t{2} * num_kv_heads * head_dim; }
  int64_t conv_state_elements() const { return int64_t{conv_dim} * (conv_kernel - 1); }
  int64_t ssm_state_elements() const { return int64_t{num_heads} * ssm_head_dim * ssm_state_size; }
};

// Paged keys and values of one layer. Element (block, kv_head, offset, d) of K lies at
// ((block * num_kv_heads + kv_head) * block_size + offset) * head_dim + d, V alike: the keys of one head in one block
// are contiguous, which is what attention reads.
struct KvCacheView {
  std::byte* k = nullptr;  // [num_blocks, num_kv_heads, block_size, head_dim]
  std::byte* v = nullptr;  // [num_blocks, num_kv_heads, block_size, head_dim]
  Format format{};         // F32, F16, BF16 or F8_E4M3
  int num_blocks = 0;
  int block_size = 0;  // tokens
};

// Recurrent states of one layer, one slot per sequence (or per snapshot that is to stay on the device).
struct StateCacheView {
  float* conv = nullptr;  // [num_slots, conv_kernel - 1, conv_dim] the last inputs of the convolution, oldest first
  float* ssm = nullptr;   // [num_slots, num_heads, ssm_head_dim, ssm_state_size]
  int num_slots = 0;
};

struct LayerCache {  // the one that CacheSpec::kind names is set
  KvCacheView kv;
  StateCacheView state;
};

}  // namespace proa
