#include "engine/scheduler.h"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

namespace proa {

namespace {

bool before(const Sequence& a, const Sequence& b) {
  return a.priority != b.priority ? a.priority < b.priority : a.arrival < b.arrival;
}

PrefixCacheLimits cache_limits(const SchedulerLimits& limits) {
  return {.num_blocks = limits.num_blocks,
          .block_size = limits.block_size,
          .num_slots = limits.max_num_seqs + limits.num_snapshots,
          .has_state = limits.has_state,
          .num_host_blocks = limits.num_host_blocks,
          .num_host_slots = limits.num_host_slots};
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits), cache_(cache_limits(limits)), seats_(limits.max_num_seqs) {
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
  if (waiting_.size() - static_cast<size_t>(num_preempted_) >= static_cast<size_t>(limits_.max_queue)) {
    return Error{.doing = "queue request",
                 .where = "max_queue",
                 .expected = "fewer than " + std::to_string(limits_.max_queue) + " waiting requests",
                 .actual = std::to_string(waiting_.size()),
                 .hint = "try again later"};
  }
  assert(sequence->max_total_tokens > sequence->num_prompt_tokens && sequence->num_prompt_tokens > 0);
  assert(blocks_for(sequence->max_total_tokens - 1) <= limits_.num_blocks && "a sequence that can never run");
  sequence->arrival = num_arrived_++;
  sequence->prefill_end = sequence->num_prompt_tokens;
  queue(std::move(sequence));
  return {};
}

void Scheduler::queue(std::unique_ptr<Sequence> sequence) {
  const auto later = [](const std::unique_ptr<Sequence>& a, const std::unique_ptr<Sequence>& b) {
    return before(*a, *b);
  };
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), sequence, later), std::move(sequence));
}

