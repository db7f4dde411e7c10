// A backend that passes everything on to another one, for those that change or watch a few ops.
#pragma once

#include "ops/backend.h"

namespace proa {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::shared_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string_view name() const override { return inner_->name(); }
  std::string_view description() const override { return inner_->description(); }
  DeviceMemory memory() override { return inner_->memory(); }
  Result<Buffer> allocate(size_t bytes) override { return inner_->allocate(bytes); }
  Result<SharedBuffer> allocate_shared(size_t bytes) override { return inner_->allocate_shared(bytes); }
  bool shares_memory() const override { return inner_->shares_memory(); }
  void upload(void* device, const void* host, size_t bytes) override { inner_->upload(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override { inner_->download(host, device, bytes); }
  Result<PlacedWeight> place(const Tensor& tensor) override { return inner_->place(tensor); }
  Result<PlacedWeight> place_dummy(const Tensor& tensor, const DummyFill& fill, uint64_t begin) override {
    return inner_->place_dummy(tensor, fill, begin);
  }
  std::string_view on_reference() const override { return inner_->on_reference(); }
  Result<size_t> scratch_bytes(FunctionRef<void()> steps) override {
    counting_ = true;
    auto bytes = inner_->scratch_bytes(steps);
    counting_ = false;
    return bytes;
  }
  Result<void> reserve(FunctionRef<void()> steps) override {
    counting_ = true;
    auto done = inner_->reserve(steps);
    counting_ = false;
    return done;
  }

  void embed(const Embed& op) override { inner_->embed(op); }
  void norm_linear(const NormLinear& op) override { inner_->norm_linear(op); }
  void linear_residual(const LinearResidual& op) override { inner_->linear_residual(op); }
  void mlp(const Mlp& op) override { inner_->mlp(op); }
  void route(const Route& op) override { inner_->route(op); }
  void moe(const Moe& op) override { inner_->moe(op); }
  void conv_ssm_step(const ConvSsmStep& op) override { inner_->conv_ssm_step(op); }
  void ssd_chunk(const SsdChunk& op) override { inner_->ssd_chunk(op); }
  void gated_norm_linear_residual(const GatedNormLinearResidual& op) override {
    inner_->gated_norm_linear_residual(op);
  }
  void rope(const Rope& op) override { inner_->rope(op); }
  void attend(const Attend& op) override { inner_->attend(op); }
  void lm_head(const LmHead& op) override { inner_->lm_head(op); }
  void sample(const Sample& op) override { inner_->sample(op); }
  void all_reduce(float* x, int64_t count) override { inner_->all_reduce(x, count); }
  double probe(Probe what, double seconds) override { return inner_->probe(what, seconds); }
  bool same_bits_in_any_batch() const override { return inner_->same_bits_in_any_batch(); }
  double product_rounding(Format weights, int num_tokens) const override {
    return inner_->product_rounding(weights, num_tokens);
  }
  double attend_rounding(Format cache, int num_tokens) const override {
    return inner_->attend_rounding(cache, num_tokens);
  }
  void run(uint64_t key, FunctionRef<void()> step) override { inner_->run(key, step); }
  void forget_records() override { inner_->forget_records(); }
  Result<void> synchronize() override { return inner_->synchronize(); }

 protected:
  Backend& inner() { return *inner_; }
  // Inside scratch_bytes() and reserve(): ops come with shapes alone.
  bool counting() const { return counting_; }

 private:
  std::shared_ptr<Backend> inner_;
  bool counting_ = false;
};

}  // namespace proa
