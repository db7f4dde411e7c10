#include "core/anonymous_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

namespace proa {
namespace {

// The number in a file that holds nothing else ("max" and whatever else is no number gives nothing).
bool read_number(const char* path, uint64_t& value) {
  std::ifstream file(path);
  return static_cast<bool>(file >> value);
}

// Bytes of a line such as "MemTotal:  24567 kB"; 0 if there is none.
uint64_t meminfo(const std::string& name) {
  std::ifstream info("/proc/meminfo");
  for (std::string key, rest; info >> key; std::getline(info, rest)) {
    uint64_t kib = 0;
    if (key == name && info >> kib) return kib * 1024;
  }
  return 0;
}

}  // namespace

Result<AnonymousMemory> AnonymousMemory::allocate(size_t bytes, const std::string& what) {
  AnonymousMemory memory;
  if (bytes == 0) return memory;
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return Error{"allocate memory", what, std::to_string(bytes) + " bytes", std::generic_category().message(errno), ""};
  }
#ifdef MADV_HUGEPAGE
  ::madvise(data, bytes, MADV_HUGEPAGE);  // a hint
#endif
  memory.data_ = static_cast<std::byte*>(data);
  memory.size_ = bytes;
  return memory;
}

AnonymousMemory::AnonymousMemory(AnonymousMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AnonymousMemory& AnonymousMemory::operator=(AnonymousMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

AnonymousMemory::~AnonymousMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

void AnonymousMemory::make_read_only() const {
  if (data_ != nullptr) ::mprotect(data_, size_, PROT_READ);
}

uint64_t total_memory() {
  uint64_t total = meminfo("MemTotal:"), limit = 0;
  if (read_number("/sys/fs/cgroup/memory.max", limit)) total = std::min(total, limit);
  return total;
}

uint64_t available_memory() {
  uint64_t available = meminfo("MemAvailable:");
  uint64_t limit = 0, used = 0;
  if (read_number("/sys/fs/cgroup/memory.max", limit) && read_number("/sys/fs/cgroup/memory.current", used)) {
    std::ifstream stat("/sys/fs/cgroup/memory.stat");
    uint64_t value = 0;
    for (std::string key; stat >> key >> value;) {
      if (key == "inactive_file" || key == "active_file") used -= std::min(used, value);
    }
    available = std::min(available, limit > used ? limit - used : 0);
  }
  return available;
}

}  // namespace proa
