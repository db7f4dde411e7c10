#include "engine/engine.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <chrono>
#include <iterator>
#include <random>
#include <string>
#include <utility>

#include "engine/model_runner.h"
#include "engine/plan_memory.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace proa {
namespace {

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Of a step that computes `num_tokens` of a sequence: its tokens that another one of the prompt follows, where their
// log probabilities are wanted.
int prompt_logit_rows(const Sequence& sequence, int num_tokens) {
  if (!sequence.params.prompt_logprobs || sequence.num_generated() > 0) return 0;
  return std::max(0, std::min(num_tokens, sequence.num_prompt_tokens - 1 - sequence.num_computed));
}

// Tokens of a prompt behind which the first and the last turn in it end: the next prompt of this conversation, or of
// another with the same system message, is the same up to there. What follows the last end token begins the answer, and
// is written otherwise once the answer is history. Without end tokens all but the last token can come again.
std::array<int, 2> turn_ends(const std::vector<int32_t>& prompt, const std::vector<int32_t>& eos_token_ids) {
  const auto is_end = [&](int32_t id) { return contains(eos_token_ids, id); };
  const int most = static_cast<int>(prompt.size()) - 1;
  const auto first = std::find_if(prompt.begin(), prompt.end(), is_end);
  if (first == prompt.end()) return {0, most};
  const auto last = std::find_if(prompt.rbegin(), prompt.rend(), is_end).base();
  return {std::min(static_cast<int>(first - prompt.begin()) + 1, most),
          std::min(static_cast<int>(last - prompt.begin()), most)};
}

SamplingRow sampling_row(const SamplingParams& params) {
  SamplingRow row;
  row.temperature = params.temperature;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  row.presence_penalty = params.presence_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.top_k = std::max(params.top_k, 0);
  std::random_device random;
  row.seed = params.seed ? *params.seed : (uint64_t{random()} << 32 | random());
  return row;
}

}  // namespace

Engine::Engine(std::shared_ptr<const Model> model, std::shared_ptr<Backend> backend, Tokenizer tokenizer,
               EngineConfig config)
    : model_(std::move(model)),
      backend_(std::move(backend)),
      tokenizer_(std::move(tokenizer)),
      config_(std::move(config)) {}

Result<std::unique_ptr<Engine>> Engine::create(std::shared_ptr<const Model> model, std::shared_ptr<Backend> backend,
                                               Tokenizer tokenizer, EngineConfig config) {
  if (config.eos_token_ids.empty()) {
    config.eos_token_ids.assign(tokenizer.eos_ids().begin(), tokenizer.eos_ids().end());
  }
  PROA_ASSIGN(MemoryPlan memory, plan_memory(*model, *backend, config, true));

  const SchedulerLimits scheduling = scheduler_limits(config, memory);
  const RunnerLimits running = runner_limits(config, memory.num_blocks, *model);
  std::unique_ptr<Engine> engine(
      new Engine(std::move(model), std::move(backend), std::move(tokenizer), std::move(config)));
  engine->plan_ = std::move(memory);
  PROA_ASSIGN(engine->runner_, ModelRunner::create(*engine->model_, *engine->backend_, running));
  engine->scheduler_ = std::make_unique<Scheduler>(scheduling);
  engine->publish_stats();
  engine->thread_ = std::thread([raw = engine.get()] { raw->run(); });
  return engine;
}

Result<MemoryPlan> Engine::plan(const Model& model, Backend& backend, EngineConfig config) {
  return plan_memory(model, backend, config, true);
}

Result<MemoryPlan> Engine::needs(const Model& model, Backend& backend, EngineConfig config) {
  return plan_memory(model, backend, config, false);
}

Engine::~Engine() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

Result<std::shared_ptr<Reply>> Engine::submit(Request request) {
  std::vector<Request> one;
  one.push_back(std::move(request));
  PROA_ASSIGN(auto replies, submit(std::move(one)));
  return std::move(replies.front());
}

