#include "chat/tool_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 64;  // of literals
constexpr std::string_view kSpace = " \t\r\n\f\v";

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(kSpace);
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
  return result;
}

std::string json_string(std::string_view text) {
  return Json(std::string(text)).dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Digits without sign '+' and leading zeros; any length.
std::optional<std::string> integer_text(std::string_view text) {
  text = trim(text);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.empty() || text.find_first_not_of("0123456789") != text.npos) return std::nullopt;
  text.remove_prefix(std::min(text.find_first_not_of('0'), text.size() - 1));
  return (negative && text != "0" ? "-" : "") + std::string(text);
}

std::optional<std::string> number_text(std::string_view text) {
  if (auto integer = integer_text(text)) return integer;
  text = trim(text);
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || !std::isfinite(value))
    return std::nullopt;
  if (value == std::floor(value) && std::abs(value) < 1e15) return std::to_string(static_cast<int64_t>(value));
  return Json(value).dump();
}

class PythonParser {
 public:
  explicit PythonParser(std::string_view text) : rest_(text) {}

  Json parse() {
    Json value = literal(0);
    skip_space();
    return failed_ || !rest_.empty() ? Json(Json::value_t::discarded) : value;
  }

 private:
  Json fail() {
    failed_ = true;
    return nullptr;
  }
  void skip_space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(kSpace), rest_.size())); }
  bool take(std::string_view token) {
    if (!rest_.starts_with(token)) return false;
    rest_.remove_prefix(token.size());
    return true;
  }

  Json literal(int depth) {
    skip_space();
    if (rest_.empty() || depth > kMaxDepth) return fail();
    const char c = rest_.front();
    if (c == '\'' || c == '"') return string();
    if (c == '[' || c == '(') return list(depth);
    if (c == '{') return dict(depth);
    for (const auto& [word, value] : {std::pair{"True", Json(true)},
                                      {"False", Json(false)},
                                      {"None", Json(nullptr)},
                                      {"true", Json(true)},
                                      {"false", Json(false)},
                                      {"null", Json(nullptr)}}) {
      if (take(word)) return value;
    }
    const std::string_view number = rest_.substr(0, rest_.find_first_not_of("+-.0123456789eE"));
    const auto text = number_text(number);
    if (!text) return fail();
    rest_.remove_prefix(number.size());
    Json value = Json::parse(*text, nullptr, false);
    return value.is_discarded() ? fail() : value;
  }

  Json string() {
    const char quote = rest_.front();
    std::string text;
    for (size_t i = 1; i < rest_.size(); ++i) {
      const char c = rest_[i];
      if (c == quote) {
        rest_.remove_prefix(i + 1);
        return text;
      }
      if (c != '\\') {
        text += c;
        continue;
      }
      if (++i == rest_.size()) break;
      switch (rest_[i]) {
        // clang-format off
        case 'n': text += '\n'; break;
        case 't': text += '\t'; break;
        case 'r': text += '\r'; break;
        case '\\': case '\'': case '"': text += rest_[i]; break;
        default: text += '\\'; text += rest_[i];
          // clang-format on
      }
    }
    return fail();
  }

  Json list(int depth) {
    const char close = rest_.front() == '[' ? ']' : ')';
    rest_.remove_prefix(1);
    Json items = Json::array();
    for (;;) {
      skip_space();
      if (take({&close, 1})) return items;
      items.push_back(literal(depth + 1));
      skip_space();
      if (failed_ || (!take(",") && !rest_.starts_with(close))) return fail();
    }
  }

  Json dict(int depth) {
    rest_.remove_prefix(1);
    Json members = Json::object();
    for (;;) {
      skip_space();
      if (take("}")) return members;
      if (rest_.empty() || (rest_.front() != '\'' && rest_.front() != '"')) return fail();
      const Json key = string();
      skip_space();
      if (failed_ || !take(":")) return fail();
      members[key.get<std::string>()] = literal(depth + 1);
      skip_space();
      if (failed_ || (!take(",") && !rest_.starts_with('}'))) return fail();
    }
  }

  std::string_view rest_;
  bool failed_ = false;
};

// Whether brackets nest less deeply than a recursive parser and printer can take.
bool is_shallow(std::string_view text) {
  int depth = 0;
  for (const char c : text) {
    if (c == '[' || c == '{' || c == '(') ++depth;
    if (c == ']' || c == '}' || c == ')') --depth;
    if (depth > kMaxDepth) return false;
  }
  return true;
}

const Json* member(const Json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found == object.end() ? nullptr : &*found;
}

// The type's name in lower case; empty where the schema has none.
std::string type_of(const Json& schema, int depth = 0) {
  if (depth > kMaxDepth) return "";
  const Json* type = member(schema, "type");
  if (type && type->is_string()) return lower(trim(type->get_ref<const std::string&>()));
  if (type && type->is_array()) {
    for (const Json& one : *type) {
      if (one.is_string() && one != "null") return lower(one.get_ref<const std::string&>());
    }
  }
  for (const char* name : {"anyOf", "oneOf", "allOf"}) {
    const Json* options = member(schema, name);
    if (!options || !options->is_array()) continue;
    for (const Json& option : *options) {
      std::string one = type_of(option, depth + 1);
      if (!one.empty() && one != "null") return one;
    }
  }
  if (member(schema, "enum")) return "enum";
  if (member(schema, "properties")) return "object";
  if (member(schema, "items")) return "array";
  return "";
}

}  // namespace

std::string dump_python(const Json& value) {
  if (!value.is_structured()) return value.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string text(1, value.is_array() ? '[' : '{');
  for (auto item = value.begin(); item != value.end(); ++item) {
    if (item != value.begin()) text += ", ";
    if (value.is_object()) text += json_string(item.key()) + ": ";
    text += dump_python(*item);
  }
  return text += value.is_array() ? ']' : '}';
}

Json parse_python_literal(std::string_view text) { return PythonParser(text).parse(); }

std::string tool_value(std::string_view text, const Json& schema) {
  const std::string word = lower(trim(text));
  if (word == "null") return "null";
  const std::string type = type_of(schema);
  const auto is = [&](std::initializer_list<std::string_view> prefixes) {
    return std::any_of(prefixes.begin(), prefixes.end(),
                       [&](std::string_view prefix) { return type.starts_with(prefix); });
  };
  const bool integer = is({"int", "uint", "long", "short", "unsigned"});
  const bool number = is({"num", "float", "double"});
  const bool boolean = is({"bool"});
  const bool structured = is({"object", "array", "arr", "dict", "list"});
  if (!integer && !number && !boolean && !structured) return json_string(text);
  if (trim(text) == "None") return "null";
  if (boolean) return word == "true" ? "true" : "false";
  if (integer || number) {
    const auto converted = integer ? integer_text(text) : number_text(text);
    return converted ? *converted : json_string(text);
  }
  if (!is_shallow(text)) return json_string(text);
  Json parsed = Json::parse(text, nullptr, false);
  if (parsed.is_discarded()) parsed = parse_python_literal(text);
  return parsed.is_discarded() ? json_string(text) : dump_python(parsed);
}

}  // namespace proa
