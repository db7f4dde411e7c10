#include "bench/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <thread>
#include <utility>

#include "bench/checks.h"
#include "models/step_cost.h"

namespace proa {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPromptTokens = 8;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

struct Drawn {
  std::vector<int32_t> token_ids;
  std::vector<Clock::time_point> times;  // when the step ended that drew each
};

struct Pass {
  Clock::time_point submitted;
  std::vector<Drawn> sequences;
  EngineStats stats;
};

// Reads all replies to their end without waking up for each token, which would take a core from the step.
Result<void> read_all(std::vector<std::shared_ptr<Reply>> replies, const std::atomic<bool>* interrupted, Pass& pass) {
  std::vector<TokenEvent> events;
  pass.sequences.resize(replies.size());
  for (bool open = true; open;) {
    open = false;
    for (size_t s = 0; s < replies.size(); ++s) {
      if (!replies[s]) continue;
      const Reply::Status status = replies[s]->next(events, std::chrono::nanoseconds(0));
      if (status == Reply::Status::end) {
        if (const auto error = replies[s]->error()) return *error;
        replies[s].reset();
        continue;
      }
      open = true;
      if (status == Reply::Status::timeout) continue;
      for (const TokenEvent& event : events) {
        if (event.token_id < 0) continue;
        pass.sequences[s].token_ids.push_back(event.token_id);
        pass.sequences[s].times.push_back(event.time);
      }
    }
    if (interrupted && interrupted->load(std::memory_order_relaxed)) {
      return Error{"measure", "interrupted", "", "", ""};
    }
    if (open) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return {};
}

struct Work {
  int batch;
  int64_t depth;
  int prompt_tokens;
  int max_tokens;
};

EngineConfig engine_config(const MeasureConfig& config, const Work& work) {
  return {.max_num_seqs = work.batch,
          .max_num_batched_tokens = std::max(config.max_num_batched_tokens, work.batch),
          .max_model_len = work.depth + work.prompt_tokens + work.max_tokens,
          .max_queue = work.batch,
          .gpu_memory_utilization = config.gpu_memory_utilization,
          .gpu_memory_limit = config.gpu_memory_limit,
          .uncounted_weight_bytes = config.uncounted_weight_bytes,
          .kv_cache_dtype = config.kv_cache_dtype,
          .enable_prefix_caching = false,  // every pass computes everything
          .synthetic_cache = work.depth > 0};
}

// Sequences whose prompt waits for a later step start later; the others go on until the last one is done.
Work decode_work(const MeasureConfig& config, int batch, int64_t depth, int num_tokens) {
  const int late_steps = batch * kPromptTokens / std::max(config.max_num_batched_tokens, batch) + 1;
  return {batch, depth, kPromptTokens, num_tokens + 1 + late_steps};
}

Result<Pass> run_pass(const std::shared_ptr<const Model>& model, const std::shared_ptr<Backend>& backend,
                      const Tokenizer& tokenizer, const MeasureConfig& config, const Work& work, bool count_experts) {
  EngineConfig in_engine = engine_config(config, work);
  in_engine.count_experts = count_experts;
  PROA_ASSIGN(const auto engine, Engine::create(model, backend, tokenizer, in_engine));
  std::vector<Request> requests;
  for (int s = 0; s < work.batch; ++s) {
    requests.push_back(
        {.prompt_token_ids = random_prompt(config.seed, s, work.depth + work.prompt_tokens, model->info().vocab_size),
         .num_synthetic_tokens = static_cast<int>(work.depth),
         .params = {.temperature = 0, .max_tokens = work.max_tokens, .ignore_eos = true}});
  }
  Pass pass;
  pass.submitted = Clock::now();
  PROA_ASSIGN(auto replies, engine->submit(std::move(requests)));
  PROA_TRY(read_all(std::move(replies), config.interrupted, pass));
  pass.stats = engine->stats();
  if (config.device_peak && !backend->shares_memory()) {
    const DeviceMemory memory = backend->memory();
    *config.device_peak = std::max(*config.device_peak, memory.total - memory.free);
  }
  return pass;
}

// Other tokens than the pass before drew: the steps were not the same, and neither was their time.
Result<void> same_tokens(const Pass& first, const Pass& pass) {
  for (size_t s = 0; s < first.sequences.size(); ++s) {
    const auto& expected = first.sequences[s].token_ids;
    const auto& actual = pass.sequences[s].token_ids;
    if (expected == actual) continue;
    const auto differ = std::mismatch(expected.begin(), expected.end(), actual.begin(), actual.end());
    return Error{"measure", "sequence " + std::to_string(s),
                 "in every pass the same " + std::to_string(expected.size()) + " tokens",
                 "another from token " + std::to_string(differ.first - expected.begin()) + " on", ""};
  }
  return {};
}

// Probes before the first sample and after each: a sample's are the mean of the two beside it.
class Probes {
 public:
  Probes(Backend& backend, const MeasureConfig& config, Probe probe, bool wanted)
      : backend_(backend), seconds_(config.probe_seconds), probe_(probe), wanted_(wanted && seconds_ > 0) {
    before_ = next();
    wanted_ = before_ > 0;  // a device without such arithmetic has no such limit
  }
  bool wanted() const { return wanted_; }
  void after_sample(std::vector<double>& values) {
    if (!wanted_) return;
    const double after = next();
    values.push_back((before_ + after) / 2);
    before_ = after;
  }

 private:
  double next() { return wanted_ ? backend_.probe(probe_, seconds_) : 0; }
  Backend& backend_;
  double seconds_;
  Probe probe_;
  bool wanted_;
  double before_ = 0;
};

constexpr int kTurnTokens = 60;    // of a question, and of an answer
constexpr int kAnswerTokens = 16;  // that are drawn in each turn
constexpr const char* kTurns[] = {"new history", "second turn", "third turn", "swapped out"};

constexpr float kSameLogprob = 0.05f;  // what the order of sums may change

struct Turn {
  int32_t token = -1;  // the first
  float logprob = 0;
  double seconds = 0;
  int cached_tokens = 0;
};

Result<Turn> ask(Engine& engine, const std::vector<int32_t>& prompt, bool use_prefix_cache) {
  const auto submitted = Clock::now();
  PROA_ASSIGN(const auto reply,
              engine.submit({.prompt_token_ids = prompt,
                             .params = {.temperature = 0, .max_tokens = kAnswerTokens, .ignore_eos = true},
                             .use_prefix_cache = use_prefix_cache}));
  Turn turn;
  std::vector<TokenEvent> events;
  while (reply->next(events) == Reply::Status::events) {
    if (turn.token < 0)
      turn = {events.front().token_id, events.front().logprob, seconds(events.front().time - submitted)};
  }
  if (const auto error = reply->error()) return *error;
  turn.cached_tokens = reply->timings().cached_tokens;
  return turn;
}

}  // namespace

std::vector<int32_t> random_prompt(uint64_t seed, int sequence, int64_t num_tokens, int vocab_size) {
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens));
  uint64_t counter = (seed + 1) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(sequence) * 0xD1B54A32D192ED03u;
  for (int32_t& id : ids) {
    uint64_t x = counter += 0x9E3779B97F4A7C15u;  // splitmix64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    id = static_cast<int32_t>((x ^ x >> 31) % static_cast<uint64_t>(vocab_size));
  }
  return ids;
}

