// proa serve: the OpenAI API over HTTP, as `vllm serve` has it.
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <memory>
#include <thread>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/log_writer.h"
#include "apps/open_checkpoint.h"
#include "apps/serve_flags.h"
#include "checkpoint/printable.h"
#include "core/text.h"
#include "server/field_reader.h"
#include "server/monitor.h"

namespace proa {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kHandlers =
    16;  // requests that are read, rendered and encoded at a time; none of them waits for tokens
constexpr int kPromptLogits = 32;  // prompt tokens of a step that may come with log probabilities

LogWriter::Level log_level(const std::string& name) {
  if (name == "warning") return LogWriter::Level::warning;
  if (name == "error" || name == "critical") return LogWriter::Level::error;
  return name == "info" ? LogWriter::Level::info : LogWriter::Level::debug;
}

template <typename... Values>
std::string text(const char* format, Values... values) {
  std::array<char, 512> buffer{};
  std::snprintf(buffer.data(), buffer.size(), format, values...);
  return buffer.data();
}

// "INFO 11-24 12:00:00 [engine] ": how vLLM begins its own lines; uvicorn's begin with "INFO:     ".
std::string stamp(const char* part) {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  std::array<char, 32> time{};
  std::strftime(time.data(), time.size(), "%m-%d %H:%M:%S", &local);
  return std::string("INFO ") + time.data() + " [" + part + "] ";
}

// uvicorn's line, and the request once more with its quote directly behind the path: some idle detectors of cloud
// machines look for that. A stream has a line when it begins and one when it ends.
void log_access(LogWriter& log, const ServeOptions& options, const http::AccessRecord& record) {
  if (!options.access_log) return;
  const std::string path = record.target.substr(0, record.target.find('?'));
  if (std::find(options.quiet_endpoints.begin(), options.quiet_endpoints.end(), path) != options.quiet_endpoints.end())
    return;
  if (record.method.empty()) {
    if (record.status == 400) log.warning("WARNING:  Invalid HTTP request received.");
    return;
  }
  std::string line = "INFO:     " + (record.peer.empty() ? "-" : record.peer) + " - \"" + record.method + " " +
                     printable(record.target, 1024) + " HTTP/" + (record.version == 10 ? "1.0" : "1.1") + "\" " +
                     std::to_string(record.status) + " " + http::reason_phrase(record.status) + " request=\"" +
                     record.method + " " + printable(path, 1024) + "\"";
  if (record.streamed && record.event == http::AccessRecord::Event::finished) {
    line += text(" streamed=%.3fs", record.seconds);
  }
  log.out(std::move(line));
}

Result<void> override_defaults(const nlohmann::ordered_json& overrides, RequestPolicy& policy) {
  FieldReader fields(overrides, "--override-generation-config");
  SamplingParams& params = policy.defaults;
  fields.read("temperature", params.temperature);
  fields.read("top_p", params.top_p);
  fields.read("top_k", params.top_k);
  fields.read("min_p", params.min_p);
  fields.read("repetition_penalty", params.repetition_penalty);
  fields.read("max_new_tokens", policy.max_new_tokens);
  if (fields.error() || policy.max_new_tokens.value_or(1) < 1) {
    return Error{"read the command line", "--override-generation-config", "sampling parameters as numbers",
                 overrides.dump(), ""};
  }
  return {};
}

Result<OpenedEngine> open(ServeOptions& options, LogWriter& log) {
  if (!options.quantization.empty()) {
    PROA_ASSIGN(const Checkpoint asked_of, open_checkpoint(options.open));
    PROA_ASSIGN(const Quantization quantization, check_quantization(options.quantization, asked_of));
    if (!quantization.remark.empty()) log.warning("WARNING:  " + quantization.remark);
    options.open.quantize_to = quantization.quantize_to;
  }
  PROA_ASSIGN(PreparedModel prepared, prepare_model(options.open));
  prepared.config.max_queue = options.max_queue;
  prepared.config.max_prompt_logits = kPromptLogits;
  prepared.config.block_size = options.block_size;
  prepared.config.kv_cache_bytes = options.kv_cache_bytes;
  prepared.config.priority_scheduling = options.service.policy.priority_scheduling;
  PROA_ASSIGN(const MemoryPlan plan, plan_memory(options.open, prepared, prepared.config));
  log.info(stamp("engine") + plan.text());
  PROA_ASSIGN(OpenedModel opened, load_model(options.open, std::move(prepared)));
  RequestPolicy& policy = options.service.policy;
  if (!options.vllm_defaults) {
    policy.defaults = opened.defaults;
    policy.max_new_tokens = opened.max_new_tokens;
  }
  if (options.generation_overrides.is_object()) PROA_TRY(override_defaults(options.generation_overrides, policy));
  PROA_TRY(validate(policy.defaults, opened.tokenizer.vocab_size()));
  PROA_ASSIGN(auto engine, Engine::create(opened.model, opened.backend, opened.tokenizer, opened.config));
  return OpenedEngine{std::move(opened), std::move(engine)};
}

int fail(const Error& error) {
  std::fprintf(stderr, "proa: %s\n", error.message().c_str());
  return 1;
}

int serve(const ServeFlags& flags) {
  auto settled = settle(flags);
  if (!settled.ok()) {
    fail(settled.error());
    return 2;
  }
  ServeOptions& options = *settled;
  const InterruptFlag signals;    // before loading, which it ends too
  std::signal(SIGPIPE, SIG_IGN);  // of clients that left, and of a log nobody reads
#ifdef __GLIBC__
  ::mallopt(M_ARENA_MAX, 2);  // an arena for each of hundreds of threads would keep what each of them once needed
#endif
  LogWriter log(log_level(options.log_level));
  for (const std::string& warning : options.warnings) log.warning("WARNING:  " + warning);

  const auto loading = Clock::now();
  auto opened = open(options, log);
  if (InterruptFlag::interrupted()) return 0;
  if (!opened.ok()) return fail(opened.error());
  Engine& engine = *opened->engine;
  const EngineConfig& config = engine.config();
  const double load_seconds = std::chrono::duration<double>(Clock::now() - loading).count();
  log.info(stamp("engine") + std::string(opened->backend->description()) +
           text(", loaded in %.1f s; max_model_len %lld, max_num_seqs %d, KV cache ", load_seconds,
                static_cast<long long>(config.max_model_len), config.max_num_seqs) +
           bytes_text(static_cast<double>(config.kv_cache_bytes)));

  options.service.version = PROA_VERSION;
  if (options.service.enable_tokenizer_info) {
    auto source = chat_template_source(*opened->checkpoint, &opened->tokenizer, options.open.chat_template);
    if (source.ok() && *source) options.service.chat_template_text = std::move((*source)->text);
  }
  options.service.cache.cache_dtype = options.open.kv_cache_dtype;
  options.service.cache.enable_prefix_caching = config.enable_prefix_caching ? "True" : "False";
  options.service.cache.gpu_memory_utilization =
      opened->backend->shares_memory() ? "None" : text("%g", config.gpu_memory_utilization);
  Service service(options.service, engine, opened->tokenizer,
                  opened->chat_template ? &*opened->chat_template : nullptr);
  service.metrics().set_load_seconds(load_seconds);
  log.info("INFO:     Started server process [" + std::to_string(::getpid()) + "]");
  log.info("INFO:     Waiting for application startup.");
  options.http.handler = [&](http::Exchange& exchange) { service.handle(exchange); };
  options.http.is_quick = Service::is_quick;
  options.http.error_response = Service::error_response;
  options.http.on_access = [&](const http::AccessRecord& record) { log_access(log, options, record); };
  options.http.max_handlers = kHandlers;
  options.http.max_waiting =  // what comes at once and the engine would take
      std::max(options.http.max_waiting, static_cast<size_t>(config.max_num_seqs + config.max_queue));
  auto server = http::Server::start(options.http);
  if (!server.ok()) return fail(server.error());
  log.info(stamp("launcher") + "Available routes are:");
  for (const Service::Route& route : Service::routes()) {
    log.info(stamp("launcher") + "Route: " + route.path + ", Methods: " + route.methods);
  }
  log.info("INFO:     Application startup complete.");
  log.info("INFO:     Uvicorn running on " + (*server)->address() + " (Press CTRL+C to quit)");

  {
    const Monitor monitor(engine, service.metrics(),
                          {.log_stats = options.stats_log,
                           .info = [&](std::string line) { log.info(stamp("engine") + line); },
                           .warning = [&](std::string line) { log.warning("WARNING:  " + line); }});
    while (!InterruptFlag::interrupted()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  log.info("INFO:     Shutting down");
  service.begin_draining();
  if ((*server)->load().requests > 0) {
    log.info(
        text("INFO:     Waiting up to %d s for running requests. (CTRL+C to force quit)", options.shutdown_seconds));
  }
  if (!(*server)->drain(std::chrono::seconds(options.shutdown_seconds))) {
    log.warning("WARNING:  requests that were still running have been cut");
  }
  log.info("INFO:     Application shutdown complete.");
  log.info("INFO:     Finished server process [" + std::to_string(::getpid()) + "]");
  return 0;
}

}  // namespace

void add_serve_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("serve", "serve a model by the OpenAI API, with the flags of vllm serve");
  auto flags = std::make_shared<ServeFlags>();
  add_serve_flags(*command, *flags);
  command->footer(
      "Flags of vllm serve that mean nothing here are accepted; --config FILE reads flags from a YAML file.\n"
      "Example: proa serve MODEL --port 8000 --reasoning-parser nemotron_v3 --enable-auto-tool-choice "
      "--tool-call-parser "
      "qwen3_coder");
  command->callback([command, flags, &exit_code] {
    for (const CLI::Option* option : command->get_options()) {
      const bool one = option->get_multi_option_policy() == CLI::MultiOptionPolicy::TakeLast;
      if (one && option->count() > 1) flags->again.push_back(option->get_name());
    }
    exit_code = serve(*flags);
  });
}

}  // namespace proa
