// proa quantize: a BF16 checkpoint in fewer bits, as NVIDIA or llama.cpp would write it.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/open_engine.h"
#include "apps/progress_line.h"
#include "apps/prompts.h"
#include "backends/backends.h"
#include "bench/machine.h"
#include "checkpoint/printable.h"
#include "core/mapped_file.h"
#include "core/output_path.h"
#include "eval/questions.h"
#include "quantize/calibrate.h"
#include "quantize/write.h"
#include "registry/hub_cache.h"

namespace proa {
namespace {

struct QuantizeFlags {
  std::string model, output, to, calibration, save_calibration, revision, download_dir, device = "cpu";
  double max_shard_gb = 5;
  int threads = 0;
  int64_t calibration_tokens = 32768;
  bool force = false, restart = false, as_they_come = false, json = false;
};

constexpr size_t kPieceTokens = 1024;  // of a plain text, at a time

Result<void> not_interrupted() {
  if (InterruptFlag::interrupted()) return Error{"quantise", "", "", "interrupted", ""};
  return {};
}

// The prompts of a calibration file, with their answers where it has them: at most so many tokens.
Result<std::vector<std::vector<int32_t>>> calibration_prompts(const QuantizeFlags& flags, const std::string& folder) {
  PROA_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(folder));
  PROA_ASSIGN(const Tokenizer tokenizer, Tokenizer::open(checkpoint));
  std::vector<std::vector<int32_t>> prompts;
  int64_t left = flags.calibration_tokens;
  const auto add = [&](std::vector<int32_t> ids) {
    if (ids.empty() || left <= 0) return;
    if (static_cast<int64_t>(ids.size()) > left) ids.resize(static_cast<size_t>(left));
    left -= static_cast<int64_t>(ids.size());
    prompts.push_back(std::move(ids));
  };
  if (flags.calibration.ends_with(".jsonl")) {
    PROA_ASSIGN(const auto questions, read_questions(flags.calibration));
    PROA_ASSIGN(const auto render, PromptRenderer::create(checkpoint, tokenizer, "", false));
    for (const Question& question : questions) {
      PROA_ASSIGN(std::vector<int32_t> ids, render.prompt(question));
      const auto answer = tokenizer.encode(question.answers.front());
      ids.insert(ids.end(), answer.begin(), answer.end());
      add(std::move(ids));
    }
  } else {
    PROA_ASSIGN(const MappedFile file, MappedFile::open(flags.calibration));
    const auto ids = tokenizer.encode({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
    for (size_t at = 0; at < ids.size(); at += kPieceTokens) {
      add({ids.begin() + static_cast<ptrdiff_t>(at),
           ids.begin() + static_cast<ptrdiff_t>(std::min(ids.size(), at + kPieceTokens))});
    }
  }
  if (prompts.empty()) return Error{"calibrate", "--calibration " + flags.calibration, "a text", "no tokens", ""};
  return prompts;
}

// From a file of ranges, or by running prompts.
Result<InputRanges> input_ranges(const QuantizeFlags& flags, const QuantizeSource& source, const QuantizePlan& plan) {
  if (flags.calibration.ends_with(".json")) {
    PROA_ASSIGN(const MappedFile file, MappedFile::open(flags.calibration));
    return InputRanges::parse({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()},
                              flags.calibration);
  }
  if (!source.absent.empty()) {
    return Error{"calibrate", source.path, "all shards", "some are absent",
                 "--calibration with a file that --save-calibration wrote"};
  }
  PROA_ASSIGN(const auto prompts, calibration_prompts(flags, source.path));
  PROA_ASSIGN(std::shared_ptr<Backend> backend, make_backend(flags.device, {.num_threads = flags.threads}));
  int64_t total = 0, done = 0;
  for (const auto& prompt : prompts) total += static_cast<int64_t>(prompt.size());
  ProgressLine line;
  PROA_ASSIGN(InputRanges ranges, calibrate(source, plan, backend, prompts, [&](int64_t tokens) -> Result<void> {
                PROA_TRY(not_interrupted());
                done += tokens;
                line.show("calibrating: " + std::to_string(done) + " of " + std::to_string(total) + " tokens");
                return {};
              }));
  line.clear();
  if (!flags.save_calibration.empty()) {
    PROA_ASSIGN(OutputFile out, OutputFile::create(flags.save_calibration));
    const std::string text = ranges.to_json();
    PROA_TRY(out.write(std::as_bytes(std::span(text))));
    PROA_TRY(out.close());
  }
  return ranges;
}

Result<void> quantize(const QuantizeFlags& flags) {
  PROA_ASSIGN(const Precision* precision, find_quantize_precision(flags.to));
  const bool gguf = flags.output.ends_with(".gguf");
  if (gguf == is_folder_precision(*precision)) {
    return Error{"quantise", "--to " + std::string(precision->name) + " " + flags.output,
                 gguf ? "a folder, since there is no GGUF of this precision here" : "a name that ends in .gguf",
                 gguf ? "a GGUF file" : "a folder for safetensors", ""};
  }
  PROA_ASSIGN(const std::string folder,
              resolve_model(flags.model, {.cache = flags.download_dir, .revision = flags.revision}));
  PROA_ASSIGN(const QuantizeSource source, open_quantize_source(folder, flags.as_they_come));
  PlanOptions options{.max_shard_bytes = static_cast<uint64_t>(flags.max_shard_gb * 1e9)};
  options.name = std::filesystem::path(source.path).filename().string();
  options.input_scales = flags.calibration != "none";
  PROA_ASSIGN(const QuantizePlan plan, plan_quantize(source, *precision, options));
  InputRanges ranges;
  if (plan.scales_activations) {
    if (flags.calibration.empty()) {
      return Error{"quantise", "--calibration", "a file of prompts, for the scales of activations", "none",
                   "a text, questions (.jsonl), ranges (.json), or none: weights alone"};
    }
    PROA_ASSIGN(ranges, input_ranges(flags, source, plan));
  }
  ByteProgress progress(plan.source_bytes);
  const auto count = [&](uint64_t bytes) -> Result<void> {
    progress.add(bytes);
    return not_interrupted();
  };
  auto written = write_quantized(source, plan, ranges, flags.output,
                                 {.threads = flags.threads, .replace = flags.force, .restart = flags.restart}, count);
  if (!written.ok()) {
    Error error = std::move(written).error();
    if (InterruptFlag::interrupted()) error.hint = "the same command goes on from here, --restart begins anew";
    return error;
  }
  const int64_t peak = peak_memory_bytes().value_or(0);
  if (flags.json) {
    const nlohmann::ordered_json json = {{"path", flags.output},
                                         {"precision", precision->name},
                                         {"whole", written->whole},
                                         {"items", written->items},
                                         {"items_before", written->items_before},
                                         {"items_left", written->items_left},
                                         {"bytes", written->bytes},
                                         {"source_bytes", plan.source_bytes},
                                         {"calibration_tokens", ranges.tokens},
                                         {"seconds", progress.seconds()},
                                         {"peak_memory_bytes", peak}};
    std::printf("%s\n", json.dump().c_str());
  } else if (written->whole) {
    std::printf("%s: %s, %s of memory at most\n", flags.output.c_str(), bytes_text(written->bytes).c_str(),
                bytes_text(static_cast<double>(peak)).c_str());
  } else {
    std::printf("%s: %llu of %zu tensors done, %s of memory at most; the same command goes on with the next shards\n",
                flags.output.c_str(), static_cast<unsigned long long>(written->items + written->items_before),
                plan.items.size(), bytes_text(static_cast<double>(peak)).c_str());
  }
  if (!plan.dropped.empty()) {
    std::fprintf(stderr, "proa: %zu tensors have no place in this GGUF file, the first is %s\n", plan.dropped.size(),
                 printable(plan.dropped.front()).c_str());
  }
  return {};
}

}  // namespace

void add_quantize_command(CLI::App& app, int& exit_code) {
  const auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* command = app.add_subcommand("quantize", "write a BF16 checkpoint in fewer bits");
  command->footer(
      "fp8 and nvfp4 are folders as NVIDIA's ModelOpt exports them: attention, the Mamba-2 layers before it, "
      "embedding\n"
      "and lm_head stay BF16. The others are GGUF files as llama-quantize makes them. The output appears when it is\n"
      "whole; a run that was interrupted goes on where it was when the same command is given again.\n"
      "Example: proa quantize Nemotron-3-Nano-30B-A3B-BF16 nano-q4_0.gguf --to q4_0\n"
      "         proa quantize Nemotron-3-Nano-30B-A3B-BF16 nano-fp8 --to fp8 --calibration prompts.txt");
  command->add_option("model", flags->model, "a folder of BF16 safetensors, or org/name in the cache of models")
      ->required();
  command->add_option("output", flags->output, "FILE.gguf, or a folder for fp8 and nvfp4")->required();
  command->add_option("--to", flags->to, quantize_precisions())->required();
  command->add_option("--calibration", flags->calibration,
                      "for fp8 and nvfp4: prompts that the scales of activations are measured on, a text or questions "
                      "(.jsonl); ranges saved earlier (.json); or none");
  command->add_option("--calibration-tokens", flags->calibration_tokens, "at most so many tokens of the prompts")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command->add_option("--save-calibration", flags->save_calibration, "write the ranges to this file");
  command->add_flag("--as-they-come", flags->as_they_come,
                    "quantise the shards that are there; run again as others come (each may then be removed)");
  command->add_option("--max-shard-size", flags->max_shard_gb, "GB of a safetensors file")
      ->check(CLI::Range(0.001, 1000.0))
      ->capture_default_str();
  command->add_option("--device", flags->device, "for calibration: cpu or reference")->capture_default_str();
  command->add_option("--threads", flags->threads, "CPU threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_option("--revision", flags->revision, "of a name");
  command->add_option("--download-dir", flags->download_dir, "the cache of models");
  command->add_flag("--force", flags->force, "replace what is there");
  command->add_flag("--restart", flags->restart, "forget what an interrupted run left");
  command->add_flag("--json", flags->json,
                    "one JSON object: path, precision, whole, items, items_before, items_left, bytes, source_bytes, "
                    "calibration_tokens, seconds, peak_memory_bytes");
  command->callback([flags, &exit_code] {
    const InterruptFlag ctrl_c;
    std::signal(SIGXFSZ, SIG_IGN);
    const auto done = quantize(*flags);
    if (done.ok()) return;
    std::fprintf(stderr, "proa: %s\n", done.error().message().c_str());
    exit_code = InterruptFlag::interrupted() ? 130 : 1;
  });
}

}  // namespace proa
