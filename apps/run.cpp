// proa run: chat in the terminal, or one answer for a script.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "apps/chat_session.h"
#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/line_editor.h"
#include "apps/open_engine.h"
#include "checkpoint/checkpoint.h"

namespace proa {
namespace {

struct RunOptions {
  OpenOptions open;
  std::string prompt;
  std::string system;
  std::string thinking = "auto";
  bool raw = false;
  bool json = false;
  bool verbose = false;
  // Unset: what the checkpoint's generation_config.json says.
  std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int> top_k, max_tokens, logprobs;
  int min_tokens = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;
};

constexpr const char* kChatHelp =
    "  /help            this text\n"
    "  /reset           begin anew\n"
    "  /system [TEXT]   begin anew with a system message (or none)\n"
    "  /stats           tokens, speed and time of the last answer\n"
    "  /exit            leave, as Ctrl-D does\n"
    "  Ctrl-C           stop the answer\n"
    "  A line that ends in \\ goes on in the next; \"\"\" opens a text of many lines and closes it.\n";

int fail(const Error& error) {
  std::fprintf(stderr, "proa: %s\n", error.message().c_str());
  return 1;
}

SamplingParams sampling_params(const RunOptions& options, const SamplingParams& defaults) {
  SamplingParams params = defaults;
  if (options.temperature) params.temperature = *options.temperature;
  if (options.top_p) params.top_p = *options.top_p;
  if (options.min_p) params.min_p = *options.min_p;
  if (options.top_k) params.top_k = *options.top_k;
  if (options.repetition_penalty) params.repetition_penalty = *options.repetition_penalty;
  if (options.presence_penalty) params.presence_penalty = *options.presence_penalty;
  if (options.frequency_penalty) params.frequency_penalty = *options.frequency_penalty;
  params.seed = options.open.seed;
  params.max_tokens = options.max_tokens;
  params.min_tokens = options.min_tokens;
  params.stop = options.stop;
  params.ignore_eos = options.ignore_eos;
  params.logprobs = options.logprobs;
  params.skip_special_tokens = options.raw;  // reasoning is recognised by its tags, which may be control tokens
  return params;
}

std::string history_path() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state && *state) return std::string(state) + "/proa/history";
  const char* home = std::getenv("HOME");
  return home && *home ? std::string(home) + "/.local/state/proa/history" : "";
}

// Writes an answer as it comes. On a terminal the thoughts are shown dimmed; elsewhere only the answer is written.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(bool show_reasoning) : show_reasoning_(show_reasoning) {}

  bool operator()(ChatSession::Part part, std::string_view text) {
    if (part == ChatSession::Part::reasoning) {
      if (!show_reasoning_) return true;
      if (!dimmed_) std::fputs("\033[2m", stdout);
      dimmed_ = true;
    } else if (dimmed_) {
      std::fputs("\033[0m\n\n", stdout);
      dimmed_ = false;
    }
    std::fwrite(text.data(), 1, text.size(), stdout);
    return std::fflush(stdout) == 0;
  }

  // Ends the line. False: standard output cannot take it (a closed pipe, a full disk).
  bool finish() {
    if (dimmed_) std::fputs("\033[0m", stdout);
    dimmed_ = false;
    std::fputs("\n", stdout);
    return std::fflush(stdout) == 0;
  }

 private:
  bool show_reasoning_;
  bool dimmed_ = false;
};

void print_stats(const Answer& answer) {
  const Timings& t = answer.timings;
  const double prefill = t.prefill_seconds > 0 ? (t.prompt_tokens - t.cached_tokens) / t.prefill_seconds : 0;
  const std::string cached = t.cached_tokens > 0 ? ", " + std::to_string(t.cached_tokens) + " of them known" : "";
  std::fprintf(stderr, "prompt %d tokens%s, %.0f tok/s; answer %d tokens, %.1f tok/s; first token after %.3f s; %s\n",
               t.prompt_tokens, cached.c_str(), prefill, t.completion_tokens, t.decode_tokens_per_second(),
               t.first_token_seconds, to_string(answer.finish_reason));
}

bool not_interrupted() { return !InterruptFlag::interrupted(); }

