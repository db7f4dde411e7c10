#include "chat/tool_parser.h"

#include <gtest/gtest.h>

#include <map>

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

const Json& tools() {
  static const Json json = Json::parse(R"([
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {
      "city": {"type": "string"}, "n": {"type": "integer"}, "opt": {"type": ["string", "null"]},
      "flag": {"type": "boolean"}, "l": {"type": "array"}}}}},
    {"type": "function", "function": {"name": "write_file", "parameters": {"type": "object", "properties": {
      "path": {"type": "string"}, "text": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "now"}}])");
  return json;
}

// "content|name{arguments}|name{arguments}"
struct Parsed {
  std::string content;
  std::map<int, std::string> names, arguments;

  void take(const ToolDelta& delta) {
    content += delta.content;
    for (const ToolCallDelta& call : delta.calls) {
      EXPECT_EQ(call.name.empty(), names.contains(call.index)) << "the name comes first, and once";
      if (!call.name.empty()) names[call.index] = call.name;
      arguments[call.index] += call.arguments;
    }
  }
  std::string text() const {
    std::string all = content;
    for (const auto& [index, name] : names) all += "|" + name + arguments.at(index);
    return all;
  }
};

struct Row {
  const char* text;
  const char* parsed;
  bool bare_functions = false;
};

Parsed parse(const char* name, const Row& row, std::initializer_list<std::string_view> pieces) {
  const auto parser = make_tool_parser(name, tools(), {.bare_functions = row.bare_functions});
  Parsed parsed;
  for (const std::string_view piece : pieces) parsed.take(parser->feed(piece));
  parsed.take(parser->finish());
  return parsed;
}

void check(const char* name, const Row& row) {
  const std::string_view text = row.text;
  EXPECT_EQ(parse(name, row, {text}).text(), row.parsed) << text;
  for (size_t first = 0; first <= text.size(); ++first) {
    const std::string head = parse(name, row, {text.substr(0, first), text.substr(first)}).text();
    EXPECT_EQ(head, row.parsed) << text << "\ncut at " << first;
    const size_t second = first + (text.size() - first) / 2;
    const std::string three =
        parse(name, row, {text.substr(0, first), text.substr(first, second - first), text.substr(second)}).text();
    EXPECT_EQ(three, row.parsed) << text << "\ncut at " << first << ", " << second;
  }
  const auto parser = make_tool_parser(name, tools(), {.bare_functions = row.bare_functions});
  Parsed bytes;
  for (const char& byte : text) bytes.take(parser->feed({&byte, 1}));
  bytes.take(parser->finish());
  EXPECT_EQ(bytes.text(), row.parsed) << text << "\nbyte by byte";
}

