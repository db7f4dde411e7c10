#include "backends/cpu/cpu_backend.h"

namespace proa {

void CpuBackend::attend(const Attend& op) { attend_reference(op); }

}  // namespace proa
