#include "server/reply_group.h"

#include <algorithm>

namespace proa {

using std::chrono::milliseconds;

ReplyGroup::ReplyGroup(std::vector<std::shared_ptr<Reply>> replies)
    : replies_(std::move(replies)), ended_(replies_.size(), false) {}

bool ReplyGroup::poll(size_t index, std::chrono::nanoseconds timeout,
                      const std::function<void(size_t, TokenEvent&)>& take) {
  const Reply::Status status = replies_[index]->next(events_, timeout);
  if (status == Reply::Status::end) ended_[index] = true;
  if (status != Reply::Status::events) return false;
  for (TokenEvent& event : events_) {
    if (event.finish_reason) ended_[index] = true;
    take(index, event);
  }
  return true;
}

bool ReplyGroup::next(milliseconds timeout, const std::function<void(size_t, TokenEvent&)>& take) {
  bool any = false;
  if (replies_.size() > 1) {
    for (size_t i = 0; i < replies_.size(); ++i) any |= !ended_[i] && poll(i, std::chrono::nanoseconds(0), take);
  }
  const auto open = std::find(ended_.begin(), ended_.end(), false);
  if (open == ended_.end()) return any;
  if (any) return true;
  // Replies of one request run in the same steps nearly always, so waiting for one is waiting for all; now and then the
  // others are looked at.
  poll(static_cast<size_t>(open - ended_.begin()), replies_.size() > 1 ? std::min(timeout, milliseconds(20)) : timeout,
       take);
  return true;
}

void ReplyGroup::cancel() {
  for (size_t i = 0; i < replies_.size(); ++i) {
    if (!ended_[i]) replies_[i]->cancel();
  }
}

}  // namespace proa
