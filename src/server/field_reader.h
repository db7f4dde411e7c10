// Reads the fields of a JSON object into plain types, as tolerantly as the library behind vLLM's requests does ("1" and
// 1.0 are integers, "true" is a boolean, null is an absent field), and gathers everything that is wrong.
//
//   FieldReader fields(body);
//   fields.read("temperature", temperature);
//   if (auto error = fields.error()) ...
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"

namespace proa {

class FieldReader {
 public:
  using Json = nlohmann::ordered_json;

  // `where`: the object's own place, "body" for the whole of it.
  explicit FieldReader(const Json& object, std::string where = "body");

  // The field if it is there and not null.
  const Json* find(const char* name) const;

  // Each leaves `value` as it is where the field is absent or wrong.
  void read(const char* name, bool& value);
  void read(const char* name, int& value, int64_t low = INT32_MIN, int64_t high = INT32_MAX);
  void read(const char* name, double& value);
  void read(const char* name, float& value);
  void read(const char* name, std::string& value);
  template <typename T>
  void read(const char* name, std::optional<T>& value) {
    if (!find(name)) return;
    T read_value{};
    const size_t before = num_problems_;
    read(name, read_value);
    if (num_problems_ == before) value = std::move(read_value);
  }
  void read(const char* name, int64_t& value);
  void read(const char* name, std::vector<int32_t>& value);      // integers
  void read(const char* name, std::vector<std::string>& value);  // strings

  const Json* object(const char* name);  // the field, which must be an object
  const Json* array(const char* name);   // the field, which must be an array
  void require(const char* name);

  // `kind` and `message` as pydantic has them: "missing", "Field required".
  void problem(const std::string& field, const char* kind, std::string message);

  // 400 "N validation errors:" with all of them, or none.
  std::optional<ApiError> error() const;

 private:
  struct Problem {
    std::string field;
    const char* kind;
    std::string message;
  };
  const Json& object_;
  const std::string where_;
  std::vector<Problem> problems_;  // the first ones
  size_t num_problems_ = 0;
};

// As the tolerant reader sees them; none where the value is no such thing.
std::optional<int64_t> to_integer(const nlohmann::ordered_json& value);
std::optional<double> to_number(const nlohmann::ordered_json& value);

}  // namespace proa
