// proa eval: how right a model answers, in which precision and with which caches, and how sure that is.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/open_engine.h"
#include "apps/progress_line.h"
#include "apps/prompts.h"
#include "bench/machine.h"
#include "bench/report.h"
#include "checkpoint/printable.h"
#include "core/mapped_file.h"
#include "core/output_path.h"
#include "eval/long_context.h"
#include "eval/report.h"
#include "eval/rounding_backend.h"

namespace proa {
namespace {

struct EvalOptions {
  OpenOptions open;
  std::vector<std::string> models, activation_dtypes = {"auto"};
  std::vector<std::string> kv_cache_dtypes = {"auto"}, ssm_cache_dtypes = {"float32"}, needle;
  std::string questions, text, match = "exact", needle_style = "text", thinking = "auto";
  std::string output, plot, predictions;
  int64_t limit = 0;
  int max_tokens = 256, text_tokens = 512, needles = 10, counts = 5, likelihood_mb = 128;
  bool raw = false, json = false, no_likelihood = false;
};

Result<Match> match_of(const std::string& name) {
  for (const Match match : {Match::exact, Match::contains, Match::json}) {
    if (name == to_string(match)) return match;
  }
  return Error{"evaluate", "--match", "exact, contains or json", name, ""};
}

// A kind of cache: what the engine is given, and what is rounded beside it.
struct CacheKind {
  std::string kv, ssm;
  Format format = Format::BF16;
  Rounding round_ssm = Rounding::none;
};

Result<CacheKind> cache_kind(const std::string& kv, const std::string& ssm) {
  CacheKind kind{.kv = kv == "auto" ? "bfloat16" : kv, .ssm = ssm};
  auto format = parse_kv_cache_dtype(kv);
  if (!format.ok()) {
    return Error{"evaluate", "--kv-cache-dtype", "auto, bfloat16, float16, float32 or fp8", printable(kv), ""};
  }
  kind.format = *format;
  if (kind.format == Format::F8_E4M3) kind.kv = "fp8";
  if (ssm == "float16") kind.round_ssm = Rounding::f16;
  if (ssm == "bfloat16") kind.round_ssm = Rounding::bf16;
  if (ssm != "float32" && kind.round_ssm == Rounding::none) {
    return Error{"evaluate", "--mamba-ssm-cache-dtype", "float32, float16 or bfloat16", printable(ssm), ""};
  }
  return kind;
}

// What most bytes of the weights are stored as.
std::string weights_text(const Model& model) {
  std::map<std::string, int64_t> bytes;
  for (const WeightUse& use : model.weights()) {
    if (use.kind != WeightKind::vector && use.kind != WeightKind::router) bytes[use.stored] += use.bytes;
  }
  std::vector<std::pair<int64_t, std::string>> sorted;
  for (const auto& [name, count] : bytes) sorted.emplace_back(-count, name);
  std::sort(sorted.begin(), sorted.end());
  std::string text;
  for (const auto& [count, name] : sorted) text += (text.empty() ? "" : " + ") + name;
  return text;
}

// At most so many, in whole lines of the file, evenly from all of it: questions of a line share their beginning.
std::vector<Question> limited(std::vector<Question> questions, int64_t limit) {
  const auto count = static_cast<int64_t>(questions.size());
  if (limit == 0 || limit >= count) return questions;
  std::vector<Question> out;
  for (Question& question : questions) {
    if (!in_sample(question.group, static_cast<double>(limit) / static_cast<double>(count))) continue;
    if (static_cast<int64_t>(out.size()) < limit) out.push_back(std::move(question));
  }
  return out;
}

class Evaluation {
 public:
  explicit Evaluation(const EvalOptions& options) : options_(options) {}

