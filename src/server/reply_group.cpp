#include "server/reply_group.h"

#include <chrono>

namespace proa {

ReplyGroup::ReplyGroup(std::vector<std::shared_ptr<Reply>> replies)
    : replies_(std::move(replies)), ended_(replies_.size(), false), num_open_(replies_.size()) {}

void ReplyGroup::on_event(const std::function<void()>& notify) {
  for (const auto& reply : replies_) reply->on_event(notify);
}

bool ReplyGroup::poll(const std::function<void(size_t, TokenEvent&)>& take) {
  for (size_t i = 0; i < replies_.size(); ++i) {
    if (ended_[i]) continue;
    if (replies_[i]->next(events_, std::chrono::nanoseconds(0)) != Reply::Status::events) continue;
    for (TokenEvent& event : events_) {
      if (event.finish_reason) {
        ended_[i] = true;
        --num_open_;
      }
      take(i, event);
    }
  }
  return num_open_ > 0;
}

void ReplyGroup::cancel() {
  for (size_t i = 0; i < replies_.size(); ++i) {
    if (!ended_[i]) replies_[i]->cancel();
  }
}

}  // namespace proa
