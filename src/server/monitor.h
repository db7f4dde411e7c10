// Looks at the engine from outside: throughput for the metrics and a line of vLLM's while there is work, every ten
// seconds; a warning when a step does not end, and when steps have failed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "engine/engine.h"
#include "server/server_metrics.h"

namespace proa {

class Monitor {
 public:
  struct Config {
    std::chrono::milliseconds interval{10'000};     // between lines
    std::chrono::milliseconds stuck_after{60'000};  // of one step
    bool log_stats = true;
    std::function<void(std::string)> info, warning;  // lines for the log, from the monitor's thread
  };

  // Engine and metrics must outlive it.
  Monitor(const Engine& engine, ServerMetrics& metrics, Config config);
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

 private:
  using Clock = std::chrono::steady_clock;

  void run();
  void report(double seconds);
  void watch();

  const Engine& engine_;
  ServerMetrics& metrics_;
  const Config config_;

  EngineStats before_;
  bool was_busy_ = false;
  bool told_ = false;  // of the step under way
  double failed_steps_ = 0;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace proa
