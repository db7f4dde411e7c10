// Values of the template language, with Python's semantics of str(), repr(), ==, <, truth and json.dumps.
// Containers are immutable once made (the sandbox forbids their mutating methods), so they are shared freely and
// cannot form cycles. Namespaces and loops can change; the interpreter owns them and values hold plain pointers.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "chat/jinja_text.h"

namespace proa::jinja {

class Value;
struct Callable;
struct Dict;
struct Loop;
struct MacroDefinition;
struct Namespace;
struct Scope;
struct Sequence;
struct Stmt;

// What a render may still use. Once something failed everything fails, so loops end soon after.
struct Budget {
  uint64_t steps = 0;  // statements, expressions, elements visited
  uint64_t bytes = 0;  // bytes of strings and containers made, in sum
  std::string failure;

  bool failed() const { return !failure.empty(); }
  void fail(std::string message) {
    if (failure.empty()) failure = message.empty() ? "error" : std::move(message);
  }
  bool step(uint64_t count = 1) {
    if (failed()) return false;
    if (count > steps) return fail("template takes too many steps"), false;
    steps -= count;
    return true;
  }
  bool take(uint64_t count) {
    if (failed()) return false;
    if (count > bytes) return fail("template makes too much data"), false;
    bytes -= count;
    return true;
  }
};

struct Missing {};  // an argument that was not given
struct Undefined {
  std::shared_ptr<const std::string> message;  // what using it reports: "'x' is undefined"
};
struct None {};

// Nesting of containers; deeper ones are refused so that every recursion over a value is bounded.
constexpr int kMaxValueDepth = 200;

class Value {
 public:
  using Data = std::variant<Missing, Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
                            std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>, Namespace*, Loop*,
                            std::shared_ptr<const Callable>>;

  Value() : data_(None{}) {}
  Value(bool v) : data_(v) {}
  Value(int64_t v) : data_(v) {}
  Value(int v) : data_(int64_t{v}) {}
  Value(size_t v) : data_(static_cast<int64_t>(v)) {}
  Value(double v) : data_(v) {}
  Value(Text text) : data_(std::make_shared<const Text>(std::move(text))) {}
  Value(Sequence sequence);
  Value(Dict dict);
  Value(Callable callable);
  Value(Namespace* ns) : data_(ns) {}
  Value(Loop* loop) : data_(loop) {}
  Value(const char*) = delete;  // say where the text comes from: template_text()

  static Value missing() { return Value(Data(Missing{})); }
  static Value undefined(std::string message) {
    return Value(Data(Undefined{std::make_shared<const std::string>(std::move(message))}));
  }

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  bool is_missing() const { return is<Missing>(); }
  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_bool() const { return is<bool>(); }
  bool is_integer() const { return is<int64_t>() || is_bool(); }  // Python's bool is an int
  bool is_number() const { return is_integer() || is<double>(); }

  const Text* text() const { return pointer<Text>(); }
  const Sequence* sequence() const { return pointer<Sequence>(); }
  const Dict* dict() const { return pointer<Dict>(); }
  const Callable* callable() const { return pointer<Callable>(); }
  Namespace* ns() const { return is<Namespace*>() ? std::get<Namespace*>(data_) : nullptr; }
  Loop* loop() const { return is<Loop*>() ? std::get<Loop*>(data_) : nullptr; }

  int64_t integer() const { return is_bool() ? std::get<bool>(data_) : std::get<int64_t>(data_); }
  double real() const { return is<double>() ? std::get<double>(data_) : static_cast<double>(integer()); }
  const std::string& undefined_message() const { return *std::get<Undefined>(data_).message; }

  bool truthy() const;
  int depth() const;                     // 0 for scalars, 1 + the deepest element for containers
  const char* type() const;              // "str", "list", "dict", ... as Python names it
  std::optional<size_t> length() const;  // len(), absent when the type has none

 private:
  explicit Value(Data data) : data_(std::move(data)) {}
  template <typename T>
  const T* pointer() const {
    const auto* shared = std::get_if<std::shared_ptr<const T>>(&data_);
    return shared ? shared->get() : nullptr;
  }
  Data data_;
};

inline Value template_text(std::string_view text) { return Value(Text(text, Origin::kTemplate)); }

struct Sequence {
  enum class Kind { kList, kTuple, kRange, kDictItems, kDictKeys, kDictValues, kGenerator };
  std::vector<Value> items;
  Kind kind = Kind::kList;
  int depth = 1;
  bool is_group = false;                  // a tuple with the attributes `grouper` and `list`
  int64_t start = 0, stop = 0, step = 1;  // of a range
  mutable size_t taken = 0;               // of a generator: elements that were already given out, which come only once

  bool has_positions() const { return kind == Kind::kList || kind == Kind::kTuple || kind == Kind::kRange; }

  static Sequence list(std::vector<Value> items, Kind kind = Kind::kList);
};

// In order of insertion. Keys are strings nearly always; others are found by scanning.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  int depth = 1;

  const Value* find(std::string_view key) const;
  const Value* find(const Value& key, Budget& budget) const;
  // Replaces the value of an equal key in place, as Python does.
  void set(Value key, Value value, Budget& budget);

 private:
  std::unordered_map<std::string, size_t> index_;  // by string key
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};

struct Loop {
  std::vector<Value> items;
  size_t length = 0;
  size_t index = 0;
  int depth0 = 0;                   // of recursion
  const Stmt* statement = nullptr;  // of a recursive loop, which can be called
  Scope* scope = nullptr;
  std::optional<std::vector<Value>> last_changed;
};

// A function (global), a method bound to `self`, or a macro bound to the scope that defined it.
struct Callable {
  enum class Kind { kFunction, kMethod, kMacro };
  Kind kind = Kind::kFunction;
  std::string name;
  Value self;
  const MacroDefinition* macro = nullptr;
  Scope* scope = nullptr;
};

// Whether Python would take it as a key: no list or dict, nor a tuple that holds one.
bool is_hashable(const Value& value);
bool equals(const Value& a, const Value& b, Budget& budget);
// -1, 0, 1; fails for types that Python does not order.
int compare(const Value& a, const Value& b, Budget& budget);

// str(): marks of a string stay; a printed container is input when any string in it is.
Text to_text(const Value& value, Budget& budget);
std::string repr_of_text(std::string_view bytes);
std::string repr_of_real(double value);
Text repr(const Value& value, Budget& budget);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// json.dumps; marked as repr() is.
Text to_json(const Value& value, const JsonStyle& style, Budget& budget);

// Elements as `for` sees them: of a list, keys of a dict, characters of a string. Fails when not iterable.
std::vector<Value> iterate(const Value& value, Budget& budget);

// `origin` marks all strings, keys included.
Value from_json(const nlohmann::ordered_json& json, Origin origin, Budget& budget, int depth = 0);

}  // namespace proa::jinja
