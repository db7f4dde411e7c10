#include "cache/memory_plan.h"

#include "core/text.h"

namespace proa {

std::string MemoryPlan::text() const {
  std::string text = "memory: weights " + bytes_text(static_cast<double>(weight_bytes));
  const auto add = [&](const char* name, size_t bytes, const std::string& what) {
    if (bytes == 0) return;
    text += std::string(" + ") + name + " " + bytes_text(static_cast<double>(bytes));
    if (!what.empty()) text += " (" + what + ")";
  };
  add("KV", kv_bytes, std::to_string(num_blocks) + " blocks, " + std::to_string(num_tokens()) + " tokens");
  add("state", state_bytes, std::to_string(num_slots) + (num_slots == 1 ? " slot" : " slots"));
  add("workspace", workspace_bytes + step_bytes + scratch_bytes, "");
  text += " = " + bytes_text(static_cast<double>(total_bytes()));
  if (memory.total == 0) return text;
  text += "; " + device + " has " + bytes_text(static_cast<double>(memory.free)) + " free of " +
          bytes_text(static_cast<double>(memory.total));
  if (utilization < 1) text += ", of which " + percent_text(utilization) + " may be used (--gpu-memory-utilization)";
  if (!weights_stay) text += "; the weights do not stay in memory: parts are read from the file in every step";
  return text;
}

}  // namespace proa
