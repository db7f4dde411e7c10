// Chat templates with one thing wrong, or that would not end.
#include <utility>

#include "hostile.h"

namespace proa::hostile {
namespace {

constexpr const char* kTooMuch = "template makes too much data";

Fixture source(std::string what, std::string text, std::vector<std::string> said) {
  return {std::move(what), [=](Files& files) { files["chat_template.jinja"] = text; }, std::move(said)};
}

}  // namespace

std::vector<Fixture> template_fixtures() {
  const std::string parse = "parse chat template: line ", render = "render chat template: line ";
  const std::string deep = "nest";  // "nested too deeply"
  const std::string loop = "{% for i in range(99999) %}";
  return {
      // that cannot be read
      source("a block without an end", "{% if x", {parse + "1: "}),
      source("an expression without an end", "a\n{{ 1 +", {parse + "2: "}),
      source("a string without an end", "{{ 'a", {parse + "1: string is never closed"}),
      source("a comment without an end", "{# a", {parse + "1: "}),
      source("raw text without an end", "{% raw %}{{", {parse + "1: "}),
      source("a loop without an end", "{% for i in x %}", {parse + "1: block is never closed, expected 'endfor'"}),
      source("an end without a block", "\n{% endif %}", {parse + "2: "}),
      source("a statement of no name", "{% summon %}", {parse + "1: ", "summon"}),
      source("a filter of no name", "{{ 1 | sum1 }}", {"line 1", "sum1"}),
      source("inheritance", "{% extends '/etc/passwd' %}", {parse + "1: 'extends' blocks are not supported"}),
      source("an include", "{% include '/etc/passwd' %}", {parse + "1: 'include' blocks are not supported"}),
      source("more than 1 MB", std::string((1 << 20) + 1, 'x'),
             {"parse chat template: expected at most 1048576 bytes, found 1048577 bytes"}),
      source("200,000 brackets", "{{ " + std::string(200'000, '(') + "1" + std::string(200'000, ')') + " }}",
             {parse + "1: ", deep}),
      source("200,000 lists", "{{ " + std::string(200'000, '[') + std::string(200'000, ']') + " }}",
             {parse + "1: ", deep}),
      source("200,000 minus signs", "{{ " + std::string(200'000, '-') + "1 }}", {parse + "1: ", deep}),
      source("100,000 times not", "{{ " + repeat("not ", 100'000) + "1 }}", {parse + "1: ", deep}),
      source("10,000 blocks inside each other", repeat("{% if 1 %}", 10'000) + repeat("{% endif %}", 10'000),
             {parse + "1: ", deep}),
      source("10,000 macros inside each other", repeat("{% macro f() %}", 10'000), {parse + "1: ", deep}),
      source("10,000 conditions inside each other", "{{ " + repeat("1 if ", 10'000) + "1 }}", {parse + "1: "}),
      source("an integer beyond 64 bits", "{{ 9999999999999999999999 }}", {"line 1"}),
      // that would not end
      source("loops in loops in loops", loop + loop + loop + "x" + repeat("{% endfor %}", 3),
             {render + "1: ", kTooMuch}),
      source("a loop without output", loop + loop + loop + repeat("{% endfor %}", 3), {render + "1: ", kTooMuch}),
      source("a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", {render + "1: ", deep}),
      source("a macro that calls itself twice",
             "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
             {render + "1: ", "template takes too many steps"}),
      source("two macros that call each other",
             "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}", {render + "1: "}),
      source("a call block that calls itself",
             "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}", {render + "1: "}),
      source("a loop that calls itself", "{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
             {render + "1: "}),
      source("a namespace that holds itself",
             "{% set n = namespace(a=1) %}{% set n.a = n %}{{ n | tojson }}{{ n.a.a.a.a }}", {render + "1: "}),
      source("a list that holds itself, as far as lists can",
             "{% set n = namespace(a=[]) %}{% for i in range(99999) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
             {render + "1: "}),
      source("a text that doubles", "{% set n = namespace(s='ab') %}" + loop + "{% set n.s = n.s + n.s %}{% endfor %}",
             {render + "1: ", kTooMuch}),
      source("a text times 10^9", "{{ 'x' * 1000000000 }}", {render + "1: ", kTooMuch}),
      source("a text times 2^62", "{{ 'xxxx' * 4611686018427387904 }}", {render + "1: ", kTooMuch}),
      source("a list times 10^9", "{{ ([1] * 1000000000) | length }}", {render + "1: "}),
      source("a range of 10^9", "{{ range(1000000000) | list }}", {render + "1: ", "100000"}),
      source("a range of steps of 0", "{{ range(1, 2, 0) | list }}", {render + "1: "}),
      source("a width of 10^9", "{{ '%1000000000d' % 1 }}", {render + "1: "}),
      source("a power tower", "{{ 9 ** 9 ** 9 ** 9 }}", {render + "1: "}),
      source("the smallest integer by -1", "{{ (-9223372036854775807 - 1) // -1 }}", {render + "1: "}),
      source("a division by 0", "{{ 1 // 0 }}", {render + "1: "}),
      source("centred in 10^12", "{{ 'x' | center(1000000000000) }}", {render + "1: "}),
      source("indented by 10^9", "{{ 'a\\nb' | indent(1000000000) }}", {render + "1: "}),
      source("replaced a million times by a million", "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
             {render + "1: ", kTooMuch}),
      source("joined by long texts", "{{ range(99999) | join('x' * 1000000) }}", {render + "1: ", kTooMuch}),
      source("output without end", loop + "{{ 'x' * 100000 }}{% endfor %}", {render + "1: "}),
      source("ten thousand sorts", loop + "{% set x = range(9999) | list | sort %}{% endfor %}", {render + "1: "}),
      source("split into a million", loop + "{% set x = ('a ' * 99999).split(' ') %}{% endfor %}", {render + "1: "}),
      source("a text of JSON a hundred levels deep, indented",
             "{% set n = namespace(a=1) %}{% for i in range(9999) %}{% set n.a = [n.a] %}{% endfor %}{{ n.a | "
             "tojson(indent=100000) }}",
             {render + "1: "}),
      // that fails
      source("an exception of its own", "\n{{ raise_exception('no \x1b[2J such role') }}",
             {render + "2: no ", "such role"}),
      source("a variable that is not there", "{{ absent.field }}", {render + "1: 'absent' is undefined"}),
      source("a method that changes what is given", "{{ messages.append(1) }}", {render + "1: "}),
      source("underscores of Python", "{{ ''.__class__.__mro__ }}", {render + "1: "}),
      source("a call of a text", "{{ 'x'() }}", {render + "1: "}),
  };
}

}  // namespace proa::hostile
