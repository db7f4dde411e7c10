// Turns what the scheduler decided into one Batch, runs the model and samples. Owns the memory of a step (arrays,
// arena, logits), the caches' memory, and the token counts of penalties; all of it is allocated by create() and nothing
// afterwards.
//
//   runner.begin();
//   runner.add({tokens of the first sequence...}, &row);   // decodes first
//   runner.step(0);
//   int32_t next = runner.token(0);                        // of the first sequence that asked for one
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/memory_plan.h"
#include "cache/ssm_state_cache.h"
#include "core/arena.h"
#include "core/result.h"
#include "models/model.h"
#include "ops/backend.h"

namespace proa {

struct RunnerLimits {
  int max_num_seqs = 1;            // of a step
  int max_num_batched_tokens = 1;  // of a step
  int max_num_logit_rows = 1;      // of a step
  int max_top_logprobs = 0;        // alternatives per row
  int num_count_slots = 0;         // sequences whose penalties are counted
  int num_bias_slots = 0;          // sequences with a bias per token
  int max_blocks_per_seq = 1;
  int num_blocks = 1;
  int block_size = 16;  // tokens
  Format kv_cache_dtype = Format::F32;
  int num_slots = 1;
  int num_host_blocks = 0, num_host_slots = 0;  // for what is swapped out
  bool synthetic_cache = false;                 // KV blocks are filled with noise once
  bool count_experts = false;                   // expert_tokens() is kept
};

// What one sequence does in a step.
struct SequenceStep {
  std::span<const int32_t> token_ids = {};  // the tokens of this step, at least one
  int num_computed = 0;                     // tokens before them, which the caches hold
  std::span<const int32_t> blocks = {};     // of the sequence, in order; enough for num_computed + token_ids.size()
  int32_t state_slot = 0;
  int32_t read_slot = -1;    // where the state before this step lies; -1: in state_slot
  bool fresh_state = false;  // the recurrent state starts from zero, whatever num_computed says
  bool decode = false;       // exactly one token, added before all that are not decodes
};

// What the host tells the device before a step.
struct StepInputs {
  int32_t* token_ids = nullptr;       // [max_num_batched_tokens]
  int32_t* positions = nullptr;       // [max_num_batched_tokens]
  int32_t* slot_mapping = nullptr;    // [max_num_batched_tokens]
  int32_t* query_start = nullptr;     // [max_num_seqs + 1]
  int32_t* seq_lens = nullptr;        // [max_num_seqs]
  int32_t* state_slot_in = nullptr;   // [max_num_seqs]
  int32_t* state_slot_out = nullptr;  // [max_num_seqs]
  int32_t* logit_rows = nullptr;      // [max_num_logit_rows]
  SamplingRow* sampling = nullptr;    // [max_num_logit_rows]
};

// What it learns afterwards.
struct StepResults {
  int32_t* tokens = nullptr;         // [max_num_logit_rows]
  float* logprobs = nullptr;         // [max_num_logit_rows]
  int32_t* top_ids = nullptr;        // [max_num_logit_rows, max_top_logprobs]
  float* top_logprobs = nullptr;     // [max_num_logit_rows, max_top_logprobs]
  int32_t* ranks = nullptr;          // [max_num_logit_rows]
  int32_t* expert_tokens = nullptr;  // [MoE layers, n_routed_experts], or null
};

class ModelRunner {
 public:
  // `model` and `backend` must outlive the runner. Errors: no memory, with the bytes asked for; a shape that the
  // backend does not take.
  static Result<std::unique_ptr<ModelRunner>> create(const Model& model, Backend& backend, const RunnerLimits& limits);

  ~ModelRunner();
  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;

  // What create() would allocate; nothing is, and the weights need not be on the backend. Error: a shape that it does
  // not take.
  static Result<MemoryPlan> plan(const Model& model, Backend& backend, const RunnerLimits& limits);

  // Copies blocks and slots, in this order, before the next step.
  void move(std::span<const CacheMove> moves);

  void begin();
  void add(const SequenceStep& step);
  // The logits of token `index` of the sequence added last are wanted; `sampling` may be null if sample() is not
  // called.
  void want_logits(int index, const SamplingRow* sampling);

  // Forgets what count slot `slot` held and notes the tokens of prompt and output.
  void reset_counts(int32_t slot, std::span<const int32_t> prompt_token_ids,
                    std::span<const int32_t> output_token_ids = {});

  // Sets all biases of a slot, [vocab_size], or one of them.
  void set_biases(int32_t slot, std::span<const float> biases);
  void set_bias(int32_t slot, int32_t token_id, float bias);

  // Runs the model and waits for it. Error: what the device reports; the step then counts for nothing.
  Result<void> forward();
  // The same, then draws a token for each logits row. The results stay until the next step.
  Result<void> step(int num_top_logprobs);

  // Of the last forward() or step(): [num_logit_rows, vocab_size] in the order of want_logits(), valid until the next.
  Result<const float*> logits();
  int num_logit_rows() const { return batch_.num_logit_rows; }

  int32_t token(int row) const { return out_.tokens[row]; }
  float logprob(int row) const { return out_.logprobs[row]; }
  int32_t rank(int row) const { return out_.ranks[row]; }                                         // of a forced token
  std::span<const int32_t> top_ids(int row) const { return top_row(out_.top_ids, row); }          // [num_top_logprobs]
  std::span<const float> top_logprobs(int row) const { return top_row(out_.top_logprobs, row); }  // [num_top_logprobs]

  // [MoE layers, n_routed_experts] tokens of the last step that chose each expert; empty unless counted.
  std::span<const int32_t> expert_tokens() const { return {out_.expert_tokens, num_expert_tokens_}; }

  const Batch& batch() const { return batch_; }

 private:
  ModelRunner(const Model& model, Backend& backend, const RunnerLimits& limits)
      : model_(model), backend_(backend), limits_(limits) {}

  void set_blocks(int seq, std::span<const int32_t> blocks);
  void send();
  void compute();
  Result<void> receive();

  template <typename T>
  std::span<const T> top_row(const T* top, int row) const {
    return {top + static_cast<size_t>(row) * static_cast<size_t>(num_top_), static_cast<size_t>(num_top_)};
  }

  const Model& model_;
  Backend& backend_;
  const RunnerLimits limits_;

  KvCache kv_;
  SsmStateCache states_;
  KvCache host_kv_;
  SsmStateCache host_states_;
  std::vector<LayerCache> caches_;  // [num_caches] views of the two
  Buffer workspace_;
  SharedBuffer input_memory_, result_memory_, table_memory_;
  Buffer device_memory_;  // logits, counts and biases

  StepInputs in_, device_in_;
  StepResults out_, device_out_;
  int32_t* block_table_ = nullptr;  // [max_num_seqs, max_blocks_per_seq] as the device has it
  float* logits_ = nullptr;         // [max_num_logit_rows, vocab_size] on the device
  TokenCount* counts_ = nullptr;    // [num_count_slots, vocab_size] on the device
  float* biases_ = nullptr;         // [num_bias_slots, vocab_size] on the device
  std::vector<float> host_logits_;
  size_t num_expert_tokens_ = 0;

  Batch batch_;
  int num_top_ = 0;
};

}  // namespace proa
