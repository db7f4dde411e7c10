// proa render: the prompt that a model would see for a conversation.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/open_engine.h"
#include "checkpoint/checkpoint.h"
#include "registry/hub_cache.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

struct RenderCommand {
  OpenOptions open;
  std::string messages_file, tools_file, kwargs;
  std::string thinking = "auto";
  std::string now;
  std::optional<bool> add_generation_prompt;
  bool continue_final_message = false;
  bool tokens = false;
  bool json = false;
};

constexpr size_t kMaxInputBytes = size_t{1} << 30;

Result<std::string> read_input(std::istream& in, const std::string& where) {
  std::string text;
  for (char buffer[65536]; in.read(buffer, sizeof buffer), in.gcount() > 0;) {
    text.append(buffer, static_cast<size_t>(in.gcount()));
    if (text.size() > kMaxInputBytes) return Error{"read", where, "at most 1 GiB", "", ""};
  }
  return text;
}

Result<std::string> read_file(const std::string& path) {
  std::error_code problem;
  std::ifstream file(path, std::ios::binary);
  if (std::filesystem::is_directory(path, problem) || !file) return Error{"read", path, "a readable file", "", ""};
  return read_input(file, path);
}

Result<std::string> read_standard_input() {
  std::string text;
  char buffer[65536];
  for (ssize_t n; (n = ::read(STDIN_FILENO, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > kMaxInputBytes) return Error{"read", "standard input", "at most 1 GiB", "", ""};
  }
  return text;
}

Result<Json> parse_json(const std::string& text, const std::string& where) {
  // A bound on nesting, before the parser builds what is then freed by recursion.
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (quoted) {
      if (text[i] == '\\') ++i;
      if (i < text.size() && text[i] == '"') quoted = false;
      continue;
    }
    quoted = text[i] == '"';
    depth += text[i] == '[' || text[i] == '{';
    depth -= text[i] == ']' || text[i] == '}';
    if (depth > 200) return Error{"read", where, "JSON nested at most 200 deep", "", ""};
  }
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    return Error{"read", where, "JSON", "an error at byte " + std::to_string(error.byte), ""};
  }
}

// What is to be rendered: from a messages file, which may be a whole request, and from flags, which come before it.
struct Conversation {
  Json messages;
  ChatOptions options;
};

Result<bool> boolean_field(const Json& request, const char* name, bool otherwise, const std::string& where) {
  const auto found = request.find(name);
  if (found == request.end() || found->is_null()) return otherwise;
  if (!found->is_boolean()) return Error{"read request", where + ": " + name, "true or false", found->type_name(), ""};
  return found->get<bool>();
}

Result<void> add_kwargs(const Json& more, const std::string& where, Json* kwargs) {
  if (more.is_null()) return {};
  if (!more.is_object()) return Error{"read request", where, "an object", more.type_name(), ""};
  for (const auto& [key, value] : more.items()) (*kwargs)[key] = value;
  return {};
}

Result<Conversation> read_conversation(const RenderCommand& command) {
  const bool from_stdin = command.messages_file.empty() || command.messages_file == "-";
  const std::string where = from_stdin ? "standard input" : command.messages_file;
  std::string text;
  PROA_ASSIGN(text, from_stdin ? read_standard_input() : read_file(command.messages_file));
  PROA_ASSIGN(Json request, parse_json(text, where));
  if (request.is_array()) request = Json{{"messages", std::move(request)}};
  if (!request.is_object() || !request.contains("messages")) {
    return Error{"read request", where, "an array of messages, or an object with messages",
                 request.is_object() ? "an object without messages" : request.type_name(), ""};
  }
  Conversation conversation;
  conversation.messages = request["messages"];
  ChatOptions& options = conversation.options;
  options.tools = request.contains("tools") ? request["tools"] : Json();
  if (!command.tools_file.empty()) {
    PROA_ASSIGN(const std::string tools, read_file(command.tools_file));
    PROA_ASSIGN(options.tools, parse_json(tools, command.tools_file));
  }
  Json kwargs = Json::object();
  // Fields of a request that vLLM hands to the template too.
  for (const char* name : {"documents", "reasoning_effort"}) {
    if (request.contains(name) && !request[name].is_null()) kwargs[name] = request[name];
  }
  if (request.contains("chat_template_kwargs")) {
    PROA_TRY(add_kwargs(request["chat_template_kwargs"], where + ": chat_template_kwargs", &kwargs));
  }
  if (!command.kwargs.empty()) {
    PROA_ASSIGN(const Json given, parse_json(command.kwargs, "--chat-template-kwargs"));
    PROA_TRY(add_kwargs(given, "--chat-template-kwargs", &kwargs));
  }
  for (const char* name : {"bos_token", "eos_token"}) {
    if (kwargs.contains(name) && !kwargs[name].is_string()) {
      return Error{"read request", std::string("chat_template_kwargs: ") + name, "a string", kwargs[name].type_name(),
                   ""};
    }
  }
  options.template_kwargs = std::move(kwargs);
  if (command.thinking != "auto") options.enable_thinking = command.thinking == "on";

  PROA_ASSIGN(const bool continues, boolean_field(request, "continue_final_message", false, where));
  options.continue_final_message = continues || command.continue_final_message;
  PROA_ASSIGN(options.add_generation_prompt,
              boolean_field(request, "add_generation_prompt", !options.continue_final_message, where));
  if (command.add_generation_prompt) options.add_generation_prompt = *command.add_generation_prompt;

  const std::time_t clock = std::time(nullptr);
  localtime_r(&clock, &options.now);
  if (!command.now.empty()) {
    std::tm given = {};
    const char* end = strptime(command.now.c_str(), "%Y-%m-%d", &given);
    if (end && *end) end = strptime(end, "%n%H:%M:%S", &given);
    if (!end || *end) return Error{"read flags", "--now", "YYYY-MM-DD or 'YYYY-MM-DD HH:MM:SS'", command.now, ""};
    options.now = given;
  }
  return conversation;
}