constexpr Row kQwen3[] = {
    {"", ""},
    {"just text\n", "just text\n"},
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
     "|get_weather{\"city\": \"Oslo\"}"},
    // content before, whitespace between is dropped, text after is dropped
    {"I "
     "look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</"
     "tool_call>\nDone.",
     "I look.|get_weather{\"city\": \"Oslo\"}"},
    {" \n<tool_call>\n<function=now>\n</function>\n</tool_call>\n", "|now{}"},
    // every type
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=n>\n3\n</parameter>\n"
     "<parameter=opt>\nnull\n</parameter>\n<parameter=flag>\nTrue\n</parameter>\n<parameter=l>\n[1, "
     "'a']\n</parameter>\n"
     "</function>\n</tool_call>",
     "|get_weather{\"city\": \"Oslo\", \"n\": 3, \"opt\": null, \"flag\": true, \"l\": [1, \"a\"]}"},
    // exactly one newline goes at either side
    {"<tool_call><function=write_file><parameter=path>a</parameter><parameter=text>\n\n  "
     "b\n\n</parameter></function></tool_call>",
     "|write_file{\"path\": \"a\", \"text\": \"\\n  b\\n\"}"},
    {"<tool_call><function=write_file><parameter=text>\n</parameter></function></tool_call>",
     "|write_file{\"text\": \"\"}"},
    // two calls
    {"<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n<parameter=n>\n1\n"
     "</parameter>\n</function>\n</tool_call>",
     "|now{}|get_weather{\"n\": 1}"},
    // two functions in one block
    {"<tool_call>\n<function=now>\n</function>\n<function=now>\n</function>\n</tool_call>", "|now{}|now{}"},
    // a function nobody offered
    {"<tool_call>\n<function=other>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
     "|other{\"x\": \"1\"}"},
    // the text ends too early, anywhere
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>",
     "|get_weather{\"city\": \"Oslo\"}"},
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>", "|get_weather{\"city\": \"Oslo\"}"},
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</para", "|get_weather{\"city\": \"Oslo\"}"},
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOs", "|get_weather{\"city\": \"Os\"}"},
    {"<tool_call>\n<function=get_weather>\n<parameter=ci", "|get_weather{}"},
    {"<tool_call>\n<function=get_weather>\n", "|get_weather{}"},
    {"<tool_call>\n<function=get_wea", "<tool_call>\n<function=get_wea"},
    {"a <tool_ca", "a <tool_ca"},
    // closing tags are missing
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n<parameter=n>\n3\n</function>\n</tool_call>",
     "|get_weather{\"city\": \"Oslo\", \"n\": 3}"},
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</tool_call>",
     "|get_weather{\"city\": \"Oslo\"}"},
    {"<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</tool_call>", "|get_weather{\"city\": \"Oslo\"}"},
    {"<tool_call>\n<function=now>\n<tool_call>\n<function=now>\n</function>\n</tool_call>", "|now{}|now{}"},
    // a value about the format itself
    {"<tool_call>\n<function=write_file>\n<parameter=path>\na\n</"
     "parameter>\n<parameter=text>\n<tool_call>\n<function=f>\n"
     "<parameter=path>\nx\n</parameter>\n</function>\n</tool_call>\n</parameter>\n</function>\n</tool_call>",
     "|write_file{\"path\": \"a\", \"text\": \"<tool_call>\\n<function=f>\\n<parameter=path>\\nx\\n</parameter>\\n"
     "</function>\\n</tool_call>\"}"},
    {"<tool_call>\n<function=write_file>\n<parameter=text>\nwrite </parameter> to end, </function> too, </tool_call> "
     "also\n"
     "</parameter>\n</function>\n</tool_call>",
     "|write_file{\"text\": \"write </parameter> to end, </function> too, </tool_call> also\"}"},
    {"<tool_call>\n<function=write_file>\n<parameter=text>\nan </parameter>\n<parameter=unknown> is text</parameter>\n"
     "</parameter>\n</function>\n</tool_call>",
     "|write_file{\"text\": \"an </parameter>\\n<parameter=unknown> is text</parameter>\"}"},
    {"<tool_call>\n<function=write_file>\n<parameter=text>\nan open <parameter=x> "
     "only\n</parameter>\n</function>\n</tool_call>",
     "|write_file{\"text\": \"an open <parameter=x> only\"}"},
    {"<tool_call>\n<function=write_file>\n<parameter=text>\nif a < b && c > d </ "
     "<p\n</parameter>\n</function>\n</tool_call>",
     "|write_file{\"text\": \"if a < b && c > d </ <p\"}"},
    {"<tool_call>\n<function=write_file>\n<parameter=text>\n&lt;b&gt; \"q\" \\ "
     "é漢\n</parameter>\n</function>\n</tool_call>",
     "|write_file{\"text\": \"&lt;b&gt; \\\"q\\\" \\\\ é漢\"}"},
    // a key that comes twice counts once
    {"<tool_call>\n<function=get_weather>\n<parameter=n>\n1\n</parameter>\n<parameter=n>\n2\n</parameter>\n</"
     "function>\n</tool_call>",
     "|get_weather{\"n\": 1}"},
    // no call
    {"<tool_call>\nnothing</tool_call>", "<tool_call>\nnothing</tool_call>"},
    {"<tool_call>\n<function=a b>\n</function>", "<tool_call>\n<function=a b>\n</function>"},
    {"<tool_call>\n<function={x}>", "<tool_call>\n<function={x}>"},
    {"<tool_call>\n<function=>", "<tool_call>\n<function=>"},
    {"<tool_call>x <tool_call><function=now></function></tool_call>", "<tool_call>x|now{}"},
    {"a < b, <tool, <tool_calls>", "a < b, <tool, <tool_calls>"},
    // without <tool_call>
    {"<function=now>\n</function>", "<function=now>\n</function>"},
    {"ok\n<function=now>\n</function>\n<function=get_weather><parameter=n>1</parameter></function>",
     "ok|now{}|get_weather{\"n\": 1}", true},
    {"a <function=, <function", "a <function=, <function", true},
};

TEST(ToolParser, Qwen3) {
  for (const Row& row : kQwen3) check("qwen3_coder", row);
  check("qwen3_xml", kQwen3[2]);
}

TEST(ToolParser, Qwen3ArgumentsAreJson) {
  for (const Row& row : kQwen3) {
    for (const auto& [index, arguments] : parse("qwen3_coder", row, {row.text}).arguments) {
      EXPECT_TRUE(Json::parse(arguments, nullptr, false).is_object()) << arguments;
    }
  }
}