  Result<void> run() {
    PROA_ASSIGN(const Match match, match_of(options_.match));
    if (options_.questions.empty() && options_.text.empty() && options_.needle.empty()) {
      return Error{"evaluate", "--questions, --text or --needle", "something to evaluate on", "none", ""};
    }
    std::vector<CacheKind> caches;
    for (const std::string& kv : options_.kv_cache_dtypes) {
      for (const std::string& ssm : options_.ssm_cache_dtypes) {
        PROA_ASSIGN(CacheKind kind, cache_kind(kv, ssm));
        caches.push_back(std::move(kind));
      }
    }
    if (!options_.questions.empty()) {
      PROA_ASSIGN(auto all, read_questions(options_.questions, match));
      questions_ = limited(std::move(all), options_.limit);
      report_.questions = options_.questions;
    }
    for (const std::string& model : options_.models) {
      for (const std::string& dtype : options_.activation_dtypes) PROA_TRY(evaluate(model, dtype, caches));
    }
    return {};
  }

  EvalReport& report() { return report_; }
  const std::vector<Question>& questions() const { return questions_; }
  const std::vector<AnswerPass>& passes() const { return passes_; }

 private:
  Result<void> evaluate(const std::string& name, const std::string& activation_dtype,
                        const std::vector<CacheKind>& caches) {
    OpenOptions open = options_.open;
    open.model = name;
    open.activation_dtype = activation_dtype;
    PROA_ASSIGN(PreparedModel prepared, prepare_model(open));
    PROA_ASSIGN(const OpenedModel opened, load_model(open, std::move(prepared)));
    if (report_.rows.empty()) {
      const BenchReport machine = describe_machine(*opened.backend, open.threads, "");
      report_.machine = {{"device", machine.device},       {"description", machine.description},
                         {"cpu_model", machine.cpu_model}, {"threads", machine.threads},
                         {"date", machine.date},           {"version", machine.version},
                         {"commit", machine.commit}};
    }
    std::optional<bool> thinking;
    if (options_.thinking != "auto") thinking = options_.thinking == "on";
    PROA_ASSIGN(const PromptRenderer render, PromptRenderer::create(*opened.checkpoint, opened.tokenizer,
                                                                    open.chat_template, options_.raw, thinking));
    PROA_TRY(make_needles(opened.tokenizer));
    std::vector<std::vector<int32_t>> prompts;
    for (const Question& question : questions_) {
      PROA_ASSIGN(auto ids, render.prompt(question));
      PROA_TRY(fits(*opened.model, question, ids.size()));
      prompts.push_back(std::move(ids));
    }
    for (const CacheKind& cache : caches) PROA_TRY(evaluate(name, activation_dtype, opened, prompts, cache));
    return {};
  }

  Result<void> fits(const Model& model, const Question& question, size_t prompt) const {
    const int64_t most =
        options_.open.max_model_len ? options_.open.max_model_len : model.info().max_position_embeddings;
    if (most == 0 || static_cast<int64_t>(prompt) + options_.max_tokens <= most) return {};
    return Error{"evaluate", "question " + printable(question.id),
                 "at most " + std::to_string(most) + " tokens, prompt and answer",
                 std::to_string(prompt) + " + " + std::to_string(options_.max_tokens) + " of the answer",
                 "--max-model-len to go beyond the model's own length, --max-tokens for a shorter answer"};
  }

  // Made once, with the first model's tokenizer, so that all are asked the same.
  Result<void> make_needles(const Tokenizer& tokenizer) {
    if (options_.needle.empty() || made_needles_) return {};
    made_needles_ = true;
    size_t group = questions_.empty() ? 0 : questions_.back().group + 1;
    for (const std::string& length : options_.needle) {
      PROA_ASSIGN(const int64_t tokens, parse_token_count(length));
      const auto made =
          long_context_questions({.style = options_.needle_style == "buoy" ? LongStyle::buoy : LongStyle::text,
                                  .tokens = tokens,
                                  .needles = options_.needles,
                                  .counts = options_.counts,
                                  .seed = options_.open.seed.value_or(1),
                                  .group = group},
                                 [&](const std::string& text) { return tokenizer.encode(text).size(); });
      group = made.empty() ? group : made.back().group + 1;
      questions_.insert(questions_.end(), made.begin(), made.end());
    }
    if (report_.questions.empty()) report_.questions = "needle and count questions, " + options_.needle_style;
    return {};
  }

