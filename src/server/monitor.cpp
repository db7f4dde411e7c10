#include "server/monitor.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

namespace proa {
namespace {

template <typename... Values>
std::string text(const char* format, Values... values) {
  std::array<char, 512> buffer{};
  std::snprintf(buffer.data(), buffer.size(), format, values...);
  return buffer.data();
}

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

Monitor::Monitor(const Engine& engine, ServerMetrics& metrics, Config config)
    : engine_(engine), metrics_(metrics), config_(std::move(config)), before_(engine.stats()) {
  thread_ = std::thread([this] { run(); });
}

Monitor::~Monitor() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Monitor::run() {
  const auto tick = std::min(config_.interval, config_.stuck_after / 4);
  Clock::time_point then = Clock::now();
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, tick, [this] { return stopping_; })) {
    watch();
    const auto now = Clock::now();
    if (now - then < config_.interval) continue;
    report(seconds(now - then));
    then = now;
  }
}

void Monitor::watch() {
  const auto age = engine_.step_age();
  if (age < config_.stuck_after) {  // none is less than any
    told_ = false;
  } else if (!std::exchange(told_, true)) {
    metrics_.step_is_stuck();
    const EngineStats stats = engine_.stats();
    config_.warning(text("a step has not ended for %.0f s; %d requests ran before it, %d wait", seconds(*age),
                         stats.num_running, stats.num_waiting));
  }
  const double failed = engine_.metrics().failed_steps.value();
  if (failed > failed_steps_) config_.warning(text("%.0f steps failed, and their requests", failed - failed_steps_));
  failed_steps_ = failed;
}

void Monitor::report(double interval) {
  const EngineStats stats = engine_.stats();
  const double prompt = static_cast<double>(stats.prompt_tokens - before_.prompt_tokens) / interval;
  const double generation = static_cast<double>(stats.generated_tokens - before_.generated_tokens) / interval;
  metrics_.set_throughput(prompt, generation);
  const bool busy = stats.num_running > 0 || stats.num_waiting > 0 || stats.num_steps != before_.num_steps;
  if (config_.log_stats && (busy || was_busy_)) {
    const PrefixCacheStats& prefix = stats.prefix_cache;
    const auto hits = static_cast<double>(prefix.hits + prefix.host_hits);
    config_.info(
        text("Engine 000: Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, Running: %d "
             "reqs, Waiting: %d reqs, GPU KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
             prompt, generation, stats.num_running, stats.num_waiting, 100 * metrics_.cache_usage(stats),
             prefix.queries > 0 ? 100 * hits / static_cast<double>(prefix.queries) : 0.));
  }
  was_busy_ = busy;
  before_ = stats;
}

}  // namespace proa
