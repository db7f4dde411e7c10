#include "backends/backends.h"

#include <algorithm>

#include "backends/cpu/cpu_backend.h"

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
  Result<Buffer> allocate(size_t bytes) override { return allocate_host(bytes); }
};

Result<std::unique_ptr<Backend>> make_cpu(const BackendOptions& options) {
  const auto targets = CpuBackend::targets();
  const auto cpu = [&](int64_t target) -> std::unique_ptr<Backend> {
    return std::make_unique<CpuBackend>(target, options.num_threads);
  };
  if (options.cpu_target.empty()) return cpu(targets.front());
  std::string names;
  for (int64_t target : targets) {
    const std::string name = hwy::TargetName(target);
    if (name == options.cpu_target) return cpu(target);
    names += (names.empty() ? "" : ", ") + name;
  }
  return Error{.doing = "choose an instruction set",
               .where = "--cpu-target",
               .expected = "one this machine has: " + names,
               .actual = options.cpu_target};
}

}  // namespace

Result<std::unique_ptr<Backend>> make_backend(std::string_view device, const BackendOptions& options) {
  if (device == "auto" || device == "cpu") return make_cpu(options);
  if (device == "reference") return std::unique_ptr<Backend>(std::make_unique<ReferenceBackend>());
  return Error{.doing = "choose a device",
               .where = "--device",
               .expected = "auto, cpu or reference",
               .actual = std::string(device)};
}

std::vector<std::unique_ptr<Backend>> all_backends() {
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(std::make_unique<ReferenceBackend>());
  for (int64_t target : CpuBackend::targets()) backends.push_back(std::make_unique<CpuBackend>(target, 2));
  return backends;
}

}  // namespace proa
