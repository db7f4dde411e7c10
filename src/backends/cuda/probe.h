#pragma once

#include "backends/cuda/launch.h"
#include "ops/probe.h"

namespace proa::cuda {

// Whether this program holds machine code for the current device.
bool has_code();

// Bytes a second that all SMs read from memory, the best of several loops over 2 GiB; 0 if that much is not free.
double read_probe(double seconds, const Launch& launch);

// Operations a second of all SMs on operands that stay in registers or shared memory, the best of several loops: int8
// and bf16 on the tensor cores, f32 on the cores beside them.
double arithmetic_probe(Probe what, double seconds, const Launch& launch);

}  // namespace proa::cuda
