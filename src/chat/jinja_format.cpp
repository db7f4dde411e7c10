// Python's three ways to lay out values: the format specification, str.format and %.
// Source: Python 3 library reference, "Format Specification Mini-Language", "printf-style String Formatting".
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include "chat/jinja_eval.h"

namespace proa::jinja {
namespace {

constexpr int64_t kMaxWidth = 100'000;
constexpr int kMaxPrecision = 500;

// [[fill]align][sign][#][0][width][grouping][.precision][type]
struct Spec {
  std::string fill = "";
  char align = 0;  // < > ^ =, 0 where not given
  char sign = '-';
  bool alternate = false;
  bool zero = false;
  char grouping = 0;  // ',' or '_'
  int64_t width = 0;
  int precision = -1;
  char type = 0;
};

bool is_align(char c) { return c == '<' || c == '>' || c == '^' || c == '='; }

// Digits at `at`, or -1 when they are more than `most`.
int64_t read_number(std::string_view text, size_t* at, int64_t most) {
  int64_t value = 0;
  for (; *at < text.size() && text[*at] >= '0' && text[*at] <= '9'; ++*at) {
    value = std::min<int64_t>(value * 10 + (text[*at] - '0'), kMaxWidth + 1);
  }
  return value > most ? -1 : value;
}

std::optional<Spec> parse_spec(std::string_view text, std::string* problem) {
  Spec spec;
  size_t at = 0;
  const size_t first = text.empty() ? 0 : decode_character(text, 0).length;
  if (first > 0 && first < text.size() && is_align(text[first])) {
    spec.fill = text.substr(0, first);
    spec.align = text[first];
    at = first + 1;
  } else if (!text.empty() && is_align(text[0])) {
    spec.align = text[at++];
  }
  const auto take = [&](std::string_view accepted) -> char {
    return at < text.size() && accepted.find(text[at]) != accepted.npos ? text[at++] : 0;
  };
  if (const char sign = take("+- ")) spec.sign = sign;
  spec.alternate = take("#") != 0;
  spec.zero = take("0") != 0;
  spec.width = read_number(text, &at, kMaxWidth);
  spec.grouping = take(",_");
  if (take(".")) {
    if (at >= text.size() || text[at] < '0' || text[at] > '9')
      return *problem = "Format specifier missing precision", std::nullopt;
    spec.precision = static_cast<int>(read_number(text, &at, kMaxPrecision));
    if (spec.precision < 0) return *problem = "the precision of a format is too large", std::nullopt;
  }
  if (at < text.size()) spec.type = text[at++];
  if (at < text.size()) return *problem = "Invalid format specifier", std::nullopt;
  if (spec.width < 0) return *problem = "the width of a format is too large", std::nullopt;
  if (spec.zero && spec.fill.empty()) spec.fill = "0";
  if (spec.zero && !spec.align) spec.align = '=';
  if (spec.fill.empty()) spec.fill = " ";
  return spec;
}

// Separators every three digits (four for _ with b, o, x) of the integer part of `digits`.
std::string grouped(const std::string& digits, char separator, size_t every) {
  const size_t whole = std::min(digits.find_first_not_of("0123456789abcdefABCDEF"), digits.size());
  std::string out;
  for (size_t i = 0; i < whole; ++i) {
    if (i > 0 && (whole - i) % every == 0) out += separator;
    out += digits[i];
  }
  return out + digits.substr(whole);
}

// `sign` and `body` (a number) or a string, laid out in the width of `spec`.
Text padded(const Spec& spec, const std::string& sign, const Text& body, char natural_align) {
  const char align = spec.align ? spec.align : natural_align;
  const int64_t length = static_cast<int64_t>(sign.size() + count_characters(body.bytes));
  const int64_t missing = std::max<int64_t>(0, spec.width - length);
  const int64_t left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  Text out;
  const auto fill = [&](int64_t count) {
    for (int64_t i = 0; i < count; ++i) out.append(spec.fill, Origin::kTemplate);
  };
  if (align == '=') {
    out.append(sign, Origin::kTemplate);
    fill(missing);
    out.append(body);
    return out;
  }
  fill(left);
  out.append(sign, Origin::kTemplate);
  out.append(body);
  fill(missing - left);
  return out;
}

std::string digits_in_base(uint64_t value, int base, bool upper_case) {
  char buffer[72];
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value, base);
  std::string digits(buffer, result.ptr);
  if (upper_case)
    std::transform(digits.begin(), digits.end(), digits.begin(), [](unsigned char c) { return std::toupper(c); });
  return digits;
}

std::string real_digits(double magnitude, char type, int precision, bool alternate) {
  if (std::isnan(magnitude)) return std::isupper(static_cast<unsigned char>(type)) ? "NAN" : "nan";
  if (std::isinf(magnitude)) return std::isupper(static_cast<unsigned char>(type)) ? "INF" : "inf";
  const char format[] = {'%', '.', '*', type, 0};
  const char alternate_format[] = {'%', '#', '.', '*', type, 0};
  char buffer[1200];
  std::snprintf(buffer, sizeof buffer, alternate ? alternate_format : format, precision, magnitude);
  return buffer;
}

// A float without a type: as str() has it, or like 'g' with one digit behind the point when a precision is given.
std::string plain_real(double magnitude, int precision) {
  if (precision < 0 || !std::isfinite(magnitude)) return repr_of_real(magnitude);
  const int significant = std::max(precision, 1);
  char buffer[1200];
  std::snprintf(buffer, sizeof buffer, "%.*e", significant - 1, magnitude);
  const int exponent = std::atoi(std::strchr(buffer, 'e') + 1);
  if (exponent < -4 || exponent >= significant - 1) {
    std::string text(buffer);
    const size_t e = text.find('e');
    std::string mantissa = text.substr(0, e);
    if (mantissa.find('.') != mantissa.npos) {
      mantissa.erase(mantissa.find_last_not_of('0') + 1);
      if (mantissa.back() == '.') mantissa.pop_back();
    }
    return mantissa + text.substr(e);
  }
  std::snprintf(buffer, sizeof buffer, "%.*f", significant - 1 - exponent, magnitude);
  std::string text(buffer);
  if (text.find('.') != text.npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text += '0';
  }
  return text.find('.') == text.npos ? text + ".0" : text;
}

}  // namespace

