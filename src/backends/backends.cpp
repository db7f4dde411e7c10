#include "backends/backends.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "backends/cpu/cpu_backend.h"
#ifdef PROA_HAS_CUDA
#include "backends/cuda/cuda_backend.h"
#endif

namespace proa {
namespace {

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string_view description() const override { return "plain loops in double precision, 1 thread"; }
  std::string_view on_reference() const override {
    return "embed, norm_linear, linear_residual, mlp, route, moe, conv_ssm_step, ssd_chunk, "
           "gated_norm_linear_residual, rope, attend, lm_head, sample";
  }
  DeviceMemory memory() override { return host_memory(); }
  Result<Buffer> allocate(size_t bytes) override { return allocate_host(bytes); }
};

Result<std::unique_ptr<Backend>> make_cpu(const BackendOptions& options) {
  const auto targets = CpuBackend::targets();
  const auto cpu = [&](int64_t target) -> std::unique_ptr<Backend> {
    return std::make_unique<CpuBackend>(target, options.num_threads);
  };
  if (options.cpu_target.empty()) return cpu(CpuBackend::default_target());
  std::string names;
  for (int64_t target : targets) {
    const std::string name = CpuBackend::target_name(target);
    if (name == options.cpu_target) return cpu(target);
    names += (names.empty() ? "" : ", ") + name;
  }
  return Error{.doing = "choose an instruction set",
               .where = "--cpu-target",
               .expected = "one this machine has: " + names,
               .actual = options.cpu_target};
}

#ifdef PROA_HAS_CUDA
int num_cuda_devices() { return CudaBackend::num_devices(); }

Result<std::unique_ptr<Backend>> make_cuda(std::string_view device, const std::string& activation_dtype) {
  int ordinal = 0;
  if (device != "cuda") {
    const std::string_view digits = device.substr(device.find(':') + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
    if (error != std::errc() || end != digits.data() + digits.size() || ordinal < 0) {
      return Error{"choose a device", "--device", "cuda:N with N from 0 on", std::string(device),
                   "cuda:0 is the first, and nvidia-smi lists them"};
    }
  }
  const Activations activations = activation_dtype == "fp8"        ? Activations::fp8
                                  : activation_dtype == "bfloat16" ? Activations::bfloat16
                                                                   : Activations::exact;
  PROA_ASSIGN(auto backend, CudaBackend::create(ordinal, activations));
  return std::unique_ptr<Backend>(std::move(backend));
}
#else
int num_cuda_devices() { return 0; }

Result<std::unique_ptr<Backend>> make_cuda(std::string_view device, const std::string& /*activation_dtype*/) {
  return Error{"choose a device", "--device", "auto, cpu or reference", std::string(device),
               "this program was built without CUDA; where nvcc is, cmake -DPROA_CUDA=ON builds it"};
}
#endif

// What a target of nvcc stands for, and whether it was ever run.
const CudaArchitecture kCudaArchitectures[] = {
    {"sm_80", "A100", false},         {"sm_86", "RTX 30, A40", false},   {"sm_87", "Jetson Orin", false},
    {"sm_89", "RTX 40, L40", false},  {"sm_90a", "H100, H200", true},    {"sm_100a", "B200", false},
    {"sm_110", "Jetson Thor", false}, {"sm_110a", "Jetson Thor", false}, {"sm_120", "RTX 50", false},
    {"sm_120a", "RTX 50", false},     {"sm_121", "DGX Spark", false},    {"sm_121a", "DGX Spark", false},
};

}  // namespace

std::vector<CudaArchitecture> cuda_architectures() {
  std::vector<CudaArchitecture> result;
#ifdef PROA_HAS_CUDA
  std::string_view rest = PROA_CUDA_ARCHITECTURES;  // "87-real, 90a-real"
  while (!rest.empty()) {
    const std::string_view target = rest.substr(0, rest.find(", "));
    rest.remove_prefix(std::min(rest.size(), target.size() + 2));
    const std::string name = "sm_" + std::string(target.substr(0, target.find('-')));
    const auto known = std::find_if(std::begin(kCudaArchitectures), std::end(kCudaArchitectures),
                                    [&](const CudaArchitecture& each) { return each.name == name; });
    result.push_back(known == std::end(kCudaArchitectures) ? CudaArchitecture{name, "", false} : *known);
  }
#endif
  return result;
}

Result<std::unique_ptr<Backend>> make_backend(std::string_view device, const BackendOptions& options) {
  const std::string& dtype = options.activation_dtype;
  const bool rounds = dtype != "auto";
  if (rounds && dtype != "bfloat16" && dtype != "fp8") {
    return Error{.doing = "choose activations",
                 .where = "--activation-dtype",
                 .expected = "auto, bfloat16 or fp8",
                 .actual = dtype};
  }
  if (device == "auto" && num_cuda_devices() > 0) {
    // A device that cannot be opened is named when it is asked for; auto takes what works.
    if (auto cuda = make_cuda("cuda:0", dtype); cuda.ok() || rounds) return cuda;
  }
  if (device == "cuda" || device.starts_with("cuda:")) return make_cuda(device, dtype);
  if (rounds && (device == "auto" || device == "cpu" || device == "reference")) {
    return Error{.doing = "choose activations",
                 .where = "--activation-dtype " + dtype,
                 .expected = "a CUDA device of sm_90a",
                 .actual = "--device " + std::string(device)};
  }
  if (device == "auto" || device == "cpu") return make_cpu(options);
  if (device == "reference") return std::unique_ptr<Backend>(std::make_unique<ReferenceBackend>());
  return Error{.doing = "choose a device",
               .where = "--device",
               .expected = "auto, cpu, cuda:N or reference",
               .actual = std::string(device)};
}

std::vector<std::unique_ptr<Backend>> all_backends() {
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(std::make_unique<ReferenceBackend>());
  for (int64_t target : CpuBackend::targets()) backends.push_back(std::make_unique<CpuBackend>(target, 2));
  if (num_cuda_devices() > 0) {
    for (const char* activations : {"auto", "fp8"}) {
      if (auto cuda = make_cuda("cuda:0", activations); cuda.ok()) backends.push_back(*std::move(cuda));
    }
  }
  return backends;
}

}  // namespace proa
