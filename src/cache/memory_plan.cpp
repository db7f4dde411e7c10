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
  const int sequences = num_slots - num_snapshots;
  add("state", state_bytes,
      std::to_string(sequences) + (sequences == 1 ? " slot" : " slots") +
          (num_snapshots > 0 ? ", " + std::to_string(num_snapshots) + " snapshots" : ""));
  add("workspace", workspace_bytes + step_bytes + scratch_bytes, "");
  text += " = " + bytes_text(static_cast<double>(total_bytes()));
  if (host_bytes > 0) text += " and on the host " + bytes_text(static_cast<double>(host_bytes));
  if (memory.total == 0) return text;
  text += "; " + device + " has " + bytes_text(static_cast<double>(memory.free)) + " free of " +
          bytes_text(static_cast<double>(memory.total));
  if (limit_bytes > 0) {
    text += ", of which " + bytes_text(static_cast<double>(limit_bytes)) + " may be used (--gpu-memory-limit)";
  } else if (utilization < 1) {
    text += ", of which " + percent_text(utilization) + " may be used (--gpu-memory-utilization)";
  }
  if (!weights_stay) text += "; the weights do not stay in memory: parts are read from the file in every step";
  return text;
}

}  // namespace proa
