#include "http/handler_pool.h"

#include <limits>
#include <system_error>
#include <utility>

namespace proa::http {

bool HandlerPool::submit(Work work) { return submit(std::move(work), max_waiting_); }

bool HandlerPool::resubmit(Work work) { return submit(std::move(work), std::numeric_limits<size_t>::max() / 2); }

bool HandlerPool::submit(Work work, size_t max_waiting) {
  std::lock_guard lock(mutex_);
  if (stopping_) return false;
  const bool all_busy = waiting_.size() >= num_free_;
  if (all_busy && threads_.size() < max_threads_) {
    try {
      threads_.emplace_back([this] { run(); });
      ++num_free_;
    } catch (const std::system_error&) {  // the machine has no more threads to give: what is there must do
    }
  }
  if (waiting_.size() >= num_free_ + (threads_.empty() ? 0 : max_waiting)) return false;
  waiting_.push_back(std::move(work));
  wake_.notify_one();
  return true;
}

void HandlerPool::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    Work work = std::move(waiting_.front());
    waiting_.pop_front();
    --num_free_;
    lock.unlock();
    work();
    work = nullptr;  // what it holds goes before the thread counts as free
    lock.lock();
    ++num_free_;
  }
}

void HandlerPool::join() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();  // nobody adds threads any more
  threads_.clear();
}

}  // namespace proa::http
