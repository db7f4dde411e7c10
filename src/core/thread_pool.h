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

  // Splits [0, count) into one contiguous range per thread, cut at multiples of `grain`, and calls
  // body(begin, end, thread) for each range that is not empty. The same split for the same arguments, always.
  void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t begin, int64_t end, int thread)> body);

 private:
  void work(int thread);

  std::vector<std::thread> workers_;
  const FunctionRef<void(int)>* body_ = nullptr;  // set before generation_ moves on
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace proa
