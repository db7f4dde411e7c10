// The template language of Hugging Face chat templates: Jinja, in the settings of transformers (trim_blocks,
// lstrip_blocks, immutable sandbox, loop controls, `generation` blocks, its tojson).
// Sources: Jinja 3.1 documentation; transformers, utils/chat_template_utils.py.
//
// A template comes with a checkpoint and is as hostile as any file: its size, nesting, steps and text are bounded.
// Not supported, with an error that names the thing and the line: inheritance, imports and autoescape blocks; the
// filters filesizeformat, pprint, random, striptags, urlencode, urlize, wordwrap, xmlattr; the functions cycler,
// joiner, lipsum; methods that make bytes; Markup (`safe` and `escape` give plain strings). Integers are 64-bit; an
// overflow is an error, and larger ones in the input become floats.
#pragma once

#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa::jinja {

// A run of rendered text of one origin. What a user, a tool or a model wrote is `from_input`, through whatever filters
// and slices it went, and must be encoded with special tokens off; the rest was written by the template's author.
struct Segment {
  std::string text;
  bool from_input = false;
};

// All text, in order.
std::string join(const std::vector<Segment>& segments);

struct RenderOptions {
  std::tm now = {};  // what strftime_now prints; the caller decides on the time zone
  // Top-level context strings that count as the template's own text.
  std::vector<std::string> trusted = {"bos_token", "eos_token"};
  uint64_t max_steps = 20'000'000;  // statements, expressions and elements visited: about a second
  // Of all strings and containers made while rendering, in sum, so of what lives at once too. 0: 32 MB and 64 times the
  // context; known templates stay below 13 times.
  uint64_t max_bytes = 0;
};

class Template {
 public:
  static constexpr size_t kMaxSourceBytes = 1 << 20;

  // Errors name the line, after `name` (the file, say) when there is one.
  static Result<Template> parse(std::string_view source, std::string name = "");
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;
  ~Template();

  // `context` is an object: the template's variables. Thread-safe. Errors name the line; a template's own
  // raise_exception(message) comes as the error's `actual`.
  // Strings of the context, keys included, are input, but for the trusted ones and the well-known roles
  // (system, user, assistant, tool ...) at messages[i].role.
  Result<std::vector<Segment>> render_segments(const nlohmann::ordered_json& context,
                                               const RenderOptions& options = {}) const;
  Result<std::string> render(const nlohmann::ordered_json& context, const RenderOptions& options = {}) const;

 private:
  struct Tree;
  explicit Template(std::unique_ptr<const Tree> tree);
  std::unique_ptr<const Tree> tree_;
};

}  // namespace proa::jinja
