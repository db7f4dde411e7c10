// For tests: a backend with memory of its own, asked for ops on host memory. Every array an op names is copied to the
// device, as misaligned as it is on the host, into an allocation of its size; what the op writes comes back. So one
// table of cases serves every backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "backends/backends.h"
#include "ops/backend.h"

namespace proa::testing {

class StagedBackend final : public Backend {
 public:
  explicit StagedBackend(std::unique_ptr<Backend> device) : device_(std::move(device)) {}

  std::string_view name() const override { return device_->name(); }
  std::string_view description() const override { return device_->description(); }
  std::string_view on_reference() const override { return device_->on_reference(); }
  bool same_bits_in_any_batch() const override { return device_->same_bits_in_any_batch(); }
  double product_rounding(Format weights, int num_tokens) const override {
    return device_->product_rounding(weights, num_tokens);
  }
  bool quantises(Format weights, int num_tokens) const override { return device_->quantises(weights, num_tokens); }
  double attend_rounding(Format cache, int num_tokens) const override {
    return device_->attend_rounding(cache, num_tokens);
  }
  Result<Buffer> allocate(size_t bytes) override { return device_->allocate(bytes); }

  void embed(const Embed& host) override {
    Embed op = host;
    in(op.token_ids, op.num_tokens);
    in(op.table);
    out(op.x, op.num_tokens * op.table.cols);
    device_->embed(op);
    finish();
  }
  void norm_linear(const NormLinear& host) override {
    NormLinear op = host;
    const int64_t tokens = op.num_tokens;
    std::vector<LinearOutput> outputs(op.outputs.begin(), op.outputs.end());
    in(op.x, tokens * op.hidden_size);
    in(op.norm, op.hidden_size);
    for (LinearOutput& output : outputs) {
      in(output.weight);
      out(output.y, tokens * output.weight.rows);
    }
    op.outputs = outputs;
    device_->norm_linear(op);
    finish();
  }
  void linear_residual(const LinearResidual& host) override {
    LinearResidual op = host;
    in(op.x, op.num_tokens * op.weight.cols);
    in(op.weight);
    out(op.residual, op.num_tokens * op.weight.rows);
    device_->linear_residual(op);
    finish();
  }
  void mlp(const Mlp& host) override {
    Mlp op = host;
    out(op.x, int64_t{op.num_tokens} * op.hidden_size);
    in(op.norm, op.hidden_size);
    for (Weight* weight : {&op.gate, &op.up, &op.down}) in(*weight);
    device_->mlp(op);
    finish();
  }
  void route(const Route& host) override {
    Route op = host;
    const int64_t choices = int64_t{op.num_tokens} * op.num_experts_per_tok;
    in(op.x, int64_t{op.num_tokens} * op.hidden_size);
    in(op.norm, op.hidden_size);
    in(op.gate);
    in(op.bias, op.n_routed_experts);
    out(op.topk_ids, choices);
    out(op.topk_weights, choices);
    out(op.expert_tokens, op.n_routed_experts);
    device_->route(op);
    finish();
  }
  void moe(const Moe& host) override {
    Moe op = host;
    const int64_t choices = int64_t{op.num_tokens} * op.num_experts_per_tok;
    out(op.x, int64_t{op.num_tokens} * op.hidden_size);
    in(op.norm, op.hidden_size);
    in(op.topk_ids, choices);
    in(op.topk_weights, choices);
    for (ExpertWeights* experts : {&op.up, &op.down}) in(*experts, op.n_routed_experts);
    for (Weight* weight : {&op.latent_in, &op.latent_out, &op.shared_up, &op.shared_down}) in(*weight);
    device_->moe(op);
    finish();
  }
  void conv_ssm_step(const ConvSsmStep& host) override {
    ConvSsmStep op = host;
    const int64_t tokens = int64_t{op.num_seqs} * op.tokens_per_seq;
    in(op.weights, op.shape);
    in(op.projected, tokens * op.shape.projected());
    out(op.cache, op.shape);
    in(op.state_slot_in, op.num_seqs);
    in(op.state_slot_out, tokens);
    out(op.y, tokens * op.shape.inner());
    device_->conv_ssm_step(op);
    finish();
  }
  void ssd_chunk(const SsdChunk& host) override {
    SsdChunk op = host;
    in(op.weights, op.shape);
    in(op.query_start, op.num_seqs + 1);
    in(op.projected, int64_t{op.num_tokens} * op.shape.projected());
    out(op.cache, op.shape);
    in(op.state_slot_in, op.num_seqs);
    in(op.state_slot_out, op.num_seqs);
    out(op.y, int64_t{op.num_tokens} * op.shape.inner());
    device_->ssd_chunk(op);
    finish();
  }
  void gated_norm_linear_residual(const GatedNormLinearResidual& host) override {
    GatedNormLinearResidual op = host;
    in(op.y, int64_t{op.num_tokens} * op.inner);
    in(op.z, op.num_tokens == 0 ? 0 : (op.num_tokens - 1) * op.z_stride + op.inner);
    in(op.norm, op.inner);
    in(op.weight);
    out(op.residual, op.num_tokens * op.weight.rows);
    device_->gated_norm_linear_residual(op);
    finish();
  }
  void rope(const Rope& host) override {
    Rope op = host;
    in(op.positions, op.num_tokens);
    in(op.inv_freq, op.rotary_dim / 2);
    out(op.q, int64_t{op.num_tokens} * op.num_heads * op.head_dim);
    out(op.k, int64_t{op.num_tokens} * op.num_kv_heads * op.head_dim);
    device_->rope(op);
    finish();
  }
  void attend(const Attend& host) override {
    Attend op = host;
    Batch batch = *host.batch;
    op.batch = &batch;
    const int64_t tokens = batch.num_tokens;
    in(batch.positions, tokens);
    in(batch.query_start, batch.num_seqs + 1);
    in(batch.seq_lens, batch.num_seqs);
    in(batch.block_table, int64_t{batch.num_seqs} * batch.block_table_stride);
    in(batch.slot_mapping, tokens);
    in(op.q, tokens * op.num_heads * op.head_dim);
    in(op.k, tokens * op.num_kv_heads * op.head_dim);
    in(op.v, tokens * op.num_kv_heads * op.head_dim);
    const int64_t cached = int64_t{op.cache.num_blocks} * op.num_kv_heads * op.cache.block_size *
                           static_cast<int64_t>(row_bytes(op.cache.format, op.head_dim));
    out(op.cache.k, cached);
    out(op.cache.v, cached);
    out(op.out, tokens * op.num_heads * op.head_dim);
    device_->attend(op);
    finish();
  }
  void lm_head(const LmHead& host) override {
    LmHead op = host;
    const int32_t most = op.num_rows == 0 ? -1 : *std::max_element(op.rows, op.rows + op.num_rows);
    in(op.rows, op.num_rows);
    in(op.x, (most + int64_t{1}) * op.hidden_size);
    in(op.norm, op.hidden_size);
    in(op.weight);
    out(op.logits, op.num_rows * op.weight.rows);
    device_->lm_head(op);
    finish();
  }
  void sample(const Sample& host) override {
    Sample op = host;
    int32_t slots = 0, bias_slots = 0;
    for (int r = 0; r < op.num_rows; ++r) {
      slots = std::max(slots, op.rows[r].counts_slot + 1);
      bias_slots = std::max(bias_slots, op.rows[r].bias_slot + 1);
    }
    const int64_t alternatives = int64_t{op.num_rows} * op.num_top_logprobs;
    in(op.logits, int64_t{op.num_rows} * op.vocab_size);
    in(op.rows, op.num_rows);
    in(op.biases, int64_t{bias_slots} * op.vocab_size);
    out(op.counts, int64_t{slots} * op.vocab_size);
    out(op.tokens, op.num_rows);
    out(op.logprobs, op.num_rows);
    out(op.top_ids, alternatives);
    out(op.top_logprobs, alternatives);
    if (op.ranks) out(op.ranks, op.num_rows);
    device_->sample(op);
    finish();
  }