Result<std::vector<std::shared_ptr<Reply>>> Engine::submit(std::vector<Request> requests) {
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<std::shared_ptr<Reply>> replies;
  for (Request& request : requests) {
    PROA_ASSIGN(auto sequence, prepare(std::move(request)));
    replies.push_back(sequence->reply);
    sequences.push_back(std::move(sequence));
  }
  {
    std::lock_guard lock(mutex_);
    const auto count = static_cast<int64_t>(sequences.size());
    if (num_queued_ + count > config_.max_queue) {
      return Error{.doing = "queue request",
                   .where = "max_queue",
                   .expected = "at most " + std::to_string(config_.max_queue) + " waiting requests",
                   .actual = std::to_string(num_queued_) + " and " + std::to_string(count) + " more",
                   .hint = "try again later"};
    }
    num_queued_ += static_cast<int>(count);
    std::move(sequences.begin(), sequences.end(), std::back_inserter(incoming_));
  }
  wake_.notify_one();
  return replies;
}

Result<std::unique_ptr<Sequence>> Engine::prepare(Request request) const {
  const int vocab_size = model_->info().vocab_size;
  PROA_TRY(validate(request.params, vocab_size));
  if (request.prompt_token_ids.empty()) {
    return Error{.doing = "submit request",
                 .where = "prompt_token_ids",
                 .expected = "at least one token",
                 .actual = "none",
                 .hint = ""};
  }
  for (int32_t id : request.prompt_token_ids) {
    if (id >= 0 && id < vocab_size) continue;
    return Error{.doing = "submit request",
                 .where = "prompt_token_ids",
                 .expected = "ids in [0, " + std::to_string(vocab_size) + ")",
                 .actual = std::to_string(id),
                 .hint = ""};
  }
  const int num_synthetic = request.num_synthetic_tokens;
  const int64_t most = config_.synthetic_cache ? static_cast<int64_t>(request.prompt_token_ids.size()) - 1 : 0;
  if (num_synthetic < 0 || num_synthetic > most) {
    return Error{.doing = "submit request",
                 .where = "num_synthetic_tokens",
                 .expected = "0 to " + std::to_string(most),
                 .actual = std::to_string(num_synthetic),
                 .hint = config_.synthetic_cache ? "" : "the engine has no synthetic cache"};
  }
  if (request.params.prompt_logprobs && config_.max_prompt_logits == 0) {
    return Error{.doing = "submit request",
                 .where = "prompt_logprobs",
                 .expected = "none",
                 .actual = std::to_string(*request.params.prompt_logprobs),
                 .hint = "the engine was made without room for the logits of prompts"};
  }
  if (request.priority != 0 && !config_.priority_scheduling) {
    return Error{.doing = "submit request",
                 .where = "priority",
                 .expected = "0, as long as requests are served first come, first served",
                 .actual = std::to_string(request.priority),
                 .hint = "--scheduling-policy priority"};
  }
  PROA_ASSIGN(const int max_total_tokens,
              scheduler_->fits(static_cast<int64_t>(request.prompt_token_ids.size()), request.params.max_tokens));

  auto sequence = std::make_unique<Sequence>();
  sequence->num_prompt_tokens = static_cast<int>(request.prompt_token_ids.size());
  sequence->max_total_tokens = max_total_tokens;
  sequence->num_synthetic = sequence->num_computed = num_synthetic;
  sequence->token_ids = std::move(request.prompt_token_ids);
  sequence->turn_ends = turn_ends(sequence->token_ids, config_.eos_token_ids);
  sequence->token_ids.reserve(static_cast<size_t>(max_total_tokens));
  sequence->sampling = sampling_row(request.params);
  sequence->rules = TokenRules(request.params, config_.eos_token_ids);
  sequence->sampling.sequence = request.sequence_index;
  sequence->stop = StopMatcher(request.params.stop, request.params.include_stop_str_in_output);
  sequence->detokenizer.emplace(tokenizer_, request.params.skip_special_tokens);
  sequence->params = std::move(request.params);
  sequence->deadline = request.deadline;
  sequence->priority = request.priority;
  sequence->use_prefix_cache = request.use_prefix_cache && !sequence->params.prompt_logprobs;
  sequence->id = std::move(request.id);
  sequence->reply.reset(new Reply(Reply::Clock::now(), sequence->num_prompt_tokens));
  return sequence;
}