std::span<const ScheduledSequence> Scheduler::schedule() {
  step_.clear();
  num_admitted_ = 0;
  const bool short_of_blocks = grow_decodes();
  if (!short_of_blocks) make_way();
  int budget = limits_.max_num_batched_tokens;
  for (const auto& sequence : running_) {
    if (!sequence->decoding()) continue;
    step_.push_back({sequence.get(), 1, true});
    --budget;
  }
  int prompt_logits = limits_.max_prompt_logits;
  const auto prefill = [&](Sequence& sequence) {
    int count = prefill_tokens(sequence, budget);
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
  // Who has just been preempted would only come back to be preempted again.
  if (short_of_blocks && !running_.empty()) return step_;
  while (budget > 0 && admit_next()) {
    Sequence& sequence = *running_.back();
    if (!sequence.decoding()) {
      prefill(sequence);
    } else {  // preempted while it decoded, and all it had was kept
      step_.insert(std::ranges::find_if(step_, [](const auto& scheduled) { return !scheduled.decode; }),
                   {&sequence, 1, true});
      --budget;
    }
  }
  return step_;
}

// --- admission ---

PrefixCache::Match Scheduler::match(const Sequence& sequence) const {
  if (!caches(sequence)) return {};
  return cache_.find(sequence.token_ids, sequence.num_tokens() - 1);  // one is computed: its logits are wanted
}

// Blocks for its prompt and the first token behind it.
int Scheduler::blocks_at_first(const Sequence& sequence) const {
  return blocks_for(std::min(sequence.prefill_end + 1, sequence.max_total_tokens - 1));
}

bool Scheduler::can_admit(const Sequence& sequence, const PrefixCache::Match& match) const {
  if (seats_.num_free() == 0) return false;
  const int copies = match.length % limits_.block_size != 0 ? 1 : 0;  // of the last block of a snapshot
  const int needed = std::max(blocks_at_first(sequence) - match.num_blocks, copies);
  return needed + spare_blocks() <= cache_.available_blocks() - match.num_idle;
}

// A block for each that runs and can need one, so that they get on.
int Scheduler::spare_blocks() const {
  return static_cast<int>(std::ranges::count_if(running_, [this](const auto& sequence) {
    return static_cast<int>(sequence->blocks.size()) < blocks_for(sequence->max_total_tokens - 1);
  }));
}

// Whether a sequence that runs is about to compute what this one begins with: prefills take turns anyway, and so it is
// computed once. The same prompt with several choices, many conversations under a new system message.
bool Scheduler::is_being_computed(const Sequence& sequence, int known) const {
  if (!caches(sequence)) return false;
  for (const auto& other : running_) {
    if (!caches(*other) || other->decoding()) continue;
    for (const int end : other->turn_ends) {
      if (limits_.has_state && end <= other->num_computed) continue;  // the snapshot was taken, or was not
      if (end < known + limits_.min_snapshot_tokens || end >= sequence.num_tokens()) continue;
      if (std::ranges::equal(sequence.first_tokens(end), other->first_tokens(end))) return true;
    }
  }
  return false;
}

bool Scheduler::admit_next() {
  if (waiting_.empty() || seats_.num_free() == 0) return false;
  Sequence& sequence = *waiting_.front();
  PrefixCache::Match match = this->match(sequence);
  if (is_being_computed(sequence, match.length)) return false;
  if (!can_admit(sequence, match)) {
    if (!running_.empty()) return false;
    match = {};  // it needs all blocks there are, and with a copy one more
  }
  auto taken = cache_.take(match);
  if (!taken) return false;
  sequence.seat = seats_.allocate();
  sequence.state_slot = taken->state_slot;
  sequence.read_slot = taken->read_slot;
  sequence.blocks.reserve(static_cast<size_t>(blocks_for(sequence.max_total_tokens - 1)));
  sequence.blocks.assign(taken->blocks.begin(), taken->blocks.end());
  while (static_cast<int>(sequence.blocks.size()) < blocks_at_first(sequence)) {
    sequence.blocks.push_back(cache_.allocate_block());
  }
  sequence.num_computed = std::max(match.length, sequence.num_synthetic);
  sequence.last_snapshot = match.length;
  if (sequence.num_admissions++ > 0) {
    --num_preempted_;
  } else if (caches(sequence)) {
    sequence.num_cached = match.length;
    cache_.count(sequence.first_tokens(sequence.num_prompt_tokens), match);
  }
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  ++num_admitted_;
  return true;
}

// Who comes later by priority, not by arrival alone, makes room before it must.
void Scheduler::make_way() {
  while (!waiting_.empty()) {
    const Sequence& sequence = *waiting_.front();
    int blocks = cache_.available_blocks(), others = 0;
    for (const auto& other : running_) {
      if (other->priority <= sequence.priority) continue;
      blocks += static_cast<int>(other->blocks.size());
      ++others;
    }
    const int stay = static_cast<int>(running_.size()) - others;
    if (others == 0 || blocks < blocks_at_first(sequence) + stay || can_admit(sequence, match(sequence))) return;
    preempt(last_in_order());
  }
}

// --- preemption ---

size_t Scheduler::last_in_order() const {
  const auto last = std::ranges::max_element(running_, [](const auto& a, const auto& b) { return before(*a, *b); });
  return static_cast<size_t>(last - running_.begin());
}

// True: somebody was preempted.
bool Scheduler::grow_decodes() {
  const int64_t preemptions_before = num_preemptions_;
  for (size_t i = 0; i < running_.size();) {
    Sequence& sequence = *running_[i];
    const bool has_room = static_cast<int>(sequence.blocks.size()) * limits_.block_size > sequence.num_computed;
    if (!sequence.decoding() || has_room) {
      ++i;
    } else if (const int32_t block = cache_.allocate_block(); block >= 0) {
      sequence.blocks.push_back(block);
    } else {
      const size_t last = last_in_order();
      preempt(last);
      if (last < i) --i;
    }
  }
  return num_preemptions_ > preemptions_before;
}

void Scheduler::preempt(size_t index) {
  std::unique_ptr<Sequence> sequence = std::move(running_[index]);
  running_.erase(running_.begin() + static_cast<ptrdiff_t>(index));
  if (caches(*sequence) && sequence->num_computed > sequence->last_snapshot) keep(*sequence);
  release(*sequence);
  sequence->num_computed = sequence->num_synthetic;
  sequence->prefill_end = std::max(sequence->num_prompt_tokens, sequence->num_tokens() - 1);
  ++num_preemptions_;
  ++num_preempted_;
  queue(std::move(sequence));
}

void Scheduler::release(Sequence& sequence) {
  // In reverse, so that the next sequence takes them in the same order.
  std::for_each(sequence.blocks.rbegin(), sequence.blocks.rend(), [this](int32_t id) { cache_.release_block(id); });
  sequence.blocks.clear();
  if (sequence.read_slot != sequence.state_slot) cache_.release_slot(sequence.read_slot);
  if (sequence.state_slot >= 0) cache_.release_slot(sequence.state_slot);
  sequence.state_slot = sequence.read_slot = -1;
  seats_.release(std::exchange(sequence.seat, -1));
}

// The prefix cache gets what a sequence has computed that will not run on, its state with it.
void Scheduler::keep(Sequence& sequence) {
  const int32_t slot = limits_.has_state ? sequence.state_slot : -1;
  const bool kept = cache_.insert(sequence.first_tokens(sequence.num_computed), sequence.blocks, slot);
  if (kept && limits_.has_state) sequence.state_slot = sequence.read_slot = -1;
}

// --- snapshots ---

// A prefill stops where a snapshot is due.
int Scheduler::prefill_tokens(const Sequence& sequence, int budget) const {
  const int end = std::min(sequence.prefill_end, next_snapshot(sequence));
  return std::min(budget, end - sequence.num_computed);
}

// Tokens after which the next snapshot of a prefill is due; none: beyond its end.
int Scheduler::next_snapshot(const Sequence& sequence) const {
  const int none = sequence.prefill_end + 1;
  if (!limits_.has_state || !caches(sequence)) return none;
  const int from = std::max(sequence.num_computed + 1, sequence.last_snapshot + limits_.min_snapshot_tokens);
  const int interval = limits_.snapshot_interval;
  int next = std::min(none, (from + interval - 1) / interval * interval);
  for (const int end : sequence.turn_ends) {
    if (end >= from) next = std::min(next, end);
  }
  // Of two that are too close the later one, and the turn's end rather than another point: there the next turn begins.
  for (const int end : sequence.turn_ends) {
    if (end > next && end < next + limits_.min_snapshot_tokens) next = end;
  }
  return next;
}

void Scheduler::take_snapshot(Sequence& sequence) {
  const auto tokens = sequence.first_tokens(sequence.num_computed);
  const int32_t next_slot = cache_.allocate_slot();
  if (next_slot < 0) return cache_.note_lost(tokens, Lost::no_slot);
  sequence.last_snapshot = sequence.num_computed;
  if (!cache_.insert(tokens, sequence.blocks, sequence.state_slot)) return cache_.release_slot(next_slot);
  // The next step reads the snapshot and writes elsewhere: nothing is copied.
  cache_.retain_slot(sequence.state_slot);
  sequence.state_slot = next_slot;
}

void Scheduler::computed(Sequence& sequence, int num_tokens) {
  const bool snapshot = !sequence.decoding() && sequence.num_computed + num_tokens == next_snapshot(sequence);
  const bool ends_prefill = !sequence.decoding() && sequence.num_computed + num_tokens == sequence.prefill_end;
  sequence.num_computed += num_tokens;
  if (sequence.read_slot != sequence.state_slot) cache_.release_slot(sequence.read_slot);
  sequence.read_slot = sequence.state_slot;
  if (snapshot) take_snapshot(sequence);
  if (!ends_prefill || !caches(sequence)) return;
  if (!limits_.has_state) {
    cache_.insert(sequence.first_tokens(sequence.num_computed), sequence.blocks, -1);
    return;
  }
  for (const int end : sequence.turn_ends) {
    const int saved = end - sequence.last_snapshot;
    if (saved > 0 && saved < limits_.min_snapshot_tokens) {
      cache_.note_lost(sequence.first_tokens(end), Lost::too_short);
    }
  }
}

// --- the end ---

std::unique_ptr<Sequence> Scheduler::remove(Sequence& sequence, bool may_keep) {
  const auto is = [&](const std::unique_ptr<Sequence>& other) { return other.get() == &sequence; };
  std::unique_ptr<Sequence> removed;
  if (!sequence.runs()) {
    const auto found = std::ranges::find_if(waiting_, is);
    assert(found != waiting_.end());
    removed = std::move(*found);
    waiting_.erase(found);
    if (removed->num_admissions > 0) --num_preempted_;
    return removed;
  }
  const auto found = std::ranges::find_if(running_, is);
  assert(found != running_.end());
  removed = std::move(*found);
  running_.erase(found);
  const int saved = sequence.num_computed - sequence.last_snapshot;
  if (may_keep && caches(sequence) && saved > 0) {
    if (limits_.has_state && saved < limits_.min_snapshot_tokens) {
      cache_.note_lost(sequence.first_tokens(sequence.num_computed), Lost::too_short);
    } else {
      keep(sequence);
    }
  }
  release(sequence);
  return removed;
}

void Scheduler::forget_cache() {
  assert(running_.empty());
  cache_.clear();
}

}  // namespace proa
