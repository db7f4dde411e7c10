// The program: one sub-command per file. What a command cannot do ends as one line on standard error and exit code 1;
// a flag that is wrong ends with exit code 2.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/serve_arguments.h"

namespace {

// vLLM takes --max_tokens for --max-tokens. Only what is a flag's name from end to end, or up to its '=', is folded: a
// prompt may well begin with "--".
std::vector<std::string> fold_underscores(std::vector<std::string> arguments) {
  const auto in_a_name = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_'; };
  for (std::string& argument : arguments) {
    if (argument == "--") break;
    const auto end = argument.begin() + static_cast<std::ptrdiff_t>(std::min(argument.find('='), argument.size()));
    if (argument.starts_with("--") && std::all_of(argument.begin(), end, in_a_name)) {
      std::replace(argument.begin(), end, '_', '-');
    }
  }
  std::reverse(arguments.begin(), arguments.end());  // the order CLI11 wants a vector in
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Proa runs Nemotron-3-Nano and its family where the data is.", "proa");
  app.set_version_flag("--version", "proa " PROA_VERSION);
  app.require_subcommand(1);
  app.footer("Example: proa run SmolLM2-135M-Instruct.Q4_1.gguf -p \"What is a proa?\"");
  int exit_code = 0;
  proa::add_run_command(app, exit_code);
  proa::add_serve_command(app, exit_code);
  proa::add_render_command(app, exit_code);
  proa::add_tokenize_command(app, exit_code);
  proa::add_bench_command(app, exit_code);
  proa::add_synth_command(app, exit_code);
  proa::add_pack_command(app, exit_code);
  proa::add_quantize_command(app, exit_code);
  proa::add_eval_command(app, exit_code);
  proa::add_pull_command(app, exit_code);
  proa::add_inspect_command(app, exit_code);

  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && arguments.front() == "serve") {
    auto expanded = proa::expand_serve_arguments({arguments.begin() + 1, arguments.end()});
    if (!expanded.ok()) {
      std::fprintf(stderr, "proa: %s\n", expanded.error().message().c_str());
      return 2;
    }
    arguments = *std::move(expanded);
    arguments.insert(arguments.begin(), "serve");
  }

  try {
    app.parse(fold_underscores(std::move(arguments)));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::fprintf(stderr, "proa: %s (see proa %s--help)\n", error.what(),
                 app.get_subcommands().empty() ? "" : (app.get_subcommands().front()->get_name() + " ").c_str());
    return 2;
  }
  return exit_code;
}
