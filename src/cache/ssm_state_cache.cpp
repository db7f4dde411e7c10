#include "cache/ssm_state_cache.h"

#include <limits>
#include <string>

namespace proa {
namespace {

size_t slot_elements(const CacheSpec& spec) {
  return static_cast<size_t>(spec.conv_state_elements() + spec.ssm_state_elements());
}

}  // namespace

size_t SsmStateCache::bytes_per_slot(std::span<const CacheSpec> specs) {
  size_t bytes = 0;
  for (const CacheSpec& spec : specs) {
    if (spec.kind == CacheSpec::Kind::state) bytes += slot_elements(spec) * sizeof(float);
  }
  return bytes;
}

Result<SsmStateCache> SsmStateCache::create(Backend& backend, std::span<const CacheSpec> specs, int num_slots) {
  SsmStateCache cache;
  cache.views_.resize(specs.size());
  const size_t slots = static_cast<size_t>(num_slots);
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].kind != CacheSpec::Kind::state) continue;
    if (slot_elements(specs[i]) > std::numeric_limits<size_t>::max() / sizeof(float) / slots) {
      return Error{.doing = "allocate the state cache",
                   .where = "layer " + std::to_string(i),
                   .expected = "a size that fits memory",
                   .actual = std::to_string(slots) + " slots of " + std::to_string(slot_elements(specs[i])) + " values",
                   .hint = ""};
    }
    PROA_ASSIGN(Buffer buffer, backend.allocate(slot_elements(specs[i]) * slots * sizeof(float)));
    // The SSM states come first: their size is a multiple of the alignment for every real shape, the other's is not.
    float* ssm = buffer.as<float>();
    cache.views_[i] = {
        .conv = ssm + static_cast<size_t>(specs[i].ssm_state_elements()) * slots, .ssm = ssm, .num_slots = num_slots};
    cache.buffers_.push_back(std::move(buffer));
  }
  return cache;
}

}  // namespace proa
