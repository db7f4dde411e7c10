// proa tokenize: what a tokenizer makes of a text, for people who debug prompts; and back.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/commands.h"
#include "checkpoint/printable.h"
#include "registry/hub_cache.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace proa {
namespace {

struct TokenizeCommand {
  std::string model, revision, download_dir;
  std::optional<std::string> prompt, file, decode;
  bool ids = false, pieces = false, json = false, count = false;
  bool add_special_tokens = true;
  bool parse_special = true;
  bool skip_special_tokens = false;
  bool llama_cpp = false;
};

constexpr size_t kMaxInputBytes = size_t{1} << 30;

// With ::read, which an interrupt ends.
Result<std::string> read_standard_input() {
  std::string text;
  char buffer[65536];
  for (ssize_t n; (n = ::read(STDIN_FILENO, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > kMaxInputBytes) return Error{"read", "standard input", "at most 1 GiB", "", ""};
  }
  return text;
}

Result<std::string> read_file(const std::string& path) {
  std::error_code problem;
  std::ifstream file(path, std::ios::binary);
  if (std::filesystem::is_directory(path, problem) || !file) return Error{"read", path, "a readable file", "", ""};
  std::string text;
  for (char buffer[65536]; file.read(buffer, sizeof buffer), file.gcount() > 0;) {
    text.append(buffer, static_cast<size_t>(file.gcount()));
    if (text.size() > kMaxInputBytes) return Error{"read", path, "at most 1 GiB", "", ""};
  }
  return text;
}

Result<std::string> read_text(const TokenizeCommand& command) {
  if (command.prompt) return *command.prompt;
  if (command.file && *command.file != "-") return read_file(*command.file);
  return read_standard_input();
}

// A path of anything that holds a tokenizer, or a name in the cache of models.
Result<Tokenizer> open_tokenizer(const TokenizeCommand& command) {
  std::string path = command.model;
  std::error_code code;
  if (!std::filesystem::exists(path, code)) {
    PROA_ASSIGN(path, resolve_model(command.model, {.cache = command.download_dir, .revision = command.revision}));
  }
  return Tokenizer::open_path(path, {.llama_cpp = command.llama_cpp});
}

// "1 2 3", "1,2,3" or "[1, 2, 3]".
Result<std::vector<int32_t>> parse_ids(const std::string& text, int32_t vocab_size) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    while (at < end && std::string_view(" ,[]\t\r\n").find(*at) != std::string_view::npos) ++at;
    if (at == end) return ids;
    int32_t id = 0;
    const auto [after, problem] = std::from_chars(at, end, id);
    if (problem != std::errc() || id < 0 || id >= vocab_size) {
      const std::string word(at, std::find_if(at, end, [](char c) { return c == ' ' || c == ',' || c == '\n'; }));
      return Error{"read ids", "--decode", "ids from 0 to " + std::to_string(vocab_size - 1),
                   "'" + printable(word, 60) + "'", ""};
    }
    ids.push_back(id);
    at = after;
  }
}

// A piece between quotes: spaces stay, line breaks and tabs as in C, all else that cannot be seen as \xNN.
std::string quoted(std::string_view piece) {
  std::string out = "\"";
  for (size_t i = 0; i < piece.size();) {
    const size_t length = std::max<size_t>(utf8_length(piece, i), 1);
    switch (piece[i]) {
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      case '"':
      case '\\':
        out += {'\\', piece[i]};
        break;
      default:
        out += one_line(piece.substr(i, length));
    }
    i += length;
  }
  return out += '"';
}

size_t invalid_parts(std::string_view text) {
  size_t count = 0;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    count += step.kind != Utf8Step::Kind::character;
    text.remove_prefix(step.length);
  }
  return count;
}