EngineStats Engine::stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.num_waiting = std::max(stats.num_waiting, num_queued_);  // those too that a long step has not taken in
  return stats;
}

std::optional<std::chrono::steady_clock::duration> Engine::step_age() const {
  using std::chrono::steady_clock;
  const auto began = step_began_.load(std::memory_order_relaxed);
  if (began == 0) return std::nullopt;
  return steady_clock::now() - steady_clock::time_point(steady_clock::duration(began));
}

void Engine::run() {
  std::vector<std::unique_ptr<Sequence>> arrived;
  for (;;) {
    {
      const bool busy = !scheduler_->running().empty() || !scheduler_->waiting().empty();
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return busy || stopping_ || !incoming_.empty(); });
      std::swap(arrived, incoming_);
      if (stopping_) break;
    }
    for (auto& sequence : arrived) {
      const Result<void> added = scheduler_->add(std::move(sequence));
      assert(added.ok() && "submit() let more in than the queue holds");
      (void)added;
    }
    arrived.clear();
    step_began_.store(std::chrono::steady_clock::now().time_since_epoch().count(), std::memory_order_relaxed);
    end_cancelled();
    step();
    publish_stats();
    step_began_.store(0, std::memory_order_relaxed);
  }

  for (auto& sequence : arrived) sequence->reply->push({.finish_reason = FinishReason::cancelled});
  while (!scheduler_->running().empty()) finish(*scheduler_->running().back(), {}, FinishReason::cancelled);
  while (!scheduler_->waiting().empty()) finish(*scheduler_->waiting().back(), {}, FinishReason::cancelled);
}

void Engine::end_cancelled() {
  const auto now = std::chrono::steady_clock::now();
  // True if the sequence is gone.
  const auto end = [&](Sequence& sequence) {
    if (sequence.reply->cancelled() || sequence.reply.use_count() == 1) {  // asked to, or nobody is left to read
      finish(sequence, {}, FinishReason::cancelled);
      return true;
    }
    if (sequence.deadline && now >= *sequence.deadline) {
      sequence.reply->fail({.doing = "generate",
                            .where = sequence.id.empty() ? "request" : "request " + sequence.id,
                            .expected = "to finish before its deadline",
                            .actual = std::to_string(sequence.num_generated()) + " tokens generated by then",
                            .hint = ""});
      finish(sequence, {}, FinishReason::error);
      return true;
    }
    return false;
  };
  for (size_t i = 0; i < scheduler_->running().size();) i += end(*scheduler_->running()[i]) ? 0 : 1;
  for (size_t i = 0; i < scheduler_->waiting().size();) i += end(*scheduler_->waiting()[i]) ? 0 : 1;
}

