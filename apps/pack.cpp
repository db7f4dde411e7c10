// proa pack: a checkpoint as one file in the layout that this program likes best.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/progress_line.h"
#include "checkpoint/packed.h"
#include "checkpoint/printable.h"
#include "core/mapped_file.h"
#include "registry/hub_cache.h"

namespace proa {
namespace {

struct PackOptions {
  std::string model, output, revision, download_dir;
  bool verify = false, force = false;
};

PackProgress progress_to(ByteProgress& progress) {
  return [&progress](uint64_t bytes) -> Result<void> {
    if (InterruptFlag::interrupted()) return Error{"pack", "", "", "interrupted", ""};
    progress.add(bytes);
    return {};
  };
}

Result<void> run(const PackOptions& options) {
  PROA_ASSIGN(const std::string source,
              resolve_model(options.model, {.cache = options.download_dir, .revision = options.revision}));
  if (!options.verify) {
    if (options.output.empty()) return Error{"pack", "-o", "the file to write", "none", ""};
    PROA_ASSIGN(const uint64_t bytes, source_bytes(source));
    {
      ByteProgress progress(bytes);
      PROA_TRY(pack_checkpoint(source, options.output, options.force, progress_to(progress)));
    }
    std::printf("%s\n", options.output.c_str());
    return {};
  }
  // MODEL is the packed file, or with -o its source.
  const std::string& path = options.output.empty() ? source : options.output;
  PROA_ASSIGN(const MappedFile file, MappedFile::open(path));
  PROA_ASSIGN(const Packed packed, Packed::parse(file.bytes(), path));
  if (!options.output.empty()) {
    PROA_ASSIGN(const std::string key, source_key(source));
    if (key != packed.source_key) {
      return Error{"verify packed checkpoint", path, "made of " + source + " (key " + key + ")",
                   printable(packed.source_name) + " (key " + printable(packed.source_key) + ")", "pack it again"};
    }
  }
  {
    ByteProgress progress(file.bytes().size());
    PROA_TRY(verify_packed(path, progress_to(progress)));
  }
  std::printf("%s: whole, layout %s, of %s\n", path.c_str(), packed.layout.c_str(),
              printable(packed.source_name).c_str());
  return {};
}

}  // namespace

void add_pack_command(CLI::App& app, int& exit_code) {
  const auto options = std::make_shared<PackOptions>();
  CLI::App* command = app.add_subcommand("pack", "write a checkpoint as one mapped file");
  command->footer(
      "The packed file opens like its source. So far its layout is that of the source: what it gains is one file with\n"
      "checksums.\n"
      "Example: proa pack Nemotron-3-Nano-Q4_0.gguf -o nano.proa\n"
      "         proa pack nano.proa --verify                 the contents\n"
      "         proa pack Nemotron-3-Nano-Q4_0.gguf -o nano.proa --verify     and that this is the source");
  command->add_option("model", options->model, "a folder, a GGUF file, or a name in the cache of models")->required();
  command->add_option("--output,-o", options->output, "the packed file");
  command->add_flag("--verify", options->verify, "write nothing, compare what is there with its checksums");
  command->add_option("--revision", options->revision, "of a name");
  command->add_option("--download-dir", options->download_dir, "the cache of models");
  command->add_flag("--force", options->force, "replace what is there");
  command->callback([options, &exit_code] {
    const InterruptFlag ctrl_c;
    std::signal(SIGXFSZ, SIG_IGN);
    const auto done = run(*options);
    if (done.ok()) return;
    std::fprintf(stderr, "proa: %s\n", done.error().message().c_str());
    exit_code = InterruptFlag::interrupted() ? 130 : 1;
  });
}

}  // namespace proa
