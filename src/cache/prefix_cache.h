// What is counted of prompts that begin like earlier ones.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace proa {

// Why tokens that were computed before had to be computed again.
enum class Lost : uint8_t {
  evicted,    // room was needed
  too_short,  // a snapshot would have saved too little
  no_slot,    // every slot was in use when the snapshot was due
  between,    // the prompt leaves the known prefix between two snapshots
};
constexpr size_t kNumLost = 4;
constexpr std::string_view to_string(Lost reason) {
  constexpr std::array<std::string_view, kNumLost> kNames = {"evicted", "too_short", "no_slot", "between"};
  return kNames[static_cast<size_t>(reason)];
}

struct PrefixCacheStats {
  // Tokens of prompts: looked up, found on the device, found on the host, and computed again for each reason.
  int64_t queries = 0, hits = 0, host_hits = 0;
  std::array<int64_t, kNumLost> lost = {};
  // Entries: made, moved to the host, given up.
  int64_t inserted = 0, spilled = 0, dropped = 0;
};

}  // namespace proa
