// Lines for standard output and standard error, written by a thread of their own: nobody who logs waits for a terminal
// or a pipe. When more lines wait than it keeps, new ones are dropped and their number is told later.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace proa {

class LogWriter {
 public:
  enum class Level { debug, info, warning, error };
  explicit LogWriter(Level lowest = Level::info);
  ~LogWriter();  // writes what waits, if it can within a second
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  void out(std::string line);  // to standard output, at level info
  void info(std::string line) { err(Level::info, std::move(line)); }
  void warning(std::string line) { err(Level::warning, std::move(line)); }
  void error(std::string line) { err(Level::error, std::move(line)); }

 private:
  struct Line {
    bool to_stdout;
    std::string text;
  };
  void err(Level level, std::string line);
  void add(Line line);

  const Level lowest_;
  struct Shared;
  std::shared_ptr<Shared> shared_;  // outlives this where the thread is stuck in a write
};

}  // namespace proa
