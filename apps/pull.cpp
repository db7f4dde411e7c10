// proa pull: a model from a Hugging Face-compatible hub into the cache that transformers and vLLM use too.
#include <CLI/CLI.hpp>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/progress_line.h"
#include "checkpoint/printable.h"
#include "core/text.h"
#include "registry/download.h"
#include "registry/hub_cache.h"

namespace proa {
namespace {

struct PullCommand {
  std::string model, revision, download_dir, endpoint;
  Patterns patterns;
  double timeout_s = 30, retry_wait_s = 1;
  int retries = 5;
  int jobs = 4;
  bool dry_run = false, json = false, offline = false;
};

std::string time_text(double seconds) {
  std::array<char, 32> text{};
  const auto whole = static_cast<long>(seconds);
  if (whole < 60) {
    std::snprintf(text.data(), text.size(), "%ld s", whole);
  } else if (whole < 3600) {
    std::snprintf(text.data(), text.size(), "%ld:%02ld min", whole / 60, whole % 60);
  } else {
    std::snprintf(text.data(), text.size(), "%ld:%02ld h", whole / 3600, whole % 3600 / 60);
  }
  return text.data();
}

// What is done and what is left, with a smoothed rate.
class PullLine {
 public:
  void note(const std::string& text) { line_.note(printable(text, 300)); }

  void draw(const PullPlan& plan, const PullProgress& progress) {
    if (!line_.on()) return;
    const auto now = std::chrono::steady_clock::now();
    const uint64_t bytes = progress.bytes;
    if (!started_) {
      started_ = true;
      last_time_ = now;
      last_bytes_ = bytes;
    }
    const double seconds = std::chrono::duration<double>(now - last_time_).count();
    if (seconds >= 0.5) {
      const double rate = bytes > last_bytes_ ? static_cast<double>(bytes - last_bytes_) / seconds : 0;
      rate_ = rate_ == 0 ? rate : 0.8 * rate_ + 0.2 * rate;
      last_time_ = now;
      last_bytes_ = bytes;
    }
    std::string line = bytes_text(bytes) + " of " + bytes_text(plan.missing);
    if (plan.missing > 0) {
      line += " (" + std::to_string(100.0 * static_cast<double>(bytes) / static_cast<double>(plan.missing));
      line.resize(line.find('.', line.find('(')));
      line += "%)";
    }
    if (rate_ >= 1) {
      line += ", " + bytes_text(rate_) + "/s";
      if (bytes < plan.missing) line += ", " + time_text(static_cast<double>(plan.missing - bytes) / rate_) + " left";
    }
    line += ", " + std::to_string(progress.files) + " of " + std::to_string(plan.files.size()) + " files";
    line_.show(line);
  }

  void clear() { line_.clear(); }

