#include "backends/cpu/cpu_backend.h"

namespace proa {

void CpuBackend::gated_norm_linear_residual(const GatedNormLinearResidual& op) { gated_norm_linear_residual_reference(op); }

}  // namespace proa
