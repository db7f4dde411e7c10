#include "server/field_reader.h"

#include <charconv>
#include <cmath>
#include <utility>

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxListed = 32;  // problems of one body: a million must not become an answer of a hundred megabytes

std::string_view trim(std::string_view text) {
  while (!text.empty() && std::string_view(" \t\r\n").find(text.front()) != std::string_view::npos)
    text.remove_prefix(1);
  while (!text.empty() && std::string_view(" \t\r\n").find(text.back()) != std::string_view::npos)
    text.remove_suffix(1);
  return text;
}

// Within what a double holds exactly; larger ones are out of any range here.
std::optional<int64_t> integer_of(double value) {
  if (!(std::abs(value) < 9.2e18) || value != std::floor(value)) return std::nullopt;
  return static_cast<int64_t>(value);
}

}  // namespace

std::optional<int64_t> to_integer(const Json& value) {
  if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    return number <= INT64_MAX ? std::optional<int64_t>(static_cast<int64_t>(number)) : std::nullopt;
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) return integer_of(value.get<double>());
  if (!value.is_string()) return std::nullopt;
  const std::string_view text = trim(value.get_ref<const std::string&>());
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::optional<double> to_number(const Json& value) {
  if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
  if (value.is_number()) return value.get<double>();
  if (!value.is_string()) return std::nullopt;
  const std::string_view text = trim(value.get_ref<const std::string&>());
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);  // NaN and Infinity too
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

FieldReader::FieldReader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

const Json* FieldReader::find(const char* name) const {
  if (!object_.is_object()) return nullptr;
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void FieldReader::problem(const std::string& field, const char* kind, std::string message) {
  if (num_problems_++ < kMaxListed) problems_.push_back({field, kind, std::move(message)});
}

void FieldReader::require(const char* name) {
  const bool there = object_.is_object() && object_.contains(name);
  if (!there) problem(name, "missing", "Field required");
}

void FieldReader::read(const char* name, bool& value) {
  const Json* field = find(name);
  if (!field) return;
  if (field->is_boolean()) {
    value = field->get<bool>();
    return;
  }
  if (const auto number = to_integer(*field); number && (*number == 0 || *number == 1)) {
    value = *number == 1;
    return;
  }
  if (field->is_string()) {
    std::string word = field->get<std::string>();
    for (char& c : word) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    const bool yes = word == "true" || word == "yes" || word == "on" || word == "t" || word == "y";
    if (yes || word == "false" || word == "no" || word == "off" || word == "f" || word == "n") {
      value = yes;
      return;
    }
  }
  problem(name, "bool_parsing", "Input should be a valid boolean");
}

void FieldReader::read(const char* name, int64_t& value) {
  const Json* field = find(name);
  if (!field) return;
  if (const auto number = to_integer(*field)) {
    value = *number;
  } else {
    problem(name, "int_type", "Input should be a valid integer");
  }
}

void FieldReader::read(const char* name, int& value, int64_t low, int64_t high) {
  int64_t number = value;
  const size_t before = num_problems_;
  read(name, number);
  if (num_problems_ != before) return;
  if (number < low) {
    problem(name, "greater_than_equal", "Input should be greater than or equal to " + std::to_string(low));
  } else if (number > high) {
    problem(name, "less_than_equal", "Input should be less than or equal to " + std::to_string(high));
  } else {
    value = static_cast<int>(number);
  }
}

void FieldReader::read(const char* name, double& value) {
  const Json* field = find(name);
  if (!field) return;
  if (const auto number = to_number(*field)) {
    value = *number;
  } else {
    problem(name, "float_type", "Input should be a valid number");
  }
}

void FieldReader::read(const char* name, float& value) {
  double number = value;
  read(name, number);
  value = static_cast<float>(number);
}

void FieldReader::read(const char* name, std::string& value) {
  const Json* field = find(name);
  if (!field) return;
  if (field->is_string()) {
    value = field->get<std::string>();
  } else {
    problem(name, "string_type", "Input should be a valid string");
  }
}

void FieldReader::read(const char* name, std::vector<int32_t>& value) {
  const Json* field = array(name);
  if (!field) return;
  std::vector<int32_t> numbers;
  numbers.reserve(field->size());
  for (const Json& item : *field) {
    const auto number = to_integer(item);
    if (!number || *number < INT32_MIN || *number > INT32_MAX) {
      problem(name, "int_type", "Input should be a valid integer");
      return;
    }
    numbers.push_back(static_cast<int32_t>(*number));
  }
  value = std::move(numbers);
}

void FieldReader::read(const char* name, std::vector<std::string>& value) {
  const Json* field = array(name);
  if (!field) return;
  std::vector<std::string> texts;
  for (const Json& item : *field) {
    if (!item.is_string()) {
      problem(name, "string_type", "Input should be a valid string");
      return;
    }
    texts.push_back(item.get<std::string>());
  }
  value = std::move(texts);
}

const Json* FieldReader::object(const char* name) {
  const Json* field = find(name);
  if (!field || field->is_object()) return field;
  problem(name, "dict_type", "Input should be a valid dictionary");
  return nullptr;
}

const Json* FieldReader::array(const char* name) {
  const Json* field = find(name);
  if (!field || field->is_array()) return field;
  problem(name, "list_type", "Input should be a valid list");
  return nullptr;
}

std::optional<ApiError> FieldReader::error() const {
  if (problems_.empty()) return std::nullopt;
  std::string message =
      std::to_string(num_problems_) + (num_problems_ == 1 ? " validation error:" : " validation errors:");
  for (const Problem& problem : problems_) {
    message += "\n  {'type': '" + std::string(problem.kind) + "', 'loc': ('" + where_ + "', '" + problem.field +
               "'), 'msg': '" + problem.message + "'}";
  }
  if (num_problems_ > problems_.size()) message += "\n  ...";
  ApiError error = http_error(400, std::move(message));
  error.param = where_ + "." + problems_.front().field;
  return error;
}

}  // namespace proa
