// Decides who runs: a bounded waiting queue, the running sequences, and the batch of the next step. Deterministic, no
// threads, no clock, no device: the same calls give the same steps.
//
// Order is by priority, then by arrival. Strictly in this order a sequence is admitted when a state slot and the blocks
// of its prompt can be had, and a block is left for each that runs; what the prefix cache knows of the prompt is not
// computed again, and what another is just computing is waited for. A step holds first the decodes, all of them, then
// prefills in order of admission as far as max_num_batched_tokens reaches.
//
// While it generates, a sequence takes blocks as it needs them. When none is left, the last in order is preempted: what
// it has computed goes to the prefix cache and it to the queue, from where it goes on with what is still there. So the
// first in order always gets on, and what fits in an empty engine comes to its end.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/block_pool.h"
#include "cache/prefix_cache.h"
#include "core/result.h"
#include "engine/sequence.h"

namespace proa {

struct SchedulerLimits {
  int max_num_seqs = 1;
  int max_num_batched_tokens = 1;  // at least max_num_seqs, so that a prefill is never starved
  int max_model_len = 1;           // tokens
  int max_queue = 1;               // sequences that wait and have not run yet
  int max_prompt_logits = 0;       // prompt tokens of a step whose logits are wanted
  int num_blocks = 1;
  int block_size = 16;  // tokens

  bool prefix_caching = false;
  bool has_state = true;         // of the model: one slot per sequence
  int num_snapshots = 0;         // slots beside those of max_num_seqs running sequences
  int snapshot_interval = 2048;  // tokens of prefill
  // A snapshot cuts a prefill, or takes another's slot: it must save that many tokens.
  int min_snapshot_tokens = 64;
  int num_host_blocks = 0, num_host_slots = 0;  // where the prefix cache puts what the device has no room for
};

struct ScheduledSequence {
  Sequence* sequence;
  int num_tokens;  // from sequence->num_computed on
  bool decode;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  // Whether a sequence of that many tokens can ever run. Reads only limits: any thread may ask. max_tokens unset means
  // as many as fit. Returns the sequence's max_total_tokens. Errors: longer than max_model_len, more blocks than there
  // are, each with both sizes.
  Result<int> fits(int64_t num_prompt_tokens, std::optional<int> max_tokens) const;

  // Puts a sequence that fits() into the queue. Error: max_queue sequences wait already.
  Result<void> add(std::unique_ptr<Sequence> sequence);

  // Preempts whom memory no longer holds, admits what can be admitted and forms the next step. Empty: nothing runs and
  // nothing waits. The caller makes cache().moves() and computes the step, tells computed() of each sequence and
  // appends tokens, then calls again. The span is valid until the next call.
  std::span<const ScheduledSequence> schedule();
  // Those that schedule() has just admitted, in order: a part of running().
  std::span<const std::unique_ptr<Sequence>> admitted() const {
    return std::span(running_).subspan(running_.size() - num_admitted_);
  }

  // The next num_tokens of a sequence are in the caches.
  void computed(Sequence& sequence, int num_tokens);

  // Takes a sequence out, wherever it is, and frees what it holds. `may_keep`: the prefix cache gets what it
  // has computed.
  std::unique_ptr<Sequence> remove(Sequence& sequence, bool may_keep);

  // What the caches hold is not to be trusted: a step failed. Nothing may run.
  void forget_cache();

  std::span<const std::unique_ptr<Sequence>> running() const { return running_; }
  const std::deque<std::unique_ptr<Sequence>>& waiting() const { return waiting_; }
  PrefixCache& cache() { return cache_; }
  const PrefixCache& cache() const { return cache_; }
  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  // The last token is drawn but never computed.
  int blocks_for(int num_tokens) const { return (num_tokens + limits_.block_size - 1) / limits_.block_size; }
  bool caches(const Sequence& sequence) const {
    return limits_.prefix_caching && sequence.use_prefix_cache && sequence.num_synthetic == 0;
  }

  PrefixCache::Match match(const Sequence& sequence) const;
  int blocks_at_first(const Sequence& sequence) const;
  bool can_admit(const Sequence& sequence, const PrefixCache::Match& match) const;
  int spare_blocks() const;
  bool is_being_computed(const Sequence& sequence, int known) const;
  bool admit_next();
  void make_way();
  bool grow_decodes();
  int prefill_tokens(const Sequence& sequence, int budget) const;
  int next_snapshot(const Sequence& sequence) const;
  void take_snapshot(Sequence& sequence);

  size_t last_in_order() const;  // index in running_
  void preempt(size_t index);
  void queue(std::unique_ptr<Sequence> sequence);
  void release(Sequence& sequence);
  void keep(Sequence& sequence);

  const SchedulerLimits limits_;
  PrefixCache cache_;
  BlockPool seats_;
  std::deque<std::unique_ptr<Sequence>> waiting_;   // in order
  int num_preempted_ = 0;                           // of waiting_, that have run before
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  std::vector<ScheduledSequence> step_;
  size_t num_admitted_ = 0;
  uint64_t num_arrived_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace proa
