#include "eval/continuations.h"

#include <algorithm>
#include <cassert>
#include <deque>
#include <limits>
#include <memory>
#include <string>

#include "cache/block_pool.h"
#include "engine/model_runner.h"

namespace proa {
namespace {

constexpr int kGroupsAtOnce = 2;  // one whose members run, one whose beginning is being computed

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// A beginning that all members of a group share: whole blocks, and a slot with the state after them.
struct Shared {
  size_t group = 0;
  std::span<const int32_t> tokens;
  int computed = 0;
  int32_t slot = -1;
  std::vector<int32_t> blocks;
  std::deque<size_t> waiting;  // members
  int running = 0;

  bool ready() const { return computed == static_cast<int>(tokens.size()); }
};

struct Running {
  std::shared_ptr<Shared> shared;
  const Continuation* what = nullptr;
  size_t index = 0;
  std::vector<int32_t> tokens;  // prompt, then what follows as far as it is known
  int computed = 0;
  int32_t slot = -1;
  bool own_state = false;       // the slot has a state
  std::vector<int32_t> blocks;  // shared ones first
  std::vector<int32_t> drawn;

  int uncomputed() const { return static_cast<int>(tokens.size()) - computed; }
};

class Runs {
 public:
  Runs(const Model& model, Backend& backend, const ContinuationOptions& options,
       const std::vector<std::vector<Continuation>>& groups, const ContinuationResult& result)
      : model_(model), backend_(backend), options_(options), groups_(groups), result_(result) {}

  Result<ContinuationStats> run() {
    PROA_TRY(size_memory());
    for (;;) {
      admit();
      if (running_.empty() && alive_.empty()) return stats_;
      PROA_TRY(result_.keep_going());
      PROA_TRY(step());
    }
  }

 private:
  // Tokens that the members of a group have in common, in whole blocks, short of the last token of each; 0 where
  // sharing saves nothing.
  int shared_length(const std::vector<Continuation>& group) const {
    if (group.size() < 2) return 0;
    const std::vector<int32_t>& first = group.front().prompt;
    size_t length = first.size();
    for (const Continuation& each : group) {
      length = std::min(length, each.prompt.size());
      length = static_cast<size_t>(
          std::mismatch(first.begin(), first.begin() + static_cast<ptrdiff_t>(length), each.prompt.begin()).first -
          first.begin());
    }
    for (const Continuation& each : group) length = std::min(length, each.prompt.size() - 1);
    return static_cast<int>(length) / options_.block_size * options_.block_size;
  }

  Result<void> size_memory() {
    std::vector<int> own_blocks;  // of each continuation
    int most_shared = 0;
    for (const auto& group : groups_) {
      shared_lengths_.push_back(shared_length(group));
      most_shared = std::max(most_shared, shared_lengths_.back() / options_.block_size);
      for (const Continuation& each : group) {
        for (const auto* ids : {&each.prompt, &each.forced}) {
          for (const int32_t id : *ids) {
            if (id >= 0 && id < model_.info().vocab_size) continue;
            return Error{"run prompts", "token_ids", "ids below " + std::to_string(model_.info().vocab_size),
                         std::to_string(id), ""};
          }
        }
        assert(!each.prompt.empty());
        const int own =
            static_cast<int>(each.prompt.size() + each.forced.size()) + each.max_tokens - shared_lengths_.back();
        own_blocks.push_back(ceil_div(own, options_.block_size));
      }
    }
    if (own_blocks.empty()) own_blocks.push_back(1);
    std::sort(own_blocks.rbegin(), own_blocks.rend());
    int64_t num_blocks = int64_t{kGroupsAtOnce} * most_shared;  // with the largest that can meet
    for (size_t i = 0; i < std::min(own_blocks.size(), static_cast<size_t>(options_.max_num_seqs)); ++i) {
      num_blocks += own_blocks[i];
    }
    if (num_blocks * options_.block_size > std::numeric_limits<int32_t>::max()) {
      return Error{"run prompts", "--max-num-seqs", "prompts of fewer than 2^31 tokens together", "more", ""};
    }
    RunnerLimits limits;
    limits.max_num_seqs = options_.max_num_seqs;
    limits.max_num_batched_tokens = std::max(options_.max_num_batched_tokens, options_.max_num_seqs);
    limits.max_num_logit_rows = limits.max_num_batched_tokens;
    if (model_.info().vocab_size > 1 << 15) limits.max_num_logit_rows = std::max(64, options_.max_num_seqs);
    limits.max_blocks_per_seq = most_shared + own_blocks.front();
    limits.num_blocks = static_cast<int>(num_blocks);
    limits.block_size = options_.block_size;
    limits.kv_cache_dtype = options_.kv_cache_dtype;
    limits.num_slots = options_.max_num_seqs + kGroupsAtOnce;
    limits_ = limits;
    const DeviceMemory memory = backend_.memory();
    PROA_ASSIGN(const MemoryPlan plan, ModelRunner::plan(model_, backend_, limits));
    if (memory.total > 0 && plan.engine_bytes() > memory.free) {
      return Error{"run prompts", plan.device, "at most " + std::to_string(memory.free >> 20) + " MiB that are free",
                   std::to_string(plan.engine_bytes() >> 20) + " MiB for KV, states and workspace",
                   "--max-num-seqs, or shorter prompts"};
    }
    PROA_ASSIGN(runner_, ModelRunner::create(model_, backend_, limits));
    blocks_ = std::make_unique<BlockPool>(limits.num_blocks);
    slots_ = std::make_unique<BlockPool>(limits.num_slots);
    return {};
  }

