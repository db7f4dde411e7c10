// Convolution and SSM states of all recurrent layers, one slot per running sequence. A slot id means the same sequence
// in every layer. Who owns which slot is a BlockPool's business: slots are shared by counting as blocks are. A snapshot
// is a slot that nobody writes any more: its sequence goes on in another, having read this one.
//
// A slot keeps what its last owner left: a sequence's first step passes state_slot_in = -1 and so starts from zero.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "cache/cache_move.h"
#include "core/result.h"
#include "ops/backend.h"
#include "ops/cache_spec.h"

namespace proa {

class SsmStateCache {
 public:
  // Bytes of one slot over all layers of kind state; 0 if there is none.
  static size_t bytes_per_slot(std::span<const CacheSpec> specs);

  // One allocation per layer, on the device or, for slots that are swapped out, on the host. Error: sizes that
  // overflow, no memory.
  static Result<SsmStateCache> create(Backend& backend, std::span<const CacheSpec> specs, int num_slots,
                                      bool on_host = false);

  static void copy(Backend& backend, CacheMove::How how, const SsmStateCache& from, int32_t slot,
                   const SsmStateCache& to, int32_t to_slot);

  // [specs.size()], empty views where the layer keeps no state.
  const StateCacheView& view(size_t layer) const { return views_[layer]; }

 private:
  std::vector<Buffer> buffers_;
  std::vector<StateCacheView> views_;
  std::vector<std::array<size_t, 2>> slot_floats_;  // [specs.size()] of conv and ssm
};

}  // namespace proa
