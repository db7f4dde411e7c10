#include "engine/model_runner.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace proa {
namespace {

int64_t product(int a, int b) { return int64_t{a} * b; }

// Bytes of the arrays of a step: the sum of what lay_out() takes.
size_t step_bytes(const RunnerLimits& limits, const ModelInfo& model) {
  const int vocab_size = model.vocab_size;
  const int tokens = limits.max_num_batched_tokens;
  const int seqs = limits.max_num_seqs;
  const int rows = limits.max_num_logit_rows;
  return 3 * Arena::padded<int32_t>(tokens) + Arena::padded<int32_t>(seqs + 1) + 3 * Arena::padded<int32_t>(seqs) +
         Arena::padded<int32_t>(product(seqs, limits.max_blocks_per_seq)) + 2 * Arena::padded<int32_t>(rows) +
         Arena::padded<SamplingRow>(rows) + Arena::padded<float>(product(rows, vocab_size)) +
         Arena::padded<TokenCount>(product(limits.num_count_slots, vocab_size)) + Arena::padded<float>(rows) +
         Arena::padded<int32_t>(product(rows, limits.max_top_logprobs)) +
         Arena::padded<float>(product(rows, limits.max_top_logprobs)) +
         (limits.count_experts ? Arena::padded<int32_t>(product(model.num_moe_layers, model.n_routed_experts)) : 0);
}

}  // namespace

MemoryPlan ModelRunner::plan(const Model& model, const RunnerLimits& limits) {
  MemoryPlan plan;
  plan.num_blocks = limits.num_blocks;
  plan.block_size = limits.block_size;
  plan.bytes_per_block = KvCache::bytes_per_block(model.cache_specs(), limits.block_size, limits.kv_cache_dtype);
  plan.num_slots = limits.num_slots;
  plan.bytes_per_slot = SsmStateCache::bytes_per_slot(model.cache_specs());
  plan.kv_bytes = static_cast<size_t>(plan.num_blocks) * plan.bytes_per_block;
  plan.state_bytes = static_cast<size_t>(plan.num_slots) * plan.bytes_per_slot;
  plan.workspace_bytes = model.workspace_bytes(limits.max_num_batched_tokens);
  plan.step_bytes = step_bytes(limits, model.info());
  return plan;
}

Result<std::unique_ptr<ModelRunner>> ModelRunner::create(const Model& model, Backend& backend,
                                                         const RunnerLimits& limits) {
  std::unique_ptr<ModelRunner> runner(new ModelRunner(model, backend, limits));
  const std::span<const CacheSpec> specs = model.cache_specs();
  PROA_ASSIGN(runner->kv_,
              KvCache::create(backend, specs, limits.num_blocks, limits.block_size, limits.kv_cache_dtype));
  if (limits.synthetic_cache) runner->kv_.fill_with_noise();
  PROA_ASSIGN(runner->states_, SsmStateCache::create(backend, specs, limits.num_slots));
  runner->caches_.resize(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    runner->caches_[i] = {.kv = runner->kv_.view(i), .state = runner->states_.view(i)};
  }
  const MemoryPlan memory = plan(model, limits);
  PROA_ASSIGN(runner->workspace_, backend.allocate(std::max<size_t>(memory.workspace_bytes, Arena::kAlignment)));
  PROA_ASSIGN(runner->arrays_, backend.allocate(memory.step_bytes));
  const size_t used = runner->lay_out(Arena(runner->arrays_.data(), memory.step_bytes));
  assert(used == memory.step_bytes);
  (void)used;
  runner->begin();
  return runner;
}

size_t ModelRunner::lay_out(Arena arena) {
  const int rows = limits_.max_num_logit_rows;
  const int vocab_size = model_.info().vocab_size;
  token_ids_ = arena.take<int32_t>(limits_.max_num_batched_tokens);
  positions_ = arena.take<int32_t>(limits_.max_num_batched_tokens);
  slot_mapping_ = arena.take<int32_t>(limits_.max_num_batched_tokens);
  query_start_ = arena.take<int32_t>(limits_.max_num_seqs + 1);
  seq_lens_ = arena.take<int32_t>(limits_.max_num_seqs);
  state_slot_in_ = arena.take<int32_t>(limits_.max_num_seqs);
  state_slot_out_ = arena.take<int32_t>(limits_.max_num_seqs);
  block_table_ = arena.take<int32_t>(product(limits_.max_num_seqs, limits_.max_blocks_per_seq));
  logit_rows_ = arena.take<int32_t>(rows);
  sampling_ = arena.take<SamplingRow>(rows);
  logits_ = arena.take<float>(product(rows, vocab_size));
  counts_ = arena.take<TokenCount>(product(limits_.num_count_slots, vocab_size));
  tokens_ = arena.take<int32_t>(rows);
  logprobs_ = arena.take<float>(rows);
  top_ids_ = arena.take<int32_t>(product(rows, limits_.max_top_logprobs));
  top_logprobs_ = arena.take<float>(product(rows, limits_.max_top_logprobs));
  if (limits_.count_experts) {
    num_expert_tokens_ = static_cast<size_t>(product(model_.info().num_moe_layers, model_.info().n_routed_experts));
    expert_tokens_ = arena.take<int32_t>(static_cast<int64_t>(num_expert_tokens_));
  }
  return arena.used();
}

