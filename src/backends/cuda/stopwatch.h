// How long kernels take, by the device's own clock.
#pragma once

#include "backends/cuda/launch.h"

namespace proa::cuda {

class Stopwatch {
 public:
  explicit Stopwatch(const Launch& launch) : launch_(launch) {
    launch_.keep(cudaEventCreate(&before_));
    launch_.keep(cudaEventCreate(&after_));
  }
  ~Stopwatch() {
    cudaEventDestroy(before_);
    cudaEventDestroy(after_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  // Seconds of what `kernels` puts on the stream of the launch; 0 after an error, which the launch keeps.
  template <class Kernels>
  double seconds(Kernels kernels) const {
    launch_.keep(cudaEventRecord(before_, launch_.stream()));
    kernels();
    launch_.keep(cudaGetLastError());
    launch_.keep(cudaEventRecord(after_, launch_.stream()));
    launch_.keep(cudaEventSynchronize(after_));
    float milliseconds = 0;
    launch_.keep(cudaEventElapsedTime(&milliseconds, before_, after_));
    return launch_.error() == cudaSuccess ? milliseconds * 1e-3 : 0;
  }

 private:
  const Launch& launch_;
  cudaEvent_t before_ = nullptr, after_ = nullptr;
};

}  // namespace proa::cuda
