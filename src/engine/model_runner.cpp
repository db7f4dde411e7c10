#include "engine/model_runner.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "core/anonymous_memory.h"

namespace proa {
namespace {

int64_t product(int a, int b) { return int64_t{a} * b; }

int64_t expert_counts(const RunnerLimits& limits, const ModelInfo& model) {
  return limits.count_experts ? product(model.num_moe_layers, model.n_routed_experts) : 0;
}

// Bytes that StepInputs, StepResults and the two large arrays take.
size_t input_bytes(const RunnerLimits& limits) {
  return 3 * Arena::padded<int32_t>(limits.max_num_batched_tokens) + Arena::padded<int32_t>(limits.max_num_seqs + 1) +
         3 * Arena::padded<int32_t>(limits.max_num_seqs) + Arena::padded<int32_t>(limits.max_num_logit_rows) +
         Arena::padded<SamplingRow>(limits.max_num_logit_rows);
}
size_t result_bytes(const RunnerLimits& limits, const ModelInfo& model) {
  const int rows = limits.max_num_logit_rows;
  return 2 * Arena::padded<int32_t>(rows) + Arena::padded<float>(rows) +
         Arena::padded<int32_t>(product(rows, limits.max_top_logprobs)) +
         Arena::padded<float>(product(rows, limits.max_top_logprobs)) +
         Arena::padded<int32_t>(expert_counts(limits, model));
}
size_t table_bytes(const RunnerLimits& limits) {
  return Arena::padded<int32_t>(product(limits.max_num_seqs, limits.max_blocks_per_seq));
}
size_t device_bytes(const RunnerLimits& limits, int vocab_size) {
  return Arena::padded<float>(product(limits.max_num_logit_rows, vocab_size)) +
         Arena::padded<TokenCount>(product(limits.num_count_slots, vocab_size)) +
         Arena::padded<float>(product(limits.num_bias_slots, vocab_size));
}

StepInputs inputs_in(std::byte* memory, const RunnerLimits& limits) {
  Arena arena(memory, input_bytes(limits));
  StepInputs in;
  in.token_ids = arena.take<int32_t>(limits.max_num_batched_tokens);
  in.positions = arena.take<int32_t>(limits.max_num_batched_tokens);
  in.slot_mapping = arena.take<int32_t>(limits.max_num_batched_tokens);
  in.query_start = arena.take<int32_t>(limits.max_num_seqs + 1);
  in.seq_lens = arena.take<int32_t>(limits.max_num_seqs);
  in.state_slot_in = arena.take<int32_t>(limits.max_num_seqs);
  in.state_slot_out = arena.take<int32_t>(limits.max_num_seqs);
  in.logit_rows = arena.take<int32_t>(limits.max_num_logit_rows);
  in.sampling = arena.take<SamplingRow>(limits.max_num_logit_rows);
  return in;
}

StepResults results_in(std::byte* memory, const RunnerLimits& limits, const ModelInfo& model) {
  Arena arena(memory, result_bytes(limits, model));
  const int rows = limits.max_num_logit_rows;
  StepResults out;
  out.tokens = arena.take<int32_t>(rows);
  out.logprobs = arena.take<float>(rows);
  out.top_ids = arena.take<int32_t>(product(rows, limits.max_top_logprobs));
  out.top_logprobs = arena.take<float>(product(rows, limits.max_top_logprobs));
  out.ranks = arena.take<int32_t>(rows);
  if (limits.count_experts) out.expert_tokens = arena.take<int32_t>(expert_counts(limits, model));
  return out;
}

// Asks for the ops of the largest steps that the limits allow, for Backend::scratch_bytes(); of smaller ones too, since
// kernels are chosen by size. Where more than one token fits, steps of one are left out: they need less. Its memory is
// zeros, of which all but a few arrays take no room.
class LargestSteps {
 public:
  static Result<LargestSteps> create(const Model& model, const RunnerLimits& limits) {
    const size_t results = result_bytes(limits, model.info()), device = device_bytes(limits, model.info().vocab_size);
    const size_t table = Arena::padded<int32_t>(limits.max_blocks_per_seq);  // one row for all
    LargestSteps steps(model, limits);
    PROA_ASSIGN(steps.memory_, AnonymousMemory::allocate(input_bytes(limits) + results + table + device +
                                                             model.workspace_bytes(limits.max_num_batched_tokens),
                                                         "a step"));
    std::byte* at = steps.memory_.bytes().data();
    steps.in_ = inputs_in(at, limits);
    steps.out_ = results_in(at += input_bytes(limits), limits, model.info());
    steps.table_ = reinterpret_cast<int32_t*>(at += results);
    steps.logits_ = reinterpret_cast<float*>(at += table);
    steps.workspace_ = at + device;
    for (const CacheSpec& spec : model.cache_specs()) {
      steps.caches_.emplace_back();
      if (spec.kind == CacheSpec::Kind::kv) {
        steps.caches_.back().kv = {.format = limits.kv_cache_dtype, .num_blocks = 1, .block_size = limits.block_size};
      } else if (spec.kind == CacheSpec::Kind::state) {
        steps.caches_.back().state = {.num_slots = 1};
      }
    }
    return steps;
  }

