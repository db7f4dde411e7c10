#include "engine/reply.h"

#include <utility>

namespace proa {
namespace {

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

constexpr size_t kReservedEvents = 64;  // a reader that keeps up never makes the queue grow

}  // namespace

Reply::Reply(Clock::time_point submitted, int prompt_tokens) : submitted_(submitted), prompt_tokens_(prompt_tokens) {
  events_.reserve(kReservedEvents);
}

Reply::Status Reply::next(std::vector<TokenEvent>& events, std::optional<std::chrono::nanoseconds> timeout) {
  events.clear();
  events.reserve(kReservedEvents);
  std::unique_lock lock(mutex_);
  const auto something = [this] { return !events_.empty() || finished_; };
  if (!timeout) {
    arrived_.wait(lock, something);
  } else if (!arrived_.wait_for(lock, *timeout, something)) {
    return Status::timeout;
  }
  if (events_.empty()) return Status::end;
  std::swap(events, events_);
  return Status::events;
}

Timings Reply::timings() const {
  std::lock_guard lock(mutex_);
  Timings timings;
  timings.prompt_tokens = prompt_tokens_;
  timings.cached_tokens = cached_tokens_;
  timings.completion_tokens = completion_tokens_;
  if (admitted_) timings.queued_seconds = seconds(*admitted_ - submitted_);
  if (first_token_) {
    timings.prefill_seconds = seconds(*first_token_ - *admitted_);
    timings.decode_seconds = seconds(*last_token_ - *first_token_);
    timings.first_token_seconds = seconds(*first_token_ - submitted_);
  }
  return timings;
}

std::optional<Error> Reply::error() const {
  std::lock_guard lock(mutex_);
  return error_;
}

void Reply::admitted(int cached_tokens) {
  std::lock_guard lock(mutex_);
  cached_tokens_ = cached_tokens;
  admitted_ = Clock::now();
}

void Reply::on_event(std::function<void()> notify) {
  const auto shared = std::make_shared<const std::function<void()>>(std::move(notify));
  bool any;
  {
    std::lock_guard lock(mutex_);
    notify_ = shared;
    any = !events_.empty() || finished_;
  }
  if (any) (*shared)();
}

void Reply::push(TokenEvent event) {
  std::shared_ptr<const std::function<void()>> notify;
  {
    std::lock_guard lock(mutex_);
    if (event.token_id >= 0) {
      ++completion_tokens_;
      last_token_ = Clock::now();
      if (!first_token_) first_token_ = last_token_;
    }
    finished_ = event.finish_reason.has_value();
    events_.push_back(std::move(event));
    notify = notify_;
  }
  arrived_.notify_one();
  if (notify) (*notify)();
}

void Reply::fail(Error error) {
  std::lock_guard lock(mutex_);
  error_ = std::move(error);
}

}  // namespace proa
