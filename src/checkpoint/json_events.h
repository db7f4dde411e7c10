// JSON from outside as a stream of events, for texts too large to become a tree first: the header of a safetensors
// file, the index of shards. What is kept is what the handler keeps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/result.h"

namespace proa {

// Bounds that a look at the text alone can check, before anything is built from it.
struct JsonLimits {
  int depth = 128;                        // of objects and arrays inside each other
  size_t string_bytes = size_t{4} << 20;  // of one string, a key or a value
  size_t values = SIZE_MAX;               // elements, members and containers, counted by what separates them
};

// Errors name the file and the offset.
Result<void> check_json_limits(std::string_view text, const std::string& file, JsonLimits limits = {});

// What a JSON library says about a text, without the library's name and in one line of bounded length.
std::string json_problem(const std::exception& exception);

struct JsonScalar {
  enum class Kind { null, boolean, integer, number, string };
  Kind kind = Kind::null;
  std::string_view text;           // of a string its value, of others as the file spells them or close to it
  std::optional<uint64_t> number;  // of an integer of at least 0

  bool is_string() const { return kind == Kind::string; }
};

// Derive and implement the events; each returns whether to go on. fail() ends the parsing with an error.
class JsonEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  virtual bool scalar(const JsonScalar& value) = 0;

  bool fail(Error error) {
    failure_ = std::move(error);
    return false;
  }
  const std::optional<Error>& failure() const { return failure_; }

  bool null() final { return scalar({JsonScalar::Kind::null, "null", {}}); }
  bool boolean(bool value) final { return scalar({JsonScalar::Kind::boolean, value ? "true" : "false", {}}); }
  bool number_integer(int64_t value) final;
  bool number_unsigned(uint64_t value) final;
  bool number_float(double value, const std::string& text) final;
  bool string(std::string& value) final { return scalar({JsonScalar::Kind::string, value, {}}); }
  bool binary(binary_t& value) final;
  bool parse_error(size_t position, const std::string& last_token, const nlohmann::detail::exception& what) final;

 private:
  std::optional<Error> failure_;
};

// Reads all of `text`. Errors: those of the limits, of the syntax (`file` and the position are named), of fail().
Result<void> parse_json_events(std::string_view text, const std::string& file, JsonLimits limits, JsonEvents& events);

}  // namespace proa
