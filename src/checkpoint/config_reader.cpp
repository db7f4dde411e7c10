#include "checkpoint/config_reader.h"

#include <cmath>

#include "checkpoint/printable.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxElements = 16u << 20;

std::string describe(const Json& value) {
  if (value.is_string()) {
    std::string text = printable(value.get_ref<const std::string&>(), 60);
    return text.insert(0, 1, '"') += '"';
  }
  if (value.is_array()) return "an array of " + std::to_string(value.size());
  if (value.is_object()) return "an object";
  return value.dump();
}

std::string describe(const IntegerRange& range) {
  const std::string least = std::to_string(range.min);
  if (range.max == IntegerRange{}.max) return "an integer of at least " + least;
  return "an integer from " + least + " to " + std::to_string(range.max);
}

std::string describe(const NumberRange& range) {
  if (std::isinf(range.min) && std::isinf(range.max)) return "a number";
  const auto text = [](double value) { return Json(value).dump(); };
  if (std::isinf(range.max)) return "a number of at least " + text(range.min);
  if (std::isinf(range.min)) return "a number of at most " + text(range.max);
  return "a number from " + text(range.min) + " to " + text(range.max);
}

std::optional<int64_t> to_integer(const Json& value, const IntegerRange& range) {
  int64_t integer = 0;
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    integer = static_cast<int64_t>(number);
  } else if (value.is_number_integer()) {
    integer = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    if (!(std::fabs(number) <= 0x1p53) || number != std::floor(number)) return std::nullopt;
    integer = static_cast<int64_t>(number);
  } else {
    return std::nullopt;
  }
  if (integer < range.min || integer > range.max) return std::nullopt;
  return integer;
}

std::optional<double> to_number(const Json& value, const NumberRange& range) {
  double number = 0;
  if (value.is_number()) {
    number = value.get<double>();
  } else if (value.is_object() && value.size() == 1 && value.contains("__float__")) {
    return to_number(value["__float__"], range);
  } else if (value == "Infinity") {
    number = std::numeric_limits<double>::infinity();
  } else if (value == "-Infinity") {
    number = -std::numeric_limits<double>::infinity();
  } else {
    return std::nullopt;
  }
  if (!(number >= range.min && number <= range.max)) return std::nullopt;
  return number;
}

std::optional<std::string> to_text(const Json& value) {
  if (!value.is_string()) return std::nullopt;
  return value.get<std::string>();
}

// All elements through `convert`; an error names the first that does not fit.
template <class T, class Convert>
Result<std::vector<T>> convert_array(const ConfigReader& reader, std::string_view field, const Json& value,
                                     const std::string& expected, Convert convert) {
  if (!value.is_array() || value.size() > kMaxElements) {
    return reader.error(field, "an array, each " + expected, describe(value));
  }
  std::vector<T> values;
  values.reserve(value.size());
  for (const Json& element : value) {
    auto converted = convert(element);
    if (!converted) {
      return reader.error(std::string(field) + "[" + std::to_string(values.size()) + "]", expected, describe(element));
    }
    values.push_back(*std::move(converted));
  }
  return values;
}

}  // namespace

std::pair<std::string_view, const Json*> ConfigReader::find(const FieldNames& names) const {
  if (object_->is_object()) {
    for (std::string_view name : names) {
      const auto found = object_->find(name);
      if (found != object_->end() && !found->is_null()) return {name, &*found};
    }
  }
  return {names.first(), nullptr};
}

Error ConfigReader::error(std::string_view field, std::string expected, std::string actual) const {
  return {.doing = {},
          .where = where_ + ": " + printable(field),
          .expected = std::move(expected),
          .actual = one_line(actual, 200),
          .hint = {}};
}

Result<int64_t> ConfigReader::integer(const FieldNames& names, IntegerRange range,
                                      std::optional<int64_t> fallback) const {
  const auto [name, value] = find(names);
  if (!value && fallback) return *fallback;
  if (!value) return error(name, describe(range), "no such field");
  if (const auto integer = to_integer(*value, range)) return *integer;
  return error(name, describe(range), describe(*value));
}

Result<double> ConfigReader::number(const FieldNames& names, NumberRange range, std::optional<double> fallback) const {
  const auto [name, value] = find(names);
  if (!value && fallback) return *fallback;
  if (!value) return error(name, describe(range), "no such field");
  if (const auto number = to_number(*value, range)) return *number;
  return error(name, describe(range), describe(*value));
}

Result<bool> ConfigReader::boolean(const FieldNames& names, std::optional<bool> fallback) const {
  const auto [name, value] = find(names);
  if (!value && fallback) return *fallback;
  if (!value) return error(name, "true or false", "no such field");
  if (value->is_boolean()) return value->get<bool>();
  return error(name, "true or false", describe(*value));
}

Result<std::string> ConfigReader::string(const FieldNames& names, std::optional<std::string> fallback) const {
  const auto [name, value] = find(names);
  if (!value && fallback) return *std::move(fallback);
  if (!value) return error(name, "a string", "no such field");
  if (auto text = to_text(*value)) return *std::move(text);
  return error(name, "a string", describe(*value));
}

Result<std::vector<int64_t>> ConfigReader::integers(const FieldNames& names, IntegerRange range,
                                                    std::optional<std::vector<int64_t>> fallback) const {
  const auto [name, value] = find(names);
  if (!value && fallback) return *std::move(fallback);
  if (!value) return error(name, "an array of integers", "no such field");
  return convert_array<int64_t>(*this, name, *value, describe(range),
                                [&](const Json& element) { return to_integer(element, range); });
}

Result<std::vector<int64_t>> ConfigReader::integer_or_list(const FieldNames& names, IntegerRange range,
                                                           std::optional<std::vector<int64_t>> fallback) const {
  const Json* value = find(names).second;
  if (!value || value->is_array()) return integers(names, range, std::move(fallback));
  PROA_ASSIGN(const int64_t single, integer(names, range));
  return std::vector<int64_t>{single};
}

Result<std::vector<double>> ConfigReader::numbers(const FieldNames& names, NumberRange range,
                                                  std::optional<std::vector<double>> fallback) const {
  const auto [name, value] = find(names);
  if (!value && fallback) return *std::move(fallback);
  if (!value) return error(name, "an array of numbers", "no such field");
  return convert_array<double>(*this, name, *value, describe(range),
                               [&](const Json& element) { return to_number(element, range); });
}

Result<std::vector<std::string>> ConfigReader::strings(const FieldNames& names,
                                                       std::optional<std::vector<std::string>> fallback) const {
  const auto [name, value] = find(names);
  if (!value && fallback) return *std::move(fallback);
  if (!value) return error(name, "an array of strings", "no such field");
  return convert_array<std::string>(*this, name, *value, "a string", to_text);
}

Result<ConfigReader> ConfigReader::object(const FieldNames& names) const {
  const auto [name, value] = find(names);
  if (!value) return error(name, "an object", "no such field");
  if (!value->is_object()) return error(name, "an object", describe(*value));
  return ConfigReader(*value, where_ + ": " + std::string(name));
}

}  // namespace proa
