// What an engine allocates, all of it before the first step. For people to read: the program prints it.
#pragma once

#include <cstddef>

namespace proa {

struct MemoryPlan {
  int num_blocks = 0;
  int block_size = 0;          // tokens
  size_t bytes_per_block = 0;  // over all layers
  int num_slots = 0;
  size_t bytes_per_slot = 0;  // over all layers

  size_t kv_bytes = 0;         // num_blocks · bytes_per_block
  size_t state_bytes = 0;      // num_slots · bytes_per_slot
  size_t workspace_bytes = 0;  // activations of a step
  size_t step_bytes = 0;       // logits, penalty counts, arrays of a step

  size_t total_bytes() const { return kv_bytes + state_bytes + workspace_bytes + step_bytes; }
};

}  // namespace proa
