// How kernels of a step are launched: on one stream, with dependent launch where the device has it; errors are kept for
// synchronize().
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifdef PROA_KERNEL_TRACE
#include "backends/cuda/kernel_trace.h"
#endif

namespace proa::cuda {

class Launch {
 public:
  Launch(cudaStream_t stream, int num_sms, int shared_limit, bool dependent)
      : stream_(stream), num_sms_(num_sms), shared_limit_(shared_limit), dependent_(dependent) {}

  cudaStream_t stream() const { return stream_; }
  int num_sms() const { return num_sms_; }
  int shared_limit() const { return shared_limit_; }  // bytes of shared memory a block may ask for
  int64_t count() const { return count_; }            // kernels launched so far
  cudaError_t error() const { return error_; }        // the first one since clear()
  void clear() { error_ = cudaSuccess; }
  void set_dry(bool dry) { dry_ = dry; }  // kernels are asked for and not launched
  void keep(cudaError_t error) const {
    if (error_ == cudaSuccess) error_ = error;
  }

  // Every kernel calls wait_for_predecessor() before it touches what others write, see device.cuh.
  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes,
                  const Arguments&... arguments) const {
    if (dry_) return;
    // An SM divides its memory between shared memory and first-level cache. Kernels that divide it differently cannot
    // run side by side, and a successor could not begin early.
    keep(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
    if (shared_bytes > 48 * 1024) {
      keep(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = dependent_ ? 1 : 0;
    const auto run = [&] { keep(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...)); };
#ifdef PROA_KERNEL_TRACE
    KernelTrace::get().time(kernel, blocks, stream_, run);
#else
    run();
#endif
    ++count_;
  }

  // A kernel whose blocks wait for each other: all of them run at once, after all that was launched before.
  template <typename... Parameters, typename... Arguments>
  void together(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes,
                const Arguments&... arguments) const {
    if (dry_) return;
    keep(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = 1;
    keep(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
    ++count_;
  }

 private:
  cudaStream_t stream_;
  int num_sms_;
  int shared_limit_;
  bool dependent_;
  bool dry_ = false;
  mutable int64_t count_ = 0;
  mutable cudaError_t error_ = cudaSuccess;
};

}  // namespace proa::cuda