 private:
  ProgressLine line_;
  bool started_ = false;
  std::chrono::steady_clock::time_point last_time_{};
  uint64_t last_bytes_ = 0;
  double rate_ = 0;
};

nlohmann::ordered_json to_json(const PullPlan& plan, const std::string& path) {
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const PullFile& file : plan.files) {
    files.push_back({{"path", file.file.path},
                     {"size", *file.file.size},
                     {"etag", file.file.etag},
                     {"present", file.present},
                     {"partial", file.partial}});
  }
  return {
      {"id", plan.name.id}, {"revision", plan.revision}, {"commit", plan.commit},         {"snapshot", plan.snapshot},
      {"path", path},       {"bytes", plan.bytes},       {"missing_bytes", plan.missing}, {"files", std::move(files)}};
}

std::string dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void print_plan(const PullPlan& plan) {
  for (const PullFile& file : plan.files) {
    std::printf("%10s  %-8s  %s\n", bytes_text(*file.file.size).c_str(),
                file.present       ? "present"
                : file.partial > 0 ? "partial"
                                   : "missing",
                printable(file.file.path, 512).c_str());
  }
  std::printf("%10s  in %zu files of %s@%s, %s to download into %s\n", bytes_text(plan.bytes).c_str(),
              plan.files.size(), plan.name.id.c_str(), plan.commit.c_str(), bytes_text(plan.missing).c_str(),
              plan.repository.c_str());
}

// What `proa run` would open; the snapshot where the files are not for it.
std::string path_of(const PullPlan& plan) {
  std::string model = plan.name.id;
  if (!plan.name.tag.empty()) model += ":" + plan.name.tag;
  if (!plan.name.file.empty()) model += "/" + plan.name.file;
  const auto path = resolve_model(model, {.cache = plan.cache, .revision = plan.commit});
  return path.ok() && path->starts_with(plan.snapshot) ? *path : plan.snapshot;
}

Result<void> run(const PullCommand& command, std::atomic<bool>& cancelled) {
  if (command.offline || hub_is_offline()) {
    auto path = resolve_model(command.model, {.cache = command.download_dir, .revision = command.revision});
    if (!path.ok()) {
      Error error = std::move(path).error();
      error.hint = command.offline ? "--offline: no network" : "HF_HUB_OFFLINE: no network";
      return error;
    }
    const nlohmann::ordered_json json = {{"path", *path}};
    std::printf("%s\n", command.json ? dump(json).c_str() : path->c_str());
    return {};
  }
  PullLine line;
  HubOptions options{.endpoint = command.endpoint,
                     .timeout_s = command.timeout_s,
                     .retries = command.retries,
                     .retry_wait_s = command.retry_wait_s,
                     .cancelled = &cancelled,
                     .note = [&](const std::string& text) { line.note(text); }};
  PROA_ASSIGN(options.token, stored_token());
  PROA_ASSIGN(const Hub hub, Hub::create(std::move(options)));
  PROA_ASSIGN(const PullPlan plan,
              plan_pull(hub, command.model, command.revision, command.download_dir, command.patterns));
  if (command.dry_run) {
    if (command.json) {
      std::printf("%s\n", dump(to_json(plan, path_of(plan))).c_str());
    } else {
      print_plan(plan);
    }
    return {};
  }

  PullProgress progress;
  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;
  std::thread drawing([&] {
    std::unique_lock lock(mutex);
    do {
      line.draw(plan, progress);
    } while (!changed.wait_for(lock, std::chrono::milliseconds(200), [&] { return ended; }));
  });
  const auto pulled = pull(hub, plan, command.jobs, cancelled, progress);
  {
    const std::lock_guard lock(mutex);
    ended = true;
  }
  changed.notify_one();
  drawing.join();
  line.clear();
  PROA_TRY(pulled);
  const std::string path = path_of(plan);
  std::printf("%s\n", command.json ? dump(to_json(plan, path)).c_str() : path.c_str());
  return {};
}

}  // namespace

void add_pull_command(CLI::App& app, int& exit_code) {
  const auto options = std::make_shared<PullCommand>();
  CLI::App* command = app.add_subcommand("pull", "download a model from a Hugging Face-compatible hub");
  command->footer(
      "Files go into the cache of huggingface_hub (HF_HOME and its like), so that transformers and vLLM find them "
      "too;\n"
      "a pull that was broken off goes on where it was. Prints the path to open. HF_TOKEN, or the token that was "
      "stored\n"
      "by a login, is sent to the hub alone.\n"
      "Example: proa pull nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16\n"
      "         proa pull org/name-GGUF:Q4_K_M --dry-run");
  command->add_option("model", options->model, "org/name, org/name@revision, org/name:Q4_0, or org/name/file.gguf")
      ->required();
  command->add_option("--revision", options->revision, "branch, tag or commit; else main");
  command
      ->add_option("--include", options->patterns.include,
                   "globs of the files to fetch; else weights once, and all else")
      ->allow_extra_args(false);
  command->add_option("--exclude", options->patterns.exclude, "globs of files to leave out")->allow_extra_args(false);
  command->add_option("--download-dir", options->download_dir, "the cache of models; else HF_HOME and its like");
  command->add_option("--endpoint", options->endpoint,
                      "the hub, or a mirror of it; else HF_ENDPOINT, or huggingface.co");
  command->add_option("--jobs", options->jobs, "files at a time")->check(CLI::Range(1, 16))->capture_default_str();
  command->add_option("--timeout", options->timeout_s, "seconds with hardly any bytes before another try")
      ->check(CLI::Range(1.0, 3600.0))
      ->capture_default_str();
  command->add_option("--retries", options->retries, "more tries in a row")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  command->add_option("--retry-wait", options->retry_wait_s, "seconds before the first of them, then doubled")
      ->check(CLI::Range(0.0, 60.0))
      ->capture_default_str();
  command->add_flag("--dry-run", options->dry_run, "show what would be downloaded");
  command->add_flag("--offline", options->offline, "no network: only say where it is in the cache");
  command->add_flag("--json", options->json, "one JSON object on standard output");
  command->callback([options, &exit_code] {
    std::signal(SIGPIPE, SIG_IGN);        // of a connection that a server closed
    std::atomic<bool> cancelled = false;  // by a signal, or by the first file that fails
    const InterruptFlag ctrl_c(InterruptFlag::Signals::interrupt_and_terminate, &cancelled);
    const auto done = run(*options, cancelled);
    if (done.ok()) return;
    std::fprintf(stderr, "proa: %s\n", done.error().message().c_str());
    exit_code = InterruptFlag::interrupted() ? 130 : 1;
  });
}

}  // namespace proa
