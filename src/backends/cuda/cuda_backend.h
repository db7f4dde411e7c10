// The CUDA backend: device memory, one stream, and the kernels of this folder. Activations are F32 and so are sums;
// weights are used as the file has them. What a step asks for is recorded as a graph once it has come twice.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backends/cuda/gemm.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/matmul.h"
#include "backends/cuda/step.h"
#include "core/arena.h"
#include "ops/backend.h"

namespace proa {

// What many activations may become before they are multiplied: nothing that BF16 would not hold exactly enough
// (gemm.h); BF16 beside BF16 weights; that and E4M3 beside F8_E4M3.
enum class Activations : uint8_t { exact, bfloat16, fp8 };

class CudaBackend final : public Backend {
 public:
  // Errors, each with what was found and what would work: no driver, one that is too old, no such device, a device this
  // program holds no code for, or one that does not round activations so.
  static Result<std::unique_ptr<CudaBackend>> create(int ordinal, Activations activations = Activations::exact);
  // Devices that create() might open; 0 also where there is no driver.
  static int num_devices();
  ~CudaBackend() override;

  std::string_view name() const override { return name_; }
  std::string_view description() const override { return description_; }
  std::string_view on_reference() const override { return ""; }
  bool shares_memory() const override { return false; }
  bool same_bits_in_any_batch() const override { return false; }
  double product_rounding(Format weights, int num_tokens) const override;
  bool quantises(Format weights, int num_tokens) const override;
  double attend_rounding(Format cache, int num_tokens) const override;

  DeviceMemory memory() override;
  Result<size_t> scratch_bytes(FunctionRef<void()> steps) override;
  Result<void> reserve(FunctionRef<void()> steps) override;
  Result<Buffer> allocate(size_t bytes) override;
  Result<SharedBuffer> allocate_shared(size_t bytes) override;
  Result<PlacedWeight> place(const Tensor& tensor) override;
  Result<PlacedWeight> place_dummy(const Tensor& tensor, const DummyFill& fill, uint64_t begin) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  Result<Buffer> allocate_pinned(size_t bytes) override;
  void run(uint64_t key, FunctionRef<void()> step) override;
  void forget_records() override;
  Result<void> synchronize() override;
  double probe(Probe what, double seconds) override;

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

  int64_t num_launches() const { return launch_.count(); }  // kernels asked for so far; a replay counts as none

 private:
  CudaBackend(int ordinal, const cudaDeviceProp& properties, cudaStream_t stream);

  // The weight with memory of its own, not yet filled.
  Result<PlacedWeight> unfilled(const Tensor& tensor);
  // Memory of one op, its content undefined. Grows where nobody reserved enough; null after an error, and while scratch
  // is only counted.
  std::byte* scratch(size_t bytes);
  // Counters that are 0, and are 0 again when an op is done. Null as above.
  uint32_t* tickets(size_t count);
  float* route_logits(size_t count);  // the same
  cuda::Residual residual(int rows);  // zeros that are zeros again
  // `memory`, at least `bytes` of it; where it grows, `spare` more. Only noted in `counted` while counting.
  std::byte* at_least(Buffer& memory, size_t& counted, size_t bytes, size_t spare);
  void make_current() const;
  bool fail(Error error);  // false; kept for synchronize()
  std::optional<cuda::Matrix> matrix(const Weight& weight);
  std::optional<cuda::Experts> experts(const ExpertWeights& weights);

  struct Product {
    Weight weight;
    float* y;
    cuda::Output output = cuda::Output::store;
    bool relu2 = false;
    const float* gate = nullptr;
  };
  // Products of one input, for any number of rows. `input` says all but slots, order and where operands go; x, z, y and
  // gate move on by rows. `exact`: also where there are many.
  void products(const cuda::Prepare& input, std::span<const Product> products, bool exact = false);
  void products_of_one(const cuda::Prepare& input, std::span<const Product> products);
  // batch.cpp. More than kManyTokens as well, where the device or a format has nothing better.
  void products_of_few(const cuda::Prepare& input, std::span<const Product> products);
  void moe_of_few(const Moe& op);
  // prefill.cpp. False: not for so few tokens, or not for these formats.
  bool takes_many(int tokens, std::initializer_list<Weight> weights) const;
  bool products_of_many(const cuda::Prepare& input, std::span<const Product> products);
  cuda::Vectors same_kind(const Weight& weight) const;  // halves: the usual way
  void multiply_many(const Product& product, int slots, const cuda::Halves& x, int64_t offset,
                     const cuda::HalvesOut* halves = nullptr);
  bool moe_of_many(const Moe& op);
  // Ops of one token gather as stages, and become a kernel when anything else is asked for.
  void add(cuda::Stage stage);
  void route_alone(const Route& op);
  void run_stages();
  const cuda::Launch& launch() {
    run_stages();
    return launch_;
  }
  void moe_of_one(const Moe& op);

  int ordinal_;
  bool integrated_;  // memory is the host's
  bool reads_host_memory_;
  Activations activations_ = Activations::exact;
  cudaStream_t stream_;
  std::string name_, description_;
  cuda::Launch launch_;

  struct Slab {
    std::shared_ptr<std::byte> memory;
    size_t used = 0, bytes = 0;
  } slab_;  // small weights share allocations
  struct Staging {
    std::byte* memory = nullptr;  // pinned
    cudaEvent_t done = nullptr;
  } staging_[2];
  int next_staging_ = 0;

  Buffer scratch_, tickets_, route_logits_, step_sync_;
  Buffer residual_sums_;             // cuda::Residual
  std::vector<cuda::Stage> stages_;  // asked for and not yet launched
  std::optional<Route> route_;       // likewise: waits for the product that it is to be a part of
  Buffer stage_memory_;              // of the kernel launched last; of a record:
  struct Record {
    cudaGraphExec_t graph = nullptr;
    Buffer stage_memory;
  };
  Buffer record_memory_;
  std::vector<cuda::Stage> recorded_;
  bool capturing_ = false, counting_ = false;
  struct {
    size_t scratch = 0, tickets = 0, route_logits = 0, residual_sums = 0;  // bytes
  } counted_;
  std::optional<Error> error_;
  std::map<uint64_t, Record> records_;
  std::set<uint64_t> seen_;
};

}  // namespace proa
