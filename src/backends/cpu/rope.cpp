#include "backends/cpu/cpu_backend.h"

namespace proa {

void CpuBackend::rope(const Rope& op) { rope_reference(op); }

}  // namespace proa
