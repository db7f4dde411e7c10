#include "backends/cpu/cpu_backend.h"

namespace proa {

void CpuBackend::ssd_chunk(const SsdChunk& op) { ssd_chunk_reference(op); }

}  // namespace proa
