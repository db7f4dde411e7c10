#include "chat/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

namespace proa::jinja {

Value::Value(Sequence sequence) : data_(std::make_shared<const Sequence>(std::move(sequence))) {}
Value::Value(Dict dict) : data_(std::make_shared<const Dict>(std::move(dict))) {}
Value::Value(Callable callable) : data_(std::make_shared<const Callable>(std::move(callable))) {}

bool Value::truthy() const {
  if (is_undefined() || is_none() || is_missing()) return false;
  if (is_integer()) return integer() != 0;
  if (is<double>()) return real() != 0;
  if (const Text* t = text()) return t->size() > 0;
  if (const Sequence* s = sequence()) return s->kind == Sequence::Kind::kGenerator || !s->items.empty();
  if (const Dict* d = dict()) return !d->entries.empty();
  return true;
}

int Value::depth() const {
  if (const Sequence* s = sequence()) return s->depth;
  if (const Dict* d = dict()) return d->depth;
  if (const Callable* c = callable()) return 1 + c->self.depth();
  return 0;
}

const char* Value::type() const {
  if (is_missing() || is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_integer()) return "int";
  if (is<double>()) return "float";
  if (text()) return "str";
  if (dict()) return "dict";
  if (ns()) return "namespace";
  if (loop()) return "loop";
  if (callable()) return "function";
  switch (sequence()->kind) {
    case Sequence::Kind::kList:
      return "list";
    case Sequence::Kind::kTuple:
      return "tuple";
    case Sequence::Kind::kRange:
      return "range";
    case Sequence::Kind::kDictItems:
      return "dict_items";
    case Sequence::Kind::kDictKeys:
      return "dict_keys";
    case Sequence::Kind::kDictValues:
      return "dict_values";
    case Sequence::Kind::kGenerator:
      return "generator";
  }
  return "";
}

std::optional<size_t> Value::length() const {
  if (const Text* t = text()) return count_characters(t->bytes);
  if (const Dict* d = dict()) return d->entries.size();
  if (is_undefined()) return 0;
  if (const Sequence* s = sequence(); s && s->kind != Sequence::Kind::kGenerator) return s->items.size();
  if (const Loop* l = loop()) return l->length;
  return std::nullopt;
}

Sequence Sequence::list(std::vector<Value> items, Kind kind) {
  Sequence sequence{std::move(items), kind, 1};
  for (const Value& item : sequence.items) sequence.depth = std::max(sequence.depth, 1 + item.depth());
  return sequence;
}

const Value* Dict::find(std::string_view key) const {
  if (entries.size() <= 8) {
    for (const auto& [name, value] : entries) {
      if (name.text() && name.text()->bytes == key) return &value;
    }
    return nullptr;
  }
  const auto found = index_.find(std::string(key));
  return found == index_.end() ? nullptr : &entries[found->second].second;
}

const Value* Dict::find(const Value& key, Budget& budget) const {
  if (key.text()) return find(key.text()->bytes);
  if (!budget.step(entries.size())) return nullptr;
  for (const auto& [name, value] : entries) {
    if (!name.text() && equals(name, key, budget)) return &value;
  }
  return nullptr;
}

void Dict::set(Value key, Value value, Budget& budget) {
  if (!budget.take(sizeof(Value) * 2 + 64)) return;
  if (!is_hashable(key)) {
    return budget.fail(std::string("unhashable type: '") + key.type() + "'");
  }
  depth = std::max(depth, 1 + std::max(key.depth(), value.depth()));
  if (const Value* old = find(key, budget)) {
    *const_cast<Value*>(old) = std::move(value);
    return;
  }
  if (key.text()) index_.emplace(key.text()->bytes, entries.size());
  entries.emplace_back(std::move(key), std::move(value));
}

bool is_hashable(const Value& value) {
  if (value.dict()) return false;
  const Sequence* sequence = value.sequence();
  if (!sequence) return true;
  if (sequence->kind != Sequence::Kind::kTuple) {
    return sequence->kind != Sequence::Kind::kList && sequence->kind != Sequence::Kind::kDictItems &&
           sequence->kind != Sequence::Kind::kDictKeys;
  }
  return std::all_of(sequence->items.begin(), sequence->items.end(), is_hashable);
}

bool equals(const Value& a, const Value& b, Budget& budget) {
  if (!budget.step()) return false;
  if (a.is_number() && b.is_number()) {
    return a.is_integer() && b.is_integer() ? a.integer() == b.integer() : a.real() == b.real();
  }
  if (a.text() && b.text()) return a.text()->bytes == b.text()->bytes;
  if (a.is_none() || a.is_undefined()) return a.is_none() ? b.is_none() : b.is_undefined();
  if (const Sequence *x = a.sequence(), *y = b.sequence(); x && y) {
    if (x == y) return true;
    if (x->kind != y->kind || x->items.size() != y->items.size() || x->kind == Sequence::Kind::kGenerator) return false;
    for (size_t i = 0; i < x->items.size(); ++i) {
      if (!equals(x->items[i], y->items[i], budget)) return false;
    }
    return true;
  }
  if (const Dict *x = a.dict(), *y = b.dict(); x && y) {
    if (x == y) return true;
    if (x->entries.size() != y->entries.size()) return false;
    for (const auto& [key, value] : x->entries) {
      const Value* other = y->find(key, budget);
      if (!other || !equals(value, *other, budget)) return false;
    }
    return true;
  }
  if (a.ns() || b.ns()) return a.ns() == b.ns();
  if (a.loop() || b.loop()) return a.loop() == b.loop();
  return a.callable() && a.callable() == b.callable();
}

int compare(const Value& a, const Value& b, Budget& budget) {
  if (!budget.step()) return 0;
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
    return a.real() < b.real() ? -1 : a.real() > b.real();
  }
  if (a.text() && b.text()) {  // UTF-8 sorts as code points do
    const int order = a.text()->bytes.compare(b.text()->bytes);
    return order < 0 ? -1 : order > 0;
  }
  if (const Sequence *x = a.sequence(), *y = b.sequence();
      x && y && x->kind == y->kind && (x->kind == Sequence::Kind::kList || x->kind == Sequence::Kind::kTuple)) {
    for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i) {
      if (!equals(x->items[i], y->items[i], budget)) return compare(x->items[i], y->items[i], budget);
    }
    return x->items.size() < y->items.size() ? -1 : x->items.size() > y->items.size();
  }
  if (a.is_undefined() || b.is_undefined()) {
    budget.fail(a.is_undefined() ? a.undefined_message() : b.undefined_message());
  } else {
    budget.fail(std::string("cannot order '") + a.type() + "' and '" + b.type() + "'");
  }
  return 0;
}