// format(value, spec)
Value Interpreter::format_value(const Value& value, std::string_view spec_text) {
  std::string problem;
  const std::optional<Spec> parsed = parse_spec(spec_text, &problem);
  if (!parsed) return fail(problem);
  const Spec& spec = *parsed;
  if (!budget.take(2 * static_cast<uint64_t>(spec.width) * spec.fill.size())) return Value();
  const auto bad_type = [&] {
    return fail(std::string("Unknown format code '") + spec.type + "' for object of type '" + value.type() + "'");
  };
  if (spec_text.empty()) return make(text(value));

  if (const Text* string = value.text()) {
    if (spec.type && spec.type != 's') return bad_type();
    if (spec.sign != '-' || spec.align == '=' || spec.grouping || spec.alternate) {
      if (spec.align != '=' || !spec.zero || spec.sign != '-' || spec.grouping || spec.alternate) {
        return fail("Sign, '#', ',' and '=' are not allowed in string format specifier");
      }
    }
    Text body = *string;
    if (spec.precision >= 0) {
      const std::vector<size_t> offsets = character_offsets(body.bytes);
      if (static_cast<size_t>(spec.precision) + 1 < offsets.size()) body = body.slice(0, offsets[spec.precision]);
    }
    Spec left = spec;
    if (spec.align == '=') left.align = '<';  // '{:05}'.format('a') pads with zeros behind
    return make(padded(left, "", body, '<'));
  }
  if (!value.is_number()) {
    return fail(std::string("unsupported format string passed to ") + value.type() + ".__format__");
  }
  const bool as_real =
      value.is<double>() || (spec.type && std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos);
  std::string body;
  bool negative = false;
  if (as_real) {
    if (spec.type && std::string_view("eEfFgG%").find(spec.type) == std::string_view::npos) {
      return spec.type == 'n' ? fail("the format code 'n' is not supported") : bad_type();
    }
    double number = value.real();
    if (spec.type == '%') number *= 100;
    negative = std::signbit(number) && !std::isnan(number);
    const double magnitude = std::fabs(number);
    const int precision = spec.precision < 0 ? 6 : spec.precision;
    if (!spec.type) {
      body = plain_real(magnitude, spec.precision);
    } else if (spec.type == '%') {
      body = real_digits(magnitude, 'f', precision, spec.alternate) + "%";
    } else {
      body = real_digits(magnitude, spec.type, precision, spec.alternate);
    }
  } else {
    if (spec.type && std::string_view("dbcoxXn").find(spec.type) == std::string_view::npos) return bad_type();
    if (spec.precision >= 0) return fail("Precision not allowed in integer format specifier");
    const int64_t number = value.integer();
    if (spec.type == 'c') {
      if (spec.grouping) return fail("Cannot specify a separator with 'c'.");
      if (number < 0 || number > 0x10FFFF || (number >= 0xD800 && number < 0xE000))
        return fail("%c arg not in range(0x110000)");
      append_utf8(&body, static_cast<uint32_t>(number));
      return make(padded(spec, "", Text(body, Origin::kTemplate), '<'));
    }
    negative = number < 0;
    const uint64_t magnitude = negative ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
    const int base = spec.type == 'b' ? 2 : spec.type == 'o' ? 8 : spec.type == 'x' || spec.type == 'X' ? 16 : 10;
    body = digits_in_base(magnitude, base, spec.type == 'X');
    if (spec.grouping == ',' && base != 10) return fail(std::string("Cannot specify ',' with '") + spec.type + "'.");
  }
  const bool other_base = !as_real && spec.type && std::string_view("boxX").find(spec.type) != std::string_view::npos;
  const size_t every = other_base ? 4 : 3;
  std::string sign = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  if (other_base && spec.alternate) sign += std::string("0") + spec.type;
  if (spec.grouping) {
    if (spec.align == '=' && spec.fill == "0") {  // the zeros are grouped too
      while (static_cast<int64_t>(sign.size() + grouped(body, spec.grouping, every).size()) < spec.width) {
        const std::string longer = "0" + body;
        if (static_cast<int64_t>(sign.size() + grouped(longer, spec.grouping, every).size()) > spec.width + 1) break;
        body = longer;
      }
    }
    body = grouped(body, spec.grouping, every);
  }
  return make(padded(spec, sign, Text(body, Origin::kTemplate), '>'));
}