void ModelRunner::begin() {
  query_start_[0] = 0;
  batch_ = Batch{.token_ids = token_ids_,
                 .positions = positions_,
                 .query_start = query_start_,
                 .seq_lens = seq_lens_,
                 .block_table = block_table_,
                 .block_table_stride = limits_.max_blocks_per_seq,
                 .slot_mapping = slot_mapping_,
                 .state_slot_in = state_slot_in_,
                 .state_slot_out = state_slot_out_,
                 .logit_rows = logit_rows_,
                 .expert_tokens = expert_tokens_};
}

void ModelRunner::add(const SequenceStep& step) {
  const int seq = batch_.num_seqs++;
  const int first = batch_.num_tokens;
  const int count = static_cast<int>(step.token_ids.size());
  batch_.num_tokens += count;
  assert(count > 0 && seq < limits_.max_num_seqs && batch_.num_tokens <= limits_.max_num_batched_tokens);
  if (step.decode) {
    assert(count == 1 && batch_.num_decodes == seq && "decodes come first");
    ++batch_.num_decodes;
  }

  std::copy(step.token_ids.begin(), step.token_ids.end(), token_ids_ + first);
  for (int i = 0; i < count; ++i) {
    const int position = step.num_computed + i;
    positions_[first + i] = position;
    slot_mapping_[first + i] = step.blocks[static_cast<size_t>(position / limits_.block_size)] * limits_.block_size +
                               position % limits_.block_size;
  }
  query_start_[seq + 1] = batch_.num_tokens;
  seq_lens_[seq] = step.num_computed + count;
  const int used_blocks = (seq_lens_[seq] + limits_.block_size - 1) / limits_.block_size;
  assert(used_blocks <= limits_.max_blocks_per_seq && static_cast<size_t>(used_blocks) <= step.blocks.size());
  std::copy_n(step.blocks.begin(), used_blocks, block_table_ + product(seq, limits_.max_blocks_per_seq));
  state_slot_in_[seq] = step.num_computed == 0 || step.fresh_state ? -1 : step.state_slot;
  state_slot_out_[seq] = step.state_slot;
}

void ModelRunner::want_logits(int index, const SamplingRow* sampling) {
  const int row = batch_.num_logit_rows++;
  assert(batch_.num_seqs > 0 && row < limits_.max_num_logit_rows);
  logit_rows_[row] = query_start_[batch_.num_seqs - 1] + index;
  assert(logit_rows_[row] < batch_.num_tokens);
  sampling_[row] = sampling ? *sampling : SamplingRow{};
}

void ModelRunner::reset_counts(int32_t slot, std::span<const int32_t> prompt_token_ids) {
  assert(slot >= 0 && slot < limits_.num_count_slots);
  const int vocab_size = model_.info().vocab_size;
  TokenCount* counts = counts_ + product(slot, vocab_size);
  std::fill_n(counts, vocab_size, TokenCount{0});
  for (int32_t id : prompt_token_ids) counts[id] = kInPrompt;
}

void ModelRunner::forward() {
  std::fill_n(expert_tokens_, num_expert_tokens_, 0);
  Arena arena(workspace_.data(), workspace_.bytes);
  model_.forward(backend_, batch_, caches_, arena, logits_);
  backend_.synchronize();
}

void ModelRunner::sample(int num_top_logprobs) {
  assert(num_top_logprobs <= limits_.max_top_logprobs);
  num_top_ = num_top_logprobs;
  if (batch_.num_logit_rows == 0) return;
  backend_.sample({.num_rows = batch_.num_logit_rows,
                   .vocab_size = model_.info().vocab_size,
                   .num_top_logprobs = num_top_logprobs,
                   .logits = logits_,
                   .rows = sampling_,
                   .counts = limits_.num_count_slots > 0 ? counts_ : nullptr,
                   .tokens = tokens_,
                   .logprobs = logprobs_,
                   .top_ids = num_top_logprobs > 0 ? top_ids_ : nullptr,
                   .top_logprobs = num_top_logprobs > 0 ? top_logprobs_ : nullptr});
  backend_.synchronize();
}

}  // namespace proa
