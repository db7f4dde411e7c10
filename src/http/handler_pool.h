// Threads that run handlers: started when there is work and none is free, up to a limit; work beyond them waits in a
// bounded queue.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace proa::http {

class HandlerPool {
 public:
  using Work = std::function<void()>;

  HandlerPool(size_t max_threads, size_t max_waiting) : max_threads_(max_threads), max_waiting_(max_waiting) {}
  ~HandlerPool() { join(); }
  HandlerPool(const HandlerPool&) = delete;
  HandlerPool& operator=(const HandlerPool&) = delete;

  // Never blocks. False: all threads are busy and max_waiting pieces of work wait, or the pool was joined.
  bool submit(Work work);
  // The same without a limit, for the next part of work that was let in. False: the pool was joined.
  bool resubmit(Work work);
  // Runs what was submitted to its end and stops the threads.
  void join();

 private:
  bool submit(Work work, size_t max_waiting);
  void run();

  const size_t max_threads_;
  const size_t max_waiting_;
  std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  std::deque<Work> waiting_;
  std::vector<std::thread> threads_;
  size_t num_free_ = 0;
  bool stopping_ = false;
};

}  // namespace proa::http
