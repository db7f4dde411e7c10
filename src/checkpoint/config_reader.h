// Typed fields of a JSON object from outside (config.json, tokenizer_config.json, ...). Errors name file and field:
//   config.json: hidden_size: expected an integer of at least 1, found "x"
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/result.h"

namespace proa {

// One field under one or several spellings; the first one that is there and not null wins, errors use the first.
class FieldNames {
 public:
  FieldNames(const char* name) : names_{name} {}
  FieldNames(std::string_view name) : names_{name} {}
  FieldNames(const std::string& name) : names_{name} {}
  FieldNames(std::initializer_list<std::string_view> names) : names_(names) {}
  auto begin() const { return names_.begin(); }
  auto end() const { return names_.end(); }
  std::string_view first() const { return names_.front(); }

 private:
  std::vector<std::string_view> names_;
};

struct IntegerRange {
  int64_t min = 1;
  int64_t max = std::numeric_limits<int32_t>::max();
};

struct NumberRange {  // NaN is never inside
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
};

// Reads one object, which must outlive the reader. A field that is null counts as absent. Without a fallback, absence
// is an error. Arrays longer than 16 Mi elements are refused.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::ordered_json& object, std::string where) : object_(&object), where_(std::move(where)) {}

  // "config.json" or "config.json: text_config".
  const std::string& where() const { return where_; }
  const nlohmann::ordered_json& json() const { return *object_; }
  bool has(const FieldNames& names) const { return find(names).second != nullptr; }

  // A float that is whole (2.0) is an integer too.
  Result<int64_t> integer(const FieldNames& names, IntegerRange range = {}, std::optional<int64_t> fallback = {}) const;
  // Also takes Infinity, -Infinity as Python writes them, and {"__float__": "Infinity"} as transformers does.
  Result<double> number(const FieldNames& names, NumberRange range = {}, std::optional<double> fallback = {}) const;
  Result<bool> boolean(const FieldNames& names, std::optional<bool> fallback = {}) const;
  Result<std::string> string(const FieldNames& names, std::optional<std::string> fallback = {}) const;

  // Arrays; every element is checked.
  Result<std::vector<int64_t>> integers(const FieldNames& names, IntegerRange range = {},
                                        std::optional<std::vector<int64_t>> fallback = {}) const;
  // Like integers(), but a single integer is a list of one: eos_token_id.
  Result<std::vector<int64_t>> integer_or_list(const FieldNames& names, IntegerRange range = {},
                                               std::optional<std::vector<int64_t>> fallback = {}) const;
  Result<std::vector<double>> numbers(const FieldNames& names, NumberRange range = {},
                                      std::optional<std::vector<double>> fallback = {}) const;
  Result<std::vector<std::string>> strings(const FieldNames& names,
                                           std::optional<std::vector<std::string>> fallback = {}) const;

  // A nested object. For an optional one ask has() first.
  Result<ConfigReader> object(const FieldNames& names) const;

  // An error at a field, for checks that the caller makes: reader.error("hidden_size", "a multiple of 64", "100").
  Error error(std::string_view field, std::string expected, std::string actual) const;

 private:
  // The spelling that is there and its value, or the first spelling and nullptr.
  std::pair<std::string_view, const nlohmann::ordered_json*> find(const FieldNames& names) const;

  const nlohmann::ordered_json* object_;
  std::string where_;
};

}  // namespace proa
