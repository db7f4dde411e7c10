// Memory of whole pages that belongs to no file, in huge pages where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/result.h"

namespace proa {

// Owns the pages; views into bytes() live as long as this object (moving it keeps them valid). Pages take room when
// they are first written.
class AnonymousMemory {
 public:
  AnonymousMemory() = default;
  // Zeros. `what` it is for is named when the system has no room for that many addresses.
  static Result<AnonymousMemory> allocate(size_t bytes, const std::string& what);

  AnonymousMemory(AnonymousMemory&& other) noexcept;
  AnonymousMemory& operator=(AnonymousMemory&& other) noexcept;
  ~AnonymousMemory();

  std::span<std::byte> bytes() const { return {data_, size_}; }
  // From here on a write ends the process, as it does in a mapped file.
  void make_read_only() const;

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Bytes of the machine, or of this process's memory cgroup where that allows less; 0 when the system does not say.
uint64_t total_memory();
// Bytes that this process can still take without pushing others out, after MemAvailable of /proc/meminfo and the limit
// of its memory cgroup; 0 when the system does not say. Pages of files, which both count, are free: they can be read
// again.
uint64_t available_memory();

}  // namespace proa