std::string repr_of_text(std::string_view bytes) {
  const char quote = bytes.find('\'') != bytes.npos && bytes.find('"') == bytes.npos ? '"' : '\'';
  std::string out(1, quote);
  char escape[16];
  for (size_t at = 0; at < bytes.size();) {
    const Character c = decode_character(bytes, at);
    const std::string_view raw = bytes.substr(at, c.length);
    at += c.length;
    if (c.code == '\n') {
      out += "\\n";
    } else if (c.code == '\r') {
      out += "\\r";
    } else if (c.code == '\t') {
      out += "\\t";
    } else if (c.code == '\\' || c.code == static_cast<uint32_t>(quote)) {
      out += '\\';
      out += raw;
    } else if (c.code == kInvalid || is_printable(c.code)) {
      out += raw;
    } else {
      std::snprintf(escape, sizeof escape,
                    c.code < 0x100     ? "\\x%02x"
                    : c.code < 0x10000 ? "\\u%04x"
                                       : "\\U%08x",
                    c.code);
      out += escape;
    }
  }
  return out + quote;
}

std::string repr_of_real(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  std::string text(buffer, end);
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  if (exponent >= -4 && exponent < 16) {
    char fixed[400];
    const auto result = std::to_chars(fixed, fixed + sizeof fixed, value, std::chars_format::fixed);
    std::string out(fixed, result.ptr);
    return out.find('.') == out.npos ? out + ".0" : out;
  }
  return text;  // to_chars writes at least two digits of exponent, as Python does
}

namespace {

// Prints containers into one string; the marks are decided at the end.
class Printer {
 public:
  explicit Printer(Budget& budget) : budget_(budget) {}

  void add(std::string_view text) {
    if (budget_.take(2 * text.size())) out_ += text;
  }
  void note(const Text& text) { input_ = input_ || text.any_input(); }
  Text finish() { return Text(out_, input_ ? Origin::kInput : Origin::kTemplate); }