  void run(Backend& backend) {
    const int tokens = limits_.max_num_batched_tokens, seqs = std::min(limits_.max_num_seqs, tokens);
    for_sizes(tokens, [&](int n) {
      step(backend, n, 1, 0);
      if (seqs > 1) step(backend, n, std::min(seqs, n), 0);
    });
    if (seqs > 1 || tokens == 1) for_sizes(seqs, [&](int n) { step(backend, n, n, n); });
  }

 private:
  LargestSteps(const Model& model, const RunnerLimits& limits) : model_(model), limits_(limits) {}

  // 2, 4, 8 ... and `most`.
  template <typename F>
  static void for_sizes(int most, F&& each) {
    for (int n = 2; n < most; n *= 2) each(n);
    each(most);
  }

  // Every sequence ends where the longest may end.
  void step(Backend& backend, int num_tokens, int num_seqs, int num_decodes) {
    const int64_t len = std::max<int64_t>(product(limits_.max_blocks_per_seq, limits_.block_size), num_tokens);
    for (int s = 0; s < num_seqs; ++s) {
      const int first = static_cast<int>(product(num_tokens, s) / num_seqs);
      const int end = static_cast<int>(product(num_tokens, s + 1) / num_seqs);
      in_.query_start[s + 1] = end;
      in_.seq_lens[s] = static_cast<int32_t>(len);
      std::iota(in_.positions + first, in_.positions + end, static_cast<int32_t>(len - (end - first)));
    }
    const int rows = std::min(num_tokens, limits_.max_num_logit_rows);
    const Batch batch{.num_tokens = num_tokens,
                      .num_seqs = num_seqs,
                      .num_decodes = num_decodes,
                      .num_logit_rows = rows,
                      .token_ids = in_.token_ids,
                      .positions = in_.positions,
                      .query_start = in_.query_start,
                      .seq_lens = in_.seq_lens,
                      .block_table = table_,
                      .block_table_stride = 0,
                      .slot_mapping = in_.slot_mapping,
                      .state_slot_in = in_.state_slot_in,
                      .state_slot_out = in_.state_slot_out,
                      .logit_rows = in_.logit_rows,
                      .expert_tokens = out_.expert_tokens};
    Arena arena(workspace_, model_.workspace_bytes(limits_.max_num_batched_tokens));
    model_.forward(backend, batch, caches_, arena, logits_);
    backend.sample({.num_rows = rows,
                    .vocab_size = model_.info().vocab_size,
                    .num_top_logprobs = limits_.max_top_logprobs,
                    .logits = logits_,
                    .rows = in_.sampling,
                    .tokens = out_.tokens,
                    .logprobs = out_.logprobs,
                    .top_ids = out_.top_ids,
                    .top_logprobs = out_.top_logprobs});
  }

