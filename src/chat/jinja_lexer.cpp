#include "chat/jinja_lexer.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "chat/jinja_text.h"

namespace proa::jinja {

Error syntax_error(int line, std::string message) {
  return Error{.doing = "parse chat template", .where = "line " + std::to_string(line), .actual = std::move(message)};
}

namespace {

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool is_name(char c) { return is_name_start(c) || is_digit(c); }
int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  Result<std::vector<Token>> run() {
    while (at_ < source_.size()) PROA_TRY(data());
    push(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  bool starts(std::string_view text) const {
    return std::string_view(source_).substr(at_).substr(0, text.size()) == text;
  }
  void advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + count, '\n'));
    at_ += count;
  }
  void skip_space() {
    while (at_ < source_.size()) {
      const Character c = decode_character(source_, at_);
      if (!is_space(c.code)) break;
      advance(c.length);
    }
  }
  void push(Token::Kind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  // Position after `{%- raw -%}` when the tag at `begin` is that word, with its closing mark; 0 otherwise.
  size_t match_word_tag(size_t begin, std::string_view word, char* close_sign) const {
    size_t i = begin + 2;
    if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) ++i;
    const auto space = [&] {
      while (i < source_.size()) {
        const Character c = decode_character(source_, i);
        if (!is_space(c.code)) break;
        i += c.length;
      }
    };
    space();
    if (source_.compare(i, word.size(), word) != 0) return 0;
    i += word.size();
    space();
    *close_sign = 0;
    if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) *close_sign = source_[i++];
    return source_.compare(i, 2, "%}") == 0 ? i + 2 : 0;
  }

  // Emits source_[at_, end) as data, trimmed as the tag at `end` asks; at_ then stands on the tag.
  void push_data(size_t end, bool variable) {
    std::string_view text = std::string_view(source_).substr(at_, end - at_);
    const char sign = end + 2 < source_.size() ? source_[end + 2] : 0;
    if (sign == '-') {
      Text all(text, Origin::kTemplate);
      text = text.substr(0, strip(all, nullptr, false, true).size());
    } else if (sign != '+' && !variable) {
      const size_t newline = text.rfind('\n');
      const size_t begin = newline == text.npos ? 0 : newline + 1;
      if (begin > 0 || line_starting_) {
        bool blank = begin < text.size();
        for (size_t i = begin; i < text.size() && blank;) {
          const Character c = decode_character(text, i);
          blank = is_space(c.code);
          i += c.length;
        }
        if (blank) text = text.substr(0, begin);
      }
    }
    if (!text.empty()) push(Token::Kind::kData, std::string(text));
    advance(end - at_);
  }

  // After `%}` or `#}`: `-` eats all whitespace, nothing eats one newline, `+` eats nothing.
  void after_tag(char sign) {
    const size_t begin = at_;
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && at_ < source_.size() && source_[at_] == '\n') {
      advance(1);
    }
    line_starting_ = at_ > begin && source_[at_ - 1] == '\n';
  }

  Result<void> data() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        push(Token::Kind::kData, source_.substr(at_));
        at_ = source_.size();
        return {};
      }
      const char next = source_[tag + 1];
      if (next == '{' || next == '%' || next == '#') break;
    }
    const char kind = source_[tag + 1];
    char close_sign = 0;
    const size_t raw_end = kind == '%' ? match_word_tag(tag, "raw", &close_sign) : 0;
    push_data(tag, kind == '{');
    if (raw_end && close_sign != '+') return raw(raw_end, close_sign);
    const int begin_line = line_;
    advance(2);
    if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) advance(1);
    if (kind == '#') return comment(begin_line);
    push(kind == '{' ? Token::Kind::kVariableBegin : Token::Kind::kBlockBegin, "");
    line_starting_ = false;
    return inside(kind == '{', begin_line);
  }

  Result<void> comment(int begin_line) {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) return syntax_error(begin_line, "comment is never closed");
    const char sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+') ? source_[end - 1] : 0;
    advance(end + 2 - at_);
    after_tag(sign);
    return {};
  }

  Result<void> raw(size_t begin, char begin_sign) {
    const int begin_line = line_;
    advance(begin - at_);
    line_starting_ = false;
    if (begin_sign == '-') skip_space();
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos; tag = source_.find("{%", tag + 1)) {
      char sign = 0;
      const size_t end = match_word_tag(tag, "endraw", &sign);
      if (!end) continue;
      push_data(tag, false);
      advance(end - at_);
      after_tag(sign);
      return {};
    }
    return syntax_error(begin_line, "raw section is never closed");
  }

  Result<void> inside(bool variable, int begin_line) {
    std::string open;  // brackets not yet closed; `}}` ends the tag only outside of them
    const std::string_view end = variable ? "}}" : "%}";
    while (true) {
      skip_space();
      if (at_ >= source_.size()) return syntax_error(begin_line, "tag is never closed");
      if (open.empty()) {
        char sign = 0;
        if ((source_[at_] == '-' || (source_[at_] == '+' && !variable)) && source_.compare(at_ + 1, 2, end) == 0) {
          sign = source_[at_];
        }
        if (sign || starts(end)) {
          push(variable ? Token::Kind::kVariableEnd : Token::Kind::kBlockEnd, "");
          advance(sign ? 3 : 2);
          if (variable) {
            if (sign == '-') skip_space();
            line_starting_ = source_[at_ - 1] == '\n';
          } else {
            after_tag(sign);
          }
          return {};
        }
      }
      const char c = source_[at_];
      if (is_digit(c)) {
        PROA_TRY(number());
      } else if (is_name_start(c)) {
        size_t i = at_;
        while (i < source_.size() && is_name(source_[i])) ++i;
        push(Token::Kind::kName, source_.substr(at_, i - at_));
        advance(i - at_);
      } else if (c == '\'' || c == '"') {
        PROA_TRY(string(c));
      } else {
        PROA_TRY(op(&open));
      }
    }
  }

  Result<void> number() {
    size_t i = at_;
    std::string digits;
    const auto take = [&](auto accept) {
      while (i < source_.size() &&
             (accept(source_[i]) || (source_[i] == '_' && i + 1 < source_.size() && accept(source_[i + 1])))) {
        if (source_[i] != '_') digits += source_[i];
        ++i;
      }
    };
    bool real = false;
    const char second = i + 1 < source_.size() ? source_[i + 1] : 0;
    if (source_[i] == '0' &&
        (second == 'x' || second == 'X' || second == 'o' || second == 'O' || second == 'b' || second == 'B')) {
      digits = source_.substr(i, 2);
      i += 2;
      take([](char c) { return hex_value(c) >= 0; });
    } else {
      take(is_digit);
      if (i + 1 < source_.size() && source_[i] == '.' && is_digit(source_[i + 1])) {
        real = true;
        digits += '.';
        ++i;
        take(is_digit);
      }
      if (i < source_.size() && (source_[i] == 'e' || source_[i] == 'E')) {
        const size_t sign = i + 1 < source_.size() && (source_[i + 1] == '+' || source_[i + 1] == '-') ? 1 : 0;
        if (i + 1 + sign < source_.size() && is_digit(source_[i + 1 + sign])) {
          real = true;
          digits += source_.substr(i, 1 + sign);
          i += 1 + sign;
          take(is_digit);
        }
      }
    }
    push(real ? Token::Kind::kFloat : Token::Kind::kInteger, digits);
    advance(i - at_);
    return {};
  }

  // Escapes as in Python; an unknown one keeps its backslash.
  Result<void> string(char quote) {
    std::string out;
    size_t i = at_ + 1;
    const auto hex = [&](size_t count) -> int64_t {
      int64_t code = 0;
      for (size_t k = 0; k < count; ++k) {
        const int digit = i + k < source_.size() ? hex_value(source_[i + k]) : -1;
        if (digit < 0) return -1;
        code = code * 16 + digit;
      }
      i += count;
      return code;
    };
    while (i < source_.size() && source_[i] != quote) {
      if (source_[i] != '\\') {
        out += source_[i++];
        continue;
      }
      if (++i >= source_.size()) break;
      const char c = source_[i++];
      constexpr std::string_view kNames = "ntrbfav\\'\"";
      constexpr std::string_view kCodes = "\n\t\r\b\f\a\v\\'\"";
      if (const size_t simple = kNames.find(c); simple != kNames.npos) {
        out += kCodes[simple];
      } else if (c == '\n') {
        continue;
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const int64_t code = hex(c == 'x' ? 2 : c == 'u' ? 4 : 8);
        if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
          return syntax_error(line_, std::string("bad escape \\") + c + " in a string");
        }
        append_utf8(&out, static_cast<uint32_t>(code));
      } else if (c >= '0' && c <= '7') {
        uint32_t code = c - '0';
        for (int k = 0; k < 2 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++k) {
          code = code * 8 + (source_[i++] - '0');
        }
        append_utf8(&out, code);
      } else {
        out += '\\';
        out += c;
      }
    }
    if (i >= source_.size()) return syntax_error(line_, "string is never closed");
    push(Token::Kind::kString, std::move(out));
    advance(i + 1 - at_);
    return {};
  }

  Result<void> op(std::string* open) {
    for (std::string_view two : {"//", "**", "==", "!=", ">=", "<="}) {
      if (starts(two)) {
        push(Token::Kind::kOperator, std::string(two));
        advance(2);
        return {};
      }
    }
    const char c = source_[at_];
    if (std::string_view("+-*/%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      return syntax_error(line_, "unexpected character " + repr_character());
    }
    if (c == '(') open->push_back(')');
    if (c == '[') open->push_back(']');
    if (c == '{') open->push_back('}');
    if (c == ')' || c == ']' || c == '}') {
      if (open->empty() || open->back() != c) return syntax_error(line_, std::string("unexpected '") + c + "'");
      open->pop_back();
    }
    push(Token::Kind::kOperator, std::string(1, c));
    advance(1);
    return {};
  }

  std::string repr_character() const {
    const unsigned char c = static_cast<unsigned char>(source_[at_]);
    return c > 0x20 && c < 0x7F ? std::string("'") + static_cast<char>(c) + "'" : "with code " + std::to_string(c);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // whether at_ is the first position of a line, as far as lstrip_blocks cares
  std::vector<Token> tokens_;
};

}  // namespace

Result<std::vector<Token>> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace proa::jinja
