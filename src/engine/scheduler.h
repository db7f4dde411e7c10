// Decides who runs: a bounded waiting queue, the running sequences, and the batch of the next step. Deterministic, no
// threads, no clock, no device: the same calls give the same steps.
//
// A sequence is admitted, strictly in order of arrival, when a state slot and all blocks it can ever need are free. So
// nothing that runs is ever evicted, and what fits in an empty engine is admitted sooner or later. A step holds first
// the decodes, all of them, then prefills in order of admission as far as max_num_batched_tokens reaches.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/block_pool.h"
#include "core/result.h"
#include "engine/sequence.h"

namespace proa {

struct SchedulerLimits {
  int max_num_seqs = 1;
  int max_num_batched_tokens = 1;  // at least max_num_seqs, so that a prefill is never starved
  int max_model_len = 1;           // tokens
  int max_queue = 1;               // sequences that wait
  int max_prompt_logits = 0;       // prompt tokens of a step whose logits are wanted
  int num_blocks = 1;
  int block_size = 16;  // tokens
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

  // Puts a sequence that fits() at the end of the queue. Error: max_queue sequences wait already.
  Result<void> add(std::unique_ptr<Sequence> sequence);

  // Admits what can be admitted and forms the next step. Empty: nothing runs and nothing waits. The caller computes it,
  // advances num_computed and appends tokens, then calls again. The span is valid until the next call.
  std::span<const ScheduledSequence> schedule();
  // Those that schedule() has just admitted, in order: a part of running().
  std::span<const std::unique_ptr<Sequence>> admitted() const {
    return std::span(running_).subspan(running_.size() - num_admitted_);
  }

  // Takes a sequence out, wherever it is, and frees what it holds.
  std::unique_ptr<Sequence> remove(Sequence& sequence);

  std::span<const std::unique_ptr<Sequence>> running() const { return running_; }
  const std::deque<std::unique_ptr<Sequence>>& waiting() const { return waiting_; }
  const BlockPool& blocks() const { return blocks_; }
  const BlockPool& slots() const { return slots_; }

 private:
  // Blocks for a sequence's whole life. The last token is drawn but never computed.
  int blocks_for(int max_total_tokens) const {
    return (max_total_tokens - 1 + limits_.block_size - 1) / limits_.block_size;
  }
  bool admit_next();

  const SchedulerLimits limits_;
  BlockPool blocks_;
  BlockPool slots_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  std::vector<ScheduledSequence> step_;
  size_t num_admitted_ = 0;
};

}  // namespace proa
