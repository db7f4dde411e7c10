// The machine that a number belongs to.
#pragma once

#include "bench/report.h"
#include "ops/backend.h"

namespace proa {

// A report without rows: device, CPU, clock, memory, cache, date, version and commit of this build. What cannot be read
// stays empty. `command` is the command line as typed.
BenchReport describe_machine(const Backend& backend, int threads, std::string command);

// Resident set of this process at its largest so far, bytes.
std::optional<int64_t> peak_memory_bytes();

}  // namespace proa
