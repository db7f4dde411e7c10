// Methods of strings, dicts, lists and loops.
#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <optional>
#include <unordered_map>

#include "chat/jinja_eval.h"

namespace proa::jinja {
namespace {

using Self = const Value&;
using In = Interpreter&;
using Table = std::unordered_map<std::string_view, Builtin>;

// The string of an argument, or a failure and an empty one.
const Text& need_text(In in, const Value& value) {
  static const Text kEmpty;
  if (value.text()) return *value.text();
  in.fail(std::string("expected a string, found ") + value.type());
  return kEmpty;
}

int64_t integer_or(In in, const Value& value, int64_t otherwise) {
  if (value.is_missing() || value.is_none()) return otherwise;
  if (!value.is_integer()) return in.fail(std::string("expected an integer, found ") + value.type()), otherwise;
  return value.integer();
}

Value method_strip(In in, Self self, Args& args, bool left, bool right) {
  if (args[0].is_missing() || args[0].is_none()) return in.make(strip(*self.text(), nullptr, left, right));
  return in.make(strip(*self.text(), &need_text(in, args[0]).bytes, left, right));
}

// Runs of whitespace separate; neither end gives an empty part.
std::vector<Value> split_space(In in, const Text& text, int64_t limit, bool from_right) {
  std::vector<std::pair<size_t, size_t>> words;  // begin, end
  size_t begin = std::string::npos;
  for (size_t at = 0; at < text.size();) {
    const Character c = decode_character(text.bytes, at);
    if (is_space(c.code)) {
      if (begin != std::string::npos) words.emplace_back(begin, at);
      begin = std::string::npos;
    } else if (begin == std::string::npos) {
      begin = at;
    }
    at += c.length;
  }
  if (begin != std::string::npos) words.emplace_back(begin, text.size());
  // At the limit the rest stays one part and keeps its whitespace, also at the outer end.
  if (limit >= 0 && !words.empty() && words.size() > static_cast<uint64_t>(limit)) {
    const size_t most = static_cast<size_t>(limit) + 1;
    if (from_right) {
      words.erase(words.begin(), words.end() - static_cast<ptrdiff_t>(most));
      words[0].first = 0;
    } else {
      words.resize(most);
      words.back().second = text.size();
    }
  }
  std::vector<Value> parts;
  for (const auto& [from, to] : words) {
    if (!in.budget.step()) break;
    parts.push_back(in.make(text.slice(from, to - from)));
  }
  return parts;
}

Value split(In in, const Text& text, const Value& separator, int64_t limit, bool from_right) {
  if (separator.is_missing() || separator.is_none()) return in.make(split_space(in, text, limit, from_right));
  const std::string& by = need_text(in, separator).bytes;
  if (by.empty()) return in.fail("empty separator");
  if (!in.charge_search(text.size(), by.size())) return Value();
  std::vector<Value> parts;
  constexpr uint64_t kBytesPerPart = sizeof(Value) + sizeof(Text) + 16;
  if (from_right) {
    size_t end = text.size();
    while (limit != 0 && end >= by.size() && in.budget.step() && in.budget.take(kBytesPerPart)) {
      const size_t found = text.bytes.rfind(by, end - by.size());
      if (found == std::string::npos) break;
      parts.push_back(in.make(text.slice(found + by.size(), end - found - by.size())));
      end = found;
      --limit;
    }
    parts.push_back(in.make(text.slice(0, end)));
    std::reverse(parts.begin(), parts.end());
  } else {
    size_t at = 0;
    while (limit != 0 && in.budget.step() && in.budget.take(kBytesPerPart)) {
      const size_t found = text.bytes.find(by, at);
      if (found == std::string::npos) break;
      parts.push_back(in.make(text.slice(at, found - at)));
      at = found + by.size();
      --limit;
    }
    parts.push_back(in.make(text.slice(at, text.size() - at)));
  }
  return in.make(std::move(parts));
}

Value method_splitlines(In in, Self self, Args& args) {
  const Text& text = *self.text();
  std::vector<Value> lines;
  for (const auto& [begin, end] : line_ranges(text.bytes, !args[0].is_missing() && args[0].truthy())) {
    if (!in.budget.step()) break;
    lines.push_back(in.make(text.slice(begin, end - begin)));
  }
  return in.make(std::move(lines));
}

// The part of `text` between two optional character positions, as byte offsets; nothing when they do not meet.
struct Part {
  std::vector<size_t> offsets;
  size_t begin = 0, end = 0;  // bytes
};
std::optional<Part> part_of(In in, const std::string& text, const Value& from, const Value& to) {
  if (!in.budget.step(text.size() / 16)) return std::nullopt;
  Part part{character_offsets(text), 0, 0};
  const int64_t length = static_cast<int64_t>(part.offsets.size()) - 1;
  const auto place = [&](const Value& bound, int64_t otherwise) {
    const int64_t index = integer_or(in, bound, otherwise);
    return std::max<int64_t>(index < 0 ? index + length : index, 0);
  };
  const int64_t begin = place(from, 0);
  const int64_t end = std::min(place(to, length), length);
  if (begin > end || in.budget.failed()) return std::nullopt;
  part.begin = part.offsets[begin];
  part.end = part.offsets[end];
  return part;
}

// startswith, endswith: one string or a tuple of them.
Value method_has_affix(In in, Self self, Args& args, bool at_end) {
  std::string_view text = self.text()->bytes;
  const bool bounded = args.positional.size() > 1 && !(args[1].is_missing() && args[2].is_missing());
  const std::vector<Value> affixes = args[0].sequence() && args[0].sequence()->kind == Sequence::Kind::kTuple
                                         ? in.items(args[0])
                                         : std::vector<Value>{args[0]};
  for (const Value& value : affixes) need_text(in, value);
  if (bounded) {
    const std::optional<Part> part = part_of(in, self.text()->bytes, args[1], args[2]);
    if (!part) return Value(false);
    text = text.substr(part->begin, part->end - part->begin);
  }
  for (const Value& value : affixes) {
    const std::string& affix = need_text(in, value).bytes;
    if (at_end ? text.ends_with(affix) : text.starts_with(affix)) return Value(true);
  }
  return Value(false);
}

Value method_find(In in, Self self, Args& args, bool last, bool must) {
  const std::string& text = self.text()->bytes;
  const std::string& wanted = need_text(in, args[0]).bytes;
  int64_t index = -1;
  if (const std::optional<Part> part = part_of(in, text, args[1], args[2]);
      part && in.charge_search(part->end - part->begin, wanted.size())) {
    const std::string_view within = std::string_view(text).substr(part->begin, part->end - part->begin);
    const size_t found = last ? within.rfind(wanted) : within.find(wanted);
    if (found != within.npos) {
      const auto& offsets = part->offsets;
      index = std::lower_bound(offsets.begin(), offsets.end(), part->begin + found) - offsets.begin();
    }
  }
  if (must && index < 0) return in.fail("substring not found");
  return Value(index);
}

Value method_count(In in, Self self, Args& args) {
  const std::string& wanted = need_text(in, args[0]).bytes;
  const std::optional<Part> part = part_of(in, self.text()->bytes, args[1], args[2]);
  if (!part || !in.charge_search(part->end - part->begin, wanted.size())) return Value(0);
  const std::string_view text = std::string_view(self.text()->bytes).substr(part->begin, part->end - part->begin);
  if (wanted.empty()) return Value(count_characters(text) + 1);
  int64_t count = 0;
  for (size_t at = text.find(wanted); at != text.npos && in.budget.step(); at = text.find(wanted, at + wanted.size())) {
    ++count;
  }
  return Value(count);
}

Value method_partition(In in, Self self, Args& args, bool last) {
  const Text& text = *self.text();
  const Text& by = need_text(in, args[0]);
  if (by.size() == 0) return in.fail("empty separator");
  if (!in.charge_search(text.size(), by.size())) return Value();
  const size_t found = last ? text.bytes.rfind(by.bytes) : text.bytes.find(by.bytes);
  if (found == std::string::npos) {
    const Value empty = template_text("");
    return last ? in.make({empty, empty, self}, Sequence::Kind::kTuple)
                : in.make({self, empty, empty}, Sequence::Kind::kTuple);
  }
  const size_t after = found + by.size();
  return in.make({in.make(text.slice(0, found)), in.make(text.slice(found, by.size())),
                  in.make(text.slice(after, text.size() - after))},
                 Sequence::Kind::kTuple);
}

Value method_join(In in, Self self, Args& args) {
  Text out;
  bool first = true;
  for (const Value& item : in.items(args[0])) {
    if (!item.text()) return in.fail(std::string("sequence item: expected str instance, ") + item.type() + " found");
    if (!in.budget.take(2 * (self.text()->size() + item.text()->size()))) return Value();
    if (!first) out.append(*self.text());
    first = false;
    out.append(*item.text());
  }
  return Value(std::move(out));
}

Value method_replace(In in, Self self, Args& args) {
  need_text(in, args[0]);
  need_text(in, args[1]);
  if (args[2].is_none()) return in.fail("replace needs a whole count");
  Args same{{args[0], args[1], args[2]}, {}};
  return in.filter("replace", self, std::move(same));
}

Value method_remove_affix(In in, Self self, Args& args, bool at_end) {
  const Text& text = *self.text();
  const Text& affix = need_text(in, args[0]);
  if (affix.size() == 0 || !method_has_affix(in, self, args, at_end).truthy()) return self;
  return in.make(text.slice(at_end ? 0 : affix.size(), text.size() - affix.size()));
}

// ljust (-1), center (0), rjust (1)
Value method_pad(In in, Self self, Args& args, int side) {
  const Text& text = *self.text();
  const int64_t length = static_cast<int64_t>(count_characters(text.bytes));
  const int64_t width = integer_or(in, args[0], 0);
  if (width > 100'000) return in.fail("padding is too wide");
  const Text fill = args[1].is_missing() ? Text(" ", Origin::kTemplate) : need_text(in, args[1]);
  if (count_characters(fill.bytes) != 1) return in.fail("The fill character must be exactly one character long");
  const int64_t missing = std::max<int64_t>(0, width - length);
  // Python puts the odd blank of center() on the left when the width is odd.
  const int64_t left = side < 0 ? 0 : side > 0 ? missing : missing / 2 + (missing & width & 1);
  Text out;
  for (int64_t i = 0; i < left; ++i) out.append(fill);
  out.append(text);
  for (int64_t i = left; i < missing; ++i) out.append(fill);
  return in.make(std::move(out));
}

Value method_zfill(In in, Self self, Args& args) {
  const Text& text = *self.text();
  const int64_t width = integer_or(in, args[0], 0);
  if (width > 100'000) return in.fail("padding is too wide");
  const size_t sign = text.size() > 0 && (text.bytes[0] == '-' || text.bytes[0] == '+') ? 1 : 0;
  Text out = text.slice(0, sign);
  for (int64_t i = static_cast<int64_t>(count_characters(text.bytes)); i < width; ++i)
    out.append("0", Origin::kTemplate);
  out.append(text, sign, text.size() - sign);
  return in.make(std::move(out));
}

// Every character satisfies `accept`, and there is one. Beyond ASCII only letters are known: what has a case, and
// everything from U+0100 on that is not a space.
Value all_characters(Self self, bool (*accept)(uint32_t)) {
  const std::string& text = self.text()->bytes;
  for (size_t at = 0; at < text.size();) {
    const Character c = decode_character(text, at);
    if (c.code == kInvalid || !accept(c.code)) return Value(false);
    at += c.length;
  }
  return Value(!text.empty());
}
bool is_digit(uint32_t c) { return c >= '0' && c <= '9'; }
bool is_letter(uint32_t c) {
  return c < 0x80 ? std::isalpha(static_cast<int>(c)) != 0 : is_cased(c) || (c >= 0x100 && !is_space(c));
}

Value method_isidentifier(In, Self self, Args&) {
  const std::string& text = self.text()->bytes;
  for (size_t at = 0; at < text.size();) {
    const Character c = decode_character(text, at);
    const bool name = c.code != kInvalid && (c.code == '_' || is_letter(c.code) || (at > 0 && is_digit(c.code)));
    if (!name) return Value(false);
    at += c.length;
  }
  return Value(!text.empty());
}

// Words begin in upper case and go on in lower case; what has no case separates them.
Value method_istitle(In, Self self, Args&) {
  const std::string& text = self.text()->bytes;
  bool cased = false;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    const Character c = decode_character(text, at);
    at += c.length;
    const bool has_case = c.code != kInvalid && is_cased(c.code);
    if (has_case && in_word != (to_lower(c.code) == c.code)) return Value(false);
    in_word = has_case;
    cased = cased || has_case;
  }
  return Value(cased);
}

Value method_expandtabs(In in, Self self, Args& args) {
  const Text& text = *self.text();
  const int64_t size = integer_or(in, args[0], 8);
  if (size > 1000) return in.fail("tabs are too wide");
  Text out;
  int64_t column = 0;
  for (size_t at = 0; at < text.size() && in.budget.take(2);) {
    const Character c = decode_character(text.bytes, at);
    if (c.code == '\t') {
      const int64_t blanks = size > 0 ? size - column % size : 0;
      if (!in.budget.take(static_cast<uint64_t>(2 * blanks))) break;
      out.append(std::string(static_cast<size_t>(blanks), ' '), text.origin(at));
      column += blanks;
    } else {
      out.append(text, at, c.length);
      column = c.code == '\n' || c.code == '\r' ? 0 : column + 1;
    }
    at += c.length;
  }
  return in.make(std::move(out));
}

const Table& string_methods() {
  static const Table table = {
      {"capitalize", {"", 0, [](In in, Self self, Args&) { return in.make(capitalize(*self.text())); }}},
      {"casefold", {"", 0, [](In in, Self self, Args&) { return in.make(lower(*self.text())); }}},
      {"center", {"width fillchar", 1, [](In in, Self self, Args& args) { return method_pad(in, self, args, 0); }}},
      {"count", {"sub start end", 1, method_count}},
      {"endswith",
       {"suffix start end", 1, [](In in, Self self, Args& args) { return method_has_affix(in, self, args, true); }}},
      {"find",
       {"sub start end", 1, [](In in, Self self, Args& args) { return method_find(in, self, args, false, false); }}},
      {"expandtabs", {"tabsize", 0, method_expandtabs}},
      {"format", {"*", 0, [](In in, Self self, Args& args) { return in.brace_format(*self.text(), args); }}},
      {"format_map",
       {"mapping", 1,
        [](In in, Self self, Args& args) {
          Args named;
          named.unpacked = args[0];
          if (!args[0].dict()) return in.fail("format_map() needs a mapping");
          for (const auto& [key, value] : args[0].dict()->entries) {
            if (key.text()) named.named.emplace_back(key.text()->bytes, value);
          }
          return in.brace_format(*self.text(), named);
        }}},
      {"index",
       {"sub start end", 1, [](In in, Self self, Args& args) { return method_find(in, self, args, false, true); }}},
      {"isalnum",
       {"", 0,
        [](In, Self self, Args&) {
          return all_characters(self, [](uint32_t c) { return is_digit(c) || is_letter(c); });
        }}},
      {"isalpha", {"", 0, [](In, Self self, Args&) { return all_characters(self, is_letter); }}},
      {"isascii", {"", 0, [](In, Self self, Args&) { return Value(is_ascii(self.text()->bytes)); }}},
      {"isdecimal", {"", 0, [](In, Self self, Args&) { return all_characters(self, is_digit); }}},
      {"isdigit", {"", 0, [](In, Self self, Args&) { return all_characters(self, is_digit); }}},
      {"isidentifier", {"", 0, method_isidentifier}},
      {"islower", {"", 0, [](In in, Self self, Args&) { return Value(in.test("lower", self, {})); }}},
      {"isnumeric", {"", 0, [](In, Self self, Args&) { return all_characters(self, is_digit); }}},
      {"isprintable",
       {"", 0,
        [](In, Self self, Args&) {
          return Value(self.text()->size() == 0 || all_characters(self, is_printable).truthy());
        }}},
      {"istitle", {"", 0, method_istitle}},
      {"isspace", {"", 0, [](In, Self self, Args&) { return all_characters(self, is_space); }}},
      {"isupper", {"", 0, [](In in, Self self, Args&) { return Value(in.test("upper", self, {})); }}},
      {"join", {"iterable", 1, method_join}},
      {"ljust", {"width fillchar", 1, [](In in, Self self, Args& args) { return method_pad(in, self, args, -1); }}},
      {"lower", {"", 0, [](In in, Self self, Args&) { return in.make(lower(*self.text())); }}},
      {"lstrip", {"chars", 0, [](In in, Self self, Args& args) { return method_strip(in, self, args, true, false); }}},
      {"partition", {"sep", 1, [](In in, Self self, Args& args) { return method_partition(in, self, args, false); }}},
      {"removeprefix",
       {"prefix", 1, [](In in, Self self, Args& args) { return method_remove_affix(in, self, args, false); }}},
      {"removesuffix",
       {"suffix", 1, [](In in, Self self, Args& args) { return method_remove_affix(in, self, args, true); }}},
      {"replace", {"old new count", 2, method_replace}},
      {"rfind",
       {"sub start end", 1, [](In in, Self self, Args& args) { return method_find(in, self, args, true, false); }}},
      {"rindex",
       {"sub start end", 1, [](In in, Self self, Args& args) { return method_find(in, self, args, true, true); }}},
      {"rjust", {"width fillchar", 1, [](In in, Self self, Args& args) { return method_pad(in, self, args, 1); }}},
      {"rpartition", {"sep", 1, [](In in, Self self, Args& args) { return method_partition(in, self, args, true); }}},
      {"rsplit",
       {"sep maxsplit", 0,
        [](In in, Self self, Args& args) {
          return split(in, *self.text(), args[0], integer_or(in, args[1], -1), true);
        }}},
      {"rstrip", {"chars", 0, [](In in, Self self, Args& args) { return method_strip(in, self, args, false, true); }}},
      {"split",
       {"sep maxsplit", 0,
        [](In in, Self self, Args& args) {
          return split(in, *self.text(), args[0], integer_or(in, args[1], -1), false);
        }}},
      {"splitlines", {"keepends", 0, method_splitlines}},
      {"startswith",
       {"prefix start end", 1, [](In in, Self self, Args& args) { return method_has_affix(in, self, args, false); }}},
      {"strip", {"chars", 0, [](In in, Self self, Args& args) { return method_strip(in, self, args, true, true); }}},
      {"swapcase",
       {"", 0,
        [](In in, Self self, Args&) {
          return in.make(map_characters(
              *self.text(), [](uint32_t c, size_t) { return to_upper(c) != c ? to_upper(c) : to_lower(c); }));
        }}},
      {"title", {"", 0, [](In in, Self self, Args&) { return in.make(title(*self.text(), false)); }}},
      {"upper", {"", 0, [](In in, Self self, Args&) { return in.make(upper(*self.text())); }}},
      {"zfill", {"width", 1, method_zfill}},
  };
  return table;
}

Value method_get(In in, Self self, Args& args) {
  if (!is_hashable(args[0])) return in.fail(std::string("unhashable type: '") + args[0].type() + "'");
  if (const Value* value = self.dict()->find(args[0], in.budget)) return *value;
  return args[1].is_missing() ? Value() : args[1];
}

Value method_items(In in, Self self, Args&) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : self.dict()->entries) {
    if (!in.budget.step()) break;
    pairs.push_back(in.make({key, value}, Sequence::Kind::kTuple));
  }
  return in.make(std::move(pairs), Sequence::Kind::kDictItems);
}

const Table& dict_methods() {
  static const Table table = {
      {"copy", {"", 0, [](In, Self self, Args&) { return self; }}},
      {"get", {"key default", 1, method_get}},
      {"items", {"", 0, method_items}},
      {"keys", {"", 0, [](In in, Self self, Args&) { return in.make(in.items(self), Sequence::Kind::kDictKeys); }}},
      {"values",
       {"", 0,
        [](In in, Self self, Args&) {
          std::vector<Value> values;
          for (const auto& entry : self.dict()->entries) {
            if (!in.budget.step()) break;
            values.push_back(entry.second);
          }
          return in.make(std::move(values), Sequence::Kind::kDictValues);
        }}},
  };
  return table;
}

Value list_position(In in, Self self, const Value& wanted, bool count, const Value& from = Value::missing(),
                    const Value& to = Value::missing()) {
  int64_t found = 0;
  const std::vector<Value>& items = self.sequence()->items;
  const int64_t length = static_cast<int64_t>(items.size());
  const auto place = [&](const Value& bound, int64_t otherwise) {
    const int64_t index = integer_or(in, bound, otherwise);
    return static_cast<size_t>(std::clamp<int64_t>(index < 0 ? index + length : index, 0, length));
  };
  const size_t end = place(to, length);
  for (size_t i = place(from, 0); i < end && !in.budget.failed(); ++i) {
    if (!equals(items[i], wanted, in.budget)) continue;
    if (!count) return Value(i);
    ++found;
  }
  return count ? Value(found) : in.fail("value is not in list");
}

const Table& list_methods() {
  static const Table table = {
      {"count", {"value", 1, [](In in, Self self, Args& args) { return list_position(in, self, args[0], true); }}},
      {"index",
       {"value start stop", 1,
        [](In in, Self self, Args& args) { return list_position(in, self, args[0], false, args[1], args[2]); }}},
  };
  return table;
}

const Table& loop_methods() {
  static const Table table = {
      {"changed",
       {"*", 0,
        [](In in, Self self, Args& args) {
          Loop& loop = *self.loop();
          bool same = loop.last_changed && loop.last_changed->size() == args.positional.size();
          for (size_t i = 0; same && i < args.positional.size(); ++i) {
            same = equals((*loop.last_changed)[i], args[i], in.budget);
          }
          if (!same) loop.last_changed = args.positional;
          return Value(!same);
        }}},
      {"cycle",
       {"*", 0,
        [](In in, Self self, Args& args) {
          if (args.positional.empty()) return in.fail("no items for cycling given");
          return args[self.loop()->index % args.positional.size()];
        }}},
  };
  return table;
}

}  // namespace

