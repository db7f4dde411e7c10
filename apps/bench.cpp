// proa bench: how fast a model runs here, next to what the device could do at most in the same minutes.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/open_checkpoint.h"
#include "apps/open_engine.h"
#include "apps/progress_line.h"
#include "backends/backends.h"
#include "bench/answer.h"
#include "bench/checks.h"
#include "bench/compare.h"
#include "bench/machine.h"
#include "bench/measure.h"
#include "bench/plot.h"
#include "bench/report.h"
#include "checkpoint/checkpoint.h"
#include "core/checksum.h"
#include "core/output_path.h"
#include "core/text.h"
#include "models/step_cost.h"

namespace proa {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchOptions {
  OpenOptions open;
  std::vector<int> input_lens = {128, 512};
  int output_len = 256;
  std::vector<int64_t> depths = {0}, prefill_depths = {0};
  std::vector<int> history_lens;
  std::vector<int> batch_sizes = {1};
  int num_iters = 3;
  double probe_seconds = 0.1;
  int check_tokens = 8;
  bool no_check = false;
  bool json = false;
  std::string csv, json_file, plot;
};

// Seconds since this process was started, the time before main() included.
double process_age() {
  std::ifstream stat_file("/proc/self/stat"), uptime_file("/proc/uptime");
  std::string stat;
  std::getline(stat_file, stat);
  double uptime = 0;
  uptime_file >> uptime;
  const size_t name_end = stat.rfind(')');  // the name may hold spaces
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(stat.substr(name_end + 2));
  std::string field;
  for (int i = 3; i <= 22 && fields >> field; ++i) {
  }
  return uptime - std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

class Bench {
 public:
  explicit Bench(const BenchOptions& options) : options_(options) {}

  // What was measured before an error counts all the same: it is in report().
  Result<void> run();
  BenchReport& report() { return report_; }

 private:
  Result<MemoryPlan> plan(const PreparedModel& prepared, const MeasureConfig& config) const;
  Result<void> check();
  Result<void> first_token();
  Result<void> add(Result<BenchRow> row);
  void add_memory();

  BenchRow named(BenchRow row) const {
    row.model = model_name_;
    row.quantization = quantization_;
    row.weights = weights_;
    row.kv_cache_dtype = kv_cache_dtype_;
    return row;
  }

  const BenchOptions& options_;
  ProgressLine progress_;
  BenchReport report_;
  std::optional<OpenedModel> opened_;
  std::string model_name_, quantization_, weights_, kv_cache_dtype_;
  size_t device_peak_ = 0;
};

std::string base_name(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

// The format that holds most of the weights.
std::string main_format(const Model& model) {
  std::map<std::string, int64_t> bytes;
  for (const WeightUse& weight : model.weights()) bytes[weight.stored] += weight.bytes;
  const auto most =
      std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes.end() ? "" : most->first;
}

// What tells these weights from others: a checksum over names, sizes and the first 64 KiB of every tensor.
std::string weights_name(const Checkpoint& checkpoint) {
  constexpr size_t kSample = 64 << 10;
  Checksum hash;
  for (const auto& [name, entry] : checkpoint.tensors()) {
    hash.add(std::as_bytes(std::span(name)));
    const auto tensor = checkpoint.tensor(name);
    if (!tensor.ok()) continue;
    const uint64_t bytes = tensor->bytes;
    hash.add(std::as_bytes(std::span(&bytes, 1)));
    hash.add({tensor->data, std::min<size_t>(bytes, kSample)});
  }
  char text[32];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash.value()));
  return text;
}

// As typed, without the folder of the program.
std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  while (!text.empty() && text.back() == '\0') text.pop_back();
  std::replace(text.begin(), text.end(), '\0', ' ');
  return text.substr(text.substr(0, text.find(' ')).rfind('/') + 1);
}

// The fastest arithmetic that the device has for these weights: products of integers where they are stored as integers
// and the device is a CPU, else BF16, else F32.
Probe arithmetic_for(const Model& model, Backend& backend) {
  const std::string format = main_format(model);
  const bool integers = format.starts_with("Q") || format.starts_with("IQ");
  if (integers && backend.name() == "cpu" && backend.probe(Probe::int8, 0.02) > 0) return Probe::int8;
  return backend.probe(Probe::bf16, 0.02) > 0 ? Probe::bf16 : Probe::f32;
}

