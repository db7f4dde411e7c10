// How long each kernel of a process took, printed at its end: configure with -DCMAKE_CUDA_FLAGS=-DPROA_KERNEL_TRACE and
// -DCMAKE_CXX_FLAGS=-DPROA_KERNEL_TRACE, and set the environment's PROA_KERNEL_TRACE. Each launch is waited for, so a
// small kernel shows some 3 us more than it takes.
#pragma once

#include <cuda_runtime.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace proa::cuda {

class KernelTrace {
 public:
  static KernelTrace& get() {
    static KernelTrace trace;
    return trace;
  }
  ~KernelTrace() {
    if (times_.empty()) return;
    std::vector<std::pair<double, std::string>> lines;
    double sum = 0;
    for (const auto& [name, all] : times_) {
      char text[400];
      std::snprintf(text, sizeof text, "%10.3f ms %7d times, %9.2f us each, %9.2f most  %.200s", all.sum, all.count,
                    1e3 * all.sum / all.count, 1e3 * all.most, name.c_str());
      lines.emplace_back(-all.sum, text);
      sum += all.sum;
    }
    std::sort(lines.begin(), lines.end());
    for (const auto& [time, text] : lines) std::fprintf(stderr, "%s\n", text.c_str());
    std::fprintf(stderr, "%10.3f ms all kernels\n", sum);
  }

  template <typename Kernel, typename Launch>
  void time(Kernel kernel, dim3 blocks, cudaStream_t stream, Launch&& launch) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(stream, &capturing);
    static const bool wanted = std::getenv("PROA_KERNEL_TRACE") != nullptr;
    if (!wanted || capturing != cudaStreamCaptureStatusNone) return launch();
    if (!before_) {
      cudaEventCreate(&before_);
      cudaEventCreate(&after_);
    }
    cudaEventRecord(before_, stream);
    launch();
    cudaEventRecord(after_, stream);
    cudaEventSynchronize(after_);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, before_, after_);
    Times& all = times_[name_of(reinterpret_cast<const void*>(kernel)) + " x " + std::to_string(blocks.x) + "," +
                        std::to_string(blocks.y) + "," + std::to_string(blocks.z)];
    all.sum += milliseconds;
    all.most = std::max<double>(all.most, milliseconds);
    ++all.count;
  }

 private:
  struct Times {
    double sum = 0, most = 0;
    int count = 0;
  };
  static std::string name_of(const void* kernel) {
    const char* mangled = nullptr;
    if (cudaFuncGetName(&mangled, kernel) != cudaSuccess || !mangled) return "?";
    int status = 0;
    char* text = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
    std::string name = status == 0 && text ? text : mangled;
    std::free(text);
    for (const char* noise : {"proa::cuda::", "proa::", "(anonymous namespace)::", "void "}) {
      for (size_t at; (at = name.find(noise)) != std::string::npos;) name.erase(at, std::string(noise).size());
    }
    const size_t end = name.find(">(");
    name = end != std::string::npos ? name.substr(0, end + 1) : name.substr(0, name.find('('));
    return name;
  }

  cudaEvent_t before_ = nullptr, after_ = nullptr;
  std::map<std::string, Times> times_;
};

}  // namespace proa::cuda