 private:
  struct Output {
    void* host;
    const std::byte* device;
    size_t bytes;
  };

  // Replaces a pointer to host memory by one to a copy of `count` values.
  template <typename T>
  std::byte* move(const T*& pointer, int64_t count) {
    if (pointer == nullptr) return nullptr;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    const size_t offset = reinterpret_cast<uintptr_t>(pointer) % 64;
    auto buffer = device_->allocate((offset + bytes + 15) / 16 * 16);  // kernels read whole 16 bytes
    EXPECT_TRUE(buffer.ok()) << buffer.error().message();
    std::byte* copy = buffer->data() + offset;
    if (bytes > 0) device_->upload(copy, pointer, bytes);
    buffers_.push_back(*buffer);
    pointer = reinterpret_cast<const T*>(copy);
    return copy;
  }
  template <typename T>
  void in(const T*& pointer, int64_t count) {
    move(pointer, count);
  }
  template <typename T>
  void out(T*& pointer, int64_t count) {
    const T* moved = pointer;
    const std::byte* copy = move(moved, count);
    if (copy) outputs_.push_back({pointer, copy, static_cast<size_t>(count) * sizeof(T)});
    pointer = const_cast<T*>(moved);
  }
  void in(Weight& weight) {
    if (!weight) return;
    weight.residency = Residency::device;
    in(weight.data, span(weight.rows, weight.row_stride, row_bytes(weight.format, weight.cols)));
    if (weight.scales) in(weight.scales, weight.rows, weight.cols);
  }
  void in(Scales& scales, int64_t rows, int64_t cols) {
    in(scales.data, span(rows, scales.row_stride, row_bytes(scales.format, (cols + scales.group - 1) / scales.group)));
  }
  void in(ExpertWeights& experts, int count) {
    std::vector<Weight> moved;
    for (int e = 0; e < count; ++e) in(moved.emplace_back(experts.expert(e)));
    experts = tables_.emplace_back(std::make_unique<ExpertTables>())->assign(moved);
    in(experts.data, count);
    in(experts.scales_data, count);
    in(experts.scale, count);
  }
  void in(Mamba2Weights& weights, const Mamba2Shape& shape) {
    in(weights.conv_weight, int64_t{shape.conv_dim()} * shape.conv_kernel);
    in(weights.conv_bias, shape.conv_dim());
    for (const float** vector : {&weights.dt_bias, &weights.a, &weights.d}) in(*vector, shape.num_heads);
  }
  void out(StateCacheView& cache, const Mamba2Shape& shape) {
    out(cache.conv, int64_t{cache.num_slots} * (shape.conv_kernel - 1) * shape.conv_dim());
    out(cache.ssm, int64_t{cache.num_slots} * shape.inner() * shape.ssm_state_size);
  }
  static int64_t span(int64_t rows, size_t stride, size_t last) {
    return rows == 0 ? 0 : (rows - 1) * static_cast<int64_t>(stride) + static_cast<int64_t>(last);
  }

  void finish() {
    for (const Output& output : outputs_) device_->download(output.host, output.device, output.bytes);
    const Result<void> done = device_->synchronize();
    EXPECT_TRUE(done.ok()) << done.error().message();
    outputs_.clear();
    buffers_.clear();
    tables_.clear();
  }

  std::unique_ptr<Backend> device_;
  std::vector<Buffer> buffers_;
  std::vector<Output> outputs_;
  std::vector<std::unique_ptr<ExpertTables>> tables_;
};

// Every backend of this machine, as the tables of cases use them.
inline std::vector<std::unique_ptr<Backend>> op_backends() {
  std::vector<std::unique_ptr<Backend>> backends = all_backends();
  for (auto& backend : backends) {
    if (!backend->shares_memory()) backend = std::make_unique<StagedBackend>(std::move(backend));
  }
  return backends;
}

}  // namespace proa::testing