namespace {

bool all_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
}

// One call of str.format: the fields of a format string, which may themselves hold fields in their specification.
class BraceFormat {
 public:
  BraceFormat(Interpreter& in, const Args& args) : in_(in), args_(args) {}

  Text expand(const Text& format, int depth) {
    Text out;
    for (size_t at = 0; at < format.size() && !in_.budget.failed();) {
      const char c = format.bytes[at];
      if ((c == '{' || c == '}') && at + 1 < format.size() && format.bytes[at + 1] == c && depth == 0) {
        out.append(format, at, 1);
        at += 2;
      } else if (c == '}') {
        in_.fail("Single '}' encountered in format string");
      } else if (c == '{') {
        const size_t end = field_end(format.bytes, at);
        if (end == std::string::npos) {
          in_.fail(at + 1 == format.size() ? "Single '{' encountered in format string"
                                           : "expected '}' before end of string");
          break;
        }
        out.append(in_.text(field(format.slice(at + 1, end - at - 1), depth)));
        at = end + 1;
      } else {
        const size_t end = std::min(format.bytes.find_first_of("{}", at), format.size());
        if (in_.budget.take(2 * (end - at))) out.append(format, at, end - at);
        at = end;
      }
    }
    return out;
  }

 private:
  static size_t field_end(const std::string& text, size_t begin) {
    int open = 0;
    bool subscript = false;
    for (size_t i = begin; i < text.size(); ++i) {
      if (text[i] == '[' && open == 1) subscript = true;
      if (text[i] == ']') subscript = false;
      if (subscript) continue;
      if (text[i] == '{') ++open;
      if (text[i] == '}' && --open == 0) return i;
    }
    return std::string::npos;
  }

