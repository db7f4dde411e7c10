// The loops behind CpuBackend::probe, one per instruction set and way to read. What each counts as its work is what its
// machine code does: tests/scripts/probe_asm_test.py holds the disassembly against this table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/probe.h"

namespace proa {

struct ProbeLoop {
  const char* name;
  Probe what;
  double work;  // per iteration: bytes, or operations
  // Either reads bytes [bytes] of memory, a multiple of 4096 aligned to 64; or computes for so many iterations. The
  // result depends on everything read or computed.
  uint64_t (*read)(const std::byte* memory, size_t bytes);
  uint64_t (*compute)(int64_t iterations);
};

// Those that this machine runs, of every instruction set it has and whatever a backend was told to use.
std::span<const ProbeLoop> probe_loops();

}  // namespace proa
