// What an engine allocates, all of it before the first step, and what the device has. For people to read: the program
// prints it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "ops/backend.h"

namespace proa {

struct MemoryPlan {
  int num_blocks = 0;
  int block_size = 0;          // tokens
  size_t bytes_per_block = 0;  // over all layers
  int num_slots = 0;           // of running sequences and snapshots
  int num_snapshots = 0;       // of num_slots
  int num_host_blocks = 0, num_host_slots = 0;
  size_t bytes_per_slot = 0;  // over all layers
  int64_t max_model_len = 0;  // tokens

  size_t weight_bytes = 0;     // of the model, which is not the engine's
  size_t kv_bytes = 0;         // num_blocks · bytes_per_block
  size_t state_bytes = 0;      // num_slots · bytes_per_slot
  size_t workspace_bytes = 0;  // activations of a step
  size_t step_bytes = 0;       // logits, penalty counts, arrays of a step
  size_t host_bytes = 0;       // of the host's memory, for blocks and snapshots that the device has no room for
  size_t scratch_bytes = 0;    // what the backend's ops need beside their arguments

  std::string device;      // Backend::name()
  DeviceMemory memory;     // as it was when the plan was made
  double utilization = 1;  // the part of memory.total that may be taken
  size_t limit_bytes = 0;  // where that part was given in bytes
  // Whether weights in a file stay in memory beside the rest. Where they do not, parts are read again in every step.
  bool weights_stay = true;

  int64_t num_tokens() const { return int64_t{num_blocks} * block_size; }  // that the KV cache holds
  size_t engine_bytes() const { return kv_bytes + state_bytes + workspace_bytes + step_bytes + scratch_bytes; }
  size_t total_bytes() const { return weight_bytes + engine_bytes(); }
  // Of a plan made before weights are loaded: what will be taken of the device, by others too.
  size_t device_bytes() const { return memory.total - memory.free + total_bytes(); }

  // "memory: weights 2.02 GB + KV 201 MB (2048 blocks, 32768 tokens) + state 48.3 MB (1 slot) + workspace 98.7 MB =
  // 2.37 GB; cuda:0 has 84.0 GB free of 85.2 GB, of which 90.0 % may be used (--gpu-memory-utilization)"
  std::string text() const;
};

}  // namespace proa
