// The list of backends. Only apps/ and tests look here; everyone else holds the interface of ops/backend.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "ops/backend.h"

namespace proa {

struct BackendOptions {
  int num_threads = 0;  // CPU threads; 0: one per core
  // "", or an instruction set to force, named as Highway does: "AVX3", "AVX2", "NEON", "SCALAR". Three are faster and
  // round what they multiply, to 8 bits or BF16: "AVX3_DL" (VNNI), "AVX3_BF16" and "AVX3_AMX", which a machine does not
  // have where the system refuses it. So they are taken only when asked for.
  std::string cpu_target;
  // "auto": as exact as the device multiplies. Faster on a CUDA device of sm_90a where 128 tokens or more come at once:
  // "bfloat16" rounds what BF16 weights multiply to BF16; "fp8" does so too, and to E4M3 what FP8 weights multiply, by
  // the checkpoint's input_scale or a scale for each token.
  std::string activation_dtype = "auto";
};

// `device` is "auto" (the first CUDA device that works, else the CPU), "cpu", "cuda:N", or "reference" (every op on the
// plain reference). Error: names --device or another option, what was found and what would work.
Result<std::unique_ptr<Backend>> make_backend(std::string_view device, const BackendOptions& options = {});

// A GPU architecture that this program holds code for; none where it was built without CUDA.
struct CudaArchitecture {
  std::string name;     // "sm_90a"
  std::string devices;  // "H100, H200"; empty: not in the table
  bool has_run;         // the tests passed on such a device; otherwise it is compiled and was never run
};
std::vector<CudaArchitecture> cuda_architectures();

// Every backend this machine can run, for tests: the reference, the CPU with each instruction set it has, the first
// CUDA device, and the same with activations in FP8.
std::vector<std::unique_ptr<Backend>> all_backends();

}  // namespace proa