TEST(ToolParser, Qwen3SendsWhatIsCertain) {
  const auto parser = make_tool_parser("qwen3_coder", tools());
  EXPECT_EQ(parser->feed("Let me see. \n").content, "Let me see.");
  EXPECT_EQ(parser->feed("<tool_call>\n<function=get_").content, "");
  ToolDelta delta = parser->feed("weather>");
  ASSERT_EQ(delta.calls.size(), 1u);
  EXPECT_EQ(delta.calls[0].name, "get_weather");
  EXPECT_EQ(delta.calls[0].arguments, "");
  delta = parser->feed("\n<parameter=city>\nOslo\n</parameter>");
  EXPECT_TRUE(delta.calls.empty());
  delta = parser->feed("\n<parameter=n>\n");
  ASSERT_EQ(delta.calls.size(), 1u);
  EXPECT_EQ(delta.calls[0].arguments, "{\"city\": \"Oslo\"");
  delta = parser->feed("3\n</parameter>\n</function>");
  ASSERT_EQ(delta.calls.size(), 1u);
  EXPECT_EQ(delta.calls[0].arguments, ", \"n\": 3}");
}

TEST(ToolParser, Qwen3LongGapsAreNoGaps) {
  const std::string gap(2000, ' ');
  const std::string text = "<tool_call>" + gap + "<function=now></function></tool_call>";
  Row row{text.c_str(), text.c_str()};
  EXPECT_EQ(parse("qwen3_coder", row, {text}).text(), text);
  const auto parser = make_tool_parser("qwen3_coder", tools());
  Parsed bytes;
  for (const char& byte : text) bytes.take(parser->feed({&byte, 1}));
  bytes.take(parser->finish());
  EXPECT_EQ(bytes.text(), text);
}

constexpr Row kHermes[] = {
    {"", ""},
    {"text \n", "text \n"},
    {"<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", "|now{}"},
    {"Well.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": \"}\"}], \"c\": "
     "\"\\\"</tool_call>\\\\\"}}\n"
     "</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{\"x\":null}}</tool_call> bye",
     "Well.|f{\"a\": [1, {\"b\": \"}\"}], \"c\": \"\\\"</tool_call>\\\\\"}|g{\"x\":null}"},
    // any order, other keys, other names for the arguments
    {"<tool_call>{\"id\": 5, \"arguments\": {\"a\": 1}, \"name\": \"f\", \"more\": [\"x\", true]}</tool_call>",
     "|f{\"a\": 1}"},
    {"<tool_call>{\"name\": \"f\", \"parameters\": {\"a\": 1}}</tool_call>", "|f{\"a\": 1}"},
    {"<tool_call>{\"name\": \"\\u0066\"}</tool_call>", "|f{}"},
    {"<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>", "|f{}"},
    {"<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>", "|f{\"a\": 1}"},
    {"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"arguments\": {\"b\": 2}}</tool_call>", "|f{\"a\": 1}"},
    // cut, or a bracket left out
    {"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1, \"x", "|f{\"a\": [1, \"x\"]}"},
    {"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>",
     "|f{\"a\": 1}|g{}"},
    {"<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1</tool_call>", "|f{\"a\": [1]}"},
    {"<tool_call>{\"name\": \"f\", \"argum", "|f{}"},
    // no call
    {"<tool_call>{\"nam", "<tool_call>{\"nam"},
    {"<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>"},
    {"<tool_call>{\"name\": 5, \"arguments\": {\"a\": 1}}</tool_call> x",
     "<tool_call>{\"name\": 5, \"arguments\": {\"a\": 1}}</tool_call> x"},
    {"<tool_call>{oops}</tool_call>", "<tool_call>{oops}</tool_call>"},
    {"<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>"},
    {"a <tool_call> b", "a <tool_call> b"},
    {"<tool_call> <tool_call>{\"name\":\"f\"}</tool_call>", "<tool_call>|f{}"},
    {"a <tool_ca", "a <tool_ca"},
    {"é <tool_call>{\"name\": \"f\", \"arguments\": {\"city\": \"Tromsø 漢\"}}", "é|f{\"city\": \"Tromsø 漢\"}"},
};

TEST(ToolParser, Hermes) {
  for (const Row& row : kHermes) check("hermes", row);
}

TEST(ToolParser, HermesArgumentsPassThrough) {
  const auto parser = make_tool_parser("hermes", tools());
  EXPECT_TRUE(parser->feed("<tool_call>{\"name\": \"f\"").calls.at(0).arguments.empty());
  EXPECT_EQ(parser->feed(", \"arguments\": {\"a\": \"x").calls.at(0).arguments, "{\"a\": \"x");
  EXPECT_EQ(parser->feed("y").calls.at(0).arguments, "y");
}

TEST(ToolParser, DeepNestingIsBounded) {
  const std::string text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": " + std::string(100000, '[');
  const auto parser = make_tool_parser("hermes", Json());
  Parsed parsed;
  parsed.take(parser->feed(text));
  parsed.take(parser->finish());
  EXPECT_LT(parsed.arguments[0].size(), 1000u);
}

TEST(ToolParser, ByName) {
  for (const std::string& name : tool_parser_names()) EXPECT_TRUE(make_tool_parser(name, Json())) << name;
  EXPECT_FALSE(make_tool_parser("mistral", Json()));
}

}  // namespace
}  // namespace proa