  Value field(const Text& all, int depth) {
    if (!in_.budget.step()) return Value();
    if (depth > 1) return in_.fail("Max string recursion exceeded");
    // name [!conversion] [:spec]; a subscript may hold either sign.
    size_t at = 0;
    for (bool subscript = false; at < all.size(); ++at) {
      if (all.bytes[at] == '[') subscript = true;
      if (all.bytes[at] == ']') subscript = false;
      if (!subscript && (all.bytes[at] == '!' || all.bytes[at] == ':')) break;
    }
    Value value = lookup(all.bytes.substr(0, at));
    if (at < all.size() && all.bytes[at] == '!') {
      const char conversion = at + 1 < all.size() ? all.bytes[at + 1] : 0;
      at += 2;
      if (at < all.size() && all.bytes[at] != ':') return in_.fail("expected ':' after conversion specifier");
      if (conversion == 'r') {
        value = Value(repr(value, in_.budget));
      } else if (conversion == 's') {
        value = Value(in_.text(value));
      } else {
        return in_.fail("the conversion of a format field must be !s or !r");
      }
    }
    if (at >= all.size()) return Value(in_.text(value));
    return in_.format_value(value, expand(all.slice(at + 1, all.size() - at - 1), depth + 1).bytes);
  }

  Value lookup(const std::string& path) {
    size_t at = std::min(path.find_first_of(".["), path.size());
    Value value = first(path.substr(0, at));
    while (at < path.size() && !in_.budget.failed()) {
      if (path[at] == '.') {
        const size_t end = std::min(path.find_first_of(".[", at + 1), path.size());
        value = in_.attribute(value, path.substr(at + 1, end - at - 1));
        at = end;
      } else if (path[at] == '[') {
        const size_t end = path.find(']', at);
        if (end == std::string::npos) return in_.fail("Missing ']' in format string");
        const std::string key = path.substr(at + 1, end - at - 1);
        if (key.empty()) return in_.fail("Empty attribute in format string");
        value = in_.item(
            value, all_digits(key) && key.size() < 10 ? Value(int64_t{std::atoi(key.c_str())}) : template_text(key));
        at = end + 1;
      } else {
        return in_.fail("Only '.' or '[' may follow ']' in format field specifier");
      }
    }
    return value;
  }

  Value first(const std::string& name) {
    if (name.empty() || all_digits(name)) {
      if (name.empty() ? manual_ : next_ > 0)
        return in_.fail("cannot switch between manual and automatic field numbering");
      manual_ = manual_ || !name.empty();
      const size_t index = name.empty()      ? next_++
                           : name.size() < 6 ? static_cast<size_t>(std::atoi(name.c_str()))
                                             : 1'000'000;
      if (index >= args_.positional.size()) {
        return in_.fail("Replacement index " + std::to_string(index) + " out of range for positional args tuple");
      }
      return args_[index];
    }
    for (const auto& [known, value] : args_.named) {
      if (known == name) return value;
    }
    return in_.fail("format field '" + name + "' is not given");
  }

  Interpreter& in_;
  const Args& args_;
  size_t next_ = 0;
  bool manual_ = false;
};

}  // namespace

Value Interpreter::brace_format(const Text& format, const Args& args) {
  return make(BraceFormat(*this, args).expand(format, 0));
}

