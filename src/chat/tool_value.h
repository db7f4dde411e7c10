// The text of a tool call's parameter as JSON, by the type that the tool's schema gives it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace proa {

// `schema` is the parameter's property of the tool's JSON schema, or null where there is none.
//  - `null` in any case is null; so is None where no string is wanted.
//  - string, text, enum and unknown types: the text as it is;
//  - int*, uint*, long, short: an integer; num*, float*, double: a number, without a fraction where it has none;
//    bool*: true for "true" in any case, else false;
//  - object, array, dict, list: JSON, or a Python literal, since templates print values as Python does.
// What cannot be read as its type stays text. Of several types (a list, anyOf, oneOf) the first that is not null
// counts. Source: vLLM's qwen3_coder tool parser.
std::string tool_value(std::string_view text, const nlohmann::ordered_json& schema);

// Text of a JSON value as Python's json.dumps(ensure_ascii=False) has it: ", " and ": " between.
std::string dump_python(const nlohmann::ordered_json& value);

// A Python literal: string, number, True, False, None, list, tuple, dict with strings as keys. Discarded (see
// nlohmann::json::is_discarded) if it is none.
nlohmann::ordered_json parse_python_literal(std::string_view text);

}  // namespace proa
