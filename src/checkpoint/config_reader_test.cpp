#include "checkpoint/config_reader.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>

#include "checkpoint/checkpoint.h"

namespace proa {
namespace {

nlohmann::ordered_json json(std::string_view text) {
  auto parsed = parse_json(text, "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.error().message();
  return parsed.ok() ? *parsed : nlohmann::ordered_json();
}

template <class T>
std::string message(const Result<T>& result) {
  return result.ok() ? "ok" : result.error().message();
}

TEST(ConfigReader, ReadsFields) {
  const auto config = json(R"({
    "hidden_size": 2688, "layers": 52.0, "seed": -3, "eps": 1e-5, "tie": false, "kind": "nemotron_h", "nothing": null,
    "old_name": 8, "limit": [0.0, Infinity], "ids": [2, 11], "layers_block_type": ["mamba", "moe"],
    "low": -Infinity, "wrapped": {"__float__": "Infinity"}, "rope_scaling": {"factor": 2, "bad": "x"}})");
  const ConfigReader reader(config, "config.json");
  EXPECT_EQ(*reader.integer("hidden_size"), 2688);
  EXPECT_EQ(*reader.integer("layers"), 52);
  EXPECT_EQ(*reader.integer("seed", {.min = -5}), -3);
  EXPECT_EQ(*reader.integer({"new_name", "old_name"}), 8);
  EXPECT_EQ(*reader.integer({"nothing", "old_name"}), 8);  // null is absent
  EXPECT_EQ(*reader.integer("nothing", {}, 7), 7);
  EXPECT_EQ(*reader.integer("absent", {}, 0), 0);  // the fallback need not be in range
  EXPECT_EQ(*reader.number("eps"), 1e-5);
  EXPECT_EQ(*reader.number("hidden_size"), 2688);
  EXPECT_EQ(*reader.number("low"), -INFINITY);
  EXPECT_EQ(*reader.number("wrapped"), INFINITY);
  EXPECT_FALSE(*reader.boolean("tie"));
  EXPECT_TRUE(*reader.boolean("absent", true));
  EXPECT_EQ(*reader.string("kind"), "nemotron_h");
  EXPECT_EQ(*reader.string("absent", "text"), "text");
  EXPECT_EQ(*reader.numbers("limit"), (std::vector<double>{0, INFINITY}));
  EXPECT_EQ(*reader.integers("ids"), (std::vector<int64_t>{2, 11}));
  EXPECT_EQ(*reader.integer_or_list("ids"), (std::vector<int64_t>{2, 11}));
  EXPECT_EQ(*reader.integer_or_list("old_name"), (std::vector<int64_t>{8}));
  EXPECT_EQ(*reader.integer_or_list("absent", {}, std::vector<int64_t>{}), (std::vector<int64_t>{}));
  EXPECT_EQ(*reader.strings("layers_block_type"), (std::vector<std::string>{"mamba", "moe"}));
  EXPECT_TRUE(reader.has("ids"));
  EXPECT_FALSE(reader.has("nothing"));
  const auto rope = reader.object("rope_scaling");
  ASSERT_TRUE(rope.ok());
  EXPECT_EQ(*rope->number("factor"), 2);
  EXPECT_EQ(message(rope->number("bad")), "config.json: rope_scaling: bad: expected a number, found \"x\"");
}

TEST(ConfigReader, ErrorsNameTheField) {
  const auto config = json(R"({"a": "x", "zero": 0, "half": 0.5, "big": 18446744073709551615, "huge": 1e300,
                               "list": [1, 2, "\u001b"], "object": {}, "yes": true, "nan": NaN, "two": 2})");
  const ConfigReader reader(config, "config.json");
  const struct {
    std::string found;
    const char* expected;
  } rows[] = {
      {message(reader.integer("a")), "a: expected an integer of at least 1, found \"x\""},
      {message(reader.integer("zero")), "zero: expected an integer of at least 1, found 0"},
      {message(reader.integer("half")), "half: expected an integer of at least 1, found 0.5"},
      {message(reader.integer("big")), "big: expected an integer of at least 1, found 18446744073709551615"},
      {message(reader.integer("huge")), "huge: expected an integer of at least 1, found 1e+300"},
      {message(reader.integer("yes")), "yes: expected an integer of at least 1, found true"},
      {message(reader.integer("none")), "none: expected an integer of at least 1, found no such field"},
      {message(reader.integer({"none", "a"})), "a: expected an integer of at least 1, found \"x\""},
      {message(reader.integer({"none", "other"})), "none: expected an integer of at least 1, found no such field"},
      {message(reader.integer("zero", {}, 5)), "zero: expected an integer of at least 1, found 0"},
      {message(reader.integer("two", {.min = 3, .max = 4})), "two: expected an integer from 3 to 4, found 2"},
      {message(reader.number("a")), "a: expected a number, found \"x\""},
      {message(reader.number("nan")), "nan: expected a number, found \"NaN\""},
      {message(reader.number("two", {.min = 3})), "two: expected a number of at least 3.0, found 2"},
      {message(reader.number("two", {.max = 1})), "two: expected a number of at most 1.0, found 2"},
      {message(reader.number("two", {.min = 0, .max = 1})), "two: expected a number from 0.0 to 1.0, found 2"},
      {message(reader.boolean("zero")), "zero: expected true or false, found 0"},
      {message(reader.string("object")), "object: expected a string, found an object"},
      {message(reader.integers("list")), "list[2]: expected an integer of at least 1, found \"\\x1b\""},
      {message(reader.integers("two")), "two: expected an array, each an integer of at least 1, found 2"},
      {message(reader.numbers("none")), "none: expected an array of numbers, found no such field"},
      {message(reader.strings("list")), "list[0]: expected a string, found 1"},
      {message(reader.integer_or_list("a")), "a: expected an integer of at least 1, found \"x\""},
      {message(reader.object("list")), "list: expected an object, found an array of 3"},
      {message(reader.object("none")), "none: expected an object, found no such field"},
      {reader.error("a", "a multiple of 64", "100").message(), "a: expected a multiple of 64, found 100"},
  };
  for (const auto& row : rows) EXPECT_EQ(row.found, "config.json: " + std::string(row.expected));
}

TEST(ParseJson, NonFiniteNumbersOnlyOutsideStrings) {
  EXPECT_EQ(json(R"({"a": "NaN \" Infinity", "b": [NaN,-Infinity,Infinity,-1]})").dump(),
            R"({"a":"NaN \" Infinity","b":["NaN","-Infinity","Infinity",-1]})");
}

TEST(ParseJson, Errors) {
  const struct {
    std::string text;
    const char* message;
  } rows[] = {
      {"", "read JSON: f: parse error at line 1, column 1: "},
      {"{\"a\": }", "read JSON: f: parse error at line 1, column 7: "},
      {"{\"a\": 1} x", "read JSON: f: parse error at line 1, column 10: "},
      {"{\"a\": \"\xff\"}", "read JSON: f: parse error at line 1, column 8: "},
      {"[1e999]", "read JSON: f: number overflow"},
      {"[\"open", "read JSON: f: parse error"},
      {"[\"\\", "read JSON: f: parse error"},
      {std::string(100000, '['), "read JSON: f: offset 128: expected at most 128 levels of nesting, found more"},
      {std::string(64, '{'), "read JSON: f: parse error"},
  };
  for (const auto& row : rows) {
    const std::string found = message(parse_json(row.text, "f"));
    EXPECT_TRUE(found.starts_with(row.message)) << found;
  }
}

}  // namespace
}  // namespace proa
