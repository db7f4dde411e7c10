// The replies of one HTTP request, read as one.
#pragma once

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

  // `notify` is called whenever there may be events, as of Reply::on_event().
  void on_event(const std::function<void()>& notify);
  // Hands over all events there are: take(index of the reply, event). False: all replies have ended.
  bool poll(const std::function<void(size_t, TokenEvent&)>& take);

  void cancel();
  const Reply& reply(size_t index) const { return *replies_[index]; }
  size_t size() const { return replies_.size(); }

 private:
  std::vector<std::shared_ptr<Reply>> replies_;
  std::vector<bool> ended_;
  size_t num_open_;
  std::vector<TokenEvent> events_;
};

}  // namespace proa
