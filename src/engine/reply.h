// The channel on which one request's events come back: the engine thread writes, one consumer reads.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/result.h"
#include "engine/request.h"

namespace proa {

class Reply {
 public:
  enum class Status : uint8_t {
    events,   // at least one event was handed over
    timeout,  // none came in time
    end,      // the last event was handed over by an earlier call
  };

  // Waits for events and moves all there are into `events`, whose old content is dropped and whose memory is used for
  // later events: pass the same vector again and a steady stream allocates nothing. Without a timeout it waits as long
  // as it takes; every reply ends, at the latest when the engine is destroyed.
  Status next(std::vector<TokenEvent>& events, std::optional<std::chrono::nanoseconds> timeout = std::nullopt);

  // Asks the engine to end this reply. Takes effect between steps: a few more events may come, the last one then says
  // FinishReason::cancelled (or what ended the reply before). Dropping the last copy of the reply does the same.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  // From now on `notify` is called after each event, by the engine's thread, and at once if there are any: for readers
  // that do not wait in next(). It must cost little and not call back. Before the first call of next(), if at all.
  void on_event(std::function<void()> notify);

  Timings timings() const;             // so far
  std::optional<Error> error() const;  // why, after FinishReason::error

 private:
  friend class Engine;
  using Clock = std::chrono::steady_clock;

  Reply(Clock::time_point submitted, int prompt_tokens);
  // Engine side.
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  void admitted(int cached_tokens);  // for the first time
  void push(TokenEvent event);
  void fail(Error error);  // before the push of the event that says FinishReason::error

  std::atomic<bool> cancelled_{false};
  const Clock::time_point submitted_;
  const int prompt_tokens_;

  mutable std::mutex mutex_;  // guards all below; never held together with another
  std::condition_variable arrived_;
  std::vector<TokenEvent> events_;
  std::shared_ptr<const std::function<void()>> notify_;
  bool finished_ = false;  // the last event was pushed
  std::optional<Error> error_;
  int cached_tokens_ = 0, completion_tokens_ = 0;
  std::optional<Clock::time_point> admitted_, first_token_, last_token_;
};

}  // namespace proa