  const Model& model_;
  const RunnerLimits limits_;
  AnonymousMemory memory_;
  StepInputs in_;
  StepResults out_;
  int32_t* table_ = nullptr;
  float* logits_ = nullptr;
  std::byte* workspace_ = nullptr;
  std::vector<LayerCache> caches_;
};

}  // namespace

Result<MemoryPlan> ModelRunner::plan(const Model& model, Backend& backend, const RunnerLimits& limits) {
  MemoryPlan plan;
  plan.num_blocks = limits.num_blocks;
  plan.block_size = limits.block_size;
  plan.bytes_per_block = KvCache::bytes_per_block(model.cache_specs(), limits.block_size, limits.kv_cache_dtype);
  plan.num_slots = limits.num_slots;
  plan.bytes_per_slot = SsmStateCache::bytes_per_slot(model.cache_specs());
  plan.weight_bytes = static_cast<size_t>(model.info().weight_bytes);
  plan.kv_bytes = static_cast<size_t>(plan.num_blocks) * plan.bytes_per_block;
  plan.state_bytes = static_cast<size_t>(plan.num_slots) * plan.bytes_per_slot;
  plan.num_host_blocks = limits.num_host_blocks;
  plan.num_host_slots = limits.num_host_slots;
  plan.host_bytes = static_cast<size_t>(limits.num_host_blocks) * plan.bytes_per_block +
                    static_cast<size_t>(limits.num_host_slots) * plan.bytes_per_slot;
  plan.workspace_bytes = model.workspace_bytes(limits.max_num_batched_tokens);
  plan.step_bytes = input_bytes(limits) + result_bytes(limits, model.info()) + table_bytes(limits) +
                    device_bytes(limits, model.info().vocab_size);
  PROA_ASSIGN(LargestSteps steps, LargestSteps::create(model, limits));
  PROA_ASSIGN(plan.scratch_bytes, backend.scratch_bytes([&] { steps.run(backend); }));
  plan.device = backend.name();
  plan.memory = backend.memory();
  return plan;
}

Result<std::unique_ptr<ModelRunner>> ModelRunner::create(const Model& model, Backend& backend,
                                                         const RunnerLimits& limits) {
  std::unique_ptr<ModelRunner> runner(new ModelRunner(model, backend, limits));
  const std::span<const CacheSpec> specs = model.cache_specs();
  PROA_ASSIGN(LargestSteps steps, LargestSteps::create(model, limits));
  PROA_TRY(backend.reserve([&] { steps.run(backend); }));
  PROA_ASSIGN(runner->kv_,
              KvCache::create(backend, specs, limits.num_blocks, limits.block_size, limits.kv_cache_dtype));
  if (limits.synthetic_cache) runner->kv_.fill_with_noise(backend);
  PROA_ASSIGN(runner->states_, SsmStateCache::create(backend, specs, limits.num_slots));
  if (limits.num_host_blocks > 0) {
    PROA_ASSIGN(runner->host_kv_, KvCache::create(backend, specs, limits.num_host_blocks, limits.block_size,
                                                  limits.kv_cache_dtype, true));
  }
  if (limits.num_host_slots > 0) {
    PROA_ASSIGN(runner->host_states_, SsmStateCache::create(backend, specs, limits.num_host_slots, true));
  }
  runner->caches_.resize(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    runner->caches_[i] = {.kv = runner->kv_.view(i), .state = runner->states_.view(i)};
  }
  const size_t workspace = model.workspace_bytes(limits.max_num_batched_tokens);
  PROA_ASSIGN(runner->workspace_, backend.allocate(std::max<size_t>(workspace, Arena::kAlignment)));
  const ModelInfo& info = model.info();
  PROA_ASSIGN(runner->input_memory_, backend.allocate_shared(input_bytes(limits)));
  PROA_ASSIGN(runner->result_memory_, backend.allocate_shared(result_bytes(limits, info)));
  PROA_ASSIGN(runner->table_memory_, backend.allocate_shared(table_bytes(limits)));
  PROA_ASSIGN(runner->device_memory_, backend.allocate(device_bytes(limits, info.vocab_size)));
  runner->in_ = inputs_in(runner->input_memory_.host.data(), limits);
  runner->device_in_ = inputs_in(runner->input_memory_.device.data(), limits);
  runner->out_ = results_in(runner->result_memory_.host.data(), limits, info);
  runner->device_out_ = results_in(runner->result_memory_.device.data(), limits, info);
  runner->block_table_ = runner->table_memory_.host.as<int32_t>();
  runner->num_expert_tokens_ = static_cast<size_t>(expert_counts(limits, info));
  Arena arena(runner->device_memory_.data(), runner->device_memory_.bytes);
  runner->logits_ = arena.take<float>(product(limits.max_num_logit_rows, info.vocab_size));
  runner->counts_ = arena.take<TokenCount>(product(limits.num_count_slots, info.vocab_size));
  runner->biases_ = arena.take<float>(product(limits.num_bias_slots, info.vocab_size));
  runner->begin();
  PROA_TRY(backend.synchronize());
  return runner;
}

ModelRunner::~ModelRunner() { backend_.forget_records(); }

void ModelRunner::move(std::span<const CacheMove> moves) {
  for (size_t i = 0; i < moves.size();) {
    const CacheMove& move = moves[i];
    const bool from_host = move.how == CacheMove::How::to_device, to_host = move.how == CacheMove::How::to_host;
    size_t count = 1;
    if (move.what == CacheMove::What::slot) {
      SsmStateCache::copy(backend_, move.how, from_host ? host_states_ : states_, move.from,
                          to_host ? host_states_ : states_, move.to);
    } else {
      // Neighbours go together: a block of one layer is small.
      for (; from_host != to_host && i + count < moves.size(); ++count) {
        const CacheMove& next = moves[i + count];
        const auto step = static_cast<int32_t>(count);
        if (next.what != move.what || next.how != move.how || next.from != move.from + step ||
            next.to != move.to + step) {
          break;
        }
      }
      KvCache::copy(backend_, move.how, from_host ? host_kv_ : kv_, move.from, to_host ? host_kv_ : kv_, move.to,
                    static_cast<int>(count));
    }
    i += count;
  }
}

void ModelRunner::begin() {
  in_.query_start[0] = 0;
  batch_ = Batch{.token_ids = device_in_.token_ids,
                 .positions = device_in_.positions,
                 .query_start = device_in_.query_start,
                 .seq_lens = device_in_.seq_lens,
                 .block_table = table_memory_.device.as<int32_t>(),
                 .block_table_stride = limits_.max_blocks_per_seq,
                 .slot_mapping = device_in_.slot_mapping,
                 .state_slot_in = device_in_.state_slot_in,
                 .state_slot_out = device_in_.state_slot_out,
                 .logit_rows = device_in_.logit_rows,
                 .expert_tokens = device_out_.expert_tokens};
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

  std::copy(step.token_ids.begin(), step.token_ids.end(), in_.token_ids + first);
  for (int i = 0; i < count; ++i) {
    const int position = step.num_computed + i;
    in_.positions[first + i] = position;
    in_.slot_mapping[first + i] = step.blocks[static_cast<size_t>(position / limits_.block_size)] * limits_.block_size +
                                  position % limits_.block_size;
  }
  in_.query_start[seq + 1] = batch_.num_tokens;
  in_.seq_lens[seq] = step.num_computed + count;
  const int used_blocks = (in_.seq_lens[seq] + limits_.block_size - 1) / limits_.block_size;
  assert(used_blocks <= limits_.max_blocks_per_seq && static_cast<size_t>(used_blocks) <= step.blocks.size());
  set_blocks(seq, step.blocks.first(static_cast<size_t>(used_blocks)));
  const int32_t read_slot = step.read_slot < 0 ? step.state_slot : step.read_slot;
  in_.state_slot_in[seq] = step.num_computed == 0 || step.fresh_state ? -1 : read_slot;
  in_.state_slot_out[seq] = step.state_slot;
}

// A table is long at depth and hardly changes from step to step: only what differs is sent.
void ModelRunner::set_blocks(int seq, std::span<const int32_t> blocks) {
  const int64_t row = product(seq, limits_.max_blocks_per_seq);
  int32_t* known = block_table_ + row;
  const auto differs = std::mismatch(blocks.begin(), blocks.end(), known);
  const auto first = differs.first - blocks.begin();
  if (differs.first == blocks.end()) return;
  std::copy(differs.first, blocks.end(), differs.second);
  backend_.upload(table_memory_.device.as<int32_t>() + row + first, known + first,
                  (blocks.size() - static_cast<size_t>(first)) * sizeof(int32_t));
}

void ModelRunner::want_logits(int index, const SamplingRow* sampling) {
  const int row = batch_.num_logit_rows++;
  assert(batch_.num_seqs > 0 && row < limits_.max_num_logit_rows);
  in_.logit_rows[row] = in_.query_start[batch_.num_seqs - 1] + index;
  assert(in_.logit_rows[row] < batch_.num_tokens);
  in_.sampling[row] = sampling ? *sampling : SamplingRow{};
}

void ModelRunner::reset_counts(int32_t slot, std::span<const int32_t> prompt_token_ids,
                               std::span<const int32_t> output_token_ids) {
  assert(slot >= 0 && slot < limits_.num_count_slots);
  const int vocab_size = model_.info().vocab_size;
  std::vector<TokenCount> counts(static_cast<size_t>(vocab_size));
  for (int32_t id : prompt_token_ids) counts[static_cast<size_t>(id)] = kInPrompt;
  for (int32_t id : output_token_ids) ++counts[static_cast<size_t>(id)];
  backend_.upload(counts_ + product(slot, vocab_size), counts.data(), counts.size() * sizeof(TokenCount));
}

void ModelRunner::set_biases(int32_t slot, std::span<const float> biases) {
  assert(slot >= 0 && slot < limits_.num_bias_slots && static_cast<int>(biases.size()) == model_.info().vocab_size);
  backend_.upload(biases_ + product(slot, model_.info().vocab_size), biases.data(), biases.size_bytes());
}

void ModelRunner::set_bias(int32_t slot, int32_t token_id, float bias) {
  assert(slot >= 0 && slot < limits_.num_bias_slots && token_id >= 0 && token_id < model_.info().vocab_size);
  backend_.upload(biases_ + product(slot, model_.info().vocab_size) + token_id, &bias, sizeof bias);
}

void ModelRunner::send() {
  backend_.upload(input_memory_.device.data(), input_memory_.host.data(), input_memory_.host.bytes);
  if (num_expert_tokens_ == 0) return;
  std::fill_n(out_.expert_tokens, num_expert_tokens_, 0);
  backend_.upload(device_out_.expert_tokens, out_.expert_tokens, num_expert_tokens_ * sizeof(int32_t));
}

void ModelRunner::compute() {
  Arena arena(workspace_.data(), workspace_.bytes);
  model_.forward(backend_, batch_, caches_, arena, logits_);
}

Result<void> ModelRunner::receive() {
  backend_.download(result_memory_.host.data(), result_memory_.device.data(), result_memory_.host.bytes);
  return backend_.synchronize();
}

Result<void> ModelRunner::forward() {
  send();
  compute();
  return receive();
}

Result<void> ModelRunner::step(int num_top_logprobs) {
  assert(num_top_logprobs <= limits_.max_top_logprobs);
  num_top_ = num_top_logprobs;
  send();
  const auto body = [&] {
    compute();
    if (batch_.num_logit_rows == 0) return;
    backend_.sample({.num_rows = batch_.num_logit_rows,
                     .vocab_size = model_.info().vocab_size,
                     .num_top_logprobs = num_top_logprobs,
                     .logits = logits_,
                     .rows = device_in_.sampling,
                     .counts = limits_.num_count_slots > 0 ? counts_ : nullptr,
                     .tokens = device_out_.tokens,
                     .logprobs = device_out_.logprobs,
                     .top_ids = num_top_logprobs > 0 ? device_out_.top_ids : nullptr,
                     .top_logprobs = num_top_logprobs > 0 ? device_out_.top_logprobs : nullptr,
                     .biases = limits_.num_bias_slots > 0 ? biases_ : nullptr,
                     .ranks = device_out_.ranks});
  };
  // Steps that only decode come again and again, with the same arrays whatever the sequences.
  const bool again = batch_.num_decodes == batch_.num_tokens && batch_.num_logit_rows == batch_.num_tokens;
  if (again) {
    backend_.run(static_cast<uint64_t>(batch_.num_tokens) << 32 | static_cast<uint32_t>(num_top_logprobs), body);
  } else {
    body();
  }
  return receive();
}

Result<const float*> ModelRunner::logits() {
  if (backend_.shares_memory()) return static_cast<const float*>(logits_);
  host_logits_.resize(static_cast<size_t>(product(batch_.num_logit_rows, model_.info().vocab_size)));
  backend_.download(host_logits_.data(), logits_, host_logits_.size() * sizeof(float));
  PROA_TRY(backend_.synchronize());
  return static_cast<const float*>(host_logits_.data());
}

}  // namespace proa
