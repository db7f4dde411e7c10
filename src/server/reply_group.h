// The replies of one HTTP request, read as one.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "engine/reply.h"

namespace proa {

class ReplyGroup {
 public:
  explicit ReplyGroup(std::vector<std::shared_ptr<Reply>> replies);
  // Cancels what has not ended.
  ~ReplyGroup() { cancel(); }
  ReplyGroup(const ReplyGroup&) = delete;
  ReplyGroup& operator=(const ReplyGroup&) = delete;

  // Waits for events of any reply, at most that long, and hands over all there are: take(index of the reply, event).
  // False: all have ended.
  bool next(std::chrono::milliseconds timeout, const std::function<void(size_t, TokenEvent&)>& take);

  void cancel();
  const Reply& reply(size_t index) const { return *replies_[index]; }
  size_t size() const { return replies_.size(); }

 private:
  bool poll(size_t index, std::chrono::nanoseconds timeout, const std::function<void(size_t, TokenEvent&)>& take);

  std::vector<std::shared_ptr<Reply>> replies_;
  std::vector<bool> ended_;
  std::vector<TokenEvent> events_;
};

}  // namespace proa