// Every point of the sweeps is held against the memory there is before anything is loaded. The plan of the largest.
Result<MemoryPlan> Bench::plan(const PreparedModel& prepared, const MeasureConfig& config) const {
  MemoryPlan largest;
  // Weights that do not stay in memory cannot be read at its speed.
  const auto fit = [&](const EngineConfig& engine) { return plan_memory(options_.open, prepared, engine, true); };
  const auto keep_largest = [&](const MemoryPlan& plan) {
    if (plan.total_bytes() > largest.total_bytes()) largest = plan;
  };
  const auto refuse = [&](Error error, const std::string& flags, const std::string& smaller) {
    error.where = flags + " on " + error.where;
    if (!smaller.empty()) error.hint = smaller + " fits";  // otherwise no size does
    return error;
  };
  const int64_t deepest = *std::ranges::max_element(options_.prefill_depths);
  for (const int length : options_.input_lens) {
    const auto fits = [&](int tokens) { return fit(prefill_engine(config, deepest, tokens)); };
    const auto plan = fits(length);
    if (plan.ok()) {
      keep_largest(*plan);
      continue;
    }
    int shorter = length;
    while (shorter > 1 && !fits(shorter).ok()) shorter /= 2;
    return refuse(plan.error(), "--input-len " + std::to_string(length),
                  fits(shorter).ok() ? "--input-len " + std::to_string(shorter) : "");
  }
  for (const int length : options_.history_lens) {
    const auto plan = fit(history_engine(config, length));
    if (!plan.ok()) return refuse(plan.error(), "--history-len " + std::to_string(length), "");
    keep_largest(*plan);
  }
  for (const int batch : options_.batch_sizes) {
    for (const int64_t depth : options_.depths) {
      const auto fits = [&](int sequences, int64_t tokens) {
        return fit(decode_engine(config, sequences, tokens, options_.output_len));
      };
      const auto plan = fits(batch, depth);
      if (plan.ok()) {
        keep_largest(*plan);
        continue;
      }
      const auto flags = [](int sequences, int64_t tokens) {
        return "--batch-size " + std::to_string(sequences) + " --depth " + std::to_string(tokens);
      };
      int fewer = batch;
      int64_t nearer = depth;
      while (fewer > 1 && !fits(fewer, nearer).ok()) fewer /= 2;
      while (nearer > 0 && !fits(fewer, nearer).ok()) nearer /= 2;
      return refuse(plan.error(), flags(batch, depth), fits(fewer, nearer).ok() ? flags(fewer, nearer) : "");
    }
  }
  return largest;
}

Result<void> Bench::run() {
  progress_.show("loading " + options_.open.model);
  const auto began = Clock::now();
  PROA_ASSIGN(PreparedModel prepared, prepare_model(options_.open));
  MeasureConfig config{.num_iters = options_.num_iters,
                       .max_num_batched_tokens = options_.open.max_num_batched_tokens,
                       .kv_cache_dtype = prepared.config.kv_cache_dtype,
                       .gpu_memory_utilization = prepared.config.gpu_memory_utilization,
                       .gpu_memory_limit = prepared.config.gpu_memory_limit,
                       .uncounted_weight_bytes = prepared.config.uncounted_weight_bytes,
                       .kv_offloading_bytes = static_cast<int64_t>(options_.open.kv_offloading_size * 0x1p30),
                       .probe_seconds = options_.probe_seconds,
                       .arithmetic = arithmetic_for(*prepared.model, *prepared.backend),
                       .random_weights = prepared.checkpoint->dummy() != nullptr,
                       .device_peak = &device_peak_,
                       .interrupted = &InterruptFlag::flag()};
  PROA_ASSIGN(const MemoryPlan memory, plan(prepared, config));
  progress_.note(memory.text());
  progress_.show("loading " + options_.open.model);
  PROA_ASSIGN(auto opened, load_model(options_.open, std::move(prepared)));
  opened_.emplace(std::move(opened));
  PROA_TRY(opened_->backend->synchronize());  // weights may still be on their way
  config.uncounted_weight_bytes = opened_->config.uncounted_weight_bytes;
  const double load_seconds = std::chrono::duration<double>(Clock::now() - began).count();
  report_ = describe_machine(
      *opened_->backend,
      options_.open.threads > 0 ? options_.open.threads : static_cast<int>(std::thread::hardware_concurrency()),
      command_line());
  report_.memory_plan = memory;
  model_name_ = base_name(options_.open.model);
  const bool dummy = opened_->checkpoint->dummy() != nullptr;
  quantization_ = options_.open.quantization.empty() ? main_format(*opened_->model) : options_.open.quantization;
  weights_ =
      dummy ? "dummy seed " + std::to_string(options_.open.seed.value_or(0)) : weights_name(*opened_->checkpoint);
  kv_cache_dtype_ = std::string(info(opened_->config.kv_cache_dtype).name);

  report_.rows.push_back(named({.what = What::load, .seconds = {load_seconds}}));
  PROA_TRY(first_token());
  if (InterruptFlag::interrupted()) return Error{"bench", "interrupted", "", "", ""};
  if (!options_.no_check) PROA_TRY(check());

  const OpenedModel& m = *opened_;
  for (const int length : options_.input_lens) {
    for (const int64_t depth : options_.prefill_depths) {
      progress_.show("prefill of " + std::to_string(length) + " tokens at depth " + std::to_string(depth));
      PROA_TRY(add(measure_prefill(m.model, m.backend, m.tokenizer, config, depth, length)));
    }
  }
  for (const int batch : options_.batch_sizes) {
    for (const int64_t depth : options_.depths) {
      progress_.show("decode of " + std::to_string(options_.output_len) + " tokens, batch " + std::to_string(batch) +
                     ", depth " + std::to_string(depth));
      PROA_TRY(add(measure_decode(m.model, m.backend, m.tokenizer, config, batch, depth, options_.output_len)));
    }
  }
  for (const int length : options_.history_lens) {
    progress_.show("conversation of " + std::to_string(length) + " tokens");
    auto rows = measure_history(m.model, m.backend, m.tokenizer, config, length);
    if (!rows.ok()) return rows.error();
    for (BenchRow& row : *rows) PROA_TRY(add(std::move(row)));
  }
  add_memory();
  return {};
}

