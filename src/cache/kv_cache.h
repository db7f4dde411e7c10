// Keys and values of all attention layers, in blocks of block_size tokens. A block id means the same tokens in every
// layer, so a sequence has one block table. Who owns which block is a BlockPool's business.
#pragma once

#include <span>
#include <vector>

#include "cache/cache_move.h"
#include "core/result.h"
#include "ops/backend.h"
#include "ops/cache_spec.h"

namespace proa {

class KvCache {
 public:
  // Bytes of one block over all layers of kind kv; 0 if there is none.
  static size_t bytes_per_block(std::span<const CacheSpec> specs, int block_size, Format format);

  // One allocation per layer, on the device or, for blocks that are swapped out, on the host. Errors: a format that is
  // not F32, F16 or BF16; sizes that overflow; no memory.
  static Result<KvCache> create(Backend& backend, std::span<const CacheSpec> specs, int num_blocks, int block_size,
                                Format format, bool on_host = false);

  // Copies `count` blocks of `from`, one after the other, to as many of `to`.
  static void copy(Backend& backend, CacheMove::How how, const KvCache& from, int32_t first, const KvCache& to,
                   int32_t to_first, int count);

  // Keys and values of unit variance in every block, always the same: for measuring at a depth that nobody computed.
  void fill_with_noise(Backend& backend);

  // [specs.size()], empty views where the layer keeps no keys.
  const KvCacheView& view(size_t layer) const { return views_[layer]; }

 private:
  Format format_{};
  std::vector<Buffer> buffers_;      // of each layer that keeps keys: K of all blocks, then V
  std::vector<size_t> block_bytes_;  // likewise: K or V of one block
  std::vector<KvCacheView> views_;
};

}  // namespace proa
