// What a device can do at most: limits measured in the same run as the kernels that are judged by them.
#pragma once

namespace proa {

// read: bytes a second that all of the device's threads read from memory, far beyond its caches.
// int8, bf16, f32: operations a second of products of these types, a multiplication and an addition being two; sums in
// int32 or F32.
enum class Probe { read, int8, bf16, f32 };

constexpr Probe kProbes[] = {Probe::read, Probe::int8, Probe::bf16, Probe::f32};

constexpr const char* to_string(Probe probe) {
  constexpr const char* kNames[] = {"read", "int8", "bf16", "f32"};
  return kNames[static_cast<int>(probe)];
}

}  // namespace proa
