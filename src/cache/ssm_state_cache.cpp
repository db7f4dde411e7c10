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

Result<SsmStateCache> SsmStateCache::create(Backend& backend, std::span<const CacheSpec> specs, int num_slots,
                                            bool on_host) {
  SsmStateCache cache;
  cache.views_.resize(specs.size());
  cache.slot_floats_.resize(specs.size());
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
    const size_t bytes = slot_elements(specs[i]) * slots * sizeof(float);
    PROA_ASSIGN(Buffer buffer, on_host ? backend.allocate_pinned(bytes) : backend.allocate(bytes));
    // The SSM states come first: their size is a multiple of the alignment for every real shape, the other's is not.
    float* ssm = buffer.as<float>();
    cache.views_[i] = {
        .conv = ssm + static_cast<size_t>(specs[i].ssm_state_elements()) * slots, .ssm = ssm, .num_slots = num_slots};
    cache.slot_floats_[i] = {static_cast<size_t>(specs[i].conv_state_elements()),
                             static_cast<size_t>(specs[i].ssm_state_elements())};
    cache.buffers_.push_back(std::move(buffer));
  }
  return cache;
}

void SsmStateCache::copy(Backend& backend, CacheMove::How how, const SsmStateCache& from, int32_t slot,
                         const SsmStateCache& to, int32_t to_slot) {
  const auto at = [](float* base, int32_t index, size_t floats) { return base + static_cast<size_t>(index) * floats; };
  for (size_t i = 0; i < from.views_.size(); ++i) {
    const auto [conv, ssm] = from.slot_floats_[i];
    if (ssm == 0) continue;
    carry(backend, how, at(to.views_[i].conv, to_slot, conv), at(from.views_[i].conv, slot, conv),
          conv * sizeof(float));
    carry(backend, how, at(to.views_[i].ssm, to_slot, ssm), at(from.views_[i].ssm, slot, ssm), ssm * sizeof(float));
  }
}

}  // namespace proa
