#include "backends/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backends/cpu/linear.h"
#include "backends/cpu/linear_amx.h"
#include "core/anonymous_memory.h"
#include "hwy/highway.h"

namespace proa {

std::vector<int64_t> CpuBackend::targets() {
  std::vector<int64_t> result;
  const int64_t available = hwy::SupportedTargets() & HWY_TARGETS;
#if defined(__x86_64__)
  if ((available & HWY_AVX3) && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi")) {
    const bool bf16 = __builtin_cpu_supports("avx512bf16");
    if (bf16 && matrix_unit().kernels) result.push_back(kTargetAmx);
    if (bf16) result.push_back(kTargetBf16);
    result.push_back(kTargetVnni);
  }
#endif
  for (int bit = 0; bit < 63; ++bit) {  // a lower bit is a better target
    if (available >> bit & 1) result.push_back(int64_t{1} << bit);
  }
  return result;
}

int64_t CpuBackend::default_target() {
  for (int64_t target : targets()) {
    if (target != kTargetAmx && target != kTargetBf16 && target != kTargetVnni) return target;
  }
  return targets().back();
}

CpuBackend::CpuBackend(int64_t target, int num_threads) : target_(target), threads_(num_threads) {
  const int threads = threads_.num_threads();
  description_ =
      std::string(target_name(target)) + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

Result<Buffer> allocate_host(size_t bytes) {
  constexpr size_t kAlignment = Arena::kAlignment;
  if (bytes > SIZE_MAX - kAlignment) {
    return Error{.doing = "allocate memory", .where = "cpu", .actual = std::to_string(bytes) + " bytes wanted"};
  }
  // Large zeroed blocks come straight from the system, page by page as they are touched.
  void* block = std::calloc(bytes + kAlignment, 1);
  if (block == nullptr) {
    return Error{.doing = "allocate memory",
                 .where = "cpu",
                 .expected = std::to_string(bytes) + " bytes",
                 .actual = "the system has no such block"};
  }
  const auto address = reinterpret_cast<uintptr_t>(block);
  auto* aligned = reinterpret_cast<std::byte*>((address + kAlignment - 1) / kAlignment * kAlignment);
  return Buffer{std::shared_ptr<std::byte>(aligned, [block](std::byte*) { std::free(block); }), bytes};
}

DeviceMemory host_memory() {
  return {.total = static_cast<size_t>(total_memory()), .free = static_cast<size_t>(available_memory())};
}

double CpuBackend::product_rounding(Format format, int num_tokens) const {
  // A step of a block's 255 is at most (most - least) / 255, its error a 1 / sqrt(12) of that; 32 normal values spread
  // over 4.1 deviations: 0.005. Squared ones, which are never negative, over 4 of theirs.
  const Weight weight{.rows = 1, .cols = 256, .format = format};
  Forms forms = forms_of(*this, {weight}, Tokens(1, num_tokens));
  if (format == Format::E2M1) forms.halves = multiplies_bf16();
  return forms.digits   ? 0.01
         : forms.halves ? 0x1p-8
                        : 0;  // BF16 has eight bits: 2^-9 a value at most, and rows are short
}

DeviceMemory CpuBackend::memory() {
  DeviceMemory memory = host_memory();
  memory.scratch = scratch_.bytes;
  return memory;
}

Result<size_t> CpuBackend::scratch_bytes(FunctionRef<void()> steps) {
  counted_ = 0;
  counting_ = true;
  steps();
  counting_ = false;
  return counted_;
}

Result<void> CpuBackend::reserve(FunctionRef<void()> steps) {
  PROA_ASSIGN(const size_t bytes, scratch_bytes(steps));
  if (bytes <= scratch_.bytes) return {};
  scratch_ = {};
  PROA_ASSIGN(scratch_, allocate_host(bytes));
  return {};
}

std::byte* CpuBackend::scratch(size_t bytes) {
  if (counting_) return counted_ = std::max(counted_, bytes), nullptr;
  if (bytes > scratch_.bytes) {
    scratch_ = {};
    auto grown = allocate_host(bytes + bytes / 4);
    if (!grown.ok()) std::abort();  // the plan of the engine left no room; ops cannot fail
    scratch_ = *std::move(grown);
  }
  return scratch_.data();
}

}  // namespace proa
