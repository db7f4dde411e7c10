// Many complaints in one error: the first twenty in words, all of them counted.
#pragma once

#include <cstddef>
#include <string>

namespace proa {

class Differences {
 public:
  // Whether the next one will be shown; its text need not be made otherwise.
  bool shows_next() const { return count_ < kMaxListed; }
  void add(const std::string& text) {
    if (shows_next()) text_ += "\n  " + text;
    ++count_;
  }
  bool any() const { return count_ > 0; }
  // "2 differences", a line for each, and "... and N more".
  std::string text() const {
    std::string all = std::to_string(count_) + (count_ == 1 ? " difference" : " differences") + text_;
    if (count_ > kMaxListed) all += "\n  ... and " + std::to_string(count_ - kMaxListed) + " more";
    return all;
  }

 private:
  static constexpr size_t kMaxListed = 20;
  size_t count_ = 0;
  std::string text_;
};

}  // namespace proa
