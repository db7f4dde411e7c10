// Template source to tokens, with the whitespace rules that Hugging Face templates assume: trim_blocks, lstrip_blocks,
// no trailing newline kept, `-` and `+` on either side of a tag, comments and raw sections.
// Source: Jinja 3.1, "Template Designer Documentation", Whitespace Control.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa::jinja {

struct Token {
  enum class Kind {
    kData,
    kVariableBegin,
    kVariableEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd
  };
  Kind kind = Kind::kEnd;
  int line = 0;
  std::string text;  // data, name, decoded string, digits or operator
};

// The error of a template that cannot be parsed; `where` is "line N".
Error syntax_error(int line, std::string message);

// Ends with one kEnd token. Errors name the line.
Result<std::vector<Token>> tokenize(std::string_view source);

}  // namespace proa::jinja