  Result<void> evaluate(const std::string& name, const std::string& activation_dtype, const OpenedModel& opened,
                        const std::vector<std::vector<int32_t>>& prompts, const CacheKind& cache) {
    EvalRow row{.model = name,
                .weights = weights_text(*opened.model),
                .weight_bytes = opened.model->info().weight_bytes,
                .kv_cache_dtype = cache.kv,
                .ssm_cache_dtype = cache.ssm,
                .activation_dtype = activation_dtype == "auto" ? "" : activation_dtype,
                .arithmetic = std::string(opened.backend->description())};
    std::shared_ptr<Backend> backend = opened.backend;
    if (cache.round_ssm != Rounding::none) {
      if (!backend->shares_memory()) {
        return Error{"evaluate", "--mamba-ssm-cache-dtype " + cache.ssm,
                     "--device cpu, where such a cache is imitated by rounding", std::string(backend->name()), ""};
      }
      backend = std::make_shared<RoundingBackend>(backend, cache.round_ssm);
    }
    ProgressLine line;
    const std::string label = row.name();
    const auto stage = [&](const char* what) {
      return [&line, label, what](size_t done, size_t of) -> Result<void> {
        if (InterruptFlag::interrupted()) return Error{"evaluate", label, "", "interrupted", ""};
        if (line.on()) {
          line.show(label + ": " + what + " " + std::to_string(done) + " of " + std::to_string(of));
        }
        return {};
      };
    };
    ScoringOptions scoring;
    scoring.max_tokens = options_.max_tokens;
    scoring.progress = stage("answers");
    scoring.run.max_num_seqs = options_.open.max_num_seqs;
    scoring.run.max_num_batched_tokens = options_.open.max_num_batched_tokens;
    scoring.run.kv_cache_dtype = cache.format;
    scoring.run.eos_token_ids = opened.config.eos_token_ids;
    if (!questions_.empty()) {
      PROA_ASSIGN(AnswerPass pass,
                  answer_questions(*opened.model, *backend, opened.tokenizer, questions_, prompts, scoring));
      count_answers(questions_, pass, row);
      passes_.push_back(std::move(pass));
      if (report_.rows.empty()) report_.majority = majority_answers(questions_);
    }
    // A state that is rounded at every token has to be run token by token here, too.
    scoring.run.forced_as_decodes = cache.round_ssm != Rounding::none;
    if (!options_.no_likelihood && !questions_.empty() && options_.needle.empty()) {
      scoring.progress = stage("probabilities of answers");
      PROA_TRY(likelihood(opened, *backend, scoring, answers_, row.answers, [&] {
        const int32_t end = opened.config.eos_token_ids.empty() ? -1 : chat_end(opened);
        ForcedText text = forced_answers(opened.tokenizer, questions_, prompts, end, 1);
        const double most = options_.likelihood_mb * 0x1p20 / static_cast<double>(bytes(text, opened));
        return most >= 1 ? text : forced_answers(opened.tokenizer, questions_, prompts, end, most);
      }));
    }
    if (!options_.text.empty()) {
      scoring.progress = stage("probabilities of the text");
      report_.text = options_.text;
      PROA_ASSIGN(const MappedFile file, MappedFile::open(options_.text));
      const std::string_view whole(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
      PROA_TRY(likelihood(opened, *backend, scoring, text_, row.text, [&] {
        ForcedText text = forced_text(opened.tokenizer, whole, static_cast<size_t>(options_.text_tokens));
        while (text.groups.size() > 1 && bytes(text, opened) > int64_t{options_.likelihood_mb} << 20) {
          text.groups.pop_back();
        }
        return text;
      }));
      if (!row.text || row.text->positions == 0) return Error{"evaluate", options_.text, "a text", "no tokens", ""};
    }
    report_.rows.push_back(std::move(row));
    return {};
  }

  // The token that a chat's answer ends with: the first of those that end one which is not the model's end of text.
  static int32_t chat_end(const OpenedModel& opened) {
    for (const int32_t id : opened.tokenizer.eos_ids()) {
      if (opened.tokenizer.piece(id) == "<|im_end|>") return id;
    }
    return opened.config.eos_token_ids.front();
  }

  static int64_t bytes(const ForcedText& text, const OpenedModel& opened) {
    return text.positions() * opened.model->info().vocab_size * 4;
  }

  Result<void> likelihood(const OpenedModel& opened, Backend& backend, const ScoringOptions& scoring,
                          std::optional<BaseProbabilities>& base, std::optional<Likelihood>& out,
                          const std::function<ForcedText()>& make) const {
    if (!base) {
      PROA_ASSIGN(base, BaseProbabilities::measure(*opened.model, backend, make(), scoring));
      out = base->base();
      return {};
    }
    PROA_ASSIGN(out, base->compare(*opened.model, backend, scoring));
    return {};
  }

  const EvalOptions& options_;
  EvalReport report_;
  std::vector<Question> questions_;
  std::vector<AnswerPass> passes_;
  std::optional<BaseProbabilities> answers_, text_;
  bool made_needles_ = false;
};

// A line per question: what each row answered.
Result<void> write_predictions(const EvalOptions& options, const Evaluation& evaluation) {
  std::string text;
  for (size_t i = 0; i < evaluation.questions().size(); ++i) {
    const Question& q = evaluation.questions()[i];
    nlohmann::ordered_json json = {
        {"id", q.id}, {"kind", q.kind}, {"language", q.language}, {"right", q.answers.front()}};
    json["answers"] = nlohmann::ordered_json::array();
    for (const AnswerPass& pass : evaluation.passes()) {
      json["answers"].push_back({{"text", pass.answers[i].text}, {"right", pass.answers[i].right}});
    }
    text += json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  }
  return write_file(options.predictions, text);
}

Result<void> eval(const EvalOptions& options, const std::string& command) {
  Evaluation evaluation(options);
  auto done = evaluation.run();
  EvalReport& report = evaluation.report();
  report.interrupted = InterruptFlag::interrupted();
  if (!done.ok() && !(report.interrupted && !report.rows.empty())) return done;
  report.machine["command"] = command;
  report.machine["peak_memory_bytes"] = peak_memory_bytes().value_or(0);
  const std::string json = to_json(report).dump(1) + "\n";
  if (options.json) {
    std::fputs(json.c_str(), stdout);
  } else {
    std::fputs(to_table(report).c_str(), stdout);
  }
  if (std::fflush(stdout) != 0) return Error{"write the report", "standard output", "", "it takes no more", ""};
  if (!options.output.empty()) PROA_TRY(write_file(options.output, json));
  if (!options.plot.empty()) PROA_TRY(write_file(options.plot, plot_svg(report)));
  if (!options.predictions.empty()) PROA_TRY(write_predictions(options, evaluation));
  return done;
}

}  // namespace

void add_eval_command(CLI::App& app, int& exit_code) {
  const auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "how right a model answers");
  command->footer(
      "A row per model, kind of activations and of caches; all are compared with the first. Answers are drawn "
      "greedily,\n"
      "many at once; questions about one text share its computation. Lines of the file of questions are JSON objects:\n"
      "  {\"question\": \"...\", \"answer\": \"...\"}    also \"answers\", \"choices\", \"match\", \"kind\", "
      "\"language\"\n"
      "  {\"messages\": [...], \"answer\": \"...\"}     or \"questions\": [...], with {question} in a message\n"
      "Example: proa eval models/proa-buoy buoy-fp8 buoy-q4_0.gguf --questions models/proa-buoy/held_out.jsonl\n"
      "         proa eval models/proa-buoy --questions held_out.jsonl --kv-cache-dtype auto,fp8\n"
      "         proa eval model.gguf --text book.txt\n"
      "         proa eval models/proa-buoy --needle 8K,64K --needle-style buoy --max-model-len 70000");
  OpenOptions& open = options->open;
  open.max_num_seqs = 32;
  command->add_option("models", options->models, "folders, GGUF files or names in the cache; the first is the base")
      ->required();
  command->add_option("--questions", options->questions, "a file of questions with answers (.jsonl)");
  command->add_option("--limit", options->limit, "so many questions, evenly from the file; 0: all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32));
  command->add_option("--match", options->match, "exact, contains or json, where a line does not say")
      ->capture_default_str();
  command->add_option("--text", options->text, "a text: its perplexity, and KL to the first model");
  command->add_option("--text-tokens", options->text_tokens, "of a piece of the text, begun anew")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--needle", options->needle, "lengths of texts in which something is to be found: 8K,64K,256K,1M")
      ->delimiter(',');
  command->add_option("--needle-style", options->needle_style, "text, or buoy: windows as proa-buoy knows them")
      ->check(CLI::IsMember({"text", "buoy"}))
      ->capture_default_str();
  command->add_option("--needles", options->needles, "per length")->check(CLI::Range(0, 24))->capture_default_str();
  command->add_option("--counts", options->counts, "counting questions per length, each in a text of its own")
      ->check(CLI::Range(0, 24))
      ->capture_default_str();
  command->add_option("--kv-cache-dtype", options->kv_cache_dtypes, "auto, bfloat16, float16, float32, fp8: a row each")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--mamba-ssm-cache-dtype", options->ssm_cache_dtypes, "float32, float16, bfloat16: a row each")
      ->delimiter(',')
      ->capture_default_str();
  command->add_flag("--no-probabilities", options->no_likelihood,
                    "answers only: no perplexity and KL of the right ones");
  command->add_option("--probabilities-mb", options->likelihood_mb, "memory for the first model's probabilities")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-tokens", options->max_tokens, "of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_flag("--raw", options->raw, "questions are plain text to continue: no chat template");
  command->add_option("--thinking", options->thinking, "on, off, or auto: as the chat template has it")
      ->check(CLI::IsMember({"on", "off", "auto"}));
  command->add_option("--chat-template", open.chat_template, "a Jinja file in place of the checkpoint's template");
  command->add_option("--device", open.device, "auto, cpu, cuda:N or reference")->capture_default_str();
  command->add_option("--threads", open.threads, "CPU threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_option(
      "--cpu-target", open.cpu_target,
      "instruction set of the CPU: AVX3_DL, AVX3_BF16 and AVX3_AMX multiply rounded values, others F32");
  command
      ->add_option("--activation-dtype", options->activation_dtypes,
                   "of many tokens on an H100, one or several: auto, bfloat16, fp8; see proa run --help")
      ->delimiter(',');
  command->add_option("--max-num-seqs", open.max_num_seqs, "answers at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--max-num-batched-tokens", open.max_num_batched_tokens, "tokens of a step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--max-model-len", open.max_model_len, "tokens of prompt and answer; 0: the model's own length")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  command->add_option("--seed", open.seed, "of needles and counts");
  command->add_option("--revision", open.revision, "of a name");
  command->add_option("--download-dir", open.download_dir, "the cache of models");
  command->add_flag("--json", options->json, "JSON in place of the table");
  command->add_option("--output", options->output, "write the JSON to this file");
  command->add_option("--plot", options->plot, "write a plot to this SVG file");
  command->add_option("--predictions", options->predictions, "write what was answered to this file (.jsonl)");
  command->callback([options, command, &exit_code] {
    const InterruptFlag ctrl_c;
    std::string line = "proa eval";
    for (const std::string& model : options->models) line += " " + model;
    for (const CLI::Option* option : command->get_options()) {
      if (option->count() == 0 || option->get_positional() || option->get_name() == "--help") continue;
      line += " " + option->get_name();
      const auto& values = option->results();
      if (option->get_expected_max() == 0) continue;  // a flag, which has no value
      for (size_t i = 0; i < values.size(); ++i) line += (i == 0 ? " " : ",") + values[i];
    }
    const auto done = eval(*options, line);
    if (done.ok()) return;
    std::fprintf(stderr, "proa: %s\n", done.error().message().c_str());
    exit_code = InterruptFlag::interrupted() ? 130 : 1;
  });
}

}  // namespace proa