int answer_once(ChatSession& session, const std::string& prompt, const RunOptions& options, double load_seconds) {
  AnswerPrinter print(false);
  const auto on_text = [&](ChatSession::Part part, std::string_view text) { return options.json || print(part, text); };
  auto answer = session.ask(prompt, on_text, not_interrupted);
  if (!answer.ok()) return fail(answer.error());
  if (options.json) {
    nlohmann::ordered_json json = {{"model", options.open.model}};
    json.update(answer->to_json());
    json["timings"]["load_s"] = load_seconds;
    std::puts(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  }
  const bool written = options.json ? std::fflush(stdout) == 0 : print.finish();
  if (options.verbose) print_stats(*answer);
  if (!written) return fail({"write the answer", "standard output", "", "it takes no more", ""});
  return answer->finish_reason == FinishReason::cancelled ? 130 : 0;  // as a shell reports Ctrl-C
}

// One entry, which may be of several lines. False: no more input.
bool read_entry(LineEditor& editor, std::string& entry) {
  entry.clear();
  bool quoted = false;
  for (std::string line;;) {
    switch (editor.read(entry.empty() && !quoted ? "> " : "... ", line)) {
      case LineEditor::End::end_of_input:
        return !entry.empty();
      case LineEditor::End::interrupted:
        entry.clear();
        quoted = false;
        continue;
      case LineEditor::End::line:
        break;
    }
    if (!quoted && entry.empty() && line.starts_with("\"\"\"")) {
      quoted = true;
      line.erase(0, 3);
    }
    if (quoted) {
      const bool closes = line.ends_with("\"\"\"");
      if (closes) line.erase(line.size() - 3);
      entry += line;
      if (closes) break;
      entry += '\n';
    } else if (line.ends_with('\\')) {
      line.back() = '\n';
      entry += line;
    } else {
      entry += line;
      break;
    }
  }
  editor.remember(entry);
  return true;
}

int chat(ChatSession& session, const OpenedEngine& opened) {
  const InterruptFlag ctrl_c(InterruptFlag::Signals::interrupt);  // which leaves the prompt; SIGTERM ends all
  LineEditor editor(history_path());
  std::printf("%s, %s. /help for help, Ctrl-D to leave.\n",
              std::filesystem::path(opened.checkpoint->path()).filename().c_str(),
              std::string(opened.backend->description()).c_str());
  for (std::string entry; read_entry(editor, entry);) {
    if (entry.find_first_not_of(" \t\n") == std::string::npos) continue;
    if (entry.starts_with('/')) {
      const std::string command = entry.substr(0, entry.find(' '));
      const std::string argument = command.size() < entry.size() ? entry.substr(command.size() + 1) : "";
      if (command == "/help") {
        std::fputs(kChatHelp, stdout);
      } else if (command == "/reset") {
        session.reset();
      } else if (command == "/system") {
        session.set_system(argument);
      } else if (command == "/stats") {
        if (session.last()) print_stats(*session.last());
      } else if (command == "/exit" || command == "/quit" || command == "/bye") {
        break;
      } else {
        std::printf("unknown command %s\n%s", command.c_str(), kChatHelp);
      }
      continue;
    }
    InterruptFlag::clear();
    AnswerPrinter print(true);
    const auto answer = session.ask(entry, std::ref(print), not_interrupted);
    if (!print.finish()) return 1;
    if (!answer.ok()) fail(answer.error());
  }
  return 0;
}

std::string read_standard_input() {
  std::string text;
  char buffer[65536];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, n);
  return text;
}

int run(const RunOptions& options, bool has_prompt) {
  const auto started = std::chrono::steady_clock::now();
  const auto show_plan = [&](const MemoryPlan& plan) {
    if (options.verbose || isatty(STDERR_FILENO)) std::fprintf(stderr, "%s\n", plan.text().c_str());
  };
  auto opened = open_engine(options.open, show_plan);
  if (!opened.ok()) return fail(opened.error());
  const double load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();

  SessionOptions session_options{.raw = options.raw, .params = sampling_params(options, opened->defaults)};
  if (options.thinking != "auto") session_options.enable_thinking = options.thinking == "on";
  if (!opened->chat_template) session_options.raw = true;
  if (auto valid = validate(session_options.params, opened->tokenizer.vocab_size()); !valid.ok())
    return fail(valid.error());

  ChatSession session(*opened, session_options);
  if (!options.system.empty()) session.set_system(options.system);
  if (!has_prompt && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) return chat(session, *opened);
  const InterruptFlag ctrl_c;
  return answer_once(session, has_prompt ? options.prompt : read_standard_input(), options, load_seconds);
}

}  // namespace

void add_run_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("run", "chat with a model, or answer once");
  auto options = std::make_shared<RunOptions>();
  add_open_flags(*command, options->open);
  add_prefix_cache_flags(*command, options->open);
  CLI::Option* prompt = command->add_option("-p,--prompt", options->prompt,
                                            "answer this once and leave; without it and without "
                                            "a terminal the prompt is read from standard input");
  command->add_option("--system", options->system, "system message");
  command->add_option("--thinking", options->thinking, "on, off, or auto: as the chat template has it")
      ->check(CLI::IsMember({"on", "off", "auto"}));
  command->add_flag("--raw", options->raw, "the prompt is plain text to continue: no chat template");
  command->add_flag("--json", options->json,
                    "one JSON object: text, token_ids, logprobs, finish_reason, usage, timings (seconds)");
  command->add_flag("-v,--verbose", options->verbose, "memory, speed and times on standard error");

  const std::string unset = " (default: the checkpoint's generation_config.json)";
  command->add_option("--temperature", options->temperature, "0: always the likeliest token" + unset);
  command->add_option("--top-p", options->top_p,
                      "draw from the likeliest tokens that together reach this probability" + unset);
  command->add_option("--top-k", options->top_k, "draw from this many likeliest tokens, 0: all" + unset);
  command->add_option("--min-p", options->min_p, "drop tokens less likely than this part of the likeliest" + unset);
  command->add_option("--repetition-penalty", options->repetition_penalty,
                      "above 1: less of what prompt and answer hold" + unset);
  command->add_option("--presence-penalty", options->presence_penalty,
                      "-2 to 2: subtracted once from tokens of the answer");
  command->add_option("--frequency-penalty", options->frequency_penalty,
                      "-2 to 2: subtracted as often as a token occurred");
  command->add_option("--max-tokens", options->max_tokens, "of the answer");
  command->add_option("--min-tokens", options->min_tokens, "of the answer, before it may end")->capture_default_str();
  command->add_option("--stop", options->stop, "end before this text; may be given several times")
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", options->ignore_eos, "do not end at the end-of-text token");
  command->add_option("--logprobs", options->logprobs, "alternatives per token in --json");
  command->footer("Example: proa run MODEL -p \"What is a proa?\" --temperature 0 --max-tokens 100");
  command->callback([options, prompt, &exit_code] { exit_code = run(*options, prompt->count() > 0); });
}

}  // namespace proa
