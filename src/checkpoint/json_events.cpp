#include "checkpoint/json_events.h"

#include "checkpoint/printable.h"

namespace proa {

Result<void> check_json_limits(std::string_view text, const std::string& file, JsonLimits limits) {
  const auto error = [&](size_t offset, std::string expected) {
    return Error{.doing = "read JSON",
                 .where = file + ": offset " + std::to_string(offset),
                 .expected = std::move(expected),
                 .actual = "more"};
  };
  int depth = 0;
  size_t values = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\0') {  // which would end the text for the parser
      return Error{.doing = "read JSON",
                   .where = file + ": offset " + std::to_string(i),
                   .expected = "JSON",
                   .actual = "a byte 0"};
    }
    if ((c == ',' || c == ':' || c == '{' || c == '[') && ++values > limits.values) {
      return error(i, "at most " + std::to_string(limits.values) + " values in a text of this size");
    }
    if (c == '"') {
      const size_t begin = i;
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] == '\\') ++i;
        if (i - begin > limits.string_bytes) {
          return error(begin, "a string of at most " + std::to_string(limits.string_bytes) + " bytes");
        }
      }
    } else if (c == '{' || c == '[') {
      if (++depth > limits.depth) {
        return error(i, "at most " + std::to_string(limits.depth) + " levels of nesting");
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return {};
}

std::string json_problem(const std::exception& exception) {
  std::string_view what = exception.what();  // "[json.exception.parse_error.101] parse error at line 1, ..."
  if (const size_t end = what.find("] "); end != what.npos) what.remove_prefix(end + 2);
  return one_line(what, 200);
}

bool JsonEvents::number_integer(int64_t value) {
  const std::string text = std::to_string(value);
  return scalar({JsonScalar::Kind::integer, text, {}});  // the parser gives those of at least 0 as unsigned
}

bool JsonEvents::number_unsigned(uint64_t value) {
  const std::string text = std::to_string(value);
  return scalar({JsonScalar::Kind::integer, text, value});
}

bool JsonEvents::number_float(double /*value*/, const std::string& text) {
  return scalar({JsonScalar::Kind::number, text, {}});
}

bool JsonEvents::binary(binary_t& /*value*/) { return false; }  // not in text

bool JsonEvents::parse_error(size_t /*position*/, const std::string& /*last_token*/,
                             const nlohmann::detail::exception& what) {
  return fail({.doing = "read JSON", .where = {}, .expected = {}, .actual = json_problem(what), .hint = {}});
}

Result<void> parse_json_events(std::string_view text, const std::string& file, JsonLimits limits, JsonEvents& events) {
  PROA_TRY(check_json_limits(text, file, limits));
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &events) && events.failure()) {
    Error error = *events.failure();
    if (error.where.empty()) error.where = file;
    return error;
  }
  return {};
}

}  // namespace proa