void Engine::step() {
  const auto began = std::chrono::steady_clock::now();
  const std::span<const ScheduledSequence> scheduled = scheduler_->schedule();
  if (!scheduler_->admitted().empty()) {
    int arrived = 0;
    for (const auto& sequence : scheduler_->admitted()) {
      if (sequence->num_admissions == 1) {
        sequence->reply->admitted(sequence->num_cached);
        counted_.cached_tokens += sequence->num_cached;
        ++arrived;
      }
      prepare_sampling(*sequence);
    }
    std::lock_guard lock(mutex_);
    num_queued_ -= arrived;
  }
  if (scheduled.empty()) return;

  runner_->move(scheduler_->cache().moves());
  scheduler_->cache().moves_done();
  runner_->begin();
  int num_top_logprobs = 0;
  for (const auto& [sequence, num_tokens, decode] : scheduled) {
    const std::span<const int32_t> uncomputed = sequence->uncomputed();
    runner_->add({.token_ids = uncomputed.first(static_cast<size_t>(num_tokens)),
                  .num_computed = sequence->num_computed,
                  .blocks = sequence->blocks,
                  .state_slot = sequence->state_slot,
                  .read_slot = sequence->read_slot,
                  .fresh_state = sequence->num_computed == sequence->num_synthetic,
                  .decode = decode});
    if (want_prompt_logits(*sequence, num_tokens) > 0) {
      num_top_logprobs = std::max(num_top_logprobs, *sequence->params.prompt_logprobs);
    }
    if (static_cast<size_t>(num_tokens) < uncomputed.size()) continue;  // more of the prompt is to come
    sequence->sampling.position = static_cast<uint32_t>(sequence->num_tokens());
    sequence->sampling.forced = sequence->rules.forced();
    if (sequence->sampling.bias_slot >= 0) {
      for (const TokenBias& change : sequence->rules.update(sequence->generated())) {
        runner_->set_bias(sequence->sampling.bias_slot, change.token_id, change.bias);
      }
    }
    runner_->want_logits(num_tokens - 1, &sequence->sampling);
    num_top_logprobs = std::max(num_top_logprobs, sequence->params.logprobs.value_or(0));
  }
  const auto sent = std::chrono::steady_clock::now();
  const Result<void> done = runner_->step(num_top_logprobs);
  step_ended_ = std::chrono::steady_clock::now();
  if (!done.ok()) {
    metrics_.failed_steps.add();
    return fail_all(done.error());
  }

  const auto seconds = [](std::chrono::steady_clock::duration time) {
    return std::chrono::duration<double>(time).count();
  };
  metrics_.iteration_tokens.observe(runner_->batch().num_tokens);
  metrics_.step_device.observe(seconds(step_ended_ - sent));
  ++counted_.num_steps;
  if (config_.count_experts && runner_->batch().num_decodes == runner_->batch().num_tokens) {
    for (const int32_t tokens : runner_->expert_tokens()) counted_.distinct_experts += tokens > 0 ? 1 : 0;
    counted_.expert_layers += model_->info().num_moe_layers;
  }
  int row = 0;
  for (const auto& [sequence, num_tokens, decode] : scheduled) {
    if (!decode) counted_.prompt_tokens += num_tokens;
    const int prompt_rows = prompt_logit_rows(*sequence, num_tokens);
    accept_prompt_logits(*sequence, row, prompt_rows);
    row += prompt_rows;
    scheduler_->computed(*sequence, num_tokens);
    if (sequence->num_computed == sequence->num_tokens()) accept_token(*sequence, row++);
  }
  metrics_.step_host.observe(seconds(sent - began + (std::chrono::steady_clock::now() - step_ended_)));
}

// What the device keeps for a sequence beside its caches; by its seat.
void Engine::prepare_sampling(Sequence& sequence) {
  sequence.prompt_logprobs.clear();
  if (sequence.params.uses_penalties()) {
    sequence.sampling.counts_slot = sequence.seat;
    runner_->reset_counts(sequence.seat, sequence.first_tokens(sequence.num_prompt_tokens), sequence.generated());
  }
  if (sequence.rules.has_biases()) {
    sequence.sampling.bias_slot = sequence.seat;
    biases_.resize(static_cast<size_t>(model_->info().vocab_size));
    sequence.rules.fill(sequence.generated(), biases_);
    runner_->set_biases(sequence.seat, biases_);
  }
}

// A row for each token of the step that another one of the prompt follows, which the sampler is made to "draw".
int Engine::want_prompt_logits(const Sequence& sequence, int num_tokens) {
  const int rows = prompt_logit_rows(sequence, num_tokens);
  for (int i = 0; i < rows; ++i) {
    const SamplingRow row{.temperature = 0,
                          .forced = sequence.token_ids[static_cast<size_t>(sequence.num_computed + i + 1)]};
    runner_->want_logits(i, &row);
  }
  return rows;
}

