// Tokens to syntax tree: Jinja's grammar and operator precedence.
#pragma once

#include <string_view>

#include "chat/jinja_ast.h"
#include "core/result.h"

namespace proa::jinja {

// Blocks and expressions may nest this deep; real templates stay below 40.
constexpr int kMaxSyntaxDepth = 200;

// Errors name the line. Inheritance, imports, recursive loops and *args are refused.
Result<Body> parse(std::string_view source);

}  // namespace proa::jinja
