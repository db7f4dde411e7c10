#include <algorithm>

#include "checkpoint/checkpoint.h"

namespace proa {
namespace {

constexpr int kMaxDepth = 128;

}  // namespace

Result<nlohmann::ordered_json> parse_json(std::string_view text, const std::string& file) {
  // One pass over the text bounds the nesting and turns Python's non-finite numbers, which JSON lacks, into strings.
  std::string rewritten;
  size_t copied = 0;
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] == '\\') ++i;
      }
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) {
        return Error{.doing = "read JSON",
                     .where = file + ": offset " + std::to_string(i),
                     .expected = "at most " + std::to_string(kMaxDepth) + " levels of nesting",
                     .actual = "more"};
      }
    } else if (c == '}' || c == ']') {
      --depth;
    } else if (c == 'N' || c == 'I' || c == '-') {
      for (std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
        if (text.substr(i, word.size()) != word) continue;
        rewritten.append(text, copied, i - copied);
        rewritten.append("\"").append(word).append("\"");
        i += word.size() - 1;
        copied = i + 1;
        break;
      }
    }
  }
  if (copied != 0) {
    rewritten.append(text, copied);
    text = rewritten;
  }
  try {
    return nlohmann::ordered_json::parse(text);
  } catch (const nlohmann::json::exception& exception) {
    std::string_view what = exception.what();  // "[json.exception.parse_error.101] parse error at line 1, ..."
    if (const size_t end = what.find("] "); end != what.npos) what.remove_prefix(end + 2);
    return Error{.doing = "read JSON", .where = file, .actual = std::string(what)};
  }
}

}  // namespace proa