const Builtin* find_method(const Value& self, std::string_view name) {
  const Table* table = nullptr;
  if (self.text()) table = &string_methods();
  if (self.dict()) table = &dict_methods();
  if (self.loop()) table = &loop_methods();
  static const Builtin kCopy{"", 0, [](In, Self self_, Args&) { return self_; }};
  if (name == "copy" && self.sequence() && self.sequence()->kind == Sequence::Kind::kList) return &kCopy;
  if (const Sequence* s = self.sequence();
      s && (s->kind == Sequence::Kind::kList || s->kind == Sequence::Kind::kTuple)) {
    table = &list_methods();
  }
  if (!table) return nullptr;
  const auto found = table->find(name);
  return found == table->end() ? nullptr : &found->second;
}

bool is_unsupported_method(const Value& self, std::string_view name) {
  static constexpr std::array<std::string_view, 3> kString = {"encode", "maketrans", "translate"};
  static constexpr std::array<std::string_view, 9> kNumber = {
      "as_integer_ratio", "bit_count", "bit_length", "conjugate", "from_bytes",
      "fromhex",          "hex",       "is_integer", "to_bytes"};
  if (self.text()) return std::find(kString.begin(), kString.end(), name) != kString.end();
  if (self.dict()) return name == "fromkeys";
  return self.is_number() && std::find(kNumber.begin(), kNumber.end(), name) != kNumber.end();
}

bool is_mutating_method(const Value& self, std::string_view name) {
  static constexpr std::array<std::string_view, 8> kList = {"append", "clear",  "extend",  "insert",
                                                            "pop",    "remove", "reverse", "sort"};
  static constexpr std::array<std::string_view, 5> kDict = {"clear", "pop", "popitem", "setdefault", "update"};
  if (self.dict()) return std::find(kDict.begin(), kDict.end(), name) != kDict.end();
  return self.sequence() && self.sequence()->kind == Sequence::Kind::kList &&
         std::find(kList.begin(), kList.end(), name) != kList.end();
}

}  // namespace proa::jinja
