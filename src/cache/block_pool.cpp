#include "cache/block_pool.h"

#include <cassert>

namespace proa {

BlockPool::BlockPool(int num_blocks)
    : free_(static_cast<size_t>(num_blocks)), references_(static_cast<size_t>(num_blocks), 0), num_free_(num_blocks) {
  for (int i = 0; i < num_blocks; ++i) free_[static_cast<size_t>(i)] = num_blocks - 1 - i;  // id 0 on top
}

int32_t BlockPool::allocate() {
  if (num_free_ == 0) return -1;
  const int32_t id = free_[static_cast<size_t>(--num_free_)];
  assert(references_[static_cast<size_t>(id)] == 0 && "a block on the free list is owned");
  references_[static_cast<size_t>(id)] = 1;
  return id;
}

void BlockPool::retain(int32_t id) {
  assert(id >= 0 && id < num_blocks() && references_[static_cast<size_t>(id)] > 0 && "only an owned block is shared");
  ++references_[static_cast<size_t>(id)];
}

void BlockPool::release(int32_t id) {
  assert(id >= 0 && id < num_blocks() && references_[static_cast<size_t>(id)] > 0 && "a block was freed twice");
  if (--references_[static_cast<size_t>(id)] == 0) free_[static_cast<size_t>(num_free_++)] = id;
}

}  // namespace proa