void Engine::accept_prompt_logits(Sequence& sequence, int row, int count) {
  for (const int end = row + count; row < end; ++row) {
    PromptLogprob one{.token_id = runner_->token(row), .logprob = runner_->logprob(row), .rank = runner_->rank(row)};
    for (int i = 0; i < *sequence.params.prompt_logprobs; ++i) {
      const size_t n = static_cast<size_t>(i);
      one.top_logprobs.push_back({runner_->top_ids(row)[n], runner_->top_logprobs(row)[n]});
    }
    sequence.prompt_logprobs.push_back(std::move(one));
  }
}

// The device failed: what the caches hold is not to be trusted, so no running sequence can go on. Those that wait can,
// from the beginning.
void Engine::fail_all(const Error& error) {
  while (!scheduler_->running().empty()) {
    Sequence& sequence = *scheduler_->running().back();
    sequence.reply->fail(error);
    finish(sequence, {}, FinishReason::error, false);
  }
  scheduler_->forget_cache();
}

// A recurrent state cannot be rewound, so a reply ends here, before the token goes into another step.
void Engine::accept_token(Sequence& sequence, int row) {
  const int32_t token = runner_->token(row);
  const SamplingParams& params = sequence.params;
  ++counted_.generated_tokens;
  sequence.token_ids.push_back(token);
  if (params.thinking_budget) sequence.rules.accept(token, tokenizer_.piece(token));

  TokenEvent event{.token_id = token, .time = step_ended_, .logprob = runner_->logprob(row)};
  for (int i = 0; i < params.logprobs.value_or(0); ++i) {
    const size_t n = static_cast<size_t>(i);
    event.top_logprobs.push_back({runner_->top_ids(row)[n], runner_->top_logprobs(row)[n]});
  }

  event.prompt_logprobs = std::exchange(sequence.prompt_logprobs, {});

  const bool may_stop = sequence.num_generated() > params.min_tokens;
  const bool is_end =
      (!params.ignore_eos && contains(config_.eos_token_ids, token)) || contains(params.stop_token_ids, token);
  const bool ends = may_stop && is_end;
  if (!ends || params.include_stop_str_in_output) {
    event.text = sequence.stop.push(sequence.detokenizer->push(token), may_stop && !ends);
  }

  if (ends) {
    event.stop_token = token;
    finish(sequence, std::move(event), FinishReason::stop);
  } else if (auto stop_string = sequence.stop.stopped()) {
    event.stop_string = std::move(stop_string);
    finish(sequence, std::move(event), FinishReason::stop);
  } else if (sequence.num_tokens() >= sequence.max_total_tokens) {
    finish(sequence, std::move(event), FinishReason::length);
  } else {
    sequence.reply->push(std::move(event));
  }
}

// Memory is given back before the client learns of the end, so that its next request finds it free.
void Engine::finish(Sequence& sequence, TokenEvent event, FinishReason reason, bool may_keep) {
  if (!sequence.stop.stopped()) {
    event.text += sequence.stop.push(sequence.detokenizer->finish(), false);
    event.text += sequence.stop.finish();
  }
  event.finish_reason = reason;
  const bool queued = sequence.num_admissions == 0;
  const std::unique_ptr<Sequence> removed = scheduler_->remove(sequence, may_keep);
  if (queued) {
    std::lock_guard lock(mutex_);
    --num_queued_;
  }
  publish_stats();
  removed->reply->push(std::move(event));
}

void Engine::publish_stats() {
  counted_.num_running = static_cast<int>(scheduler_->running().size());
  counted_.num_waiting = static_cast<int>(scheduler_->waiting().size());
  counted_.num_preemptions = scheduler_->num_preemptions();
  counted_.free_blocks = scheduler_->cache().available_blocks();
  counted_.free_slots = config_.max_num_seqs - counted_.num_running;
  counted_.prefix_cache = scheduler_->cache().stats();
  counted_.oldest_waiting.reset();
  if (!scheduler_->waiting().empty()) counted_.oldest_waiting = scheduler_->waiting().front()->reply->submitted_;
  std::lock_guard lock(mutex_);
  stats_ = counted_;
}

}  // namespace proa
