#include "engine/scheduler.h"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

namespace proa {

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits), blocks_(limits.num_blocks), slots_(limits.max_num_seqs) {
  assert(limits.max_num_batched_tokens >= limits.max_num_seqs);
  running_.reserve(static_cast<size_t>(limits.max_num_seqs));
  step_.reserve(static_cast<size_t>(limits.max_num_seqs));
}

Result<int> Scheduler::fits(int64_t num_prompt_tokens, std::optional<int> max_tokens) const {
  const int64_t capacity = int64_t{limits_.num_blocks} * limits_.block_size + 1;
  const int64_t wanted = num_prompt_tokens + max_tokens.value_or(1);
  const std::string request =
      std::to_string(num_prompt_tokens) + " prompt tokens" +
      (max_tokens ? " + " + std::to_string(*max_tokens) + " max_tokens" : " and room for one more");
  if (wanted > limits_.max_model_len) {
    return Error{.doing = "admit request",
                 .where = "max_model_len",
                 .expected = "at most " + std::to_string(limits_.max_model_len) + " tokens",
                 .actual = request,
                 .hint = ""};
  }
  if (wanted > capacity) {
    return Error{.doing = "admit request",
                 .where = "kv_cache_bytes",
                 .expected = "at most " + std::to_string(capacity) + " tokens, what " +
                             std::to_string(limits_.num_blocks) + " blocks of " + std::to_string(limits_.block_size) +
                             " hold",
                 .actual = request,
                 .hint = ""};
  }
  return static_cast<int>(max_tokens ? wanted : std::min<int64_t>(limits_.max_model_len, capacity));
}

Result<void> Scheduler::add(std::unique_ptr<Sequence> sequence) {
  if (waiting_.size() >= static_cast<size_t>(limits_.max_queue)) {
    return Error{.doing = "queue request",
                 .where = "max_queue",
                 .expected = "fewer than " + std::to_string(limits_.max_queue) + " waiting requests",
                 .actual = std::to_string(waiting_.size()),
                 .hint = "try again later"};
  }
  assert(sequence->max_total_tokens > sequence->num_prompt_tokens && sequence->num_prompt_tokens > 0);
  assert(blocks_for(sequence->max_total_tokens) <= limits_.num_blocks && "a sequence that can never run");
  waiting_.push_back(std::move(sequence));
  return {};
}

bool Scheduler::admit_next() {
  if (waiting_.empty() || slots_.num_free() == 0) return false;
  Sequence& sequence = *waiting_.front();
  const int needed = blocks_for(sequence.max_total_tokens);
  if (needed > blocks_.num_free()) return false;
  sequence.state_slot = slots_.allocate();
  sequence.blocks.resize(static_cast<size_t>(needed));
  for (int32_t& block : sequence.blocks) block = blocks_.allocate();
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  ++num_admitted_;
  return true;
}

std::span<const ScheduledSequence> Scheduler::schedule() {
  step_.clear();
  num_admitted_ = 0;
  int budget = limits_.max_num_batched_tokens;
  for (const auto& sequence : running_) {
    if (!sequence->decoding()) continue;
    step_.push_back({sequence.get(), 1, true});
    --budget;
  }
  int prompt_logits = limits_.max_prompt_logits;
  const auto prefill = [&](Sequence& sequence) {
    int count = std::min(budget, sequence.num_tokens() - sequence.num_computed);
    if (sequence.params.prompt_logprobs) {
      count = std::min(count, prompt_logits);
      prompt_logits -= count;
    }
    if (count == 0) return;
    step_.push_back({&sequence, count, false});
    budget -= count;
  };
  for (const auto& sequence : running_) {
    if (budget > 0 && !sequence->decoding()) prefill(*sequence);
  }
  while (budget > 0 && admit_next()) prefill(*running_.back());
  return step_;
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence& sequence) {
  const auto is = [&](const std::unique_ptr<Sequence>& other) { return other.get() == &sequence; };
  std::unique_ptr<Sequence> removed;
  if (sequence.state_slot < 0) {
    const auto found = std::find_if(waiting_.begin(), waiting_.end(), is);
    assert(found != waiting_.end());
    removed = std::move(*found);
    waiting_.erase(found);
    return removed;
  }
  const auto found = std::find_if(running_.begin(), running_.end(), is);
  assert(found != running_.end());
  removed = std::move(*found);
  running_.erase(found);
  // In reverse, so that the next sequence takes them in the same order.
  std::for_each(removed->blocks.rbegin(), removed->blocks.rend(), [this](int32_t block) { blocks_.release(block); });
  removed->blocks.clear();
  slots_.release(std::exchange(removed->state_slot, -1));
  return removed;
}

}  // namespace proa
