#include "engine/plan_memory.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>

#include "core/text.h"

namespace proa {
namespace {

Error bad_config(const char* field, std::string expected, std::string actual) {
  return {.doing = "configure engine",
          .where = field,
          .expected = std::move(expected),
          .actual = std::move(actual),
          .hint = ""};
}

std::string short_number(double value) {  // "0.9"
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int kSpareSnapshots = 8;  // beside one per running sequence
constexpr int64_t kHostTokensPerSnapshot = 4096;

Result<void> check_ranges(const EngineConfig& config, int vocab_size) {
  constexpr int64_t kMaxLen = int64_t{1} << 30;
  const struct {
    const char* field;
    int64_t value, low, high;
  } ranges[] = {
      {"max_num_seqs", config.max_num_seqs, 1, 1 << 16},
      {"max_num_batched_tokens", config.max_num_batched_tokens, config.max_num_seqs, 1 << 20},
      {"max_model_len", config.max_model_len == 0 ? 2 : config.max_model_len, 2, kMaxLen},
      {"max_queue", config.max_queue, 1, 1 << 20},
      {"block_size", config.block_size, 1, 1 << 12},
      {"kv_cache_bytes", config.kv_cache_bytes, 0, std::numeric_limits<int64_t>::max()},
      {"snapshot_interval", config.snapshot_interval, 1, 1 << 30},
      {"min_snapshot_tokens", config.min_snapshot_tokens, 1, 1 << 30},
      {"snapshot_bytes", config.snapshot_bytes, -1, int64_t{1} << 50},
      {"kv_offloading_bytes", config.kv_offloading_bytes, 0, int64_t{1} << 50},
      {"gpu_memory_limit", config.gpu_memory_limit, 0, int64_t{1} << 50},
      {"uncounted_weight_bytes", config.uncounted_weight_bytes, 0, int64_t{1} << 50},
  };
  for (const auto& range : ranges) {
    if (range.value >= range.low && range.value <= range.high) continue;
    return bad_config(range.field,
                      "a value in [" + std::to_string(range.low) + ", " + std::to_string(range.high) + "]" +
                          (range.low == config.max_num_seqs && range.low > 1 ? ", from max_num_seqs on" : ""),
                      std::to_string(range.value));
  }
  if (!(config.gpu_memory_utilization > 0 && config.gpu_memory_utilization <= 1)) {
    return bad_config("gpu_memory_utilization", "a part above 0, at most 1",
                      short_number(config.gpu_memory_utilization));
  }
  for (int32_t id : config.eos_token_ids) {
    if (id < 0 || id >= vocab_size) {
      return bad_config("eos_token_ids", "ids in [0, " + std::to_string(vocab_size) + ")", std::to_string(id));
    }
  }
  return {};
}

constexpr size_t kHostSpare = size_t{512} << 20;  // of the host's memory, for tables and what else runs there

// Bytes that the engine may take.
struct Room {
  size_t limit = 0;   // of the device, for everybody
  size_t others = 0;  // of that: what is taken already and weights to come
  size_t bytes() const { return limit > others ? limit - others : 0; }
};

Room room_of(const MemoryPlan& plan, const EngineConfig& config, bool host) {
  const DeviceMemory& memory = plan.memory;
  const size_t taken = memory.total - std::min(memory.total, memory.free + memory.scratch);
  if (host)
    return {memory.total - std::min(memory.total, kHostSpare),
            taken + plan.host_bytes};  // weights may stay in their file
  return {static_cast<size_t>(static_cast<double>(memory.total) * plan.utilization),
          taken + static_cast<size_t>(config.uncounted_weight_bytes)};
}

Error does_not_fit(const MemoryPlan& plan, const EngineConfig& config, const Room& room, bool host, std::string hint) {
  const auto bytes = [](size_t value) { return bytes_text(static_cast<double>(value)); };
  std::string parts;
  const auto add = [&](size_t value, const std::string& name) {
    if (value > 0) parts += (parts.empty() ? "" : ", ") + name + " " + bytes(value);
  };
  const size_t weights = host ? 0 : static_cast<size_t>(config.uncounted_weight_bytes);
  add(weights, "weights");
  add(plan.kv_bytes, "KV of " + std::to_string(plan.num_tokens()) + " tokens");
  add(plan.state_bytes, "state");
  add(plan.engine_bytes() - plan.kv_bytes - plan.state_bytes, "workspace");
  const size_t taken = room.others - weights;
  const size_t free = room.limit > taken ? room.limit - taken : 0;
  return {.doing = "plan memory",
          .where = plan.device,
          .expected = "at most " + bytes(free) + " of " + bytes(plan.memory.total) +
                      (host                   ? ""
                       : plan.limit_bytes > 0 ? " at --gpu-memory-limit " + std::to_string(plan.limit_bytes)
                                              : " at --gpu-memory-utilization " + short_number(plan.utilization)) +
                      (taken > 0 ? " with " + bytes(taken) + " in use" : ""),
          .actual = bytes(weights + plan.engine_bytes()) + ": " + parts,
          .hint = std::move(hint)};
}

// Settles max_model_len and the number of blocks, each of which may follow from the other and from the device.
class Memory {
 public:
  // Without `limited` the device may be of any size.
  Memory(const Model& model, Backend& backend, bool limited) : model_(model), backend_(backend), limited_(limited) {}

  Result<MemoryPlan> settle(EngineConfig& config) const {
    PROA_TRY(check_ranges(config, model_.info().vocab_size));
    const bool shorten = config.max_model_len == 0;
    if (config.snapshot_bytes >= 0) return settle(config, shorten, true);
    // Where the snapshots that are wanted do not fit beside all else, the KV cache comes first.
    EngineConfig without = config;
    without.snapshot_bytes = 0;
    PROA_ASSIGN(const MemoryPlan plan, settle(without, shorten, true));
    int64_t bytes = (config.max_num_seqs + kSpareSnapshots) * static_cast<int64_t>(plan.bytes_per_slot);
    if (limited_ && plan.memory.total > 0) {
      const size_t room = room_of(plan, config, backend_.shares_memory()).bytes();
      const auto left_of = [&](size_t taken) { return static_cast<int64_t>(room - std::min(room, taken)); };
      const int64_t one_sequence =
          ceil_div(without.max_model_len - 1, config.block_size) * static_cast<int64_t>(plan.bytes_per_block);
      const int64_t for_both = left_of(plan.engine_bytes() - plan.kv_bytes);
      const int64_t part = std::min(for_both / 8, std::max<int64_t>(for_both - one_sequence, 0));
      bytes = std::min(bytes, std::max(part, left_of(plan.engine_bytes())));
    }
    for (; bytes > 0; bytes /= 2) {
      EngineConfig with = config;
      with.snapshot_bytes = bytes;
      auto settled = settle(with, shorten, false);
      if (!settled.ok()) continue;  // tables of a longer sequence took what was left
      config = with;
      return settled;
    }
    config = without;
    return plan;
  }

 private:
  static constexpr int64_t kLeastModelLen = 256;  // a shorter one is of no use to anybody who did not ask for it

  Result<MemoryPlan> plan(const EngineConfig& config, int64_t num_blocks) const {
    const auto limits = runner_limits(config, static_cast<int>(num_blocks), model_);
    PROA_ASSIGN(MemoryPlan plan, ModelRunner::plan(model_, backend_, limits));
    plan.num_snapshots = limits.num_slots - config.max_num_seqs;
    plan.max_model_len = config.max_model_len;
    if (!backend_.shares_memory()) {
      plan.utilization = config.gpu_memory_utilization;
      if (config.gpu_memory_limit > 0 && plan.memory.total > 0) {
        plan.limit_bytes = std::min(plan.memory.total, static_cast<size_t>(config.gpu_memory_limit));
        plan.utilization = static_cast<double>(plan.limit_bytes) / static_cast<double>(plan.memory.total);
      }
    }
    return plan;
  }

  // `shorten`: max_model_len may become what fits.
  Result<MemoryPlan> settle(EngineConfig& config, bool shorten, bool with_hint) const {
    if (config.max_model_len == 0) {
      const int64_t limit = model_.info().max_position_embeddings;
      config.max_model_len = std::clamp<int64_t>(limit > 0 ? limit : 4096, 2, kDefaultMaxModelLen);
    }
    // Positions in the cache are 32-bit.
    const int64_t addressable = std::numeric_limits<int32_t>::max() / config.block_size;
    const int64_t per_sequence = ceil_div(config.max_model_len - 1, config.block_size);
    int64_t num_blocks = std::min(per_sequence * config.max_num_seqs, addressable);  // never more than can be used
    const auto block_bytes =
        static_cast<int64_t>(KvCache::bytes_per_block(model_.cache_specs(), config.block_size, config.kv_cache_dtype));
    if (config.kv_cache_bytes > 0 && block_bytes > 0) {
      num_blocks = std::min(num_blocks, config.kv_cache_bytes / block_bytes);
    }
    if (num_blocks < 1 || (!shorten && num_blocks < per_sequence)) {
      const int64_t needed = shorten ? 1 : per_sequence;
      return bad_config("kv_cache_bytes",
                        "at least " + std::to_string(needed * block_bytes) + " bytes, " + std::to_string(needed) +
                            " blocks for max_model_len " + std::to_string(config.max_model_len),
                        std::to_string(config.kv_cache_bytes));
    }
    config.max_model_len = std::min(config.max_model_len, num_blocks * config.block_size + 1);
    PROA_ASSIGN(MemoryPlan wanted, plan(config, num_blocks));
    if (limited_ && wanted.memory.total > 0) {
      const bool host = backend_.shares_memory();
      const Room room = room_of(wanted, config, host);
      if (wanted.engine_bytes() > room.bytes()) {
        const size_t rest = wanted.engine_bytes() - wanted.kv_bytes;
        const int64_t blocks =
            block_bytes > 0 && room.bytes() > rest ? static_cast<int64_t>(room.bytes() - rest) / block_bytes : 0;
        const int64_t least =
            shorten ? std::min(per_sequence, ceil_div(kLeastModelLen, config.block_size)) : per_sequence;
        if (blocks < std::max<int64_t>(least, 1)) {
          return does_not_fit(wanted, config, room, host, with_hint ? hint(config, wanted, room, host) : "");
        }
        num_blocks = blocks;
        config.max_model_len = std::min(config.max_model_len, num_blocks * config.block_size + 1);
        PROA_ASSIGN(wanted, plan(config, num_blocks));
      }
      wanted.weights_stay =
          !host || wanted.engine_bytes() + static_cast<size_t>(config.uncounted_weight_bytes) <= room.bytes();
    }
    config.kv_cache_bytes = num_blocks * block_bytes;
    return wanted;
  }

  // Flags that fit.
  std::string hint(const EngineConfig& config, const MemoryPlan& wanted, const Room& room, bool host) const {
    EngineConfig smaller = config;
    for (;;) {
      EngineConfig settled = smaller;
      if (settle(settled, true, false).ok()) {
        int64_t len = settled.max_model_len;
        if (len < config.max_model_len && len > 2048) len = len / 1024 * 1024;
        std::string flags;
        const auto flag = [&](const char* name, int64_t value, int64_t before) {
          if (value != before) flags += (flags.empty() ? "" : " ") + std::string(name) + " " + std::to_string(value);
        };
        flag("--max-model-len", len, config.max_model_len);
        flag("--max-num-batched-tokens", smaller.max_num_batched_tokens, config.max_num_batched_tokens);
        flag("--max-num-seqs", smaller.max_num_seqs, config.max_num_seqs);
        if (!flags.empty()) return flags + " fits";
      }
      if (smaller.max_num_batched_tokens > std::max(64, smaller.max_num_seqs)) {
        smaller.max_num_batched_tokens = std::max({64, smaller.max_num_seqs, smaller.max_num_batched_tokens / 2});
      } else if (smaller.max_num_seqs > 1) {
        smaller.max_num_seqs /= 2;
      } else {
        break;
      }
    }
    if (host) return "less memory in use by others, or a smaller model";
    if (wanted.limit_bytes > 0) {
      return "--gpu-memory-limit " + std::to_string(room.others + wanted.engine_bytes()) + " fits";
    }
    const double part = static_cast<double>(room.others + wanted.engine_bytes()) / wanted.memory.total;
    const double rounded = std::ceil(part * 100) / 100;
    if (rounded <= 0.99) return "--gpu-memory-utilization " + short_number(rounded) + " fits";
    return "weights in a smaller format, or a device with more memory";
  }

  const Model& model_;
  Backend& backend_;
  const bool limited_;
};

}  // namespace

Result<MemoryPlan> plan_memory(const Model& model, Backend& backend, EngineConfig& config, bool limited) {
  return Memory(model, backend, limited).settle(config);
}

RunnerLimits runner_limits(const EngineConfig& config, int num_blocks, const Model& model) {
  const auto slot_bytes = static_cast<int64_t>(SsmStateCache::bytes_per_slot(model.cache_specs()));
  const auto block_bytes =
      static_cast<int64_t>(KvCache::bytes_per_block(model.cache_specs(), config.block_size, config.kv_cache_dtype));
  RunnerLimits limits{.max_num_seqs = config.max_num_seqs,
                      .max_num_batched_tokens = config.max_num_batched_tokens,
                      .max_num_logit_rows = config.max_num_seqs + config.max_prompt_logits,
                      .max_top_logprobs = std::min(kMaxLogprobs, model.info().vocab_size),
                      .num_count_slots = config.max_num_seqs,
                      .num_bias_slots = config.max_num_seqs,
                      .max_blocks_per_seq = static_cast<int>(ceil_div(config.max_model_len - 1, config.block_size)),
                      .num_blocks = num_blocks,
                      .block_size = config.block_size,
                      .kv_cache_dtype = config.kv_cache_dtype,
                      .num_slots = config.max_num_seqs,
                      .synthetic_cache = config.synthetic_cache,
                      .count_experts = config.count_experts};
  if (!config.enable_prefix_caching) return limits;
  const auto as_int = [](int64_t count) { return static_cast<int>(std::min<int64_t>(count, 1 << 24)); };
  if (slot_bytes > 0) limits.num_slots += as_int(config.snapshot_bytes / slot_bytes);
  // As if every snapshot on the host came with this many tokens of its own.
  const int64_t blocks_per_slot = slot_bytes > 0 ? ceil_div(kHostTokensPerSnapshot, config.block_size) : 1;
  const int64_t unit = slot_bytes + blocks_per_slot * block_bytes;
  if (unit == 0) return limits;
  const int64_t units = config.kv_offloading_bytes / unit;
  if (slot_bytes > 0) limits.num_host_slots = as_int(units);
  if (block_bytes > 0) limits.num_host_blocks = as_int(units * blocks_per_slot);
  return limits;
}

SchedulerLimits scheduler_limits(const EngineConfig& config, const MemoryPlan& memory) {
  return {.max_num_seqs = config.max_num_seqs,
          .max_num_batched_tokens = config.max_num_batched_tokens,
          .max_model_len = static_cast<int>(config.max_model_len),
          .max_queue = config.max_queue,
          .max_prompt_logits = config.max_prompt_logits,
          .num_blocks = memory.num_blocks,
          .block_size = config.block_size,
          .prefix_caching = config.enable_prefix_caching,
          .has_state = memory.bytes_per_slot > 0,
          .num_snapshots = memory.num_snapshots,
          .snapshot_interval = config.snapshot_interval,
          .min_snapshot_tokens = config.min_snapshot_tokens,
          .num_host_blocks = memory.num_host_blocks,
          .num_host_slots = memory.num_host_slots};
}

}  // namespace proa
