#include "backends/cpu/cpu_backend.h"

namespace proa {

void CpuBackend::sample(const Sample& op) { sample_reference(op); }

}  // namespace proa
