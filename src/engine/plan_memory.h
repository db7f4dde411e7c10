// What an engine takes of a device: settles what its configuration leaves open, and refuses what does not fit.
#pragma once

#include "cache/memory_plan.h"
#include "core/result.h"
#include "engine/engine.h"
#include "engine/model_runner.h"
#include "engine/scheduler.h"

namespace proa {

// Fills in max_model_len, kv_cache_bytes and snapshot_bytes. As vLLM does it, the KV cache gets what is left of the
// device's memory, but never more than max_num_seqs sequences of max_model_len need. `limited` false: the device may be
// of any size. Errors: as of Engine::plan().
Result<MemoryPlan> plan_memory(const Model& model, Backend& backend, EngineConfig& config, bool limited);

// Of a config as plan_memory() leaves it.
RunnerLimits runner_limits(const EngineConfig& config, int num_blocks, const Model& model);
SchedulerLimits scheduler_limits(const EngineConfig& config, const MemoryPlan& memory);

}  // namespace proa
