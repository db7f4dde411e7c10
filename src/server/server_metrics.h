// What /metrics shows: vLLM's families, the retired names that dashboards still ask for, those of the HTTP
// instrumentation, and the process. All of it may be written and read from any thread.
#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "telemetry/metrics.h"

namespace proa {

struct CacheSettings {  // labels of vllm:cache_config_info
  std::string block_size, cache_dtype, num_gpu_blocks, gpu_memory_utilization;
  std::string enable_prefix_caching = "False", mamba_ssm_cache_dtype = "float32";
};

class ServerMetrics {
 public:
  ServerMetrics(std::string model_name, int64_t max_model_len, int total_blocks, CacheSettings cache);

  // One finished generation. `arrived` is when the HTTP request was complete.
  struct Finished {
    std::chrono::steady_clock::time_point arrived, ended;
    const char* reason = "stop";  // stop, length, abort or error
    Timings timings;
    int n = 1;
    int64_t max_tokens = 0;
  };
  void finished(const Finished& request);
  void first_token(double seconds) { time_to_first_token_.observe(seconds); }
  void next_token(double seconds) {
    inter_token_latency_.observe(seconds);
    time_per_output_token_.observe(seconds);
  }

  // One HTTP answer; `route` is an index into the names given to set_routes(). Metrics, health and their like are left
  // out, as vLLM does.
  void set_routes(std::vector<std::string> routes);
  struct HttpAnswer {
    size_t route;
    const std::string& method;
    int status;
    double seconds;
    size_t request_bytes, response_bytes;  // of the bodies
  };
  void http(const HttpAnswer& answer);

  // Tokens per second of the last interval.
  void set_throughput(double prompt, double generation) {
    prompt_throughput_.set(prompt);
    generation_throughput_.set(generation);
  }
  double cache_usage(const EngineStats& stats) const;  // 0 to 1
  void step_is_stuck() { stuck_steps_.add(); }
  void set_load_seconds(double seconds) { load_seconds_.set(seconds); }

  std::string text(const Engine& engine) const;

 private:
  struct RouteMetrics {
    // By method (GET, POST) and class of status (1xx to 5xx).
    std::array<std::array<Counter, 5>, 2> requests;
    std::array<Histogram, 2> seconds{Histogram({.1, .5, 1}), Histogram({.1, .5, 1})};
    Counter request_bytes, response_bytes;
    double count() const;
  };
  void write_http(MetricsText& out) const;
  void write_own(MetricsText& out, const Engine& engine, const EngineStats& stats) const;

  const Labels labels_;
  const int total_blocks_;
  const CacheSettings cache_;

  Histogram time_to_first_token_, inter_token_latency_, time_per_output_token_, request_time_per_output_token_;
  Histogram e2e_, queue_, inference_, prefill_, decode_;
  Histogram prompt_tokens_, generation_tokens_, max_generation_tokens_, params_max_tokens_, prefill_computed_tokens_;
  Histogram params_n_;
  std::array<Counter, 4> finished_;
  Gauge prompt_throughput_, generation_throughput_, load_seconds_;
  Counter stuck_steps_;
  Histogram http_seconds_;
  std::vector<std::string> routes_;
  std::vector<std::unique_ptr<RouteMetrics>> route_metrics_;
};

}  // namespace proa