void print(const TokenizeCommand& command, const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
           size_t invalid) {
  if (command.json) {
    nlohmann::ordered_json pieces = nlohmann::ordered_json::array();
    for (const int32_t id : ids) {
      std::string piece;
      append_replacing_invalid(piece, tokenizer.piece(id));
      pieces.push_back(std::move(piece));
    }
    const nlohmann::ordered_json result = {
        {"count", ids.size()}, {"ids", ids}, {"pieces", std::move(pieces)}, {"invalid_utf8", invalid}};
    std::printf("%s\n", result.dump().c_str());
  } else if (command.count) {
    std::printf("%zu\n", ids.size());
  } else if (command.ids) {
    std::string line;
    for (const int32_t id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
    std::printf("%s\n", line.c_str());
  } else {
    const int width = static_cast<int>(std::to_string(tokenizer.vocab_size()).size());
    for (const int32_t id : ids) {
      const std::string piece = quoted(tokenizer.piece(id));
      if (command.pieces) {
        std::printf("%s\n", piece.c_str());
      } else {
        std::printf("%*d  %s%s\n", width, id, piece.c_str(), tokenizer.is_special(id) ? "  control" : "");
      }
    }
  }
}

Result<void> tokenize(const TokenizeCommand& command) {
  PROA_ASSIGN(const Tokenizer tokenizer, open_tokenizer(command));
  if (command.decode) {
    std::string list = *command.decode;
    if (list == "-") {
      PROA_ASSIGN(list, read_standard_input());
    }
    PROA_ASSIGN(const std::vector<int32_t> ids, parse_ids(list, tokenizer.vocab_size()));
    const std::string text = tokenizer.decode(ids, command.skip_special_tokens);
    if (command.json) {
      std::printf("%s\n", nlohmann::ordered_json{{"count", ids.size()}, {"text", text}}.dump().c_str());
    } else {
      std::fwrite(text.data(), 1, text.size(), stdout);
      if (::isatty(STDOUT_FILENO) == 1 && !text.ends_with('\n')) std::putchar('\n');
    }
    return {};
  }
  PROA_ASSIGN(const std::string text, read_text(command));
  const size_t invalid = invalid_parts(text);
  if (invalid > 0) {
    std::fprintf(stderr, "proa tokenize: %zu invalid part%s of the UTF-8 became U+FFFD\n", invalid,
                 invalid == 1 ? "" : "s");
  }
  print(command, tokenizer,
        tokenizer.encode(text, {.parse_special = command.parse_special, .add_bos = command.add_special_tokens}),
        invalid);
  return {};
}

}  // namespace

void add_tokenize_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("tokenize", "show the tokens of a text, or the text of tokens");
  auto options = std::make_shared<TokenizeCommand>();
  command
      ->add_option("model", options->model,
                   "a model by path or name, a folder with a tokenizer, a tokenizer.json, or a GGUF file")
      ->required();
  command->add_option("--revision", options->revision, "branch, tag or commit of a model by name");
  command->add_option("--download-dir", options->download_dir, "the cache of models by name");
  CLI::Option* prompt = command->add_option("-p,--prompt", options->prompt,
                                            "the text; without it and --file it is read from standard input");
  CLI::Option* file = command->add_option("-f,--file", options->file, "a file with the text, - for standard input");
  CLI::Option* decode =
      command->add_option("--decode", options->decode, "the other way: \"1 2 3\" or \"[1,2,3]\", - for standard input");
  prompt->excludes(file)->excludes(decode);
  file->excludes(decode);
  CLI::Option* ids = command->add_flag("--ids", options->ids, "only the ids, in one line");
  CLI::Option* pieces = command->add_flag("--pieces", options->pieces, "only the pieces, one per line");
  CLI::Option* count = command->add_flag("--count", options->count, "only how many tokens");
  CLI::Option* json = command->add_flag(
      "--json", options->json, "one JSON object: count, ids, pieces, invalid_utf8; with --decode count and text");
  ids->excludes(pieces)->excludes(count)->excludes(json);
  pieces->excludes(count)->excludes(json);
  count->excludes(json);
  command->add_flag("--add-special-tokens,!--no-add-special-tokens", options->add_special_tokens,
                    "BOS in front where the tokenizer wants one (the default); --no-...: never");
  command->add_flag(
      "--parse-special,!--no-parse-special", options->parse_special,
      "control tokens spelt in the text are those tokens (the default); --no-...: plain text, as messages "
      "of users are");
  command->add_flag("--skip-special-tokens", options->skip_special_tokens, "with --decode: leave control tokens out");
  command->add_flag("--llama-cpp", options->llama_cpp,
                    "GGUF: cut words as llama.cpp does where that differs from the model's own tokenizer");
  command->footer(
      "Pieces are shown between quotes: bytes that are no whole character as \\xNN. Invalid UTF-8 becomes U+FFFD.\n"
      "Example: proa tokenize tokenizer.json -p \"<|im_start|>user\" --ids");
  command->callback([options, &exit_code] {
    if (const auto done = tokenize(*options); !done.ok()) {
      std::fprintf(stderr, "proa: %s\n", done.error().message().c_str());
      exit_code = 1;
    }
  });
}

}  // namespace proa
