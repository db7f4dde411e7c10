// The engine: takes requests, runs steps, gives tokens back.
//
//   PROA_ASSIGN(auto engine, Engine::create(model, backend, tokenizer, {.max_num_seqs = 1}));
//   PROA_ASSIGN(auto reply, engine->submit({.prompt_token_ids = ids, .params = {.temperature = 0}}));
//   for (std::vector<TokenEvent> events; reply->next(events) == Reply::Status::events;) {
//     for (const TokenEvent& event : events) std::cout << event.text << std::flush;
//   }
//
// One thread of its own owns sequences, caches and the backend; callers meet it only at the queue and at their Reply.
// Each step: take new and cancelled requests, let the scheduler form a batch, forward, sample, check stops, hand tokens
// over. The thread sleeps when there is nothing to do.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cache/memory_plan.h"
#include "cache/prefix_cache.h"
#include "core/result.h"
#include "engine/engine_metrics.h"
#include "engine/reply.h"
#include "engine/request.h"
#include "models/model.h"
#include "ops/backend.h"
#include "tokenizer/tokenizer.h"

namespace proa {

// Where a file allows 2^20 tokens, room is not kept for them unless they are asked for.
constexpr int64_t kDefaultMaxModelLen = 32768;

struct EngineConfig {
  int max_num_seqs = 8;              // sequences that run at once: one state slot each
  int max_num_batched_tokens = 512;  // tokens of one step, at least max_num_seqs: the chunk of a prefill
  // Tokens of a sequence, prompt and output; 0: the model's limit, at most kDefaultMaxModelLen, or what memory holds.
  int64_t max_model_len = 0;
  int max_queue = 256;  // requests that may wait
  int block_size = 16;  // tokens per KV block
  // Prompt tokens of a step whose log probabilities may be asked for, each with logits of its own; 0: requests with
  // prompt_logprobs are refused.
  int max_prompt_logits = 0;
  // 0: what max_num_seqs sequences of max_model_len need, or less: what is left of the device's memory.
  int64_t kv_cache_bytes = 0;
  // The part of a GPU's memory that may be taken, by others too, as vLLM has it. Of the host's, all but half a
  // gigabyte.
  double gpu_memory_utilization = 0.9;
  int64_t gpu_memory_limit = 0;  // bytes of it that may be taken, by others too, in place of that part; 0: no limit
  // Of the model's weights, what the device does not count as taken: all of them before they are loaded, afterwards
  // those that stay in a file.
  int64_t uncounted_weight_bytes = 0;
  Format kv_cache_dtype = Format::BF16;  // F32, F16, BF16 or F8_E4M3

  // What was computed for one request serves others that begin alike (cache/prefix_cache.h).
  bool enable_prefix_caching = true;
  // Where a model has a recurrent state, snapshots of it are taken every so many tokens of prefill, where turns end,
  // and at the end of an answer.
  int snapshot_interval = 2048;
  int min_snapshot_tokens = 64;  // but not where they would save less
  // Of the device for snapshots; -1: max_num_seqs + 8 of them, or what fits.
  int64_t snapshot_bytes = -1;
  int64_t kv_offloading_bytes = 0;  // of the host's memory, for what the device has no room for

  bool priority_scheduling = false;  // Request::priority counts; otherwise first come, first served

