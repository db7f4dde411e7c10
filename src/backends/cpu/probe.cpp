#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/probe_loops.h"

namespace proa {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::atomic<uint64_t> consumed;  // what loops return ends here, so that none may be left out

// Memory to read: far more than the last-level cache, at most a quarter of what the machine has left beside mapped
// files that may go. One for the process, kept: interleaved probes must not pay for page faults.
struct ReadMemory {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

size_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("MemAvailable:")) return std::strtoull(line.c_str() + 13, nullptr, 10) * 1024;
  }
  return 0;
}

size_t read_memory_bytes() {
  constexpr size_t kMiB = size_t{1} << 20;
  const size_t cache = static_cast<size_t>(std::max(0l, sysconf(_SC_LEVEL3_CACHE_SIZE)));
  const size_t wanted = std::clamp(8 * cache, 256 * kMiB, 2048 * kMiB);
  return std::max(128 * kMiB, std::min(wanted, available_bytes() / 4)) / (2 * kMiB) * (2 * kMiB);
}

const ReadMemory& read_memory(ThreadPool& threads) {
  static ReadMemory memory;
  static std::once_flag once;
  std::call_once(once, [&] {
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t bytes = read_memory_bytes();
    auto* data = static_cast<std::byte*>(std::aligned_alloc(kHugePage, bytes));
    if (data == nullptr) return;
    madvise(data, bytes, MADV_HUGEPAGE);
    // Written, because a page that never was is the one page of zeros; by all threads, for memory near each of them.
    threads.parallel_for(static_cast<int64_t>(bytes), kHugePage, [&](int64_t begin, int64_t end, int) {
      std::memset(data + begin, 0x5a, static_cast<size_t>(end - begin));
    });
    memory = {data, bytes};
  });
  return memory;
}

struct Measured {
  const ProbeLoop* loop;
  double work = 0;     // bytes or operations in all
  double seconds = 0;  // spent on them
  double slice = 0;    // work of the next slice
  double rate() const { return seconds > 0 ? work / seconds : 0; }
};

// A slice is long enough that waking the threads is nothing, and short enough that loops alternate within a call: what
// disturbs the machine meanwhile disturbs all of them.
constexpr double kSliceSeconds = 0.002;

}  // namespace

double CpuBackend::probe(Probe what, double seconds) {
  std::vector<Measured> candidates;
  for (const ProbeLoop& loop : probe_loops()) {
    if (loop.what == what) candidates.push_back({&loop});
  }
  if (candidates.empty()) return 0;
  const ReadMemory memory = what == Probe::read ? read_memory(threads_) : ReadMemory{};
  if (what == Probe::read && memory.bytes == 0) return 0;

  constexpr int64_t kGrain = 4096;                   // bytes: of every loop a whole number of iterations
  const int64_t units = 8 * threads_.num_threads();  // of arithmetic
  size_t position = 0;                               // slices follow each other through the memory
  const auto run_slice = [&](Measured& m) {
    const ProbeLoop& loop = *m.loop;
    double work;
    const auto start = Clock::now();
    if (loop.read) {
      const auto wanted = static_cast<int64_t>(std::min(m.slice, static_cast<double>(memory.bytes)));
      if (position + static_cast<size_t>(wanted) > memory.bytes) position = 0;
      const std::byte* data = memory.data + position;
      const int64_t bytes = std::max(kGrain, wanted / kGrain * kGrain);
      threads_.parallel_for(bytes, kGrain, [&](int64_t begin, int64_t end, int) {
        consumed.fetch_xor(loop.read(data + begin, static_cast<size_t>(end - begin)), std::memory_order_relaxed);
      });
      position += static_cast<size_t>(bytes);
      work = static_cast<double>(bytes);
    } else {
      const auto iterations = std::max<int64_t>(1, static_cast<int64_t>(m.slice / loop.work) / units);
      threads_.parallel_for(units, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) consumed.fetch_xor(loop.compute(iterations), std::memory_order_relaxed);
      });
      work = static_cast<double>(iterations * units) * loop.work;
    }
    const double elapsed = seconds_since(start);
    if (elapsed >= kSliceSeconds / 2 || (loop.read && m.slice >= static_cast<double>(memory.bytes))) {
      m.work += work;
      m.seconds += elapsed;
      m.slice = work * kSliceSeconds / elapsed;
    } else {
      m.slice = 2 * work;  // too short to count
    }
  };

  for (Measured& m : candidates) m.slice = m.loop->read ? 32e6 : 1e5 * m.loop->work;
  const auto start = Clock::now();
  double best = 0;
  for (int round = 0; round == 0 || best == 0 || seconds_since(start) < seconds; ++round) {
    for (Measured& m : candidates) {
      if (m.seconds == 0 || m.rate() > 0.85 * best) run_slice(m);  // who fell behind stays behind
      best = 0;
      for (const Measured& other : candidates) best = std::max(best, other.rate());
      if (best > 0 && round > 0 && seconds_since(start) >= seconds) break;
    }
  }
  return best;
}

}  // namespace proa