  void admit() {
    while (next_group_ < groups_.size() && static_cast<int>(alive_.size()) < kGroupsAtOnce) {
      const auto& group = groups_[next_group_];
      const int length = shared_lengths_[next_group_];
      auto shared = std::make_shared<Shared>();
      shared->group = next_group_++;
      for (size_t i = 0; i < group.size(); ++i) shared->waiting.push_back(i);
      if (group.empty()) continue;
      if (length > 0) {
        shared->tokens = std::span(group.front().prompt).first(static_cast<size_t>(length));
        shared->slot = slots_->allocate();
        for (int i = 0; i < length / options_.block_size; ++i) shared->blocks.push_back(blocks_->allocate());
        stats_.computed_tokens += length;
      }
      alive_.push_back(std::move(shared));
    }
    for (const auto& shared : alive_) {
      while (shared->ready() && !shared->waiting.empty() && static_cast<int>(running_.size()) < options_.max_num_seqs) {
        start(shared);
      }
    }
  }

  void start(const std::shared_ptr<Shared>& shared) {
    const size_t index = shared->waiting.front();
    shared->waiting.pop_front();
    ++shared->running;
    const Continuation& what = groups_[shared->group][index];
    Running run{.shared = shared, .what = &what, .index = index, .tokens = what.prompt};
    run.computed = static_cast<int>(shared->tokens.size());
    stats_.prompt_tokens += static_cast<int64_t>(what.prompt.size());
    stats_.computed_tokens += static_cast<int64_t>(what.prompt.size()) - run.computed;
    if (!what.forced.empty() && !options_.forced_as_decodes) {
      run.tokens.insert(run.tokens.end(), what.forced.begin(), what.forced.end() - 1);  // the last predicts nothing
    }
    run.slot = slots_->allocate();
    run.blocks = shared->blocks;
    const int total = static_cast<int>(what.prompt.size() + what.forced.size()) + what.max_tokens;
    while (static_cast<int>(run.blocks.size()) < ceil_div(total, options_.block_size)) {
      run.blocks.push_back(blocks_->allocate());
    }
    running_.push_back(std::move(run));
  }

  static bool decoding(const Running& run) {
    return run.uncomputed() == 1 && run.own_state && run.computed >= static_cast<int>(run.what->prompt.size());
  }

