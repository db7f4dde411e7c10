// The CPU backend: one kernel file per op beside this header, each compiled for every instruction set of Highway that
// we ship and chosen when the backend is made. Activations are F32, sums are F32.
//
// What a kernel file looks like:
//   #undef HWY_TARGET_INCLUDE
//   #define HWY_TARGET_INCLUDE "backends/cpu/rope.cpp"
//   #include "hwy/foreach_target.h"
//   #include "hwy/highway.h"
//   HWY_BEFORE_NAMESPACE();
//   namespace proa::HWY_NAMESPACE { void rotate(...) { ... } }
//   HWY_AFTER_NAMESPACE();
//   #if HWY_ONCE
//   namespace proa {
//   HWY_EXPORT(rotate);
//   void CpuBackend::rope(const Rope& op) { PROA_DISPATCH(rotate, target())(...); }
//   }
//   #endif
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "hwy/targets.h"
#include "ops/backend.h"

namespace proa {

// Host memory as Backend::allocate gives it, and what there is of it.
Result<Buffer> allocate_host(size_t bytes);
DeviceMemory host_memory();

class CpuBackend : public Backend {
 public:
  // `target` is one of targets(). num_threads: 0 means one per core.
  CpuBackend(int64_t target, int num_threads);

  // AVX-512 with products of bytes (VNNI, VBMI), under the name that Highway has for it.
  static constexpr int64_t kTargetVnni = HWY_AVX3_DL;
  // That with products of BF16; Highway has no name for it.
  static constexpr int64_t kTargetBf16 = HWY_AVX3_DL >> 1;
  // That with a matrix unit for BF16 (AMX).
  static constexpr int64_t kTargetAmx = HWY_AVX3_DL >> 2;
  static const char* target_name(int64_t target) {
    return target == kTargetAmx ? "AVX3_AMX" : target == kTargetBf16 ? "AVX3_BF16" : hwy::TargetName(target);
  }
  // Instruction sets that are compiled in and that this machine runs, as HWY_AVX3 and so on; the best first.
  static std::vector<int64_t> targets();
  static int64_t default_target();  // the best that rounds nothing beside F32

  std::string_view name() const override { return "cpu"; }
  std::string_view description() const override { return description_; }
  DeviceMemory memory() override;
  Result<Buffer> allocate(size_t bytes) override { return allocate_host(bytes); }
  std::string_view on_reference() const override { return ""; }

  Result<size_t> scratch_bytes(FunctionRef<void()> steps) override;
  Result<void> reserve(FunctionRef<void()> steps) override;

  void embed(const Embed& op) override;
  void norm_linear(const NormLinear& op) override;
  void linear_residual(const LinearResidual& op) override;
  void mlp(const Mlp& op) override;
  void route(const Route& op) override;
  void moe(const Moe& op) override;
  void conv_ssm_step(const ConvSsmStep& op) override;
  void ssd_chunk(const SsdChunk& op) override;
  void gated_norm_linear_residual(const GatedNormLinearResidual& op) override;
  void rope(const Rope& op) override;
  void attend(const Attend& op) override;
  void lm_head(const LmHead& op) override;
  void sample(const Sample& op) override;

  double probe(Probe what, double seconds) override;

  // That of the kernels. What a target has beyond it, kernels with names of their own use: linear_vnni.h.
  int64_t target() const { return multiplies_bytes() ? HWY_AVX3 : target_; }
  bool multiplies_bytes() const { return target_ == kTargetVnni || multiplies_bf16(); }
  bool multiplies_bf16() const { return target_ == kTargetBf16 || multiplies_tiles(); }
  bool multiplies_tiles() const { return target_ == kTargetAmx; }
  bool same_bits_in_any_batch() const override { return !multiplies_tiles(); }
  double product_rounding(Format format, int num_tokens) const override;
  ThreadPool& threads() { return threads_; }

  // Uninitialised memory for one op, aligned to 64 bytes, valid until the next call: an op asks once, for all it needs
  // (Arena cuts it up). Null while scratch is only counted: the op then returns. Grows where nobody reserved enough.
  std::byte* scratch(size_t bytes);
  bool counting() const { return counting_; }

 private:
  int64_t target_;
  ThreadPool threads_;
  std::string description_;
  Buffer scratch_;
  bool counting_ = false;
  size_t counted_ = 0;
};

// Index of a target in the tables that HWY_EXPORT makes. Highway's own dispatch is one choice per process; tests run
// several backends side by side.
inline size_t dispatch_index(int64_t target) {
  const int64_t mask = HWY_CHOSEN_TARGET_SHIFT(target) | HWY_CHOSEN_TARGET_MASK_SCALAR;
  return hwy::Num0BitsBelowLS1Bit_Nonzero64(static_cast<uint64_t>(mask));
}

}  // namespace proa

// The function that HWY_EXPORT(function) exported, for a target.
#define PROA_DISPATCH(function, target) \
  (*HWY_DISPATCH_TABLE(function)[std::size(HWY_DISPATCH_TABLE(function)) == 1 ? 0 : proa::dispatch_index(target)])