Result<void> Bench::add(Result<BenchRow> row) {
  if (!row.ok()) return row.error();
  report_.rows.push_back(named(std::move(*row)));
  return {};
}

Result<void> Bench::first_token() {
  progress_.show("first token");
  EngineConfig config = opened_->config;
  config.max_num_seqs = 1;
  config.max_model_len = 64;
  PROA_ASSIGN(const auto engine, Engine::create(opened_->model, opened_->backend, opened_->tokenizer, config));
  PROA_ASSIGN(const auto reply,
              engine->submit({.prompt_token_ids = random_prompt(1, 0, 8, opened_->model->info().vocab_size),
                              .params = {.temperature = 0, .max_tokens = 1, .ignore_eos = true}}));
  std::vector<TokenEvent> events;
  while (reply->next(events) == Reply::Status::events) {
  }
  if (const auto error = reply->error()) return *error;
  report_.rows.push_back(named({.what = What::first_token, .num_tokens = 8, .seconds = {process_age()}}));
  return {};
}

Result<void> Bench::check() {
  progress_.show("checking the answer on the reference path");
  PROA_ASSIGN(const auto reference, make_backend("reference", {}));
  auto checkpoint = opened_->checkpoint;
  if (checkpoint->dummy() && !opened_->backend->shares_memory()) {
    // The device made its own weights. The host's are made apart from them, and go when the answer is known.
    auto made = open_checkpoint(options_.open);
    if (!made.ok()) {
      Error error = std::move(made).error();
      error.doing = "check the answer";
      error.hint = "--no-check needs no weights on the host" + (error.hint.empty() ? "" : "; " + error.hint);
      return error;
    }
    checkpoint = std::make_shared<const Checkpoint>(std::move(made).value());
  }
  PROA_ASSIGN(const auto reference_model, open_model(checkpoint, *reference));
  const AnswerConfig config{.num_tokens = options_.check_tokens, .kv_cache_dtype = opened_->config.kv_cache_dtype};
  PROA_ASSIGN(report_.answer, check_answer(*opened_->model, *opened_->backend, *reference_model, *reference, config));
  return {};
}

void Bench::add_memory() {
  const auto part = [&](const char* name, double bytes) {
    report_.rows.push_back(named({.what = What::memory, .part = name, .bytes = bytes}));
  };
  part("weights", static_cast<double>(opened_->model->info().weight_bytes));
  part("state per sequence", static_cast<double>(state_bytes(*opened_->model).total()));
  part("kv per token", static_cast<double>(kv_bytes_per_token(*opened_->model, opened_->config.kv_cache_dtype)));
  if (device_peak_ > 0) {
    part("device planned", static_cast<double>(report_.memory_plan->device_bytes()));
    part("device peak", static_cast<double>(device_peak_));
  }
  report_.peak_memory_bytes = peak_memory_bytes();
  if (report_.peak_memory_bytes) part("peak rss", static_cast<double>(*report_.peak_memory_bytes));
}

int fail(const Error& error) {
  std::fprintf(stderr, "proa bench: %s\n", error.message().c_str());
  return 1;
}