  std::vector<int32_t> eos_token_ids = {};  // what ends a reply; empty: the tokenizer's eos_ids()
  // For measurements.
  bool synthetic_cache = false;  // KV blocks begin as noise, which Request::num_synthetic_tokens needs
  bool count_experts = false;    // EngineStats::distinct_experts is kept, at a little cost per step
};

struct EngineStats {  // a snapshot taken between steps
  int num_running = 0;
  int num_waiting = 0;
  int free_blocks = 0;  // that no running sequence has
  int free_slots = 0;   // sequences that could run besides
  int64_t num_steps = 0;
  int64_t prompt_tokens = 0;  // computed so far
  int64_t generated_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t cached_tokens = 0;  // of prompts, that the prefix cache had
  PrefixCacheStats prefix_cache;
  std::optional<std::chrono::steady_clock::time_point> oldest_waiting;  // when what waits longest was submitted
  // EngineConfig::count_experts, over steps of decodes alone: experts touched, summed over steps and MoE layers, and
  // how many such sums there are.
  int64_t distinct_experts = 0;
  int64_t expert_layers = 0;
};

class Scheduler;
class ModelRunner;
struct Sequence;

class Engine {
 public:
  // Allocates everything and starts the thread. `backend` must be the one on which the model's weights are, and is the
  // engine's alone from now on. Errors: those of plan(); memory that cannot be had, with the bytes asked for.
  static Result<std::unique_ptr<Engine>> create(std::shared_ptr<const Model> model, std::shared_ptr<Backend> backend,
                                                Tokenizer tokenizer, EngineConfig config);
  // What create() would allocate; nothing is. The model may be one opened on another backend, without its weights:
  // sizes are known before loading. Errors: a field of config out of range, by name; a max_model_len that
  // kv_cache_bytes cannot hold, with both; what does not fit the device's memory, with every size and flags that fit.
  static Result<MemoryPlan> plan(const Model& model, Backend& backend, EngineConfig config);
  // The same on a device of any size.
  static Result<MemoryPlan> needs(const Model& model, Backend& backend, EngineConfig config);
  // Cancels what is in flight (every Reply gets its last event) and joins the thread.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Puts a request into the queue; any thread may call it. Errors, at once: a field of params out of range; an empty
  // prompt or a token outside the vocabulary; prompt + max_tokens beyond max_model_len or beyond the KV cache, with
  // both sizes; a full queue (error().where is "max_queue").
  Result<std::shared_ptr<Reply>> submit(Request request);
  // All of them or none, in this order and at once: the same requests to an idle engine always give the same steps.
  Result<std::vector<std::shared_ptr<Reply>>> submit(std::vector<Request> requests);

  const EngineConfig& config() const { return config_; }  // with all defaults filled in
  const MemoryPlan& memory_plan() const { return plan_; }
  EngineStats stats() const;
  const EngineMetrics& metrics() const { return metrics_; }
  // For how long the step under way has been running; none: no step is. What a watchdog asks: a step that does not end
  // publishes nothing.
  std::optional<std::chrono::steady_clock::duration> step_age() const;

 private:
  Engine(std::shared_ptr<const Model> model, std::shared_ptr<Backend> backend, Tokenizer tokenizer,
         EngineConfig config);

  Result<std::unique_ptr<Sequence>> prepare(Request request) const;
  void run();  // the thread
  void end_cancelled();
  void step();
  void prepare_sampling(Sequence& sequence);
  int want_prompt_logits(const Sequence& sequence, int num_tokens);
  void accept_prompt_logits(Sequence& sequence, int row, int count);
  void accept_token(Sequence& sequence, int row);
  void fail_all(const Error& error);
  void finish(Sequence& sequence, TokenEvent event, FinishReason reason, bool may_keep = true);
  void publish_stats();

  const std::shared_ptr<const Model> model_;
  const std::shared_ptr<Backend> backend_;
  const Tokenizer tokenizer_;
  EngineConfig config_;
  MemoryPlan plan_;

  // Of the engine thread alone.
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ModelRunner> runner_;
  EngineStats counted_;
  EngineMetrics metrics_;
  std::vector<float> biases_;  // [vocab_size] of a sequence that begins
  std::chrono::steady_clock::time_point step_ended_;

  std::atomic<std::chrono::steady_clock::rep> step_began_{0};  // 0: no step is under way

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Sequence>> incoming_;
  int num_queued_ = 0;  // submitted and not yet admitted, incoming_ included
  bool stopping_ = false;
  EngineStats stats_;

  std::thread thread_;  // last: it uses everything above
};

}  // namespace proa