struct Opened {
  std::optional<Tokenizer> tokenizer;  // none where a template stands alone
  ChatTemplate chat_template;
};

// A model by path or name, or a lone template file, whose special tokens are variables like others.
Result<Opened> open(const OpenOptions& options, const Json& kwargs) {
  if (options.model.ends_with(".jinja") || options.model.ends_with(".j2")) {
    PROA_ASSIGN(const std::string source, read_file(options.model));
    const SpecialTokenTexts tokens{kwargs.value("bos_token", ""), kwargs.value("eos_token", "")};
    PROA_ASSIGN(ChatTemplate parsed, ChatTemplate::create(source, tokens, options.model));
    return Opened{std::nullopt, std::move(parsed)};
  }
  PROA_ASSIGN(const std::string path,
              resolve_model(options.model, {.cache = options.download_dir, .revision = options.revision}));
  PROA_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(path));
  PROA_ASSIGN(Tokenizer tokenizer, Tokenizer::open(checkpoint));
  PROA_ASSIGN(const auto source, chat_template_source(checkpoint, &tokenizer, options.chat_template));
  if (!source) {
    return Error{"render", path, "a checkpoint with a chat template", "none", "give one with --chat-template FILE"};
  }
  const std::string name = options.chat_template.empty() ? path + ": " + source->from : source->from;
  PROA_ASSIGN(ChatTemplate parsed, ChatTemplate::create(source->text, special_token_texts(tokenizer), name));
  return Opened{std::move(tokenizer), std::move(parsed)};
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::vector<Segment>& rendered) {
  std::vector<TextSegment> segments;
  for (const Segment& segment : rendered) segments.push_back({segment.text, !segment.from_input});
  return tokenizer.encode(segments);
}

Result<void> render(const RenderCommand& command) {
  PROA_ASSIGN(const Conversation conversation, read_conversation(command));
  PROA_ASSIGN(const Opened opened, open(command.open, conversation.options.template_kwargs));
  if (command.tokens && !opened.tokenizer) {
    return Error{"render", "--tokens", "a model, which has a tokenizer", command.open.model, ""};
  }
  PROA_ASSIGN(const std::vector<Segment> segments,
              opened.chat_template.render(conversation.messages, conversation.options));

  std::string out;
  const auto dump = [](const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); };
  if (command.json) {
    Json json = {{"text", jinja::join(segments)}, {"segments", Json::array()}};
    for (const Segment& segment : segments) {
      json["segments"].push_back({{"text", segment.text}, {"from", segment.from_input ? "input" : "template"}});
    }
    if (opened.tokenizer) json["token_ids"] = encode(*opened.tokenizer, segments);
    out = dump(json) + "\n";
  } else if (command.tokens) {
    out = dump(Json(encode(*opened.tokenizer, segments))) + "\n";
  } else {
    out = jinja::join(segments);
  }
  std::fwrite(out.data(), 1, out.size(), stdout);
  if (std::fflush(stdout) != 0) return Error{"write the prompt", "standard output", "", "it takes no more", ""};
  return {};
}

}  // namespace

void add_render_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("render", "messages to the prompt that the model would see");
  auto options = std::make_shared<RenderCommand>();
  command
      ->add_option("model", options->open.model,
                   "a Hugging Face folder, a GGUF file, org/name in the cache, or a template file that ends in .jinja")
      ->required();
  command->add_option("--messages", options->messages_file,
                      "a JSON file in OpenAI's form: an array of messages, or a request with messages, tools, "
                      "documents, reasoning_effort, chat_template_kwargs; without it, or for -, standard input");
  command->add_option("--tools", options->tools_file, "a JSON file: an array of tools");
  command->add_option("--chat-template-kwargs,--kwargs", options->kwargs,
                      "a JSON object: further variables of the template");
  command->add_option("--chat-template", options->open.chat_template,
                      "a Jinja file to use in place of the checkpoint's template");
  command->add_option("--thinking", options->thinking, "on, off, or auto: as the chat template has it")
      ->check(CLI::IsMember({"on", "off", "auto"}));
  command->add_flag_callback(
      "--add-generation-prompt", [options] { options->add_generation_prompt = true; },
      "end with what begins an answer (the default, unless the last message is continued)");
  command->add_flag_callback(
      "--no-add-generation-prompt", [options] { options->add_generation_prompt = false; },
      "end after the last message");
  command->add_flag("--continue-final-message", options->continue_final_message,
                    "end inside the last message, for the model to go on with it");
  command->add_option("--now", options->now, "the date that templates print, YYYY-MM-DD [HH:MM:SS] (default: now)");
  command->add_flag("--tokens", options->tokens,
                    "token ids in place of text, as chat encodes them: no special tokens in what messages say");
  command->add_flag("--json", options->json,
                    "one JSON object: text, segments (each from the template or from the input), token_ids");
  command->add_option("--revision", options->open.revision, "branch, tag or commit of an org/name");
  command->add_option("--download-dir", options->open.download_dir, "the cache of models; else HF_HOME and its like");
  command->footer(
      "Example: echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | proa render MODEL --json\n"
      "         proa render chat_template.jinja --messages request.json --chat-template-kwargs "
      "'{\"enable_thinking\": false}'");
  command->callback([options, &exit_code] {
    const Result<void> done = render(*options);
    if (!done.ok()) std::fprintf(stderr, "proa: %s\n", done.error().message().c_str());
    exit_code = done.ok() ? 0 : 1;
  });
}

}  // namespace proa