int run_bench(const BenchOptions& options) {
  const InterruptFlag ctrl_c;
  Bench bench(options);
  const Result<void> done = bench.run();
  BenchReport& report = bench.report();
  report.interrupted = InterruptFlag::interrupted();
  if (!done.ok() && !report.interrupted) {
    report.failures.push_back(done.error().message());
  }
  if (report.rows.empty()) return done.ok() ? 0 : fail(done.error());

  const auto found = check_report(report);
  report.failures.insert(report.failures.end(), found.begin(), found.end());
  std::fputs(options.json ? to_json(report).c_str() : to_table(report).c_str(), stdout);
  std::fflush(stdout);

  if (!options.json_file.empty()) {
    if (const auto written = write_file(options.json_file, to_json(report)); !written.ok())
      return fail(written.error());
  }
  if (!options.csv.empty()) {
    if (const auto written = append_csv(report, options.csv); !written.ok()) return fail(written.error());
  }
  if (!options.plot.empty()) {
    if (const auto written = write_plots(report, options.plot); !written.ok()) return fail(written.error());
  }
  if (report.interrupted) return 130;
  if (!done.ok()) return fail(done.error());
  return report.failures.empty() ? 0 : 1;
}

}  // namespace

void add_bench_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("bench", "Measure a model's speed here, next to the limits of this device");
  auto options = std::make_shared<BenchOptions>();
  command->footer(
      "Example: proa bench model.gguf --input-len 128,512 --output-len 256 --batch-size 1,4 --json-file a.json\n"
      "         proa bench compare a.json b.json");
  command->require_subcommand(0, 1);
  add_open_flags(*command, options->open);
  command->get_option("model")->required(false);
  command->add_option("--input-len", options->input_lens, "prompt lengths for prefill, tokens")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--prefill-depth", options->prefill_depths,
                   "tokens in the cache before a prefill, for which noise stands: windows of a long prompt")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  command->add_option("--output-len", options->output_len, "tokens of each sequence for decode")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--depth", options->depths, "tokens in the cache before decode; noise stands for them")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  command
      ->add_option("--history-len", options->history_lens,
                   "first turns of conversations, tokens: the first token of it and of the next turns, which know it")
      ->delimiter(',')
      ->check(CLI::Range(128, 1 << 20));
  command
      ->add_option("--kv-offloading-size", options->open.kv_offloading_size,
                   "GiB of host memory: the first token of such a conversation after it was swapped out to there")
      ->check(CLI::Range(0.0, 65536.0));
  command->add_option("--batch-size", options->batch_sizes, "sequences that decode at once")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--num-iters", options->num_iters, "timed repeats of each point")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--probe-seconds", options->probe_seconds, "length of each probe of the device; 0: none")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  command->add_option("--check-tokens", options->check_tokens, "tokens compared with the reference path beforehand")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  command->add_flag("--no-check", options->no_check, "do not compare: the report says so");
  command->add_flag("--json", options->json, "the report as JSON on standard output");
  command->add_option("--json-file", options->json_file, "the report as JSON to a file, for compare");
  command->add_option("--csv", options->csv, "append the rows to this file");
  command->add_option("--plot", options->plot, "write an SVG per sweep, PREFIX-decode-depth.svg and so on");

  struct CompareFlags {
    std::string before, after;
    CompareOptions options;
    std::optional<double> fail_above;
    bool json = false;
  };
  auto compare = std::make_shared<CompareFlags>();
  CLI::App* compare_command = command->add_subcommand("compare", "What got faster or slower beyond the noise");
  compare_command->footer("Example: proa bench compare before.json after.json --fail-above 5");
  compare_command->add_option("before", compare->before, "a report of proa bench --json-file")->required();
  compare_command->add_option("after", compare->after, "another")->required();
  compare_command->add_flag("--force", compare->options.force, "compare different devices, models or weights too");
  compare_command->add_option("--fail-above", compare->fail_above,
                              "percent of lost speed from which the exit code is 1");
  compare_command->add_flag("--json", compare->json, "the comparison as JSON");

  command->callback([command, compare_command, options, compare, &exit_code] {
    if (compare_command->parsed()) {
      const auto outcome =
          compare_files(compare->before, compare->after, compare->options, compare->fail_above, compare->json);
      if (!outcome.ok()) {
        exit_code = fail(outcome.error());
        return;
      }
      std::fputs(outcome->text.c_str(), stdout);
      exit_code = outcome->exit_code;
      return;
    }
    if (options->open.model.empty()) throw CLI::RequiredError("model");
    exit_code = run_bench(*options);
  });
}

}  // namespace proa
