// proa synth: a checkpoint of dummy weights on disk, so that others can be measured on the same file.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/open_checkpoint.h"
#include "apps/progress_line.h"
#include "core/output_path.h"
#include "core/text.h"

namespace proa {
namespace {

struct SynthOptions {
  std::string model, quantization, output;
  uint64_t seed = 0;
  int64_t layers = 0, scale_down = 1;
  double max_shard_gb = 5;
  int threads = 0, shard = 0;
  bool force = false, json = false;
};

Result<void> write_files(const DummyCheckpoint& dummy, const std::string& partial, int threads,
                         ByteProgress& progress) {
  for (const DummyFile& file : dummy.files) {
    PROA_ASSIGN(OutputFile out, OutputFile::create(dummy.gguf() ? partial : partial + "/" + file.name));
    const auto write = [&](std::span<const std::byte> piece) -> Result<void> {
      if (InterruptFlag::interrupted()) return Error{"write", partial, "", "interrupted", ""};
      progress.add(piece.size());
      return out.write(piece);
    };
    PROA_TRY(stream_dummy(file, threads, write));
    PROA_TRY(out.close());
  }
  for (const auto& [name, text] : dummy.texts) {
    PROA_ASSIGN(OutputFile out, OutputFile::create(partial + "/" + name));
    PROA_TRY(out.write(std::as_bytes(std::span(text))));
    PROA_TRY(out.close());
  }
  return {};
}

Result<void> synth(const SynthOptions& options) {
  PROA_ASSIGN(const DummyRequest request, find_dummy(options.model, options.quantization));
  PROA_ASSIGN(const auto config, scale_config(request.config, options.layers, options.scale_down));
  const Precision& precision = *request.precision;
  const bool gguf = options.output.ends_with(".gguf");
  if (gguf ? !precision.gguf : !precision.huggingface) {
    return Error{"synth", "--quantization " + std::string(precision.name) + " -o " + options.output,
                 gguf ? "a folder, since there is no GGUF of this precision" : "a name that ends in .gguf",
                 gguf ? "a GGUF file" : "a folder for safetensors", ""};
  }
  PROA_ASSIGN(
      DummyCheckpoint dummy,
      make_dummy(
          dummy_name(request), config, precision,
          {.seed = options.seed, .gguf = gguf, .max_shard_bytes = static_cast<uint64_t>(options.max_shard_gb * 1e9)}));
  const size_t shards = dummy.files.size();
  if (options.shard > 0) {
    const auto number = static_cast<size_t>(options.shard);
    if (gguf || number > shards) {
      return Error{"synth", "--shard", gguf ? "a folder" : "1 to " + std::to_string(shards),
                   std::to_string(options.shard), ""};
    }
    dummy.files = {std::move(dummy.files[number - 1])};
  }
  PROA_ASSIGN(OutputPath out, OutputPath::create(options.output, !gguf, options.force));
  PROA_ASSIGN(const uint64_t free, free_disk_space(options.output));
  if (dummy.bytes() > free) {
    return Error{"synth", options.output, bytes_text(dummy.bytes()) + " of free disk", bytes_text(free),
                 "another disk, --quantization q4_0, --layers or --scale-down"};
  }
  ByteProgress progress(dummy.bytes());
  PROA_TRY(write_files(dummy, out.partial(), options.threads, progress));
  PROA_TRY(out.commit());

  size_t tensors = 0;
  for (const DummyFile& file : dummy.files) tensors += file.tensors.size();
  if (options.json) {
    const nlohmann::ordered_json json = {
        {"path", options.output}, {"model", request.name},        {"quantization", precision.name},
        {"seed", options.seed},   {"tensors", tensors},           {"bytes", dummy.bytes()},
        {"shards", shards},       {"seconds", progress.seconds()}};
    std::printf("%s\n", json.dump().c_str());
  } else {
    std::printf("%s\n", options.output.c_str());
  }
  return {};
}

}  // namespace

void add_synth_command(CLI::App& app, int& exit_code) {
  const auto options = std::make_shared<SynthOptions>();
  CLI::App* command = app.add_subcommand("synth", "write a checkpoint of dummy weights");
  std::string precisions = "Precisions:\n";
  for (const Precision& precision : known_precisions()) {
    std::string line = "  " + std::string(precision.name);
    line.resize(12, ' ');
    precisions += line + std::string(precision.what) +
                  (!precision.huggingface ? "; GGUF"
                   : precision.gguf       ? "; safetensors or GGUF"
                                          : "; safetensors") +
                  "\n";
  }
  command->footer(
      "The bytes are those that --load-format dummy computes with: random weights at the model's shapes, the\n"
      "same for the same seed on every machine. The file appears when it is whole.\n" +
      precisions +
      "Example: proa synth NVIDIA-Nemotron-3-Nano-30B-A3B --quantization q4_0 -o nano-q4_0.gguf\n"
      "         proa synth NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4 -o nano-nvfp4\n"
      "         proa synth NVIDIA-Nemotron-3-Nano-30B-A3B --layers 6 --scale-down 32 -o tiny");
  command->add_option("model", options->model, "a known model, or a folder with a config.json")->required();
  command->add_option("--quantization,-q", options->quantization, "precision; else that of the name, or bf16");
  command->add_option("--output,-o", options->output, "FILE.gguf, or a folder for safetensors")->required();
  command->add_option("--seed", options->seed, "another seed gives other weights")->capture_default_str();
  command->add_option("--layers", options->layers, "only the first so many; 0: all")->capture_default_str();
  command->add_option("--scale-down", options->scale_down, "divide widths, heads and vocabulary by this")
      ->capture_default_str();
  command->add_option("--max-shard-size", options->max_shard_gb, "GB of a safetensors file")
      ->check(CLI::Range(0.001, 1000.0))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "CPU threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--force", options->force, "replace what is there");
  command->add_flag("--json", options->json,
                    "one JSON object: path, model, quantization, seed, tensors, bytes, shards, seconds");
  command->add_option("--shard", options->shard, "only this file of the weights, from 1; 0: all")
      ->check(CLI::Range(0, 1 << 20));
  command->callback([options, &exit_code] {
    const InterruptFlag ctrl_c;
    std::signal(SIGXFSZ, SIG_IGN);  // a limit on file sizes is an error like a full disk
    const auto done = synth(*options);
    if (done.ok()) return;
    std::fprintf(stderr, "proa: %s\n", done.error().message().c_str());
    exit_code = InterruptFlag::interrupted() ? 130 : 1;
  });
}

}  // namespace proa
