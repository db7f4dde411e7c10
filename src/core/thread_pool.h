// A fixed team of threads for data-parallel loops. The calling thread is one of the team.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace proa {

// Non-owning reference to a callable: a loop body costs one indirect call and no allocation.
template <typename Signature>
class FunctionRef;
template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& f)  // NOLINT: implicit on purpose, as a parameter type
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

class ThreadPool {
 public:
  // num_threads >= 1, the caller included; 0 means one per core this process may run on.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(thread) once for every thread in [0, num_threads) and returns when all are done. Not reentrant, and for
  // one caller at a time: the engine thread.
  void run(FunctionRef<void(int thread)> body);

  // Splits [0, count) into a few contiguous ranges per thread, cut at multiples of `grain`, and calls
  // body(begin, end, thread) for each; a thread takes the next range when it is free. The ranges depend on the
  // arguments alone, who takes them does not. A thread that does not wake in time is not waited for: on a busy machine
  // the caller goes on with what runs.
  void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t begin, int64_t end, int thread)> body);

 private:
  struct alignas(64) Part {  // a cache line each
    std::atomic<int64_t> next;
  };

  void work(int thread);
  void open(const FunctionRef<void(int)>& body);
  void close();

  std::vector<std::thread> workers_;
  const FunctionRef<void(int)>* body_ = nullptr;  // of the open loop
  std::unique_ptr<Part[]> parts_;                 // [num_threads] of parallel_for
  // Number of the loop, whether workers may still enter it, and how many are inside. It has a cache line to itself:
  // everybody watches it.
  alignas(64) std::atomic<uint32_t> gate_{kClosed};
  alignas(64) std::atomic<bool> stopping_{false};

  static constexpr uint32_t kInside = 0x3ff;
  static constexpr uint32_t kClosed = 0x400;
  static constexpr uint32_t kLoop = 0x800;
};

}  // namespace proa
