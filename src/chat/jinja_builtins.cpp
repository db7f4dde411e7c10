// Filters, tests and global functions.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <unordered_map>

#include "chat/jinja_eval.h"

namespace proa::jinja {
namespace {

using Self = const Value&;
using In = Interpreter&;

bool flag(const Value& value) { return !value.is_missing() && value.truthy(); }

// Strings compare without case unless asked, as Jinja's sorting filters do.
Value fold_case(const Value& value, bool case_sensitive) {
  return value.text() && !case_sensitive ? Value(lower(*value.text())) : value;
}

// "a.b.0" through attributes and items.
// Where a step finds nothing, `otherwise` takes its place, and the next step is taken from it.
Value attribute_path(In in, Value value, const Value& path, const Value& otherwise = Value::missing()) {
  const auto settle = [&](Value found) { return found.is_undefined() && !otherwise.is_missing() ? otherwise : found; };
  if (path.is_integer()) return settle(in.item(value, path));
  const std::string names = in.text(path).bytes;
  for (size_t at = 0; at <= names.size() && !in.budget.failed();) {
    const size_t end = std::min(names.find('.', at), names.size());
    const std::string name = names.substr(at, end - at);
    const bool number = !name.empty() && name.size() < 10 &&
                        std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isdigit(c); });
    const Value key = number ? Value(int64_t{std::atoi(name.c_str())}) : template_text(name);
    value = settle(in.item(value, key));
    at = end + 1;
  }
  return value;
}

Value none_of_them(std::string_view what) {
  return Value::undefined("No " + std::string(what) + " item, sequence was empty.");
}

// Pairs of the optional mapping or sequence of pairs, then of the named arguments.
Dict dict_of(In in, Args& args) {
  Dict dict;
  if (args.positional.size() > 1) in.fail("dict expected at most 1 argument");
  for (const Value& source : args.positional) {
    if (source.dict()) {
      for (const auto& [key, value] : source.dict()->entries) dict.set(key, value, in.budget);
      continue;
    }
    for (const Value& pair : in.items(source)) {
      const std::vector<Value> parts = in.items(pair);
      if (parts.size() != 2) {
        in.fail("dictionary update sequence needs pairs");
        break;
      }
      dict.set(parts[0], parts[1], in.budget);
    }
  }
  for (const auto& [name, value] : args.named) dict.set(Value(Text(name, args.name_origin)), value, in.budget);
  return dict;
}

// ---- filters

Value filter_default(In, Self self, Args& args) {
  const bool use = self.is_undefined() || (flag(args[1]) && !self.truthy());
  if (!use) return self;
  return args[0].is_missing() ? template_text("") : args[0];
}

Value filter_join(In in, Self self, Args& args) {
  const Text separator = args[0].is_missing() ? Text() : in.text(args[0]);
  Text out;
  bool first = true;
  for (const Value& item : in.items(self)) {
    if (!in.budget.take(2 * separator.size())) break;
    if (!first) out.append(separator);
    first = false;
    out.append(in.text(args[1].is_missing() || args[1].is_none() ? item : attribute_path(in, item, args[1])));
  }
  return in.make(std::move(out));
}

Value filter_length(In in, Self self, Args&) {
  const std::optional<size_t> length = self.length();
  if (!length) return in.fail(std::string("object of type '") + self.type() + "' has no len()");
  return Value(*length);
}

Value filter_trim(In in, Self self, Args& args) {
  const Text text = in.text(self);
  if (args[0].is_missing() || args[0].is_none()) return in.make(strip(text, nullptr, true, true));
  const std::string chars = in.text(args[0]).bytes;
  return in.make(strip(text, &chars, true, true));
}

Value filter_tojson(In in, Self self, Args& args) {
  JsonStyle style;
  style.ensure_ascii = flag(args[0]);
  if (args[1].is_integer()) {
    const int64_t width = std::max<int64_t>(0, args[1].integer());
    if (width > 1000) return in.fail("tojson indent is too large");
    style.indent = std::string(static_cast<size_t>(width), ' ');
  } else if (args[1].text()) {
    style.indent = args[1].text()->bytes;
  }
  if (style.indent) style.item_separator = ",";
  if (!args[2].is_missing() && !args[2].is_none()) {
    const std::vector<Value> separators = in.items(args[2]);
    if (separators.size() != 2 || !separators[0].text() || !separators[1].text()) {
      return in.fail("tojson separators must be two strings");
    }
    style.item_separator = separators[0].text()->bytes;
    style.key_separator = separators[1].text()->bytes;
  }
  style.sort_keys = flag(args[3]);
  return in.make(to_json(self, style, in.budget));
}