EngineConfig decode_engine(const MeasureConfig& config, int batch, int64_t depth, int num_tokens) {
  return engine_config(config, decode_work(config, batch, depth, num_tokens));
}

EngineConfig prefill_engine(const MeasureConfig& config, int64_t depth, int num_tokens) {
  return engine_config(config, {1, depth, num_tokens, 1});
}

Result<BenchRow> measure_decode(const std::shared_ptr<const Model>& model, const std::shared_ptr<Backend>& backend,
                                const Tokenizer& tokenizer, const MeasureConfig& config, int batch, int64_t depth,
                                int num_tokens) {
  const Work work = decode_work(config, batch, depth, num_tokens);
  BenchRow row{.what = What::decode, .num_tokens = num_tokens, .depth = depth, .batch = batch};

  PROA_ASSIGN(const Pass first, run_pass(model, backend, tokenizer, config, work, true));
  if (first.stats.expert_layers > 0) {
    row.distinct_experts =
        static_cast<double>(first.stats.distinct_experts) / static_cast<double>(first.stats.expert_layers);
  }
  const double distinct = row.distinct_experts.value_or(0);
  const int64_t mean_depth = depth + kPromptTokens + num_tokens / 2;
  row.weight_bytes = weight_bytes_of_step(*model, batch, distinct);
  row.bytes = num_tokens * decode_bytes(*model, batch, distinct, config.kv_cache_dtype, mean_depth);
  row.flops = double{1} * num_tokens * batch * decode_flops(*model, mean_depth);
  if (row.distinct_experts && config.random_weights) row.expected_experts = expected_distinct_experts(*model, batch);

  std::vector<std::vector<int32_t>> token_ids;
  for (const Drawn& sequence : first.sequences) token_ids.push_back(sequence.token_ids);
  PROA_TRY(check_sequences_differ(token_ids));
  row.token_ids = token_ids.front();
  if (config.random_weights) {
    for (const auto& ids : token_ids) PROA_TRY(check_tokens_change(ids));
  }

  Probes read(*backend, config, Probe::read, true);
  for (int i = 0; i < config.num_iters; ++i) {
    PROA_ASSIGN(const Pass pass, run_pass(model, backend, tokenizer, config, work, false));
    PROA_TRY(same_tokens(first, pass));
    const Drawn* last = &pass.sequences.front();  // to start
    for (const Drawn& sequence : pass.sequences) {
      if (sequence.times.front() > last->times.front()) last = &sequence;
    }
    row.seconds.push_back(seconds(last->times[static_cast<size_t>(num_tokens)] - last->times.front()));
    read.after_sample(row.read_probe);
  }
  return row;
}

