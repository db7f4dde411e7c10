#include "server/server_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>

namespace proa {
namespace {

using std::vector;

vector<double> first_token_buckets() {
  return {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560};
}
vector<double> next_token_buckets() {
  return {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
}
vector<double> request_buckets() {
  return {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
}

constexpr std::array kReasons = {"stop", "length", "abort", "error"};
constexpr std::array kMethods = {"GET", "POST"};

// What /proc says about this process; families of Python's client.
void write_process(MetricsText& out) {
  std::ifstream stat("/proc/self/stat");
  std::string line;
  std::getline(stat, line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return;
  std::istringstream fields(line.substr(name_end + 1));
  vector<std::string> values;
  for (std::string value; fields >> value;) values.push_back(value);
  if (values.size() < 22) return;
  const auto number = [&](size_t field) { return std::strtod(values[field - 3].c_str(), nullptr); };  // as in proc(5)
  const auto ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  double boot_time = 0;
  std::ifstream system("/proc/stat");
  for (std::string word; system >> word;) {
    if (word == "btime" && system >> boot_time) break;
  }
  out.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", {}, number(23));
  out.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", {},
            number(24) * static_cast<double>(::sysconf(_SC_PAGESIZE)));
  out.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", {},
            boot_time + number(22) / ticks);
  out.counter("process_cpu_seconds", "Total user and system CPU time spent in seconds.", {},
              (number(14) + number(15)) / ticks);
  int open = 0;
  if (DIR* folder = ::opendir("/proc/self/fd")) {
    while (const dirent* entry = ::readdir(folder)) open += entry->d_name[0] != '.' ? 1 : 0;
    ::closedir(folder);
    out.gauge("process_open_fds", "Number of open file descriptors.", {}, open - 1);
  }
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    out.gauge("process_max_fds", "Maximum number of open file descriptors.", {}, static_cast<double>(limit.rlim_cur));
  }
}

}  // namespace

ServerMetrics::ServerMetrics(std::string model_name, int64_t max_model_len, int total_blocks, CacheSettings cache)
    : labels_{{"model_name", std::move(model_name)}, {"engine", "0"}},
      total_blocks_(total_blocks),
      cache_(std::move(cache)),
      time_to_first_token_(first_token_buckets()),
      inter_token_latency_(next_token_buckets()),
      time_per_output_token_(next_token_buckets()),
      request_time_per_output_token_(next_token_buckets()),
      e2e_(request_buckets()),
      queue_(request_buckets()),
      inference_(request_buckets()),
      prefill_(request_buckets()),
      decode_(request_buckets()),
      prompt_tokens_(buckets_of_125(static_cast<double>(max_model_len))),
      generation_tokens_(prompt_tokens_.bounds()),
      max_generation_tokens_(prompt_tokens_.bounds()),
      params_max_tokens_(prompt_tokens_.bounds()),
      prefill_computed_tokens_(prompt_tokens_.bounds()),
      params_n_({1, 2, 5, 10, 20}),
      http_seconds_({.01, .025, .05, .075, .1, .25, .5, .75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60}) {}

void ServerMetrics::finished(const Finished& request) {
  const Timings& timings = request.timings;
  const auto reason = std::find(kReasons.begin(), kReasons.end(), std::string_view(request.reason));
  if (reason != kReasons.end()) finished_[static_cast<size_t>(reason - kReasons.begin())].add();
  e2e_.observe(std::chrono::duration<double>(request.ended - request.arrived).count());
  queue_.observe(timings.queued_seconds);
  prefill_.observe(timings.prefill_seconds);
  decode_.observe(timings.decode_seconds);
  inference_.observe(timings.prefill_seconds + timings.decode_seconds);
  prompt_tokens_.observe(timings.prompt_tokens);
  prefill_computed_tokens_.observe(timings.prompt_tokens - timings.cached_tokens);
  generation_tokens_.observe(timings.completion_tokens);
  max_generation_tokens_.observe(timings.completion_tokens);
  params_max_tokens_.observe(static_cast<double>(request.max_tokens));
  params_n_.observe(request.n);
  if (timings.completion_tokens > 1) {
    request_time_per_output_token_.observe(timings.decode_seconds / (timings.completion_tokens - 1));
  }
}

void ServerMetrics::set_routes(vector<std::string> routes) {
  routes_ = std::move(routes);
  route_metrics_.clear();
  for (size_t i = 0; i < routes_.size(); ++i) route_metrics_.push_back(std::make_unique<RouteMetrics>());
}

void ServerMetrics::http(const HttpAnswer& answer) {
  const auto known = std::find(kMethods.begin(), kMethods.end(), answer.method);
  if (answer.route >= routes_.size() || known == kMethods.end() || answer.status < 100 || answer.status > 599) return;
  const auto index = static_cast<size_t>(known - kMethods.begin());
  RouteMetrics& route = *route_metrics_[answer.route];
  route.requests[index][static_cast<size_t>(answer.status / 100 - 1)].add();
  route.seconds[index].observe(answer.seconds);
  route.request_bytes.add(static_cast<double>(answer.request_bytes));
  route.response_bytes.add(static_cast<double>(answer.response_bytes));
  http_seconds_.observe(answer.seconds);
}

double ServerMetrics::RouteMetrics::count() const {
  double all = 0;
  for (const auto& of_method : requests) {
    for (const Counter& counter : of_method) all += counter.value();
  }
  return all;
}

double ServerMetrics::cache_usage(const EngineStats& stats) const {
  return total_blocks_ > 0 ? 1 - static_cast<double>(stats.free_blocks) / total_blocks_ : 0;
}

void ServerMetrics::write_http(MetricsText& out) const {
  out.counter("http_requests", "Total number of requests by method, status and handler.");
  for (size_t i = 0; i < routes_.size(); ++i) {
    for (size_t method = 0; method < kMethods.size(); ++method) {
      for (size_t status = 0; status < 5; ++status) {
        const double count = route_metrics_[i]->requests[method][status].value();
        if (count == 0) continue;
        out.sample(
            {{"handler", routes_[i]}, {"method", kMethods[method]}, {"status", std::to_string(status + 1) + "xx"}},
            count);
      }
    }
  }
  out.summary("http_request_size_bytes", "Content length of incoming requests by handler.");
  for (size_t i = 0; i < routes_.size(); ++i) {
    const RouteMetrics& route = *route_metrics_[i];
    if (route.count() > 0) out.sample({{"handler", routes_[i]}}, route.count(), route.request_bytes.value());
  }
  out.summary("http_response_size_bytes", "Content length of outgoing responses by handler.");
  for (size_t i = 0; i < routes_.size(); ++i) {
    const RouteMetrics& route = *route_metrics_[i];
    if (route.count() > 0) out.sample({{"handler", routes_[i]}}, route.count(), route.response_bytes.value());
  }
  out.histogram("http_request_duration_highr_seconds", "Latency with many buckets but no API specific labels.", {},
                http_seconds_);
  out.histogram("http_request_duration_seconds", "Latency with only few buckets by handler.");
  for (size_t i = 0; i < routes_.size(); ++i) {
    for (size_t method = 0; method < kMethods.size(); ++method) {
      const Histogram& seconds = route_metrics_[i]->seconds[method];
      if (seconds.sum() > 0) out.sample({{"handler", routes_[i]}, {"method", kMethods[method]}}, seconds);
    }
  }
}

// What vLLM has no names for.
void ServerMetrics::write_own(MetricsText& out, const Engine& engine, const EngineStats& stats) const {
  const auto with = [&](const char* name, std::string_view value) {
    Labels labels = labels_;
    labels.emplace_back(name, value);
    return labels;
  };
  const auto number = [](auto value) { return static_cast<double>(value); };
  const MemoryPlan& plan = engine.memory_plan();
  out.gauge("proa:memory_plan_bytes", "Bytes that were planned before loading, by what they are for.");
  const std::pair<const char*, size_t> parts[] = {{"weights", plan.weight_bytes}, {"kv_cache", plan.kv_bytes},
                                                  {"state", plan.state_bytes},    {"workspace", plan.workspace_bytes},
                                                  {"step", plan.step_bytes},      {"scratch", plan.scratch_bytes}};
  for (const auto& [part, bytes] : parts) out.sample(with("part", part), number(bytes));
  out.gauge("proa:device_memory_bytes", "Memory of the device.", labels_, number(plan.memory.total));
  out.gauge("proa:model_load_seconds", "What opening and loading the model took.", labels_, load_seconds_.value());
  out.gauge("proa:kv_blocks", "Blocks of keys and values.");
  out.sample(with("state", "free"), stats.free_blocks);
  out.sample(with("state", "used"), total_blocks_ - stats.free_blocks);
  out.gauge("proa:state_slots", "Sequences with a recurrent state that can run at once.");
  out.sample(with("state", "free"), stats.free_slots);
  out.sample(with("state", "used"), engine.config().max_num_seqs - stats.free_slots);

  out.gauge("proa:queue_limit", "Requests that may wait.", labels_, engine.config().max_queue);
  double age = 0;
  if (stats.oldest_waiting) {
    age = std::chrono::duration<double>(std::chrono::steady_clock::now() - *stats.oldest_waiting).count();
  }
  out.gauge("proa:queue_age_seconds", "For how long the first of the waiting requests has waited.", labels_, age);

  const EngineMetrics& steps = engine.metrics();
  out.counter("proa:steps", "Steps of the engine.", labels_, number(stats.num_steps));
  out.counter("proa:failed_steps", "Steps that the device failed in, each with its requests.", labels_,
              steps.failed_steps.value());
  out.counter("proa:stuck_steps", "Steps that the watchdog has reported.", labels_, stuck_steps_.value());
  const auto step_age = engine.step_age();
  out.gauge("proa:step_age_seconds", "For how long the step under way has been running, 0 between steps.", labels_,
            step_age ? std::chrono::duration<double>(*step_age).count() : 0);
  out.histogram("proa:step_device_seconds", "Time of a step in which the backend worked.", labels_, steps.step_device);
  out.histogram("proa:step_host_seconds", "Time of a step for scheduling, text and hand-over.", labels_,
                steps.step_host);

  const PrefixCacheStats& prefix = stats.prefix_cache;
  out.counter("proa:prefix_cache_host_hits", "Tokens of prompts that were found in host memory.", labels_,
              number(prefix.host_hits));
  out.counter("proa:prefix_cache_lost_tokens", "Tokens that were computed again, by why they were not kept.");
  for (size_t i = 0; i < kNumLost; ++i) {
    out.sample(with("reason", to_string(static_cast<Lost>(i))), number(prefix.lost[i]));
  }
  out.counter("proa:prefix_cache_entries", "Prefixes that were kept, moved to host memory, given up.");
  out.sample(with("event", "inserted"), number(prefix.inserted));
  out.sample(with("event", "spilled"), number(prefix.spilled));
  out.sample(with("event", "dropped"), number(prefix.dropped));
}

std::string ServerMetrics::text(const Engine& engine) const {
  const EngineStats stats = engine.stats();
  MetricsText out;
  const auto with = [&](const char* name, std::string value) {
    Labels labels = labels_;
    labels.emplace_back(name, std::move(value));
    return labels;
  };
  write_process(out);
  out.gauge("vllm:num_requests_running", "Number of requests in model execution batches.", labels_, stats.num_running);
  out.gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", labels_, stats.num_waiting);
  out.gauge("vllm:num_requests_waiting_by_reason", "Number of waiting requests by reason.");
  out.sample(with("reason", "capacity"), stats.num_waiting);
  out.sample(with("reason", "deferred"), 0);
  out.gauge("vllm:engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake.");
  for (const char* state : {"awake", "weights_offloaded", "discard_all"}) {
    out.sample(with("sleep_state", state), state == std::string_view("awake") ? 1 : 0);
  }
  out.gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", labels_, cache_usage(stats));
  out.counter("vllm:prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", labels_,
              static_cast<double>(stats.prefix_cache.queries));
  out.counter("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", labels_,
              static_cast<double>(stats.prefix_cache.hits + stats.prefix_cache.host_hits));
  out.counter("vllm:external_prefix_cache_queries", "External prefix cache queries, in terms of tokens.", labels_, 0);
  out.counter("vllm:external_prefix_cache_hits", "External prefix cache hits, in terms of tokens.", labels_, 0);
  out.counter("vllm:mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", labels_, 0);
  out.counter("vllm:mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", labels_, 0);
  out.counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.", labels_,
              static_cast<double>(stats.num_preemptions));
  out.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", labels_,
              static_cast<double>(stats.prompt_tokens + stats.cached_tokens));
  out.counter("vllm:prompt_tokens_by_source", "Number of prompt tokens by source.");
  out.sample(with("source", "local_compute"), static_cast<double>(stats.prompt_tokens));
  out.sample(with("source", "local_cache_hit"), static_cast<double>(stats.cached_tokens));
  out.sample(with("source", "external_kv_transfer"), 0);
  out.counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens.", labels_,
              static_cast<double>(stats.cached_tokens));
  out.counter("vllm:generation_tokens", "Number of generation tokens processed.", labels_,
              static_cast<double>(stats.generated_tokens));
  out.counter("vllm:request_success", "Count of successfully processed requests.");
  for (size_t i = 0; i < kReasons.size(); ++i) out.sample(with("finished_reason", kReasons[i]), finished_[i].value());

  const struct {
    const char *name, *help;
    const Histogram& histogram;
  } histograms[] = {
      {"vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.",
       engine.metrics().iteration_tokens},
      {"vllm:request_prompt_tokens", "Number of prefill tokens processed.", prompt_tokens_},
      {"vllm:request_generation_tokens", "Number of generation tokens processed.", generation_tokens_},
      {"vllm:request_max_num_generation_tokens", "Histogram of maximum number of requested generation tokens.",
       max_generation_tokens_},
      {"vllm:request_params_n", "Histogram of the n request parameter.", params_n_},
      {"vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", params_max_tokens_},
      {"vllm:request_prefill_kv_computed_tokens", "Histogram of new KV tokens computed during prefill.",
       prefill_computed_tokens_},
      {"vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", time_to_first_token_},
      {"vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", inter_token_latency_},
      {"vllm:time_per_output_token_seconds", "Histogram of time per output token in seconds.", time_per_output_token_},
      {"vllm:request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.",
       request_time_per_output_token_},
      {"vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", e2e_},
      {"vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", queue_},
      {"vllm:request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", inference_},
      {"vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", prefill_},
      {"vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", decode_},
  };
  for (const auto& family : histograms) out.histogram(family.name, family.help, labels_, family.histogram);

  out.gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig");
  out.sample({{"block_size", cache_.block_size},
              {"cache_dtype", cache_.cache_dtype},
              {"enable_prefix_caching", cache_.enable_prefix_caching},
              {"engine", "0"},
              {"gpu_memory_utilization", cache_.gpu_memory_utilization},
              {"mamba_ssm_cache_dtype", cache_.mamba_ssm_cache_dtype},
              {"num_gpu_blocks", cache_.num_gpu_blocks}},
             1);
  // Names that vLLM has given up and dashboards still show.
  out.gauge("vllm:avg_prompt_throughput_toks_per_s", "Average prefill throughput in tokens/s.", labels_,
            prompt_throughput_.value());
  out.gauge("vllm:avg_generation_throughput_toks_per_s", "Average generation throughput in tokens/s.", labels_,
            generation_throughput_.value());
  out.gauge("vllm:gpu_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", labels_, cache_usage(stats));
  out.gauge("vllm:cpu_cache_usage_perc", "CPU KV-cache usage. 1 means 100 percent usage.", labels_, 0);
  write_own(out, engine, stats);
  write_http(out);
  return out.text();
}

}  // namespace proa