  Result<void> step() {
    runner_->begin();
    const SamplingRow greedy{.temperature = 0};
    int budget = limits_.max_num_batched_tokens, rows = limits_.max_num_logit_rows;
    struct Done {
      Running* run;
      int count, first_row, num_rows;
    };
    std::vector<Done> done;
    int next_row = 0;
    const auto add = [&](Running& run, int count, bool decode) {
      runner_->add(
          {.token_ids = std::span(run.tokens).subspan(static_cast<size_t>(run.computed), static_cast<size_t>(count)),
           .num_computed = run.computed,
           .blocks = run.blocks,
           .state_slot = run.slot,
           .read_slot = run.own_state ? -1 : run.shared->slot,
           .decode = decode});
      // Logits after the prompt's last token and after each that follows it.
      const int prompt = static_cast<int>(run.what->prompt.size());
      Done item{&run, count, next_row, 0};
      for (int i = std::max(0, prompt - 1 - run.computed); i < count; ++i) {
        runner_->want_logits(i, &greedy);
        ++item.num_rows;
      }
      next_row += item.num_rows;
      rows -= item.num_rows;
      budget -= count;
      done.push_back(item);
    };
    for (Running& run : running_) {
      if (decoding(run)) add(run, 1, true);
    }
    int seqs = static_cast<int>(done.size());
    for (Running& run : running_) {
      if (decoding(run) || budget == 0 || seqs == limits_.max_num_seqs) continue;
      const int prompt = static_cast<int>(run.what->prompt.size());
      const int free_of_rows = std::max(0, prompt - 1 - run.computed);
      const int count = std::min({budget, run.uncomputed(), free_of_rows + rows});
      if (count > 0) add(run, count, false), ++seqs;
    }
    std::vector<std::pair<Shared*, int>> beginnings;
    for (const auto& shared : alive_) {
      if (shared->ready() || budget == 0 || seqs == limits_.max_num_seqs) continue;
      const int count = std::min(budget, static_cast<int>(shared->tokens.size()) - shared->computed);
      runner_->add(
          {.token_ids = shared->tokens.subspan(static_cast<size_t>(shared->computed), static_cast<size_t>(count)),
           .num_computed = shared->computed,
           .blocks = shared->blocks,
           .state_slot = shared->slot});
      budget -= count;
      ++seqs;
      beginnings.emplace_back(shared.get(), count);
    }
    PROA_TRY(runner_->step(0));
    ++stats_.num_steps;
    for (const auto& [shared, count] : beginnings) shared->computed += count;

    const float* logits = nullptr;
    for (const Done& item : done) {
      Running& run = *item.run;
      const int before = run.computed;
      run.computed += item.count;
      run.own_state = true;
      if (item.num_rows == 0) continue;
      if (run.what->forced.empty()) {
        accept(run, runner_->token(item.first_row + item.num_rows - 1));
        continue;
      }
      if (!logits) {
        PROA_ASSIGN(logits, runner_->logits());
      }
      const int prompt = static_cast<int>(run.what->prompt.size());
      for (int i = 0; i < item.num_rows; ++i) {
        const int position = before + item.count - item.num_rows + i - (prompt - 1);
        result_.scored(
            run.shared->group, run.index, static_cast<size_t>(position),
            logits + static_cast<size_t>(item.first_row + i) * static_cast<size_t>(model_.info().vocab_size));
      }
      const int scored = run.computed - (prompt - 1);
      if (scored == static_cast<int>(run.what->forced.size())) {
        end(run);
      } else if (options_.forced_as_decodes) {
        run.tokens.push_back(run.what->forced[static_cast<size_t>(scored - 1)]);
      }
    }
    std::erase_if(running_, [](const Running& run) { return run.slot < 0; });
    std::erase_if(alive_, [&](const std::shared_ptr<Shared>& shared) {
      if (!shared->ready() || !shared->waiting.empty() || shared->running > 0) return false;
      for (const int32_t block : shared->blocks) blocks_->release(block);
      if (shared->slot >= 0) slots_->release(shared->slot);
      return true;
    });
    return {};
  }

  void accept(Running& run, int32_t token) {
    ++stats_.drawn_tokens;
    const auto& eos = options_.eos_token_ids;
    const bool ended = std::find(eos.begin(), eos.end(), token) != eos.end();
    if (!ended) {
      run.drawn.push_back(token);
      run.tokens.push_back(token);
    }
    if (!ended && static_cast<int>(run.drawn.size()) < run.what->max_tokens) return;
    result_.drawn(run.shared->group, run.index, run.drawn, ended);
    end(run);
  }

  void end(Running& run) {
    for (size_t i = run.shared->blocks.size(); i < run.blocks.size(); ++i) blocks_->release(run.blocks[i]);
    slots_->release(run.slot);
    run.slot = -1;
    --run.shared->running;
  }

  const Model& model_;
  Backend& backend_;
  const ContinuationOptions& options_;
  const std::vector<std::vector<Continuation>>& groups_;
  const ContinuationResult& result_;

  RunnerLimits limits_;
  std::vector<int> shared_lengths_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<BlockPool> blocks_, slots_;
  size_t next_group_ = 0;
  std::vector<std::shared_ptr<Shared>> alive_;
  std::vector<Running> running_;
  ContinuationStats stats_;
};

}  // namespace

Result<ContinuationStats> run_continuations(const Model& model, Backend& backend, const ContinuationOptions& options,
                                            const std::vector<std::vector<Continuation>>& groups,
                                            const ContinuationResult& result) {
  return Runs(model, backend, options, groups, result).run();
}

}  // namespace proa