Value filter_items(In in, Self self, Args&) {
  std::vector<Value> pairs;
  if (self.is_undefined()) return in.make(std::move(pairs), Sequence::Kind::kGenerator);
  if (!self.dict()) return in.fail("Can only get item pairs from a mapping.");
  for (const auto& [key, value] : self.dict()->entries) {
    if (!in.budget.step()) break;
    pairs.push_back(in.make({key, value}, Sequence::Kind::kTuple));
  }
  return in.make(std::move(pairs), Sequence::Kind::kGenerator);
}

Value filter_dictsort(In in, Self self, Args& args) {
  if (self.is_undefined()) return in.fail(self.undefined_message());
  if (!self.dict()) return in.fail("dictsort needs a mapping");
  size_t by = 0;
  if (!args[1].is_missing()) {
    const std::string name = in.text(args[1]).bytes;
    if (name != "key" && name != "value") return in.fail("You can only sort by either \"key\" or \"value\"");
    by = name == "value";
  }
  std::vector<std::pair<Value, Value>> keyed;  // sort key, (key, value)
  for (const auto& [key, value] : self.dict()->entries) {
    if (!in.budget.step()) break;
    keyed.emplace_back(fold_case(by ? value : key, flag(args[0])), in.make({key, value}, Sequence::Kind::kTuple));
  }
  const bool reverse = flag(args[2]);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? compare(b.first, a.first, in.budget) < 0 : compare(a.first, b.first, in.budget) < 0;
  });
  std::vector<Value> pairs;
  for (auto& entry : keyed) pairs.push_back(std::move(entry.second));
  return in.make(std::move(pairs));
}

Value filter_sort(In in, Self self, Args& args) {
  std::vector<std::pair<std::vector<Value>, Value>> keyed;
  std::vector<std::string> paths;
  if (args[2].text()) {
    const std::string& all = args[2].text()->bytes;
    for (size_t at = 0; at <= all.size();) {
      const size_t end = std::min(all.find(',', at), all.size());
      paths.push_back(all.substr(at, end - at));
      at = end + 1;
    }
  }
  for (const Value& item : in.items(self)) {
    std::vector<Value> keys;
    for (const std::string& path : paths) {
      keys.push_back(fold_case(attribute_path(in, item, template_text(path)), flag(args[1])));
    }
    if (paths.empty()) {
      const Value key = args[2].is_integer() ? in.item(item, args[2]) : item;
      keys.push_back(fold_case(key, flag(args[1])));
    }
    keyed.emplace_back(std::move(keys), item);
  }
  if (!args[0].is_missing() && !args[0].is_integer()) return in.fail("sort needs true or false for reverse");
  const bool reverse = flag(args[0]);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    for (size_t i = 0; i < a.first.size(); ++i) {
      if (equals(a.first[i], b.first[i], in.budget)) continue;  // what cannot be ordered may still be equal
      const int order = compare(a.first[i], b.first[i], in.budget);
      if (order != 0) return reverse ? order > 0 : order < 0;
    }
    return false;
  });
  std::vector<Value> sorted;
  for (auto& entry : keyed) sorted.push_back(std::move(entry.second));
  return in.make(std::move(sorted));
}

Value filter_unique(In in, Self self, Args& args) {
  std::vector<Value> seen;
  std::vector<Value> kept;
  for (const Value& item : in.items(self)) {
    const Value key = fold_case(args[1].is_missing() ? item : attribute_path(in, item, args[1]), flag(args[0]));
    if (!is_hashable(key)) return in.fail(std::string("unhashable type: '") + key.type() + "'");
    bool known = false;
    for (const Value& other : seen) known = known || equals(key, other, in.budget);
    if (known) continue;
    seen.push_back(key);
    kept.push_back(item);
  }
  return in.make(std::move(kept), Sequence::Kind::kGenerator);
}

Value extreme(In in, Self self, Args& args, int sign) {
  std::optional<Value> best;
  Value best_key;
  for (const Value& item : in.items(self)) {
    Value key = fold_case(args[1].is_missing() ? item : attribute_path(in, item, args[1]), flag(args[0]));
    if (best && compare(key, best_key, in.budget) * sign <= 0) continue;
    best = item;
    best_key = std::move(key);
  }
  return best ? *best : Value::undefined("No aggregated item, sequence was empty.");
}

Value filter_sum(In in, Self self, Args& args) {
  Value total = args[1].is_missing() ? Value(0) : args[1];
  if (total.text()) return in.fail("sum() can't sum strings");
  for (const Value& item : in.items(self)) {
    total = in.binary('+', total, args[0].is_missing() || args[0].is_none() ? item : attribute_path(in, item, args[0]));
  }
  return total;
}

Value filter_reverse(In in, Self self, Args&) {
  std::vector<Value> items = in.items(self);
  std::reverse(items.begin(), items.end());
  if (!self.text()) return in.make(std::move(items), Sequence::Kind::kGenerator);
  Text out;
  for (const Value& item : items) out.append(*item.text());
  return in.make(std::move(out));
}

