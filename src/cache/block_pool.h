// Ids that are handed out, shared by counting and given back: KV blocks of a kv_cache, slots of an ssm_state_cache.
// Knows nothing of the memory behind an id.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace proa {

class BlockPool {
 public:
  explicit BlockPool(int num_blocks);

  // An id in [0, num_blocks) with one reference, the one freed last if there is one: its memory may still be in a
  // cache. -1: none is free.
  int32_t allocate();
  // One more owner of an id in use: a prefix shared by several sequences.
  void retain(int32_t id);
  // One owner less; the last one frees the id.
  void release(int32_t id);

  int num_blocks() const { return static_cast<int>(references_.size()); }
  int num_free() const { return num_free_; }
  int references(int32_t id) const { return references_[static_cast<size_t>(id)]; }

 private:
  std::vector<int32_t> free_;  // [num_blocks] a stack, its top at num_free_ - 1
  std::vector<int32_t> references_;
  int num_free_;
};

}  // namespace proa
