#include "chat/tool_value.h"

#include <gtest/gtest.h>

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

TEST(ToolValue, ByType) {
  const struct {
    const char* text;
    const char* schema;  // JSON
    const char* value;
  } rows[] = {
      {"Oslo", R"({"type":"string"})", R"("Oslo")"},
      {"5", R"({"type":"string"})", R"("5")"},
      {" a\nb ", R"({"type":"string"})", R"(" a\nb ")"},
      {"a \"b\" <c> &amp; é", R"({"type":"text"})", R"("a \"b\" <c> &amp; é")"},
      {"True", R"({"type":"str"})", R"("True")"},
      {"None", R"({"type":"string"})", R"("None")"},
      {"", R"({"type":"string"})", R"("")"},
      {"{\"a\":1}", R"({"type":"string"})", R"("{\"a\":1}")"},
      // null in any case is null, for strings too
      {"null", R"({"type":"string"})", "null"},
      {"NULL", R"({"type":"integer"})", "null"},
      {"None", R"({"type":"integer"})", "null"},
      {"None", R"({"type":"object"})", "null"},
      // no type, and types nobody knows
      {"5", "null", R"("5")"},
      {"5", "{}", R"("5")"},
      {"5", R"({"type":"whatever"})", R"("5")"},
      {"5", R"({"type":5})", R"("5")"},
      {"C", R"({"enum":["C","F"]})", R"("C")"},
      {"3", R"({"type":"integer"})", "3"},
      {" -03 ", R"({"type":"int32"})", "-3"},
      {"+7", R"({"type":"uint"})", "7"},
      {"-0", R"({"type":"long"})", "0"},
      {"123456789012345678901234567890", R"({"type":"integer"})", "123456789012345678901234567890"},
      {"3.5", R"({"type":"integer"})", R"("3.5")"},
      {"three", R"({"type":"integer"})", R"("three")"},
      {"3.50", R"({"type":"number"})", "3.5"},
      {"5.0", R"({"type":"number"})", "5"},
      {"5", R"({"type":"float"})", "5"},
      {"-1e3", R"({"type":"double"})", "-1000"},
      {"1e300", R"({"type":"number"})", "1e+300"},
      {"nan", R"({"type":"number"})", R"("nan")"},
      {"inf", R"({"type":"number"})", R"("inf")"},
      {"1e999", R"({"type":"number"})", R"("1e999")"},
      {"1.2.3", R"({"type":"number"})", R"("1.2.3")"},
      {"", R"({"type":"number"})", R"("")"},
      {"true", R"({"type":"boolean"})", "true"},
      {"True", R"({"type":"bool"})", "true"},
      {"false", R"({"type":"boolean"})", "false"},
      {"yes", R"({"type":"boolean"})", "false"},
      {"{\"a\":1,\"b\":[true,null]}", R"({"type":"object"})", R"({"a": 1, "b": [true, null]})"},
      {"[1,2]", R"({"type":"array"})", "[1, 2]"},
      {"[1, 2.0, 'x']", R"({"type":"list"})", R"([1, 2, "x"])"},
      {"{'a': True, 'b': None, \"c\": 'it\\'s'}", R"({"type":"dict"})", R"({"a": true, "b": null, "c": "it's"})"},
      {"('a', 1,)", R"({"type":"array"})", R"(["a", 1])"},
      {"{'a': open}", R"({"type":"object"})", R"("{'a': open}")"},
      {"a, b", R"({"type":"array"})", R"("a, b")"},
      {"{1: 2}", R"({"type":"object"})", R"("{1: 2}")"},
      // several types: the first that is not null
      {"5", R"({"type":["null","integer"]})", "5"},
      {"5", R"({"type":["string","null"]})", R"("5")"},
      {"5", R"({"anyOf":[{"type":"null"},{"type":"number"},{"type":"string"}]})", "5"},
      {"5", R"({"oneOf":[{"$ref":"#/x"},{"type":"integer"}]})", "5"},
      {"{\"x\":1}", R"({"properties":{"x":{}}})", R"({"x": 1})"},
      {"[]", R"({"items":{}})", "[]"},
  };
  for (const auto& row : rows) {
    const std::string value = tool_value(row.text, Json::parse(row.schema));
    EXPECT_EQ(value, row.value) << row.text << " as " << row.schema;
    EXPECT_TRUE(Json::accept(value)) << value;
  }
}

TEST(ToolValue, DeepAndBrokenTextStaysText) {
  const Json object = Json::parse(R"({"type":"object"})");
  const std::string deep(100000, '[');
  EXPECT_EQ(tool_value(deep, object), "\"" + deep + "\"");
  EXPECT_EQ(tool_value("\xff\xfe", object), "\"\uFFFD\uFFFD\"");
  Json schema = {{"type", "integer"}};
  for (int i = 0; i < 1000; ++i) schema = Json{{"anyOf", Json::array({schema})}};
  EXPECT_EQ(tool_value("5", schema), "\"5\"");
}

}  // namespace
}  // namespace proa