Result<BenchRow> measure_prefill(const std::shared_ptr<const Model>& model, const std::shared_ptr<Backend>& backend,
                                 const Tokenizer& tokenizer, const MeasureConfig& config, int64_t depth,
                                 int num_tokens) {
  const Work work{1, depth, num_tokens, 1};
  BenchRow row{.what = What::prefill, .num_tokens = num_tokens, .depth = depth, .batch = 1};
  PROA_ASSIGN(const Pass first, run_pass(model, backend, tokenizer, config, work, false));
  // At best each weight is read once for the whole prompt.
  row.weight_bytes = weight_bytes_of_step(*model, num_tokens, expected_distinct_experts(*model, num_tokens));
  row.bytes = *row.weight_bytes + static_cast<double>(state_bytes(*model).total()) +
              static_cast<double>(kv_bytes_per_token(*model, config.kv_cache_dtype) * (depth + num_tokens));
  row.flops = prefill_flops(*model, depth + num_tokens) - (depth > 0 ? prefill_flops(*model, depth) : 0);

  Probes read(*backend, config, Probe::read, true);
  Probes arithmetic(*backend, config, config.arithmetic, true);
  if (arithmetic.wanted()) row.arithmetic = config.arithmetic;
  for (int i = 0; i < config.num_iters; ++i) {
    PROA_ASSIGN(const Pass pass, run_pass(model, backend, tokenizer, config, work, false));
    PROA_TRY(same_tokens(first, pass));
    row.seconds.push_back(seconds(pass.sequences.front().times.front() - pass.submitted));
    read.after_sample(row.read_probe);
    arithmetic.after_sample(row.arithmetic_probe);
  }
  return row;
}