  void repr(const Value& value, int depth = 0) {
    if (!budget_.step()) return;
    if (depth > kMaxValueDepth) return budget_.fail("value is nested too deeply to print");
    if (value.is_undefined()) return add("Undefined");
    if (value.is_none() || value.is_missing()) return add("None");
    if (value.is_bool()) return add(value.integer() ? "True" : "False");
    if (value.is_integer()) return add(std::to_string(value.integer()));
    if (value.is<double>()) return add(repr_of_real(value.real()));
    if (const Text* text = value.text()) return note(*text), add(repr_of_text(text->bytes));
    if (const Dict* dict = value.dict()) return entries(dict->entries, depth);
    if (Namespace* ns = value.ns()) {
      add("<Namespace {");
      bool first = true;
      for (const auto& [name, attribute] : ns->attributes) {
        add(first ? "" : ", ");
        first = false;
        add(repr_of_text(name) + ": ");
        repr(attribute, depth + 1);
      }
      return add("}>");
    }
    if (Loop* loop = value.loop()) {
      return add("<LoopContext " + std::to_string(loop->index + 1) + "/" + std::to_string(loop->length) + ">");
    }
    if (const Callable* callable = value.callable()) {
      return add((callable->kind == Callable::Kind::kMacro ? "<Macro " : "<function ") + repr_of_text(callable->name) +
                 ">");
    }
    const Sequence& sequence = *value.sequence();
    switch (sequence.kind) {
      case Sequence::Kind::kGenerator:
        return add("<generator object>");
      case Sequence::Kind::kRange:
        return range(sequence);
      case Sequence::Kind::kDictItems:
      case Sequence::Kind::kDictKeys:
      case Sequence::Kind::kDictValues:
        add(value.type());
        return items(sequence, depth, "([", "])");
      case Sequence::Kind::kList:
        return items(sequence, depth, "[", "]");
      case Sequence::Kind::kTuple:
        return items(sequence, depth, "(", sequence.items.size() == 1 ? ",)" : ")");
    }
  }

  void json(const Value& value, const JsonStyle& style, int depth = 0) {
    if (!budget_.step()) return;
    if (value.is_none()) return add("null");
    if (value.is_bool()) return add(value.integer() ? "true" : "false");
    if (value.is_integer()) return add(std::to_string(value.integer()));
    if (value.is<double>()) return add(json_real(value.real()));
    if (const Text* text = value.text()) return note(*text), json_string(text->bytes, style);
    if (const Sequence* sequence = value.sequence();
        sequence && (sequence->kind == Sequence::Kind::kList || sequence->kind == Sequence::Kind::kTuple)) {
      if (sequence->items.empty()) return add("[]");
      add("[");
      for (size_t i = 0; i < sequence->items.size() && !budget_.failed(); ++i) {
        if (i > 0) add(style.item_separator);
        newline(style, depth + 1);
        json(sequence->items[i], style, depth + 1);
      }
      newline(style, depth);
      return add("]");
    }
    if (const Dict* dict = value.dict()) return json_dict(*dict, style, depth);
    budget_.fail(std::string("Object of type ") + value.type() + " is not JSON serializable");
  }

 private:
  void entries(const std::vector<std::pair<Value, Value>>& pairs, int depth) {
    add("{");
    for (size_t i = 0; i < pairs.size() && !budget_.failed(); ++i) {
      if (i > 0) add(", ");
      repr(pairs[i].first, depth + 1);
      add(": ");
      repr(pairs[i].second, depth + 1);
    }
    add("}");
  }
  void items(const Sequence& sequence, int depth, std::string_view open, std::string_view close) {
    add(open);
    for (size_t i = 0; i < sequence.items.size() && !budget_.failed(); ++i) {
      if (i > 0) add(", ");
      repr(sequence.items[i], depth + 1);
    }
    add(close);
  }
  void range(const Sequence& s) {
    add("range(" + std::to_string(s.start) + ", " + std::to_string(s.stop) +
        (s.step == 1 ? "" : ", " + std::to_string(s.step)) + ")");
  }

  static std::string json_real(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return repr_of_real(value);
  }

  void newline(const JsonStyle& style, int depth) {
    if (!style.indent) return;
    add("\n");
    for (int i = 0; i < depth && !budget_.failed(); ++i) add(*style.indent);
  }

  void json_dict(const Dict& dict, const JsonStyle& style, int depth) {
    if (dict.entries.empty()) return add("{}");
    std::vector<const std::pair<Value, Value>*> order;
    for (const auto& entry : dict.entries) order.push_back(&entry);
    if (style.sort_keys) {
      std::stable_sort(order.begin(), order.end(),
                       [&](const auto* a, const auto* b) { return compare(a->first, b->first, budget_) < 0; });
    }
    add("{");
    for (size_t i = 0; i < order.size() && !budget_.failed(); ++i) {
      if (i > 0) add(style.item_separator);
      newline(style, depth + 1);
      const Value& key = order[i]->first;
      if (key.text()) {
        json(key, style, depth + 1);
      } else if (key.is_number() || key.is_none()) {
        add("\"");
        json(key, style, depth + 1);
        add("\"");
      } else {
        budget_.fail(std::string("keys must be str, int, float, bool or None, not ") + key.type());
      }
      add(style.key_separator);
      json(order[i]->second, style, depth + 1);
    }
    newline(style, depth);
    add("}");
  }

