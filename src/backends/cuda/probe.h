#pragma once

#include "backends/cuda/launch.h"

namespace proa::cuda {

// Whether this program holds machine code for the current device.
bool has_code();

// Bytes a second that all SMs read from memory, the best of several loops over 2 GiB; 0 if that much is not free.
double read_probe(double seconds, const Launch& launch);

}  // namespace proa::cuda