// map('filter', ...), map(attribute='a.b', default=...)
Value filter_map(In in, Self self, Args& args) {
  std::vector<Value> mapped;
  if (!self.truthy()) return in.make(std::move(mapped), Sequence::Kind::kGenerator);  // whatever its type
  Value path = Value::missing();
  Value otherwise = Value::missing();
  if (args.positional.empty()) {
    for (const auto& [name, value] : args.named) (name == "attribute" ? path : otherwise) = value;
    if (path.is_missing()) return in.fail("map requires a filter argument");
  }
  const std::vector<Value> items = in.items(self);
  for (const Value& item : items) {
    if (!in.budget.step()) break;
    if (!path.is_missing()) {
      mapped.push_back(attribute_path(in, item, path, otherwise.is_none() ? Value::missing() : otherwise));
    } else {
      Args rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
      mapped.push_back(in.filter(in.text(args[0]).bytes, item, std::move(rest)));
    }
  }
  return in.make(std::move(mapped), Sequence::Kind::kGenerator);
}

// select(test, ...), selectattr(attribute, test, ...); truth when no test is given.
Value choose(In in, Self self, Args& args, bool by_attribute, bool wanted) {
  if (!self.truthy()) return in.make({}, Sequence::Kind::kGenerator);  // whatever its type
  const size_t first = by_attribute ? 1 : 0;
  if (by_attribute && args.positional.empty()) return in.fail("Missing parameter for attribute name");
  std::vector<Value> kept;
  for (const Value& item : in.items(self)) {
    if (!in.budget.step()) break;
    const Value subject = by_attribute ? attribute_path(in, item, args[0]) : item;
    bool holds = subject.truthy();
    if (args.positional.size() > first) {
      Args rest{{args.positional.begin() + static_cast<ptrdiff_t>(first) + 1, args.positional.end()}, args.named};
      holds = in.test(in.text(args[first]).bytes, subject, std::move(rest));
    }
    if (holds == wanted) kept.push_back(item);
  }
  return in.make(std::move(kept), Sequence::Kind::kGenerator);
}

Value filter_list(In in, Self self, Args&) { return in.make(in.items(self)); }

Value filter_first(In in, Self self, Args&) {
  if (const Sequence* sequence = self.sequence())
    return sequence->items.empty() ? none_of_them("first") : sequence->items[0];
  std::vector<Value> items = in.items(self);
  return items.empty() ? none_of_them("first") : items[0];
}

Value filter_last(In in, Self self, Args&) {
  if (const Sequence* sequence = self.sequence())
    return sequence->items.empty() ? none_of_them("last") : sequence->items.back();
  std::vector<Value> items = in.items(self);
  return items.empty() ? none_of_them("last") : items.back();
}

// Python's replace; `count` < 0 means all.
Text replace_all(In in, const Text& text, const Text& old, const Text& by, int64_t count) {
  Text out;
  if (!in.charge_search(text.size(), old.size())) return out;
  size_t at = 0;
  const auto put = [&](const Text& piece, size_t begin, size_t size) {
    if (in.budget.take(2 * size)) out.append(piece, begin, size);
  };
  if (old.size() == 0) {  // between all characters
    for (; count != 0 && !in.budget.failed(); --count) {
      put(by, 0, by.size());
      if (at >= text.size()) return out;
      const size_t length = decode_character(text.bytes, at).length;
      put(text, at, length);
      at += length;
    }
  } else {
    for (; count != 0 && !in.budget.failed(); --count) {
      const size_t found = text.bytes.find(old.bytes, at);
      if (found == std::string::npos) break;
      put(text, at, found - at);
      put(by, 0, by.size());
      at = found + old.size();
    }
  }
  put(text, at, text.size() - at);
  return out;
}

Value filter_replace(In in, Self self, Args& args) {
  if (!args[2].is_missing() && !args[2].is_none() && !args[2].is_integer())
    return in.fail("replace needs a whole count");
  const int64_t count = args[2].is_integer() ? args[2].integer() : -1;
  return in.make(replace_all(in, in.text(self), in.text(args[0]), in.text(args[1]), count));
}

Value filter_indent(In in, Self self, Args& args) {
  Text indention;
  if (args[0].text()) {
    indention = *args[0].text();
  } else {
    if (!args[0].is_missing() && !args[0].is_integer()) return in.fail("indent needs a width or a string");
    const int64_t width = args[0].is_missing() ? 4 : args[0].integer();
    if (width > 1000) return in.fail("indent is too wide");
    indention = Text(std::string(static_cast<size_t>(std::max<int64_t>(0, width)), ' '), Origin::kTemplate);
  }
  if (!self.text()) return in.fail(self.is_undefined() ? self.undefined_message() : "indent needs a string");
  Text text = *self.text();
  text.append("\n", Origin::kTemplate);
  Text out;
  bool first = true;
  for (const auto& [begin, end] : line_ranges(text.bytes)) {
    if (!in.budget.step()) break;
    if (!first) out.append("\n", Origin::kTemplate);
    const bool wanted = first ? flag(args[1]) : (end > begin || flag(args[2]));
    if (wanted && in.budget.take(2 * indention.size())) out.append(indention);
    out.append(text, begin, end - begin);
    first = false;
  }
  return in.make(std::move(out));
}