// %s %r %a %d %i %u %x %X %o %f %F %e %E %g %G %c %% with flags, width, precision and (key).
Value Interpreter::percent_format(const Text& format, const Value& right) {
  const Sequence* tuple = right.sequence();
  if (tuple && tuple->kind != Sequence::Kind::kTuple) tuple = nullptr;
  const size_t given = tuple ? tuple->items.size() : 1;
  Text out;
  size_t used = 0;
  bool by_key = false;
  for (size_t at = 0; at < format.size() && !budget.failed();) {
    if (format.bytes[at] != '%') {
      const size_t end = std::min(format.bytes.find('%', at), format.size());
      if (budget.take(2 * (end - at))) out.append(format, at, end - at);
      at = end;
      continue;
    }
    ++at;
    Value keyed = Value::missing();
    if (at < format.size() && format.bytes[at] == '(') {
      const size_t end = format.bytes.find(')', at);
      if (end == std::string::npos) return fail("incomplete format key");
      if (!right.dict()) return fail("format requires a mapping");
      const Value* found = right.dict()->find(format.bytes.substr(at + 1, end - at - 1));
      if (!found) return fail("'" + format.bytes.substr(at + 1, end - at - 1) + "'");
      keyed = *found;
      by_key = true;
      at = end + 1;
    }
    Spec spec;
    spec.fill = " ";
    bool left = false;
    for (; at < format.size() && std::string_view("-+ #0").find(format.bytes[at]) != std::string_view::npos; ++at) {
      const char flag = format.bytes[at];
      left = left || flag == '-';
      if (flag == '+' || (flag == ' ' && spec.sign != '+')) spec.sign = flag;
      spec.alternate = spec.alternate || flag == '#';
      spec.zero = spec.zero || flag == '0';
    }
    spec.width = read_number(format.bytes, &at, kMaxWidth);
    if (spec.width < 0) return fail("the width of a format is too large");
    if (at < format.size() && format.bytes[at] == '.') {
      ++at;
      spec.precision = static_cast<int>(read_number(format.bytes, &at, kMaxPrecision));
      if (spec.precision < 0) return fail("the precision of a format is too large");
    }
    while (at < format.size() && std::string_view("hlL").find(format.bytes[at]) != std::string_view::npos) ++at;
    if (at >= format.size()) return fail("incomplete format");
    const char kind = format.bytes[at++];
    if (kind == '%' && format.bytes[at - 2] == '%') {
      out.append("%", Origin::kTemplate);
      continue;
    }
    if (kind == '*') return fail("'*' in a format is not supported");
    if (keyed.is_missing()) {
      if (used >= given || by_key) return fail("not enough arguments for format string");
      keyed = tuple ? tuple->items[used] : right;
      ++used;
    }
    if (!budget.take(2 * static_cast<uint64_t>(spec.width))) return Value();
    spec.align = left ? '<' : '>';
    if (kind == 's' || kind == 'r' || kind == 'a') {
      Text body = kind == 's' ? text(keyed) : repr(keyed, budget);
      if (spec.precision >= 0) {
        const std::vector<size_t> offsets = character_offsets(body.bytes);
        if (static_cast<size_t>(spec.precision) + 1 < offsets.size()) body = body.slice(0, offsets[spec.precision]);
      }
      out.append(padded(spec, "", body, '>'));
      continue;
    }
    if (kind == 'c' && keyed.text()) {
      if (count_characters(keyed.text()->bytes) != 1) return fail("%c requires int or char");
      out.append(padded(spec, "", *keyed.text(), '>'));
      continue;
    }
    if (!keyed.is_number()) return fail(std::string("%") + kind + " format: a number is required, not " + keyed.type());
    std::string body;
    std::string sign;
    if (std::string_view("diuxXoc").find(kind) != std::string_view::npos) {
      if (keyed.is<double>() && (kind == 'x' || kind == 'X' || kind == 'o' || kind == 'c')) {
        return fail(std::string("%") + kind + " format: an integer is required, not float");
      }
      if (keyed.is<double>() && !(std::fabs(keyed.real()) < 9.2e18)) return fail("number is too large for the format");
      const int64_t number = keyed.is<double>() ? static_cast<int64_t>(keyed.real()) : keyed.integer();
      if (kind == 'c') {
        if (number < 0 || number > 0x10FFFF || (number >= 0xD800 && number < 0xE000))
          return fail("%c arg not in range(0x110000)");
        append_utf8(&body, static_cast<uint32_t>(number));
        out.append(padded(spec, "", Text(body, Origin::kTemplate), '>'));
        continue;
      }
      const uint64_t magnitude = number < 0 ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
      body = digits_in_base(magnitude, kind == 'o' ? 8 : kind == 'x' || kind == 'X' ? 16 : 10, kind == 'X');
      if (static_cast<int>(body.size()) < spec.precision) body.insert(0, spec.precision - body.size(), '0');
      sign = number < 0 ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
      if (spec.alternate && (kind == 'x' || kind == 'X' || kind == 'o')) sign += std::string("0") + kind;
    } else if (std::string_view("fFeEgG").find(kind) != std::string_view::npos) {
      const double number = keyed.real();
      body = real_digits(std::fabs(number), kind, spec.precision < 0 ? 6 : spec.precision, spec.alternate);
      sign = std::signbit(number) && !std::isnan(number) ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
    } else {
      return fail(std::string("unsupported format character '") + kind + "'");
    }
    if (spec.zero && !left) {
      spec.align = '=';
      spec.fill = "0";
    }
    out.append(padded(spec, sign, Text(body, Origin::kTemplate), '>'));
  }
  if (tuple ? used < given : used == 0 && !by_key && !right.dict() && !right.sequence() && !right.is_undefined()) {
    return fail("not all arguments converted during string formatting");
  }
  return make(std::move(out));
}

}  // namespace proa::jinja