EngineConfig history_engine(const MeasureConfig& config, int num_tokens) {
  EngineConfig engine = engine_config(config, {1, 0, num_tokens, 8 * (kTurnTokens + 2) + kAnswerTokens});
  engine.enable_prefix_caching = true;
  engine.kv_offloading_bytes = config.kv_offloading_bytes;
  return engine;
}

Result<std::vector<BenchRow>> measure_history(const std::shared_ptr<const Model>& model,
                                              const std::shared_ptr<Backend>& backend, const Tokenizer& tokenizer,
                                              const MeasureConfig& config, int num_tokens) {
  PROA_ASSIGN(const auto engine, Engine::create(model, backend, tokenizer, history_engine(config, num_tokens)));
  const std::vector<int32_t>& ends = engine->config().eos_token_ids;
  if (ends.empty()) return Error{"measure", "a conversation", "a model with a token that ends turns", "none", ""};
  const auto is_end = [&](int32_t id) { return std::find(ends.begin(), ends.end(), id) != ends.end(); };
  int next = 0;  // each text another
  const auto say = [&](std::vector<int32_t>& tokens, int count, bool ends_turn) {
    for (int32_t id : random_prompt(config.seed, next++, count, model->info().vocab_size)) {
      while (is_end(id)) id = (id + 1) % model->info().vocab_size;
      tokens.push_back(id);
    }
    if (ends_turn) tokens.push_back(ends.front());
  };

  std::vector<BenchRow> rows;
  for (const char* turn : kTurns) {
    const bool first = turn == kTurns[0];
    if (turn == kTurns[3] && config.kv_offloading_bytes == 0) break;
    rows.push_back({.what = What::first_token,
                    .part = turn,
                    .num_tokens = first ? num_tokens : 2 * (kTurnTokens + 1),
                    .depth = first ? 0 : num_tokens});
  }
  for (int pass = 0; pass <= config.num_iters; ++pass) {  // the first is not timed
    std::vector<int32_t> history;
    int turn_end = 0;
    std::vector<std::pair<std::vector<int32_t>, Turn>> turns;  // with their prompts
    for (BenchRow& row : rows) {
      if (row.part == kTurns[3]) {
        std::vector<int32_t> other;
        say(other, static_cast<int>(engine->config().max_model_len) - kAnswerTokens, false);
        PROA_TRY(ask(*engine, other, false));
      }
      if (turn_end > 0) say(history, kTurnTokens, true);  // the answer, as the client has it
      say(history, turn_end > 0 ? kTurnTokens : num_tokens - 1, true);
      std::vector<int32_t> prompt = history;
      say(prompt, 3, false);  // begins an answer
      PROA_ASSIGN(const Turn turn, ask(*engine, prompt, true));
      // Without a state whole blocks are known.
      if (turn.cached_tokens > turn_end || turn.cached_tokens <= turn_end - engine->config().block_size) {
        return Error{"measure", row.part, std::to_string(turn_end) + " tokens of the prompt known",
                     std::to_string(turn.cached_tokens), ""};
      }
      turns.emplace_back(std::move(prompt), turn);
      if (pass > 0) row.seconds.push_back(turn.seconds);
      turn_end = static_cast<int>(history.size());
      if (config.interrupted && config.interrupted->load()) return Error{"measure", "interrupted", "", "", ""};
    }
    for (size_t i = 1; pass == 0 && i < turns.size(); ++i) {
      const Turn& turn = turns[i].second;
      PROA_ASSIGN(const Turn alone, ask(*engine, turns[i].first, false));
      if (alone.token == turn.token && std::abs(alone.logprob - turn.logprob) <= kSameLogprob) continue;
      const auto text = [](const Turn& one) {
        return std::to_string(one.token) + " with log probability " + std::to_string(one.logprob);
      };
      return Error{"measure", rows[i].part, "the first token of a prompt of which nothing is known, " + text(alone),
                   text(turn), ""};
    }
  }
  return rows;
}

}  // namespace proa
