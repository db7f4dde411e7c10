// One line on a terminal's standard error, drawn over itself; nothing elsewhere.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>

#include "core/text.h"

namespace proa {

// Cleared when it goes. Any thread. The caller makes texts from outside fit for a terminal.
class ProgressLine {
 public:
  ProgressLine() = default;
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine() { clear(); }

  bool on() const { return on_; }
  void show(const std::string& text) { write(text, ""); }
  void note(const std::string& text) { write(text, "\n"); }  // stays; the next show() is below it
  void clear() { write("", ""); }

 private:
  void write(const std::string& text, const char* end) {
    if (!on_) return;
    const std::lock_guard lock(mutex_);
    std::fprintf(stderr, "\r\033[K%s%s", text.c_str(), end);
    std::fflush(stderr);
  }

  const bool on_ = ::isatty(STDERR_FILENO) == 1;
  std::mutex mutex_;
};

// "1.3 GB of 18.0 GB, 1.52 GB/s". One thread.
class ByteProgress {
 public:
  explicit ByteProgress(uint64_t total) : total_(total) {}
  void add(uint64_t bytes) {
    done_ += bytes;
    const auto now = Clock::now();
    if (!line_.on() || now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    char rate[32];
    std::snprintf(rate, sizeof rate, ", %.2f GB/s", static_cast<double>(done_) / 1e9 / seconds());
    line_.show(bytes_text(done_) + " of " + bytes_text(total_) + rate);
  }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  ProgressLine line_;
  uint64_t total_, done_ = 0;
  Clock::time_point started_ = Clock::now(), last_ = started_;
};

}  // namespace proa