  void json_string(std::string_view bytes, const JsonStyle& style) {
    std::string out = "\"";
    char escape[16];
    for (size_t at = 0; at < bytes.size();) {
      const Character c = decode_character(bytes, at);
      const std::string_view raw = bytes.substr(at, c.length);
      at += c.length;
      switch (c.code) {
        case '"':
          out += "\\\"";
          continue;
        case '\\':
          out += "\\\\";
          continue;
        case '\n':
          out += "\\n";
          continue;
        case '\r':
          out += "\\r";
          continue;
        case '\t':
          out += "\\t";
          continue;
        case '\f':
          out += "\\f";
          continue;
        case '\b':
          out += "\\b";
          continue;
        default:
          break;
      }
      if (c.code != kInvalid && (c.code < 0x20 || (style.ensure_ascii && c.code > 0x7E))) {
        if (c.code < 0x10000) {
          std::snprintf(escape, sizeof escape, "\\u%04x", c.code);
        } else {
          std::snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xD800 + ((c.code - 0x10000) >> 10),
                        0xDC00 + ((c.code - 0x10000) & 0x3FF));
        }
        out += escape;
      } else {
        out += raw;
      }
    }
    add(out + "\"");
  }

  Budget& budget_;
  std::string out_;
  bool input_ = false;
};

}  // namespace

Text to_text(const Value& value, Budget& budget) {
  if (const Text* text = value.text()) return budget.take(2 * text->size()) ? *text : Text();
  if (value.is_undefined() || value.is_missing()) return Text();
  return repr(value, budget);
}

Text repr(const Value& value, Budget& budget) {
  Printer printer(budget);
  printer.repr(value);
  return printer.finish();
}

Text to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  Printer printer(budget);
  printer.json(value, style);
  return printer.finish();
}

std::vector<Value> iterate(const Value& value, Budget& budget) {
  if (value.is_undefined()) return {};
  if (const Sequence* sequence = value.sequence()) {
    if (!budget.step(sequence->items.size()) || !budget.take(sizeof(Value) * sequence->items.size())) return {};
    if (sequence->kind != Sequence::Kind::kGenerator) return sequence->items;
    const size_t begin = std::exchange(sequence->taken, sequence->items.size());
    return {sequence->items.begin() + static_cast<std::ptrdiff_t>(begin), sequence->items.end()};
  }
  std::vector<Value> items;
  if (const Dict* dict = value.dict()) {
    if (!budget.step(dict->entries.size()) || !budget.take(sizeof(Value) * dict->entries.size())) return {};
    for (const auto& entry : dict->entries) items.push_back(entry.first);
  } else if (const Text* text = value.text()) {
    constexpr uint64_t kBytesPerCharacter = sizeof(Value) + sizeof(Text) + 16;
    for (size_t at = 0; at < text->size() && budget.step() && budget.take(kBytesPerCharacter);) {
      const Character c = decode_character(text->bytes, at);
      items.emplace_back(text->slice(at, c.length));
      at += c.length;
    }
  } else {
    budget.fail(std::string("'") + value.type() + "' object is not iterable");
  }
  return items;
}

Value from_json(const nlohmann::ordered_json& json, Origin origin, Budget& budget, int depth) {
  if (!budget.step()) return Value();
  if (depth >= kMaxValueDepth) return budget.fail("input is nested too deeply"), Value();
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return Value(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned: {
      const uint64_t value = json.get<uint64_t>();
      constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
      return value <= kMax ? Value(static_cast<int64_t>(value)) : Value(static_cast<double>(value));
    }
    case nlohmann::ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case nlohmann::ordered_json::value_t::string: {
      const std::string& text = json.get_ref<const std::string&>();
      return budget.take(2 * text.size()) ? Value(Text(text, origin)) : Value();
    }
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      for (const auto& item : json) {
        if (!budget.take(sizeof(Value))) break;
        items.push_back(from_json(item, origin, budget, depth + 1));
      }
      return Value(Sequence::list(std::move(items)));
    }
    case nlohmann::ordered_json::value_t::object: {
      Dict dict;
      for (const auto& [key, value] : json.items()) {
        if (!budget.take(2 * key.size())) break;
        dict.set(Value(Text(key, origin)), from_json(value, origin, budget, depth + 1), budget);
      }
      return Value(std::move(dict));
    }
    default:
      return Value();
  }
}

}  // namespace proa::jinja