std::optional<double> parse_real(std::string_view text) {
  Text stripped = strip(Text(text, Origin::kTemplate), nullptr, true, true);
  std::string& digits = stripped.bytes;
  digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
  if (digits.empty() || digits.find_first_of("xXpP(") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(digits.c_str(), &end);
  return end == digits.c_str() + digits.size() ? std::optional(value) : std::nullopt;
}

std::optional<int64_t> truncate_real(double value) {
  if (!(std::fabs(value) < 9.2e18)) return std::nullopt;
  return static_cast<int64_t>(value);
}

Value filter_int(In in, Self self, Args& args) {
  const Value otherwise = args[0].is_missing() ? Value(0) : args[0];
  if (self.is_undefined()) return in.fail(self.undefined_message());
  if (self.is_integer()) return Value(self.integer());
  std::optional<int64_t> value;
  if (self.is<double>()) {
    value = truncate_real(self.real());
    if (!value && !std::isnan(self.real())) return in.fail("integer overflow");
  } else if (self.text()) {
    const int64_t base = args[1].is_integer() ? args[1].integer() : 10;
    if (base != 0 && (base < 2 || base > 36)) return in.fail("int() base must be >= 2 and <= 36, or 0");
    std::string digits = strip(*self.text(), nullptr, true, true).bytes;
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    char* end = nullptr;
    errno = 0;
    const long long parsed = std::strtoll(digits.c_str(), &end, static_cast<int>(base));
    if (!digits.empty() && end == digits.c_str() + digits.size()) {
      if (errno == ERANGE) return in.fail("integer overflow");
      value = parsed;
    } else if (const std::optional<double> real = parse_real(digits)) {
      value = truncate_real(*real);
      if (!value && std::isfinite(*real)) return in.fail("integer overflow");
    }
  }
  return value ? Value(*value) : otherwise;
}

Value filter_float(In in, Self self, Args& args) {
  if (self.is_undefined()) return in.fail(self.undefined_message());
  if (self.is_number()) return Value(self.real());
  if (self.text()) {
    if (const std::optional<double> value = parse_real(self.text()->bytes)) return Value(*value);
  }
  return args[0].is_missing() ? Value(0.0) : args[0];
}

Value filter_round(In in, Self self, Args& args) {
  if (!self.is_number()) return in.fail("round needs a number");
  if (!args[0].is_missing() && !args[0].is_integer()) return in.fail("round needs a whole precision");
  const int64_t precision = args[0].is_integer() ? args[0].integer() : 0;
  const std::string method = args[1].is_missing() ? "common" : in.text(args[1]).bytes;
  if (precision < 0 || precision > 20) return in.fail("round takes a precision of 0 to 20");
  if (method == "common") {
    if (self.is_integer()) return Value(self.integer());
    if (!std::isfinite(self.real())) return self;
    char digits[400];
    std::snprintf(digits, sizeof digits, "%.*f", static_cast<int>(precision), self.real());
    return Value(std::strtod(digits, nullptr));
  }
  if (method != "ceil" && method != "floor") return in.fail("method must be common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = self.real() * scale;
  return Value((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Value filter_abs(In in, Self self, Args&) {
  if (self.is<double>()) return Value(std::fabs(self.real()));
  if (!self.is_integer()) return in.fail("abs needs a number");
  return self.integer() < 0 ? in.binary('-', Value(0), self) : Value(self.integer());
}

Value filter_escape(In in, Self self, Args&) {
  const Text text = in.text(self);
  Text out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text.bytes[i];
    const char* entity = c == '&'    ? "&amp;"
                         : c == '<'  ? "&lt;"
                         : c == '>'  ? "&gt;"
                         : c == '\'' ? "&#39;"
                         : c == '"'  ? "&#34;"
                                     : nullptr;
    if (entity) {
      out.append(entity, text.origin(i));
    } else {
      out.append(text, i, 1);
    }
  }
  return in.make(std::move(out));
}

Value filter_format(In in, Self self, Args& args) {
  if (!args.named.empty()) {
    if (!args.positional.empty()) return in.fail("can't handle positional and keyword arguments at the same time");
    return in.percent_format(in.text(self), Value(dict_of(in, args)));
  }
  return in.percent_format(in.text(self), in.make(args.positional, Sequence::Kind::kTuple));
}

// Values in the order of an attribute, gathered: a list of (grouper, list).
Value filter_groupby(In in, Self self, Args& args) {
  const Value otherwise = args[1].is_none() ? Value::missing() : args[1];
  const auto key_of = [&](const Value& item) { return attribute_path(in, item, args[0], otherwise); };
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : in.items(self)) keyed.emplace_back(fold_case(key_of(item), flag(args[2])), item);
  std::stable_sort(keyed.begin(), keyed.end(),
                   [&](const auto& a, const auto& b) { return compare(a.first, b.first, in.budget) < 0; });
  std::vector<Value> groups;
  for (size_t at = 0; at < keyed.size() && !in.budget.failed();) {
    std::vector<Value> members;
    const size_t begin = at;
    for (; at < keyed.size() && equals(keyed[begin].first, keyed[at].first, in.budget); ++at) {
      members.push_back(keyed[at].second);
    }
    if (at == begin) return in.fail("groupby needs keys that equal themselves");
    const Value grouper = flag(args[2]) ? keyed[begin].first : key_of(members[0]);
    if (!in.budget.take(sizeof(Sequence) + 2 * sizeof(Value))) break;
    Sequence group = Sequence::list({grouper, in.make(std::move(members))}, Sequence::Kind::kTuple);
    group.is_group = true;
    groups.emplace_back(std::move(group));
  }
  return in.make(std::move(groups));
}

// Lists of `linecount` items each, the last one filled up.
Value filter_batch(In in, Self self, Args& args) {
  if (!args[0].is_integer()) return in.fail("batch needs a number of items");
  const int64_t size = args[0].integer();
  std::vector<Value> lines;
  std::vector<Value> line;
  for (const Value& item : in.items(self)) {
    if (static_cast<int64_t>(line.size()) == size) lines.push_back(in.make(std::exchange(line, {})));
    line.push_back(item);
  }
  if (!line.empty()) {
    const bool fill = !args[1].is_missing() && !args[1].is_none();
    while (fill && static_cast<int64_t>(line.size()) < size && in.budget.step() && in.budget.take(sizeof(Value))) {
      line.push_back(args[1]);
    }
    lines.push_back(in.make(std::move(line)));
  }
  return in.make(std::move(lines), Sequence::Kind::kGenerator);
}

// `slices` lists of about equal length.
Value filter_slice(In in, Self self, Args& args) {
  if (!args[0].is_integer()) return in.fail("slice needs a number of slices");
  const std::vector<Value> items = in.items(self);
  const int64_t count = args[0].integer();
  if (count == 0) return in.fail("integer division or modulo by zero");
  const bool fill = !args[1].is_missing() && !args[1].is_none();
  const int64_t length = static_cast<int64_t>(items.size());
  std::vector<Value> slices;
  auto at = items.begin();
  for (int64_t i = 0; i < count && in.budget.step(); ++i) {
    const auto end = at + length / count + (i < length % count);
    std::vector<Value> part(at, end);
    if (fill && i >= length % count) part.push_back(args[1]);
    slices.push_back(in.make(std::move(part)));
    at = end;
  }
  return in.make(std::move(slices), Sequence::Kind::kGenerator);
}

Value filter_truncate(In in, Self self, Args& args) {
  const std::optional<size_t> items = self.length();
  if (!items) return in.fail(std::string("object of type '") + self.type() + "' has no len()");
  const Text text = self.text() ? *self.text() : Text();
  const std::vector<size_t> offsets = character_offsets(text.bytes);
  const int64_t size = static_cast<int64_t>(*items);
  const Text end = args[2].is_missing() ? Text("...", Origin::kTemplate) : in.text(args[2]);
  const int64_t length = args[0].is_integer() ? args[0].integer() : 255;
  const int64_t leeway = args[3].is_integer() ? args[3].integer() : 5;
  int64_t kept;
  if (__builtin_sub_overflow(length, static_cast<int64_t>(count_characters(end.bytes)), &kept) || kept < 0 ||
      leeway < 0)
    return in.fail("truncate needs a length of at least its ending, and no negative leeway");
  if (size <= length || size - length <= leeway) return self;
  if (!self.text()) return in.fail("truncate needs a string");
  Text out = text.slice(0, offsets[kept]);
  if (!flag(args[1])) {
    if (const size_t space = out.bytes.rfind(' '); space != std::string::npos) out = out.slice(0, space);
  }
  out.append(end);
  return in.make(std::move(out));
}

Value filter_center(In in, Self self, Args& args) {
  const Value text(in.text(self));
  Args width{{args[0].is_missing() ? Value(80) : args[0]}, {}, {}};
  return in.call(in.attribute(text, "center"), std::move(width));
}

Value filter_wordcount(In in, Self self, Args&) {
  const Text text = in.text(self);
  int64_t words = 0;
  bool inside = false;
  for (unsigned char c : text.bytes) {
    const bool word = std::isalnum(c) || c == '_' || c >= 0x80;
    words += word && !inside;
    inside = word;
  }
  return Value(words);
}

// Attributes only: the items of a dict are not looked at.
Value filter_attr(In in, Self self, Args& args) {
  if (!args[0].text()) return in.fail("attribute name must be string");
  const std::string& name = args[0].text()->bytes;
  if (self.dict() && !find_method(self, name)) return Value::undefined("'dict object' has no attribute '" + name + "'");
  return in.attribute(self, name);
}

const std::unordered_map<std::string_view, Builtin>& filters() {
  static const Builtin kDefault{"default_value boolean", 0, filter_default};
  static const Builtin kLength{"", 0, filter_length};
  static const Builtin kEscape{"", 0, filter_escape};
  static const std::unordered_map<std::string_view, Builtin> table = {
      {"default", kDefault},
      {"d", kDefault},
      {"length", kLength},
      {"count", kLength},
      {"escape", kEscape},
      {"e", kEscape},
      {"forceescape", kEscape},
      {"abs", {"", 0, filter_abs}},
      {"attr", {"name", 1, filter_attr}},
      {"batch", {"linecount fill_with", 1, filter_batch}},
      {"center", {"width", 0, filter_center}},
      {"groupby", {"attribute default case_sensitive", 1, filter_groupby}},
      {"slice", {"slices fill_with", 1, filter_slice}},
      {"truncate", {"length killwords end leeway", 0, filter_truncate}},
      // Jinja's filters for web pages and terminals, and the one that answers differently each time.
      {"filesizeformat",
       {"*", 0, [](In in, Self, Args&) { return in.fail("the filter 'filesizeformat' is not supported"); }}},
      {"pprint", {"*", 0, [](In in, Self, Args&) { return in.fail("the filter 'pprint' is not supported"); }}},
      {"random", {"*", 0, [](In in, Self, Args&) { return in.fail("the filter 'random' is not supported"); }}},
      {"striptags", {"*", 0, [](In in, Self, Args&) { return in.fail("the filter 'striptags' is not supported"); }}},
      {"urlencode", {"*", 0, [](In in, Self, Args&) { return in.fail("the filter 'urlencode' is not supported"); }}},
      {"urlize", {"*", 0, [](In in, Self, Args&) { return in.fail("the filter 'urlize' is not supported"); }}},
      {"wordwrap", {"*", 0, [](In in, Self, Args&) { return in.fail("the filter 'wordwrap' is not supported"); }}},
      {"xmlattr", {"*", 0, [](In in, Self, Args&) { return in.fail("the filter 'xmlattr' is not supported"); }}},
      {"capitalize", {"", 0, [](In in, Self self, Args&) { return in.make(capitalize(in.text(self))); }}},
      {"dictsort", {"case_sensitive by reverse", 0, filter_dictsort}},
      {"first", {"", 0, filter_first}},
      {"float", {"default", 0, filter_float}},
      {"format", {"*", 0, filter_format}},
      {"indent", {"width first blank", 0, filter_indent}},
      {"int", {"default base", 0, filter_int}},
      {"items", {"", 0, filter_items}},
      {"join", {"d attribute", 0, filter_join}},
      {"last", {"", 0, filter_last}},
      {"list", {"", 0, filter_list}},
      {"lower", {"", 0, [](In in, Self self, Args&) { return in.make(lower(in.text(self))); }}},
      {"map", {"*", 0, filter_map}},
      {"max", {"case_sensitive attribute", 0, [](In in, Self self, Args& args) { return extreme(in, self, args, 1); }}},
      {"min",
       {"case_sensitive attribute", 0, [](In in, Self self, Args& args) { return extreme(in, self, args, -1); }}},
      {"reject", {"*", 0, [](In in, Self self, Args& args) { return choose(in, self, args, false, false); }}},
      {"rejectattr", {"*", 0, [](In in, Self self, Args& args) { return choose(in, self, args, true, false); }}},
      {"replace", {"old new count", 2, filter_replace}},
      {"reverse", {"", 0, filter_reverse}},
      {"round", {"precision method", 0, filter_round}},
      // Marks text as safe HTML, which means nothing with autoescaping off.
      {"safe", {"", 0, [](In in, Self self, Args&) { return in.make(in.text(self)); }}},
      {"select", {"*", 0, [](In in, Self self, Args& args) { return choose(in, self, args, false, true); }}},
      {"selectattr", {"*", 0, [](In in, Self self, Args& args) { return choose(in, self, args, true, true); }}},
      {"sort", {"reverse case_sensitive attribute", 0, filter_sort}},
      {"string", {"", 0, [](In in, Self self, Args&) { return in.make(in.text(self)); }}},
      {"sum", {"attribute start", 0, filter_sum}},
      {"title", {"", 0, [](In in, Self self, Args&) { return in.make(title(in.text(self), true)); }}},
      {"tojson", {"ensure_ascii indent separators sort_keys", 0, filter_tojson}},
      {"trim", {"chars", 0, filter_trim}},
      {"unique", {"case_sensitive attribute", 0, filter_unique}},
      {"upper", {"", 0, [](In in, Self self, Args&) { return in.make(upper(in.text(self))); }}},
      {"wordcount", {"", 0, filter_wordcount}},
  };
  return table;
}

// ---- tests

Value compare_with(In in, Self self, Args& args, bool (*accept)(int)) {
  const int order = compare(self, args[0], in.budget);
  return Value(accept(order));
}

Value remainder_is(In in, Self self, int64_t divisor, int64_t rest) {
  const Value value = in.binary('%', self, Value(divisor));
  return Value(value.is_number() && value.real() == static_cast<double>(rest));
}

Value is_case(In in, Self self, bool upper_case) {
  const Text text = in.text(self);
  bool cased = false;
  for (size_t at = 0; at < text.size();) {
    const Character c = decode_character(text.bytes, at);
    at += c.length;
    if (c.code == kInvalid || !is_cased(c.code)) continue;
    if ((upper_case ? to_upper(c.code) : to_lower(c.code)) != c.code) return Value(false);
    cased = true;
  }
  return Value(cased);
}

Value known_name(In in, Self self, const Builtin* (*find)(std::string_view)) {
  if (!is_hashable(self)) return in.fail(std::string("unhashable type: '") + self.type() + "'");
  return Value(self.text() && find(self.text()->bytes));
}

Value test_sequence(In, Self self, Args&) {
  if (const Sequence* s = self.sequence()) return Value(s->has_positions());
  return Value(self.text() || self.dict() || self.is_undefined());
}

Value test_sameas(In in, Self self, Args& args) {
  const Value& other = args[0];
  if (self.is_bool() != other.is_bool() || self.is_integer() != other.is_integer()) return Value(false);
  if (self.sequence() || other.sequence()) return Value(self.sequence() == other.sequence());
  if (self.dict() || other.dict()) return Value(self.dict() == other.dict());
  return Value(equals(self, other, in.budget));
}

const std::unordered_map<std::string_view, Builtin>& tests() {
  static const Builtin kEqual{"other", 1,
                              [](In in, Self self, Args& args) { return Value(equals(self, args[0], in.budget)); }};
  static const Builtin kDiffers{"other", 1,
                                [](In in, Self self, Args& args) { return Value(!equals(self, args[0], in.budget)); }};
  static const Builtin kLess{"other", 1, [](In in, Self self, Args& args) {
                               return compare_with(in, self, args, [](int order) { return order < 0; });
                             }};
  static const Builtin kAtMost{"other", 1, [](In in, Self self, Args& args) {
                                 return compare_with(in, self, args, [](int order) { return order <= 0; });
                               }};
  static const Builtin kGreater{"other", 1, [](In in, Self self, Args& args) {
                                  return compare_with(in, self, args, [](int order) { return order > 0; });
                                }};
  static const Builtin kAtLeast{"other", 1, [](In in, Self self, Args& args) {
                                  return compare_with(in, self, args, [](int order) { return order >= 0; });
                                }};
  static const std::unordered_map<std::string_view, Builtin> table = {
      {"==", kEqual},
      {"eq", kEqual},
      {"equalto", kEqual},
      {"!=", kDiffers},
      {"ne", kDiffers},
      {"<", kLess},
      {"lt", kLess},
      {"lessthan", kLess},
      {"<=", kAtMost},
      {"le", kAtMost},
      {">", kGreater},
      {"gt", kGreater},
      {"greaterthan", kGreater},
      {">=", kAtLeast},
      {"ge", kAtLeast},
      {"boolean", {"", 0, [](In, Self self, Args&) { return Value(self.is_bool()); }}},
      {"callable", {"", 0, [](In, Self self, Args&) { return Value(self.callable() || self.is_undefined()); }}},
      {"defined", {"", 0, [](In, Self self, Args&) { return Value(!self.is_undefined()); }}},
      {"divisibleby",
       {"num", 1,
        [](In in, Self self, Args& args) {
          const Value rest = in.binary('%', self, args[0]);
          return Value(rest.is_number() && rest.real() == 0);
        }}},
      {"escaped", {"", 0, [](In, Self, Args&) { return Value(false); }}},
      {"even", {"", 0, [](In in, Self self, Args&) { return remainder_is(in, self, 2, 0); }}},
      {"false", {"", 0, [](In, Self self, Args&) { return Value(self.is_bool() && !self.truthy()); }}},
      {"filter", {"", 0, [](In in, Self self, Args&) { return known_name(in, self, find_filter); }}},
      {"float", {"", 0, [](In, Self self, Args&) { return Value(self.is<double>()); }}},
      {"in", {"seq", 1, [](In in, Self self, Args& args) { return Value(in.contains(args[0], self)); }}},
      {"integer", {"", 0, [](In, Self self, Args&) { return Value(self.is<int64_t>()); }}},
      {"iterable",
       {"", 0,
        [](In, Self self, Args&) {
          return Value(self.text() || self.sequence() || self.dict() || self.is_undefined() || self.loop());
        }}},
      {"lower", {"", 0, [](In in, Self self, Args&) { return is_case(in, self, false); }}},
      {"mapping", {"", 0, [](In, Self self, Args&) { return Value(self.dict() != nullptr); }}},
      {"none", {"", 0, [](In, Self self, Args&) { return Value(self.is_none()); }}},
      {"number", {"", 0, [](In, Self self, Args&) { return Value(self.is_number()); }}},
      {"odd", {"", 0, [](In in, Self self, Args&) { return remainder_is(in, self, 2, 1); }}},
      {"sameas", {"other", 1, test_sameas}},
      {"sequence", {"", 0, test_sequence}},
      {"string", {"", 0, [](In, Self self, Args&) { return Value(self.text() != nullptr); }}},
      {"test", {"", 0, [](In in, Self self, Args&) { return known_name(in, self, find_test); }}},
      {"true", {"", 0, [](In, Self self, Args&) { return Value(self.is_bool() && self.truthy()); }}},
      {"undefined", {"", 0, [](In, Self self, Args&) { return Value(self.is_undefined()); }}},
      {"upper", {"", 0, [](In in, Self self, Args&) { return is_case(in, self, true); }}},
  };
  return table;
}

// ---- global functions

Value global_range(In in, Self, Args& args) {
  constexpr int64_t kMaxRange = 100'000;  // the sandbox's own bound
  int64_t numbers[3] = {0, 0, 1};
  for (size_t i = 0; i < 3; ++i) {
    if (args[i].is_missing()) continue;
    if (!args[i].is_integer())
      return in.fail(std::string("'") + args[i].type() + "' object cannot be interpreted as an integer");
    numbers[i] = args[i].integer();
  }
  if (args[1].is_missing()) std::swap(numbers[0], numbers[1]);
  const auto [start, stop, step] = numbers;
  if (step == 0) return in.fail("range() arg 3 must not be zero");
  std::vector<Value> values;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (values.size() >= kMaxRange) return in.fail("range is too big; the sandbox allows " + std::to_string(kMaxRange));
    if (!in.budget.step()) return Value();
    values.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (!in.budget.take(sizeof(Value) * values.size() + sizeof(Sequence))) return Value();
  Sequence range = Sequence::list(std::move(values), Sequence::Kind::kRange);
  range.start = start;
  range.stop = stop;
  range.step = step;
  return Value(std::move(range));
}

Value global_namespace(In in, Self, Args& args) {
  Namespace* ns = in.make_namespace();
  for (auto& [key, value] : dict_of(in, args).entries) {
    const std::string name = in.text(key).bytes;
    if (!name.empty() && name[0] == '_') return in.fail("cannot store underscore-prefixed attributes on a namespace");
    ns->attributes.emplace_back(name, value);
  }
  return Value(ns);
}

Value global_strftime_now(In in, Self, Args& args) {
  const std::string format = in.text(args[0]).bytes;
  if (format.empty() || format.size() > 1000) return template_text("");
  std::string out(format.size() * 32 + 256, '\0');
  const std::tm now = in.now();
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &now));
  return in.make(Text(out, Origin::kTemplate));
}

const std::unordered_map<std::string_view, Builtin>& globals() {
  static const std::unordered_map<std::string_view, Builtin> table = {
      {"dict", {"*", 0, [](In in, Self, Args& args) { return Value(dict_of(in, args)); }}},
      {"cycler", {"*", 0, [](In in, Self, Args&) { return in.fail("the function 'cycler' is not supported"); }}},
      {"joiner", {"*", 0, [](In in, Self, Args&) { return in.fail("the function 'joiner' is not supported"); }}},
      {"lipsum", {"*", 0, [](In in, Self, Args&) { return in.fail("the function 'lipsum' is not supported"); }}},
      {"namespace", {"*", 0, global_namespace}},
      {"raise_exception", {"message", 1, [](In in, Self, Args& args) { return in.fail(in.text(args[0]).bytes); }}},
      {"range", {"start stop step", 1, global_range}},
      {"strftime_now", {"format", 1, global_strftime_now}},
  };
  return table;
}

const Builtin* find_in(const std::unordered_map<std::string_view, Builtin>& table, std::string_view name) {
  const auto found = table.find(name);
  return found == table.end() ? nullptr : &found->second;
}

}  // namespace

const Builtin* find_filter(std::string_view name) { return find_in(filters(), name); }
const Builtin* find_test(std::string_view name) { return find_in(tests(), name); }
const Builtin* find_global(std::string_view name) { return find_in(globals(), name); }

}  // namespace proa::jinja
