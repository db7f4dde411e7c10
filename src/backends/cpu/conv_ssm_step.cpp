#include "backends/cpu/cpu_backend.h"

namespace proa {

void CpuBackend::conv_ssm_step(const ConvSsmStep& op) { conv_ssm_step_reference(op); }

}  // namespace proa
