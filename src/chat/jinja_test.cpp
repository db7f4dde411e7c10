#include "chat/jinja.h"

#include <gtest/gtest.h>

#include <utility>

#include "chat/golden_test.h"

namespace proa::jinja {
namespace {

using nlohmann::ordered_json;

RenderOptions golden_options() {
  RenderOptions options;
  options.now = testing::golden_time();
  return options;
}

Result<std::string> render(std::string_view source, const ordered_json& context = ordered_json::object(),
                           const RenderOptions& options = {}) {
  PROA_ASSIGN(const Template parsed, Template::parse(source));
  return parsed.render(context, options);
}

TEST(Jinja, SnippetsRenderAsInTransformers) {
  const ordered_json golden = testing::read_golden("snippets.json");
  ASSERT_GT(golden["snippets"].size(), 100u);
  for (const auto& row : golden["snippets"]) {
    const std::string source = row["source"];
    SCOPED_TRACE(source);
    const Result<std::string> result = render(source, golden["context"], golden_options());
    if (row.contains("output")) {
      EXPECT_TRUE(result.ok()) << result.error().message();
      if (result.ok()) {
        EXPECT_EQ(*result, row["output"].get<std::string>());
      }
    } else {
      EXPECT_FALSE(result.ok()) << "should fail with " << row["error"] << ", gave " << *result;
      if (!result.ok() && row["raised"]) {
        EXPECT_EQ(result.error().actual, row["error"].get<std::string>());
      }
    }
  }
}

TEST(Jinja, ErrorsNameTheLine) {
  const struct {
    std::string source, where, actual;
  } kRows[] = {
      {"a\n{{ 1 +\n}}", "line 3", "expected an expression, found end of expression"},
      {"a\n\n{% if x %}", "line 3", "block is never closed, expected 'endif'"},
      {"\n{{ 'a }}", "line 2", "string is never closed"},
      {"\n\n{{ y.z }}", "line 3", "'y' is undefined"},
      {"{% for i in [1] %}\n{{ raise_exception('no') }}{% endfor %}", "line 2", "no"},
      {"{% extends 'x' %}", "line 1", "'extends' blocks are not supported"},
      {"{% include 'x' %}", "line 1", "'include' blocks are not supported"},
      {"\n{% from 'x' import y %}", "line 2", "'from' blocks are not supported"},
      {"{% import 'x' as y %}", "line 1", "'import' blocks are not supported"},
      {"\n{% block a %}{% endblock %}", "line 2", "'block' blocks are not supported"},
      {"\n\n{{ 1 | nofilter }}", "line 3", "no filter named 'nofilter'"},
      {"{{ 1 is notest }}", "line 1", "no test named 'notest'"},
      // looked up late below an `if`, as Jinja does
      {"{% if false %}{{ 1 | nofilter }}{% endif %}\n{% if true %}{{ 1 | other }}{% endif %}", "line 2",
       "no filter named 'other'"},
      {"a\n{{ 'x' | urlize }}", "line 2", "the filter 'urlize' is not supported"},
      {"a\n{{ 'x'.encode() }}", "line 2", "the method 'encode' of 'str' is not supported"},
      {"a\n{{ lipsum() }}", "line 2", "the function 'lipsum' is not supported"},
      {"a\n{% for i in [1] %}{{ loop([2]) }}{% endfor %}", "line 2",
       "The loop must have the 'recursive' marker to be called recursively."},
  };
  for (const auto& row : kRows) {
    const Result<std::string> result = render(row.source);
    ASSERT_FALSE(result.ok()) << row.source;
    EXPECT_EQ(result.error().where, row.where) << row.source;
    EXPECT_EQ(result.error().actual, row.actual) << row.source;
  }
}

std::string repeat(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

TEST(Jinja, HostileTemplatesFail) {
  const std::string kRows[] = {
      "{{ " + repeat("(", 100'000) + "1",
      "{{ " + repeat("[", 1'000) + repeat("]", 1'000) + " }}",
      "{{ " + repeat("not ", 100'000) + "1 }}",
      "{{ " + repeat("-", 100'000) + "1 }}",
      "{{ 1" + repeat(" + 1", 100'000) + " }}",
      "{{ a" + repeat(".a", 100'000) + " }}",
      "{{ a" + repeat("|upper", 100'000) + " }}",
      "{{ a" + repeat("[0]", 100'000) + " }}",
      "{{ " + repeat("1 if 1 else ", 80'000) + "1 }}",
      repeat("{% if 1 %}", 10'000) + repeat("{% endif %}", 10'000),
      repeat("{% for i in [1] %}", 10'000),
      "{% set " + repeat("(", 100'000),
      "{{ 'a' * 10**9 }}",
      "{{ 'a' * 10**18 }}",
      "{{ [1] * 10**9 }}",
      "{{ [[1] * 1000] * 10**9 }}",
      "{{ 10**400 }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ -9223372036854775807 - 2 }}",
      "{{ 99999999999999999999 }}",
      "{{ range(10**9) }}",
      "{{ range(0, 4, 2)[::9223372036854775807] }}",
      "{{ 'some text' | truncate(-9223372036854775807) }}",
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
      "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x | replace('', ns.x) %}{% endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
      "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
      "{% set ns = namespace(x=[]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson "
      "}}",
      "{% set a = namespace(x=[]) %}{% set b = namespace(x=[]) %}{% for i in range(99) %}{% set a.x = [a.x, a.x] %}"
      "{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}",
      "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro m(n) %}{{ m(n) ~ m(n) }}{% endmacro %}{{ m(1) }}",
      "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
      "{{ [1] | tojson(indent=1000000000) }}",
      "{{ 'a' | indent(1000000000, true) }}",
      "{{ 'a'.center(1000000000) }}",
      "{{ 'a'.zfill(1000000000) }}",
      "{{ '%999999999d' % 1 }}",
      "{{ '%.999999999f' % 1 }}",
      "{{ raise_exception('') }}",
  };
  RenderOptions limits;  // tighter than the default, to be quick
  limits.max_steps = 1'000'000;
  limits.max_bytes = 50'000'000;
  for (const std::string& source : kRows) {
    const Result<std::string> result = render(source, ordered_json::object(), limits);
    EXPECT_FALSE(result.ok()) << source.substr(0, 100);
    if (result.ok()) continue;
    EXPECT_TRUE(result.error().where.starts_with("line ")) << source.substr(0, 100) << result.error().message();
    EXPECT_FALSE(result.error().actual.empty()) << source.substr(0, 100);
    EXPECT_LT(result.error().message().size(), 300u) << source.substr(0, 100);
  }
  EXPECT_FALSE(render(std::string(Template::kMaxSourceBytes + 1, 'x')).ok());
}

TEST(Jinja, LimitsNameTheTemplateAndTheLine) {
  const struct {
    const char *source, *actual;
  } kRows[] = {
      {"{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
       "template takes too many steps"},
      {"{{ 'x' * 10 ** 9 }}", "template makes too much data"},
      {"{{ range(10 ** 9) }}", "range is too big; the sandbox allows 100000"},
      {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "template nests or calls too deeply"},
      {"{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "template nests or calls too deeply"},
      {"{% set n = namespace(x=0) %}{% for i in range(999) %}{% set n.x = [n.x] %}{% endfor %}",
       "value is nested too deeply"},
      {"{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
       "template makes too much data"},
  };
  for (const auto& row : kRows) {
    const Result<Template> parsed = Template::parse(std::string("a\n\n") + row.source, "chat_template.jinja");
    ASSERT_TRUE(parsed.ok()) << row.source;
    const Result<std::string> text = parsed->render(ordered_json::object());
    ASSERT_FALSE(text.ok()) << row.source;
    EXPECT_EQ(text.error().where, "chat_template.jinja: line 3") << row.source;
    EXPECT_EQ(text.error().actual, row.actual) << row.source;
  }
  EXPECT_EQ(Template::parse("\n{{ 1 + }}", "chat_template.jinja").error().where, "chat_template.jinja: line 2");
}

// What may be made follows the size of the conversation: a long one passes where a short one would not need as much.
TEST(Jinja, LimitsGrowWithTheInput) {
  const std::string source = "{% for i in range(20) %}{% set y = x ~ i %}{% endfor %}{{ y | length }}";
  EXPECT_TRUE(render(source, {{"x", std::string(5'000'000, 'a')}}).ok());
}

TEST(Jinja, KeptLoopsAndNamespacesAreSafe) {
  EXPECT_EQ(*render("{% set n = namespace() %}{% for i in [1, 2] %}{% set n.l = loop %}{% endfor %}"
                    "{{ n.l.length }}{{ n.l.previtem is defined }}"),
            "2False");
  // A long chain of namespaces must not be freed recursively.
  EXPECT_EQ(*render("{% set n = namespace(x=0) %}{% for i in range(50000) %}{% set n.x = namespace(x=n.x) %}"
                    "{% endfor %}ok"),
            "ok");
  // A macro outlives the loop that defined it.
  EXPECT_EQ(*render("{% set n = namespace() %}{% for i in [7] %}{% macro m() %}{{ i }}{% endmacro %}"
                    "{% set n.m = m %}{% endfor %}{{ n.m() }}"),
            "7");
}

TEST(Jinja, InputIsBounded) {
  ordered_json deep = ordered_json::array();
  for (int i = 0; i < 500; ++i) deep = ordered_json::array({std::move(deep)});
  EXPECT_FALSE(render("{{ x | length }}", {{"x", deep}}).ok());
  EXPECT_FALSE(render("x", ordered_json::array()).ok());
  RenderOptions tight;
  tight.max_bytes = 1000;
  EXPECT_FALSE(render("{{ x }}", {{"x", std::string(2000, 'a')}}, tight).ok());
  tight = {};
  tight.max_steps = 50;
  EXPECT_FALSE(render("{% for i in range(100) %}{% endfor %}", ordered_json::object(), tight).ok());
}

TEST(Jinja, TextThatIsNotUtf8PassesThrough) {
  const std::string bad = "a\xFF\xC3(\xF0\x9F\x98";
  const ordered_json context = {{"x", bad}};
  EXPECT_EQ(*render("{{ x | trim }}{{ x | length }}{{ x[::-1] | length }}", context), bad + "77");
  EXPECT_EQ(*render("{{ x | upper }}", context), "A" + bad.substr(1));
}

// Segments printed as template text and <<input>>.
std::string marked(std::string_view source, const ordered_json& context) {
  const Result<Template> parsed = Template::parse(source);
  if (!parsed) return parsed.error().message();
  const Result<std::vector<Segment>> segments = parsed->render_segments(context);
  if (!segments) return segments.error().message();
  std::string out;
  for (const Segment& segment : *segments) out += segment.from_input ? "<<" + segment.text + ">>" : segment.text;
  return out;
}

TEST(Jinja, MarksFollowInput) {
  const ordered_json context = {
      {"bos_token", "<s>"},
      {"messages", {{{"role", "user"}, {"content", " Hi "}}, {{"role", "evil"}, {"content", "a<s>b"}}}},
      {"tool", {{"name", "f"}, {"n", 3}}},
      {"extra", "<s>"},
  };
  const std::pair<const char*, const char*> kRows[] = {
      {"plain", "plain"},
      {"{{ bos_token }}{{ extra }}", "<s><<<s>>>"},
      {"{{ '[' + messages[0].role + ']' }}", "[user]"},
      {"[{{ messages[1].role }}]", "[<<evil>>]"},
      {"[{{ messages[0].content }}]", "[<< Hi >>]"},
      {"[{{ messages[0].content | trim }}]", "[<<Hi>>]"},
      {"{{ '[' ~ messages[0].content.strip() ~ ']' }}", "[<<Hi>>]"},
      {"{{ ('[' + messages[0].content + ']')[1:3] }}", "<< H>>"},
      {"{{ messages[1].content.replace('<s>', '-') }}", "<<a>>-<<b>>"},
      {"{{ 'xyx'.replace('y', extra) }}", "x<<<s>>>x"},
      {"{{ messages[1].content.split('<s>') | join(bos_token) }}", "<<a>><s><<b>>"},
      {"{{ messages[0].content | upper | lower | title | capitalize }}", "<< hi >>"},
      {"{% set x %}[{{ extra }}]{% endset %}{{ x | trim }}", "[<<<s>>>]"},
      {"{% macro m(a) %}({{ a }}){% endmacro %}{{ m(extra) | upper }}", "(<<<S>>>)"},
      {"{{ tool | tojson }}", "<<{\"name\": \"f\", \"n\": 3}>>"},
      {"{{ tool }}", "<<{'name': 'f', 'n': 3}>>"},
      {"{{ tool.n }}{{ {'a': 1} | tojson }}", "3{\"a\": 1}"},
      {"{% for k, v in tool.items() %}{{ k }}={{ v }};{% endfor %}", "<<name>>=<<f>>;<<n>>=3;"},
      {"{% for c in messages[1].content %}{{ c }}.{% endfor %}", "<<a>>.<<<>>.<<s>>.<<>>>.<<b>>."},
      {"{{ '%s-%s' % (extra, 1) }}{{ '{}!'.format(extra) }}", "<<<s>>>-1<<<s>>>!"},
      {"{{ 'a' ~ extra | indent(2, true) }}", "a  <<<s>>>"},
      {"{{ extra | e }}{{ extra[::-1] }}{{ extra | reverse }}", "<<&lt;s&gt;>s<>s<>>"},
      {"{{ namespace(a=extra).a }}{{ dict(a=extra).a }}", "<<<s><s>>>"},
      {"{{ extra if extra == '<s>' else '' }}", "<<<s>>>"},
      {"{{ [extra, 'x'] | first }}{{ [extra, 'x'] | last }}", "<<<s>>>x"},
  };
  for (const auto& [source, expected] : kRows) EXPECT_EQ(marked(source, context), expected) << source;
}

}  // namespace
}  // namespace proa::jinja
