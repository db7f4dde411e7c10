#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>

namespace proa {
namespace {

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Loops of a decode step follow each other within microseconds, a futex wake-up costs tens: spin about 50 us first,
// then sleep, so that an idle program is quiet.
constexpr int kSpins = 2000;

// The threads waited for are at work: they finish within a loop body, or within a scheduler's slice on a busy machine.
template <typename Done>
void wait_until(Done done) {
  for (int i = 0; !done(); ++i) {
    if (i < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

// Enough that a thread which is held up costs the others little, few enough that taking one is cheap.
constexpr int kPiecesPerThread = 4;

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads <= 0) num_threads = available_cores();
  num_threads = std::min(num_threads, static_cast<int>(kInside));
  parts_ = std::make_unique<Part[]>(num_threads);
  for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  gate_.fetch_add(kLoop, std::memory_order_release);
  gate_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    uint32_t gate = gate_.load(std::memory_order_acquire);
    for (int i = 0; gate / kLoop == seen; ++i) {
      if (i < kSpins) {
        relax();
      } else {
        gate_.wait(gate, std::memory_order_acquire);
      }
      gate = gate_.load(std::memory_order_acquire);
    }
    if (stopping_.load(std::memory_order_relaxed)) return;
    // Who comes late finds the gate closed, or open for a later loop and enters that one.
    bool open;
    while ((open = (gate & kClosed) == 0) && !gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
    }
    seen = gate / kLoop;
    if (!open) continue;
    (*body_)(thread);
    gate_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::open(const FunctionRef<void(int)>& body) {
  body_ = &body;
  const uint32_t loop = gate_.load(std::memory_order_relaxed) / kLoop + 1;
  gate_.store(loop * kLoop, std::memory_order_release);
  gate_.notify_all();
}

void ThreadPool::close() {
  gate_.fetch_or(kClosed, std::memory_order_acq_rel);
  wait_until([&] { return (gate_.load(std::memory_order_acquire) & kInside) == 0; });
}

void ThreadPool::run(FunctionRef<void(int)> body) {
  if (workers_.empty()) return body(0);
  std::atomic<int> left{num_threads()};
  const auto once = [&](int thread) {
    body(thread);
    left.fetch_sub(1, std::memory_order_release);
  };
  const FunctionRef<void(int)> loop(once);
  open(loop);
  once(0);
  wait_until([&] { return left.load(std::memory_order_acquire) == 0; });
  close();
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t, int)> body) {
  if (count <= 0) return;
  const int64_t units = (count + grain - 1) / grain;
  const int64_t pieces = std::min<int64_t>(units, int64_t{kPiecesPerThread} * num_threads());
  if (pieces == 1 || workers_.empty()) return body(0, count, 0);
  const int threads = num_threads();
  const auto part_begin = [&](int part) { return pieces * part / threads; };
  for (int part = 0; part < threads; ++part) parts_[part].next.store(part_begin(part), std::memory_order_relaxed);
  const auto take = [&](int thread) {
    for (int i = 0; i < threads; ++i) {
      const int part = (thread + i) % threads;
      const int64_t end = part_begin(part + 1);
      for (int64_t piece; (piece = parts_[part].next.fetch_add(1, std::memory_order_relaxed)) < end;) {
        body(units * piece / pieces * grain, std::min(count, units * (piece + 1) / pieces * grain), thread);
      }
    }
  };
  const FunctionRef<void(int)> loop(take);
  open(loop);
  take(0);
  close();
}

}  // namespace proa
