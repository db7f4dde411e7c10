#include "apps/log_writer.h"

#include <cstdio>
#include <memory>
#include <utility>

namespace proa {

struct LogWriter::Shared {
  static constexpr size_t kMaxLines = 10'000;

  std::mutex mutex;  // guards all below
  std::condition_variable wake, done;
  std::deque<Line> lines;
  size_t dropped = 0;
  bool stopping = false;
  bool stopped = false;

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return stopping || !lines.empty(); });
      if (lines.empty()) break;
      std::deque<Line> now;
      std::swap(now, lines);
      const size_t lost = std::exchange(dropped, 0);
      lock.unlock();
      for (const Line& line : now) {
        std::FILE* file = line.to_stdout ? stdout : stderr;
        std::fputs((line.text + "\n").c_str(), file);
      }
      if (lost > 0) std::fprintf(stderr, "WARNING:  %zu lines of the log were dropped\n", lost);
      std::fflush(stdout);
      lock.lock();
    }
    stopped = true;
    done.notify_all();
  }
};

LogWriter::LogWriter(Level lowest) : lowest_(lowest), shared_(std::make_shared<Shared>()) {
  std::thread([shared = shared_] { shared->run(); }).detach();
}

LogWriter::~LogWriter() {
  std::unique_lock lock(shared_->mutex);
  shared_->stopping = true;
  shared_->wake.notify_all();
  shared_->done.wait_for(lock, std::chrono::seconds(1), [this] { return shared_->stopped; });
}

void LogWriter::add(Line line) {
  {
    std::lock_guard lock(shared_->mutex);
    if (shared_->lines.size() >= Shared::kMaxLines) {
      ++shared_->dropped;
      return;
    }
    shared_->lines.push_back(std::move(line));
  }
  shared_->wake.notify_one();
}

void LogWriter::out(std::string line) {
  if (lowest_ <= Level::info) add({true, std::move(line)});
}

void LogWriter::err(Level level, std::string line) {
  if (level >= lowest_) add({false, std::move(line)});
}

}  // namespace proa
