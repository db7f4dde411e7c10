#!/usr/bin/env python3
"""Writes tests/goldens/chat/: what transformers and jinja2 make of chat templates and of small snippets.

  PROA_TEST_DATA=... python tools/goldens/chat_templates.py [--show TEMPLATE CASE]

conversations.json  our conversations, one list of named cases for all templates
renderings.json     per template and case: bytes and sha256 of the rendering, or the error message; and four digits of the
                    sha256 of each CHUNK bytes, so that a test can say where a difference begins
own.json            our own templates, in full, with their renderings
snippets.json       snippets with their output or error under transformers' environment

Templates are read from $PROA_TEST_DATA/chat-templates and only their renderings' hashes are stored.
"""

import datetime
import hashlib
import json
import os
import pathlib
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens" / "chat"
CHUNK = 256
NOW = datetime.datetime(2026, 3, 5, 14, 7, 9)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": " Weather at a place. <|im_end|> \"quoted\" ünïcode\n",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "City, e.g. Zürich", "minLength": 1},
                "unit": {"type": ["string", "null"], "enum": ["C", "F"], "description": "Unit"},
                "days": {"type": "integer", "default": 3, "nullable": True},
                "places": {"type": "array", "items": {"type": "object", "properties": {"lat": {"type": "number"}}}},
                "options": {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    },
}
SCHEMAS = {
    "type": "function",
    "function": {
        "name": "plan_trip",
        "description": "Plans.\n\nOver several lines: a | b, \"c\" <d>.",
        "parameters": {
            "type": "object",
            "title": "Trip",
            "$defs": {"Place": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}}}},
            "properties": {
                "start": {"$ref": "#/$defs/Place", "description": "From"},
                "when": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
                "mode": {"oneOf": [{"const": "boat"}, {"const": "bus"}], "title": "Mode"},
                "both": {"allOf": [{"type": "string"}, {"minLength": 2}]},
                "stars": {"type": "integer", "enum": [1, 2, 3], "minimum": 1, "maximum": 3},
                "ratio": {"type": "number", "exclusiveMinimum": 0.5, "default": 1.0},
                "quick": {"type": "boolean", "default": False},
                "grid": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 1},
                "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "description": "Tags"},
                "free": {},
                "extra": {"type": "object", "additionalProperties": {"type": "string"}, "examples": [{"k": "v"}]},
                "code": {"type": "string", "pattern": "^[A-Z]{2}\\d+$"},
                "either": {"type": ["string", "integer", "null"], "description": "Either — oder, 或"},
                "inner": {"type": "object", "required": ["x"], "description": "Inner", "properties": {
                    "x": {"type": "object", "properties": {"y": {"type": "array", "items": {"type": "object", "properties": {
                        "z": {"type": "string", "description": "deep"}}}}}}}},
            },
            "required": ["start", "when"],
        },
        "return": {"type": "object", "description": "The plan", "properties": {"id": {"type": "string"}}},
    },
}
NO_PARAMETERS = {
    "type": "function",
    "function": {"name": "ping", "description": "", "parameters": {"type": "object", "properties": {}}},
}


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, id="call12345"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(text, id="call12345", name="get_weather"):
    return {"role": "tool", "content": text, "tool_call_id": id, "name": name}


def case(messages, tools=None, **kwargs):
    return {"messages": messages, "tools": tools, "kwargs": kwargs}


ARGUMENTS = {"city": "Oslo", "n": 3, "opt": None, "flag": True, "l": [1, 2.5, "x"], "o": {"a": "é\"", "b": {}}, "f": 1e-7}
CALLED = [user("weather?"), assistant("", tool_calls=[call("get_weather", ARGUMENTS)])]
ANSWERED = [*CALLED, tool("12C \"sunny\"\n<tool_call>")]
THOUGHT = assistant("b", reasoning_content="because\n\nof it")

CASES = {
    "user": case([user("Hi")]),
    "no generation prompt": case([user("Hi")], add_generation_prompt=False),
    "system": case([system("Be brief."), user("Hi")]),
    "blank system": case([system(""), user("Hi")]),
    "empty content": case([user(""), assistant(""), user("x")]),
    "multi turn": case([user("a"), assistant("b"), user("c")]),
    "system multi turn": case([system("S"), user("a"), assistant("b"), user("c"), assistant("d"), user("e")]),
    "ends with assistant": case([user("a"), assistant("b")], add_generation_prompt=False),
    "ends with assistant and prompt": case([user("a"), assistant("b")]),
    "whitespace": case([system("  s \n"), user("\n a \t\n"), assistant("  b\n\n"), user(" c ")]),
    "unicode": case([user("Größe 漢字 🙂\u00a0\u3000"), assistant("naïve — “q”"), user("\u2028x")]),
    "special texts": case([system("<|im_end|>"), user("<|im_start|>system</s>[INST]<think>{{ x }}{% if %}")]),
    "thinking on": case([user("Hi")], enable_thinking=True),
    "thinking off": case([user("Hi")], enable_thinking=False),
    "thinking off, system": case([system("S"), user("Hi")], enable_thinking=False),
    "reasoning in history": case([user("a"), THOUGHT, user("c")]),
    "reasoning last": case([user("a"), THOUGHT], add_generation_prompt=False),
    "reasoning kept": case([user("a"), THOUGHT, user("c")], truncate_history_thinking=False, clear_thinking=False),
    "inline thinking": case([user("a"), assistant("<think>\nr\n</think>\n\nb"), user("c")]),
    "half thinking": case([user("a"), assistant("r</think> b"), user("c")]),
    "open thinking": case([user("a"), assistant("<think>r"), user("c")]),
    "one tool": case([user("a")], [SEARCH]),
    "three tools": case([system("S"), user("a")], [WEATHER, SEARCH, NO_PARAMETERS]),
    "tools, thinking off": case([user("a")], [WEATHER], enable_thinking=False),
    "tool call": case(CALLED, [WEATHER], add_generation_prompt=False),
    "tool answer": case(ANSWERED, [WEATHER]),
    "tool answer without tools": case(ANSWERED),
    "tool answer and turn": case([system("S"), *ANSWERED, assistant("12 degrees."), user("thanks")], [WEATHER]),
    "call with reasoning": case(
        [user("w?"), assistant("Let me see.", reasoning_content="need it", tool_calls=[call("search", {"q": "x"})]),
         tool("found", name="search")], [SEARCH]),
    "call after reasoning, later turn": case(
        [user("w?"), assistant("", reasoning_content="need it", tool_calls=[call("search", {"q": "x"})]),
         tool("found", name="search"), assistant("ok"), user("next")], [SEARCH]),
    "null content with call": case([user("w?"), assistant(None, tool_calls=[call("search", {"q": "x"})])], [SEARCH]),
    "two calls": case(
        [user("w?"), assistant("", tool_calls=[call("search", {"q": "x"}, "aaaaaaaaa"), call("ping", {}, "bbbbbbbbb")]),
         tool("1", "aaaaaaaaa", "search"), tool("2", "bbbbbbbbb", "ping")], [SEARCH, NO_PARAMETERS]),
    "two systems": case([system("a"), system("b"), user("c")]),
    "system late": case([user("a"), system("b"), user("c")]),
    "two users": case([user("a"), user("b")]),
    "starts with assistant": case([assistant("a"), user("b")]),
    "developer": case([{"role": "developer", "content": "D"}, user("a")]),
    "unknown role": case([{"role": "critic", "content": "D"}, user("a")]),
    "no messages": case([]),
    "only system": case([system("S")]),
    "reasoning effort": case([user("a")], reasoning_effort="high"),
    "content parts": case([user([{"type": "text", "text": "part one"}, {"type": "text", "text": " two "}])]),
    "documents": case([user("a")], documents=[{"title": "T1", "text": "One.\n"}, {"title": "Ünï", "text": "zwei"}]),
    "documents and system": case([system("S"), user("a")], documents=[{"doc_id": 7, "title": "T", "text": "x"}]),
    "kinds of schema": case([user("a")], [SCHEMAS]),
    "kinds of schema, system": case([system("S"), user("a"), assistant("b"), user("c")], [SCHEMAS, WEATHER]),
    "bare function": case([user("a")], [{"type": "function", "function": {"name": "bare"}}]),
    "function without wrapper": case([user("a")], [SEARCH["function"]]),
    "no tools given as a list": case([user("a")], []),
    "string arguments": case(
        [user("w?"), assistant("", tool_calls=[call("get_weather", json.dumps(ARGUMENTS, ensure_ascii=False))]), tool("1")], [WEATHER]),
    "empty string arguments": case([user("w?"), assistant("", tool_calls=[call("ping", "")]), tool("1", name="ping")], [NO_PARAMETERS]),
    "no arguments": case([user("w?"), assistant("", tool_calls=[call("ping", {})]), tool("", name="ping")], [NO_PARAMETERS]),
    "three calls with text": case(
        [user("w?"), assistant("First. \n", tool_calls=[call("search", {"q": "漢字\n\"x\""}, "aaaaaaaaa"), call("search", {"q": ""}, "bbbbbbbbb"),
                                                      call("ping", {}, "ccccccccc")]),
         tool("{\"a\": 1}", "aaaaaaaaa", "search"), tool("", "bbbbbbbbb", "search"), tool("x\n", "ccccccccc", "ping"), assistant("ok"),
         user("more"), assistant("", tool_calls=[call("search", {"q": "y"}, "ddddddddd")]), tool("z", "ddddddddd", "search")],
        [SEARCH, NO_PARAMETERS]),
    "short call ids": case([user("w?"), assistant("", tool_calls=[call("search", {"q": "x"}, "c1")]), tool("1", "c1", "search")], [SEARCH]),
    "call without id": case(
        [user("w?"), assistant("", tool_calls=[{"type": "function", "function": {"name": "search", "arguments": {"q": "x"}}}]),
         {"role": "tool", "content": "1"}], [SEARCH]),
    "call without content": case(
        [user("w?"), {"role": "assistant", "tool_calls": [call("search", {"q": "x"})]}, tool("1", name="search")], [SEARCH]),
    "empty list of calls": case([user("a"), assistant("b", tool_calls=[]), user("c")]),
    "null calls": case([user("a"), assistant("b", tool_calls=None), user("c")]),
    "tool result as object": case([*CALLED, tool({"temp": 12, "sky": ["é", None]})], [WEATHER]),
    "tool result as list": case([*CALLED, tool([{"type": "text", "text": "12C"}])], [WEATHER]),
    "tool first": case([tool("x"), user("a")]),
    "null content": case([user("a"), assistant(None), user("c")]),
    "content left out": case([user("a"), {"role": "assistant"}, user("c")]),
    "user of a name": case([{"role": "user", "name": "Ann", "content": "a"}]),
    "parts everywhere": case(
        [{"role": "system", "content": [{"type": "text", "text": "S"}]}, user([{"type": "text", "text": "a"}]),
         assistant([{"type": "text", "text": "b"}, {"type": "text", "text": " c"}]), user([{"type": "text", "text": "d"}])]),
    "image part": case([user([{"type": "image"}, {"type": "text", "text": "What is it?"}])]),
    "image url part": case([user([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "a.png"}}])]),
    "no parts": case([user([])]),
    "empty reasoning": case([user("a"), assistant("b", reasoning_content=""), user("c")]),
    "reasoning, null content": case([user("a"), assistant(None, reasoning_content="r"), user("c")]),
    "reasoning and inline thinking": case([user("a"), assistant("<think>x</think>b", reasoning_content="r")], add_generation_prompt=False),
    "reasoning of other names": case([user("a"), assistant("b", thinking="t"), user("c"), assistant("d", reasoning="u")], add_generation_prompt=False),
    "several reasonings with calls": case(
        [user("w?"), assistant("", reasoning_content="one\n", tool_calls=[call("search", {"q": "x"})]), tool("1", name="search"),
         assistant("", reasoning_content="two", tool_calls=[call("search", {"q": "y"})]), tool("2", name="search")], [SEARCH]),
    "thinking on, system, history": case([system("S"), user("a"), THOUGHT, user("c")], enable_thinking=True),
    "switch in the system text": case([system("/no_think"), user("a")]),
    "switch in the user text": case([user("a /no_think"), THOUGHT, user("b /think")]),
    "thinking variable": case([user("a"), THOUGHT, user("c")], thinking=True),
    "low effort": case([system("S"), user("a")], reasoning_effort="low"),
    "unknown effort": case([user("a")], reasoning_effort="extreme"),
    "date given": case([user("a")], date_string="01 Jan 2020", current_date="2020-01-01"),
    "identity and builtin tools": case(
        [{"role": "developer", "content": "D"}, user("a")], [SEARCH], model_identity="You are Q.", builtin_tools=["browser", "python"]),
    "other template variables": case(
        [user("a")], [SEARCH], tools_in_user_message=False, xml_tools=[SEARCH], python_tools=[], keep_past_thinking=True, enable_citations=True,
        controls={"length": "short"}, medium_effort=True, custom_instructions="C", strict=None, number=7),
    "emoji and directions": case([system("👩‍👩‍👧 é\u0301"), user("שלום \u202b مرحبا ​ 👍🏽"), assistant("🇩🇪𝔘\ufeff"), user("\x00\x1b[1m\x7f")]),
    "line ends": case([user("a\r\nb\rc\u0085d\u2029e\x0bf"), assistant("\r\n"), user("\n")]),
    "code": case([user("```py\nif x:\n\tprint('{{ y }}')\n```\n"), assistant("{% raw %}{# c #}"), user("<tool_call>\n{}\n</tool_call>")]),
    "ends with developer": case([user("a"), {"role": "developer", "content": "D"}]),
    "system between": case([system("S"), user("a"), assistant("b"), system("T"), user("c")]),
    "continued": case([user("a"), assistant("The answer is")], continue_final_message=True, add_generation_prompt=False),
    "continued after space": case([user("a"), assistant("The answer is \n ")], continue_final_message=True, add_generation_prompt=False),
    "continued blank": case([user("a"), assistant(" ")], continue_final_message=True, add_generation_prompt=False),
    "continued thought": case([user("a"), assistant("<think>\nr\n</think>\n\nSo")], continue_final_message=True, add_generation_prompt=False),
    "continued user": case([system("S"), user("Once upon")], continue_final_message=True, add_generation_prompt=False),
    "continued parts": case([user("a"), assistant([{"type": "text", "text": "One"}, {"type": "text", "text": "two "}])],
                            continue_final_message=True, add_generation_prompt=False),
    "continued nothing": case([], continue_final_message=True, add_generation_prompt=False),
    "many turns": case([m for i in range(12) for m in (user(f"q{i}"), assistant(f"a{i}"))] + [user("end")]),
}
# The same rows in another form: arguments as JSON text, other names of reasoning. Rendered from the first form.
NEMOTRON_FACTS = {
    "facts: hi": case([user("Hi")]),
    "facts: thinking off": case([user("Hi")], enable_thinking=False),
    "facts: three turns": case([user("a"), assistant("b"), user("c")]),
    "facts: reasoning": case([user("a"), assistant("b", reasoning_content="r"), user("c")]),
    "facts: reasoning kept": case([user("a"), assistant("b", reasoning_content="r"), user("c")],
                                  truncate_history_thinking=False),
}

# Rendered by our own templates too.
OWN_CASES = [
    "user", "no generation prompt", "system", "empty content", "multi turn", "whitespace", "unicode", "special texts", "thinking off",
    "reasoning in history", "reasoning last", "inline thinking", "open thinking", "three tools", "kinds of schema, system", "bare function",
    "tool answer and turn", "call with reasoning", "two calls", "string arguments", "three calls with text", "two users", "system late",
    "starts with assistant", "developer", "unknown role", "no messages", "content parts", "image url part", "null content", "content left out",
    "documents", "low effort", "unknown effort", "tool result as object", "user of a name", "line ends", "emoji and directions", "continued",
    "continued after space", "other template variables", "date given",
]

SNIPPET_CONTEXT = {
    "messages": [
        {"role": "system", "content": " sys "},
        {"role": "user", "content": "Hello, Wörld! 漢字"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    ],
    "user": {"name": "Ann", "tags": ["x", "y"], "items": [1, 2], "nested": {"deep": {"er": True}}},
    "numbers": [3, 1, 2, 10],
    "words": ["pear", "Apple", "fig"],
    "text": "  a,b , c\n",
    "long": "The quick brown fox\njumps over\n\nthe lazy dog.",
    "empty": "",
    "nothing": None,
    "yes": True,
    "pi": 3.14159,
    "big": 1e20,
    "tiny": 1.5e-7,
    "people": [
        {"name": "Bob", "age": 30, "a": {"b": 2}},
        {"name": "al", "age": 25, "a": {"b": 1}},
        {"name": "Cy", "age": 30, "a": {"b": 3}},
    ],
    "mixed": {"s": "q\"'\\\n\té🙂\u0001\x7f", "n": None, "t": True, "f": 2.0, "l": [], "d": {}, "i": -5, "html": "<b>&'</b>"},
}

SNIPPETS = r"""
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 3 ** 2 }}
{{ -2 ** 2 }} {{ 1.5 + 1 }} {{ 1e3 }} {{ 10 / 4 }} {{ 10 / 5 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 0.1 + 0.2 }} {{ 1_000 }} {{ 0xff }}
{{ big }} {{ tiny }} {{ pi }} {{ 1e16 }} {{ 123456789012345680.0 }} {{ 1e-4 }} {{ 0.00001 }} {{ 100000.0 }} {{ 1e15 }} {{ -0.0 }}
{{ true }} {{ True }} {{ none }} {{ None }} {{ false and 1 }} {{ 0 or 'x' }} {{ '' or none }} {{ not '' }} {{ True + True }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1] ~ missing }} {{ 'a' + 'b' * 3 }} {{ [1] + [2] }} {{ (1, 2) + (3,) }} {{ [0] * 3 }}
{{ [1, 'a', "b'c", none, true, 1.0, ('t',), (), {}] }} {{ {'k': [1], 2: 'v'} }} {{ (1,) }} {{ (1, 2) }} {{ ['\n\t\\', 'é', '\u200b\x00'] }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ '1' == 1 }} {{ [1, 2] == [1, 2.0] }} {{ [1] == (1,) }} {{ {'a': 1} == {'a': 1} }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }}
{{ 'a' in 'abc' }} {{ 'x' not in 'abc' }} {{ 1 in [1, 2] }} {{ 'name' in user }} {{ 'zz' in user }} {{ 3 in numbers and 4 not in numbers }} {{ '' in '' }}
{{ user.name }} {{ user['name'] }} {{ user.missing }}| {{ user['items'] }} {{ user.items() | list }} {{ user.nested.deep.er }} {{ user.get('zz') }} {{ user.get('zz', 5) }}
{{ messages[0].role }} {{ messages[-1]['role'] }} {{ messages[99] }}| {{ messages[1:] | length }} {{ messages[1].content[7:12] }} {{ numbers[::-1] }} {{ numbers[1:3] }} {{ numbers[-2:] }} {{ numbers[:-1] }} {{ numbers[10:] }} {{ 'abcdef'[::2] }} {{ 'abcdef'[4:1:-1] }} {{ '漢字かな'[1:3] }} {{ '漢字'[-1] }}
{{ 'x' if yes else 'y' }} {{ 'x' if nothing }}| {{ 'a' if nothing else 'b' if empty else 'c' }}
{{ missing is defined }} {{ missing is undefined }} {{ nothing is none }} {{ nothing is defined }} {{ user is mapping }} {{ numbers is sequence }} {{ 'a' is sequence }} {{ user is sequence }} {{ 5 is sequence }} {{ 'a' is iterable }} {{ 5 is iterable }} {{ missing is iterable }} {{ missing is sequence }} {{ missing is none }} {{ missing is string }}
{{ 1 is number }} {{ true is number }} {{ true is boolean }} {{ 1 is boolean }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is float }} {{ 1 is odd }} {{ 2 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 'a' is string }} {{ yes is true }} {{ yes is false }} {{ 1 is true }} {{ 1 is eq 1 }} {{ 1 is not eq(2) }} {{ 2 is gt 1 }} {{ 2 is in [1, 2] }} {{ 'A' is upper }} {{ 'a1' is lower }} {{ none is sameas none }} {{ range is callable }} {{ user is callable }}
{{ 'abc' is defined and yes }} {{ missing is defined or 'alt' }} {{ not missing is defined }} {{ user.name is defined and user.name == 'Ann' }}
{{ text | trim }}| {{ text.strip() }}| {{ text.lstrip() }}|{{ text.rstrip() }}| {{ 'xxaxx'.strip('x') }} {{ 'abcba'.lstrip('ab') }} {{ '--a-'.rstrip('-') }} {{ 'xay' | trim('xy') }}
{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a  b '.split() }} {{ ' a  b  c '.split(none, 1) }} {{ ' a  b  c '.rsplit(none, 1) }} {{ 'a b '.split(maxsplit=1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a--b'.split('--')[-1] }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ '漢字'.find('字') }} {{ 'abcabc'.rfind('b') }} {{ 'aaa'.count('a') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'aaa'.replace('', '-') }} {{ 'abc'.index('b') }}
{{ 'hELLO wORLD'.title() }} {{ "it's a-b" | title }} {{ "it's a-b".title() }} {{ 'hELLO'.capitalize() }} {{ 'hELLO' | capitalize }} {{ 'straße É' | upper }} {{ 'ÀÉÎ Ж Ω' | lower }} {{ 'aB'.swapcase() }}
{{ '-'.join(['a', 'b']) }} {{ ['a', 1, none] | join('-') }} {{ 'abc' | join('.') }} {{ [] | join }} {{ people | join(',', attribute='name') }} {{ user | join(',') }}
{{ 'abc'.isalpha() }} {{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab'.islower() }} {{ ''.isalpha() }}
{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }} {{ 'a\nb\r\nc\n'.splitlines() }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'ab'.ljust(4, '.') }} {{ 'ab'.rjust(4) }} {{ 'ab'.center(5, '*') }}
{{ '{} and {}'.format(1, 'b') }} {{ '{1}{0}'.format('a', 'b') }} {{ '{x}{{}}'.format(x=3) }} {{ '%s-%d-%.2f-%%' % ('a', 5, 1.5) }} {{ '%5s|%-5s|' % ('a', 'b') }} {{ '%r' % 'x' }} {{ '%03d' % 7 }} {{ '%s=%s' | format('k', 1) }} {{ 'v %s' % 3 }}
{{ user.keys() | list }} {{ user.values() | list | length }} {% for k, v in user.items() %}{{ k }}={{ v }};{% endfor %} {{ user | items | list | length }} {{ user | list }}
{{ mixed | tojson }}
{{ mixed | tojson(indent=2) }}
{{ mixed | tojson(ensure_ascii=True) }}
{{ mixed | tojson(separators=(',', ':')) }} {{ {'b': 1, 'a': [1, {'c': 2}]} | tojson(sort_keys=true) }} {{ {'b': 1, 'a': [1, {'c': []}]} | tojson(indent=4) }} {{ [1, 2] | tojson(indent=0) }} {{ [1, 2] | tojson(indent='--') }}
{{ 'a"b' | tojson }} {{ none | tojson }} {{ 1.0 | tojson }} {{ (1, 2) | tojson }} {{ {1: 2, none: 3, true: 4} | tojson }} {{ [] | tojson }} {{ '</script>' | tojson }} {{ 1e20 | tojson }} {{ tiny | tojson }}
{{ numbers | sort }} {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ numbers | sort(reverse=true) }} {{ people | sort(attribute='age,name') | map(attribute='name') | list }} {{ people | sort(attribute='a.b') | map(attribute='name') | list }}
{{ {'b': 1, 'A': 2, 'c': 0} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'A': 2, 'c': 0} | dictsort(by='value') }} {{ {'b': 1, 'a': 2} | dictsort(reverse=true) }}
{{ people | selectattr('age', 'equalto', 30) | map(attribute='name') | list }} {{ people | rejectattr('age', 'gt', 29) | map(attribute='name') | join }} {{ numbers | select('odd') | list }} {{ numbers | reject('in', [1, 2]) | list }} {{ [0, 1, '', 'a'] | select | list }} {{ messages | selectattr('tool_calls', 'defined') | list | length }} {{ messages | selectattr('content') | list | length }}
{{ words | map('upper') | list }} {{ words | map('length') | list }} {{ people | map(attribute='zz', default='none') | list }} {{ words | map('replace', 'p', 'P') | join('|') }} {{ ['1', '2'] | map('int') | sum }}
{{ numbers | first }} {{ numbers | last }} {{ [] | first }}| {{ numbers | max }} {{ numbers | min }} {{ numbers | sum }} {{ people | sum(attribute='age') }} {{ people | max(attribute='age') }} {{ words | min }} {{ numbers | reverse | list }} {{ 'abc' | reverse }} {{ [1, 1, 2, 'a', 'A'] | unique | list }}
{{ '42' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '3.9' | int }} {{ 3.9 | int }} {{ 'ff' | int(base=16) }} {{ '0x1f' | int(0, 16) }} {{ '1.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ none | int }} {{ [] | int(1) }} {{ '1_0' | int }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.567 | round(2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.9 | round(method='floor') }} {{ -5 | abs }} {{ -5.5 | abs }} {{ 7 | round }} {{ 1.005 | round(2) }}
{{ missing | default('d') }} {{ nothing | default('d') }} {{ nothing | default('d', true) }} {{ '' | d('e', boolean=true) }} {{ user.zz | default }}| {{ 0 | default(1) }}
{{ 'abc' | length }} {{ '漢字' | length }} {{ user | count }} {{ missing | length }} {{ '' | length }} {{ (1, 2) | length }}
{{ long | indent }}|{{ long | indent(2, true) }}|{{ long | indent(2, blank=true) }}|{{ long | indent('> ') }}
{{ '<a href="x">\'&' | e }} {{ '<b>' | safe }} {{ '<b>' | escape | length }} {{ long | wordcount }} {{ 5 | string ~ 'x' }} {{ [1] | string }} {{ 'a' | list }} {{ user | attr('name') }}|
{% for x in numbers %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}|{{ loop.nextitem }};{% endfor %}
{% for x in [] %}a{% else %}none{% endfor %}{% for x in numbers if x > 2 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}no{% endfor %}{% for x in missing %}a{% else %}undefined{% endfor %}
{% for x in numbers %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %} {% for x in numbers %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}
{% for x in numbers %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 2) }} {% endfor %}{% for a in [1, 2] %}{% for b in [3] %}{{ loop.depth }}{{ loop.depth0 }}{{ a }}{{ b }} {% endfor %}{% endfor %}
{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }} {% endfor %}{% for (a, (b, c)) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %} {% set a, b = 1, 2 %}{{ a }}{{ b }} {% for c in 'añ' %}[{{ c }}]{% endfor %}
{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }} {% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% set ns = namespace(a=1, b='x') %}{% for i in numbers %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }} {{ ns.b }} {{ ns.zz }}| {{ ns.zz is defined }} {{ namespace({'q': 1}).q }}
{% macro m(a, b=2, c=a) %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(a=5, b=6) }} {{ m(1, c='z') }} {{ m() }} {{ m(1) | upper ~ '!' }}
{% macro r(n) %}{{ n }}{% if n > 0 %},{{ r(n - 1) }}{% endif %}{% endmacro %}{{ r(4) }} {% macro v() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ v(1, 2, k=3) }}
{% set glob = 'g1' %}{% macro g() %}{{ glob }}{% set glob = 'in' %}{{ glob }}{% endmacro %}{{ g() }}{{ glob }}{% set glob = 'g2' %}{{ g() }}
{% macro box(t) %}[{{ t }}:{{ caller() }}]{% endmacro %}{% call box('T') %}body {{ yes }}{% endcall %} {% macro each(l) %}{% for x in l %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(y) each([1, 2]) %}<{{ y }}>{% endcall %}
{% set body %}a {{ 1 + 1 }} b{% endset %}{{ body }}|{{ body | length }} {% set up | upper %}abc{% endset %}{{ up }} {% filter upper | replace('B', '_') %}abc{% endfilter %} {% with q = 5, w = 6 %}{{ q + w }}{% endwith %}{{ q }}
{% generation %}gen {{ yes }}{% endgeneration %}|{% raw %}{{ not }} {% this %}{% endraw %}|{# comment {{ x }} #}|{{ '{{' }}{{ "}}" }}{{ {'a': {'b': 1}} }}
{% if nothing %}a{% elif empty %}b{% elif yes %}c{% else %}d{% endif %}{% if not nothing and (yes or missing) %}e{% endif %}
a {{- ' b ' -}} c | {%- if true -%} x {%- endif -%} y | {#- gone -#} z {%+ if true +%} k {%+ endif %}
{{ "esc \" \' \\ \n \t \x41 \u00e9 \101 \q" }} {{ 'a' 'b' "c" }} {{ 'multi
line' }}
{{ range(5) | list }} {{ range(2, 8, 3) | list }} {{ range(5, 0, -2) | list }} {{ range(3) }} {{ range(0) | list }} {{ dict(a=1, b=2) }} {{ dict([('x', 1)]) }} {{ dict({'a': 1}, b=3) }}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y, %H:%M:%S %A %B %j %%') }}
{{ messages | tojson }}
{{ messages }}
{{ [user, people] | string | length }} {{ mixed }} {{ {'x': (1,), 'y': [none, {'z': 'q'}]} }}
{{ 'a' if 'x' is string else 'b' }} {{ (1 if true else 2) + 1 }} {{ [1, 2, 3][1] }} {{ {'a': 5}.a }} {{ {'a': 5}['a'] }} {{ 'abc'[1] }} {{ (1, 2)[0] }} {{ numbers.0 }} {{ numbers | length > 2 }}
{{ messages[0]['content'] | trim | upper }} {{ messages[2].tool_calls[0].function.name }} {{ messages[2].tool_calls[0].function.arguments | tojson }} {{ messages[2]['content'] is none }} {{ messages[2].content or 'nil' }}
{{ numbers.index(2) }} {{ numbers.count(3) }} {{ numbers.copy() }} {{ (1, 1).count(1) }} {{ user.copy() == user }}
{{ user.pop }}| {{ numbers.append }}| {{ ''.__class__ }}| {{ user.__class__ }}| {{ user._private }}| {{ numbers.append is defined }}
{{ none == none }} {{ missing == missing2 }} {{ missing == none }} {{ missing != none }} {{ not missing }} {{ missing | string | length }} {{ missing ~ 'x' }} {{ missing | upper }}| {{ missing | trim }}| {{ [missing] | length }} {{ missing | list }} {{ 1 in missing }}
{{ 1 if 1 is defined and 2 > 1 else 0 }} {{ not 1 == 2 }} {{ not true or true }} {{ 1 - -1 }} {{ - 3 + 5 }} {{ +4 }} {{ 2 * (3 + 4) }} {{ 10 - 2 - 3 }} {{ 'a' ~ 'b' | upper }} {{ ('a' ~ 'b') | upper }} {{ -1 | abs }}
{% set o = [] %}{% set o = o + [1] %}{% set o = o + ['b'] %}{{ o }} {% set d = dict(a=1) if false else {'z': 1} %}{{ d }}
{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% elif m['role'] == 'system' and loop.first %}S{% else %}{{ m.tool_calls is defined and m.tool_calls }}{% endif %}
{% endfor %}
{%- set x = 5 -%}

  {%- if x %}
    kept {{ x }}
  {% endif %}
    tail  
{{ 1 ~ 2 + 3 }}
{{ 'a' ~ 2 + 'b' }} {{ 2 + 3 ~ 'x' if false else 'y' }}
{{ {'items': 3, 'get': 4, 'x': 1}.x }} {{ {'items': 3}['items'] }} {{ {'items': 3}.items() | list }} {{ {'pop': 1}['pop'] }} {{ {1: 'a', 1.0: 'b', true: 'c'} }} {{ {(1, 2): 'x'}[(1, 2)] }}
{{ [3, [1, 2], 'x'] | last }} {{ ['b', ['a']] | first }} {{ (1, 2) | list }} {{ 'abc' | first }} {{ 'abc' | last }} {{ user | first }} {{ user.items() | first }}
{{ (numbers | map('string') | list)[0] ~ 'z' }} {{ numbers | map('string') | join('+') }} {{ numbers | select('gt', 2) | map('string') | join }}
{{ user.items() }} {{ user.keys() }}
{{ 5 is divisibleby 0 }}
{{ 'x' * 0 }}|{{ 'x' * -1 }}|{{ [1] * 0 }} {{ 3 * 'ab' }} {{ true * 3 }} {{ 'a' 'b' }} {{ () }} {{ [] == () }} {{ [[1, [2]], {'a': [1]}] == [[1, [2]], {'a': [1]}] }}
{{ 1 == true }} {{ 0 == false }} {{ 1 is sameas true }} {{ 'a' is sameas 'a' }} {{ none is sameas false }} {{ 1.0 is integer }} {{ 1 is float }} {{ '' is sequence }} {{ none is iterable }} {{ range(3) is sequence }} {{ user.items() is sequence }} {{ (numbers | map('string')) is iterable }}
{{ 100000000000000000000000.0 }} {{ 5e-324 }} {{ 1.7976931348623157e308 }} {{ 1e400 }} {{ -1e400 }} {{ 0.1 }} {{ 1/3 }} {{ 2/3*100 }} {{ 1e22 }} {{ 1.0e-10 }} {{ 3.0 }} {{ 12345.678 }}
{{ 7 % 5.5 }} {{ -7 // -2 }} {{ 0 ** 0 }} {{ 2 ** 0.5 }} {{ 2.0 ** 3 }} {{ 9 ** 0.5 }} {{ (-2) ** 3 }} {{ 2 ** 62 }} {{ 9223372036854775807 }}
{%- for x in [1, 2, 3] -%} {{ x }} {%- if not loop.last -%} , {% endif %} {%- endfor -%} . {%- set z = 1 +%} w
a  {% if true %}  b  {% endif %}  c
  {# c #}  a  {# d -#}  b
{% if true -%}   x   {%- endif %}   y {{- 1 -}}   z   {{ 2 }}   {%- if true %}   q{% endif %}
<{{ 'x' -}}   >  <   {{- 'y' }}> {%+ if true %} p {% endif +%} r
{% raw -%}   {{ a }}   {%- endraw %} {%- raw %} {% if %} {% endraw -%}   end
{% for i in range(3) %}{% set outer = loop %}{% for j in range(2) %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}
{% for i in range(3) %}{% for j in range(5) %}{% if j == 1 %}{% continue %}{% elif j == 3 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% if i == 1 %}{% break %}{% endif %}{% endfor %}
{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{{ ',' if not loop.last }}{% endfor %} {% for i in [1, 2, 3, 4] if i is even %}{{ loop.first }}{{ i }}{{ loop.last }}{% endfor %}
{% macro outer() %}{% macro inner(x) %}<{{ x }}{{ yes }}>{% endmacro %}{{ inner(1) }}{% endmacro %}{{ outer() }} {{ inner is defined }} {% if true %}{% macro cond() %}C{% endmacro %}{% endif %}{{ cond() }}
{% macro f(x) %}{% if x is string %}{{ x }}{% else %}{% for y in x %}{{ f(y) }}{{ ';' if not loop.last }}{% endfor %}{% endif %}{% endmacro %}{{ f(['a', ['b', 'c'], 'd']) }} {% set r = f('q') %}{{ r | length }}{{ r is string }}
{% set ns = namespace(l=[]) %}{% for i in numbers %}{% set ns.l = ns.l + [i * 2] %}{% endfor %}{{ ns.l }} {{ ns.l | sum }} {% set ns.l = ns.l[1:] %}{{ ns.l | length }} {{ ns is mapping }} {{ ns is defined }}
{{ 'Äß' | title }} {{ 'ñandú éa' | capitalize }} {{ 'ΑΒΓ' | lower }} {{ 'привет' | upper }} {{ '\u00a0x\u2003' | trim }}| {{ 'x\u001c'.strip() }}| {{ ' \t\n\x0b\x0c\r' | trim | length }}
{{ "don't" }} {{ ["don't"] }} {{ ['say "hi"'] }} {{ ['both \' and "'] }} {{ ['tab\there', 'nl\n', 'cr\r', 'bs\\', '\x7f', '\u2028', '\ufeff', '🙂', '\u0301'] }}
{{ '%.3f' % pi }} {{ '%e' % 12345.678 }} {{ '%g' % 0.0001 }} {{ '%x' % 255 }} {{ '%+d' % 5 }} {{ '%5.1f|' % pi }} {{ '%-6s|' % 'ab' }} {{ '%s' % none }} {{ '%s' % [1] }} {{ '%%' % () }}
{{ 'a\nb\n' | indent(2) }}| {{ 'a\n\nb' | indent(2) }}| {{ '' | indent(2, true) }}| {{ 'x' | indent(width=3, first=true) }}
{{ '12' | int + 1 }} {{ '1e3' | float }} {{ ' 7 ' | int }} {{ '-3' | int }} {{ true | int }} {{ 1e3 | int }} {{ 'inf' | float }} {{ '1,5' | float(2.5) }}
{{ 'abcdef' | length // 2 }} {{ (1, 'a', none) | join('/') }} {{ [['a', 1], ['b', 2]] | map('first') | list }} {{ [['a', 1], ['b', 2]] | map(attribute=1) | list }} {{ dict([['a', 1]]).a }} {{ messages | map(attribute='role') | unique | join(' ') }}
{{ 'yes' if 'a' in ['a'] and 'b' not in 'xyz' else 'no' }} {{ not ('a' in 'b') }} {{ 1 in {1: 2} }} {{ none in [none] }} {{ 'x' in ('x',) }} {{ missing in [1] }}
{{ 'a.b.c'.split('.')[-1] }} {{ 'a.b.c'.rsplit('.', 1)[0] }} {{ '<think>x</think>y'.split('</think>')[-1].lstrip('\n') }} {{ 'aXbXc'.split('X', 1) }} {{ 'aXbXc'.replace('X', '') }} {{ 'x'.join('abc') }} {{ 'abc'[:-1] ~ 'Z' }}
{{ raise_exception('boom: ' ~ 5) }}
{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('No assistant!') }}{% endif %}{% endfor %}
{{ missing.attribute }}
{{ user.missing.deeper }}
{{ nothing.x.y }}
{{ messages[99].role }}
{{ missing() }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ missing + 'a' }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ numbers.append(1) }}
{{ user.update({}) }}
{{ 'a' < 1 }}
{{ none < 1 }}
{{ 1 in 5 }}
{{ 1 in 'abc' }}
{{ 5() }}
{{ missing | tojson }}
{{ 5 | length }}
{{ none | list }}
{% for x in 5 %}{% endfor %}
{% for x in none %}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% set user.x = 1 %}
{{ 'a' | nofilter }}
{{ 'a' is notest }}
{{ {[]: 1} }}
{{ numbers[1:2:0] }}
{{ 'abc'.index('z') }}
{{ ''.join([1]) }}
{{ 'a'.split('') }}
{{ range(1000000) }}
{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{% endmacro %}{{ m(b=2) }}
{{ namespace(_x=1) }}
{% set ns = namespace() %}{% set ns._x = 1 %}
{{ 'x'.replace('a') }}
{{ '%d' % 'x' }}
{{ '%s %s' % 'x' }}
{% if %}x{% endif %}
{% if true %}x
{{ 1 +
{{ (1 }}
{{ 'abc }}
{% unknown %}
{% endif %}
{% for x in y %}{% endif %}
{{ a b }}
{# open
{% raw %}x
{{ }}
{{ 1 ! 2 }}
{% break %}
{{ "\x4" }}
{% set none = 1 %}
{% for x in [{'n': 1, 'k': [{'n': 2, 'k': []}, {'n': 3, 'k': [{'n': 4, 'k': []}]}]}] recursive %}{{ loop.depth }}:{{ x.n }}{{ loop.last }}[{{ loop(x.k) }}]{% else %}-{% endfor %}
{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(*[1, 3, 5]) }} {{ m(*[7], **{'b': 8, 'z': 9}) }} {{ dict(**user).name }} {{ '{}{}'.format(*words) }}
{{ people | groupby('age') | map('first') | list }} {% for g in people | groupby('age') %}{{ g.grouper }}={{ g.list | map(attribute='name') | join }};{% endfor %} {{ words | groupby('missing', default='d') }} {{ (people | groupby('a.b'))[0] | length }}
{{ numbers | batch(3) | list }} {{ numbers | batch(3, 'x') | list }} {{ numbers | slice(3) | list }} {{ numbers | slice(3, 'x') | list }} {{ [] | batch(2) | list }} {{ [1] | slice(2, 0) | list }}
{{ long | truncate(12) }}|{{ long | truncate(12, true) }}|{{ long | truncate(12, false, '~', 0) }}|{{ 'short' | truncate(3) }}|{{ 'short text' | truncate(3, true, '', 0) }}|{{ 'ab' | center(7) }}|
{{ '{:>6}|{:<6}|{:^6}|{:*^7}|{:06d}|{:+}|{:,}|{:_}|{:.2f}|{:e}|{:%}|{:x}|{:#x}|{:b}|{:c}|{:g}'.format('a', 'b', 'c', 'd', 7, 5, 1234567, 1234567, 3.14159, 1234.5, 0.25, 255, 255, 5, 65, 1e10) }}
{{ '{0[name]} {0.name} {1[0]} {x!r} {x!s:>5} {:{}}'.format(user, numbers, x='q') if false else '{0[name]} {1[0]} {x!r} {x!s:>5}'.format(user, numbers, x='q') }} {{ '{:{}}|'.format('a', 5) }} {{ '{a}'.format_map({'a': 1}) }}
{{ '%(a)s-%(b)03d' % {'a': 'x', 'b': 7} }} {{ '%#x %#o %X %c %c' % (255, 8, 255, 65, 'b') }} {{ '%-5d|%+d|% d|%05d' % (3, 3, 3, -3) }} {{ '%a' % 'x' }} {{ '%5.1e' % 12345.678 }} {{ 'x' % missing }} {{ 'x' % [1] }} {{ 'x' % {} }}
{{ '{:.3}|{:.0}|{:5.1f}|{:G}|{:>012,}|{:012,.2f}'.format(1234.5, 2.675, 3.14159, 1e20, 1234567, 1234567.891) }} {{ '{:05}|{:<05}|{:.2}'.format('ab', 'ab', 'abc') }}
{{ 'a\tb\n\tc'.expandtabs(4) }} {{ 'A Bc'.istitle() }} {{ 'a1'.isidentifier() }} {{ '1a'.isidentifier() }} {{ 'é'.isascii() }} {{ 'a\n'.isprintable() }} {{ ''.isprintable() }} {{ 'abcabc'.count('b', 2) }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith(('b', 'x'), 0, 2) }} {{ [1, 2, 1].index(1, 1) }}
{{ nothing | map('upper') | list }} {{ 0 | select | list }} {{ missing | map(attribute='x') | list }} {{ '' | selectattr('x') | list }} {% set g = numbers | map('string') %}{{ g | join }}|{{ g | join }}|{{ g is iterable }} {% set h = numbers | select('odd') %}{{ 3 in h }}{{ h | list }}
{{ range(0, 10, 3) }} {{ range(-1, -1) }} {{ range(10)[2:7:2] }} {{ range(10)[::-1] }} {{ range(3)[1] }} {{ range(2, 2) == range(0) }} {{ 2 in range(3) }} {{ (range(3) | list)[-1] }}
{% for x in [1, 2] %}{% break %}a{% else %}b{% endfor %} {% for x in [1, 2] %}{% continue %}a{% else %}b{% endfor %} {% for x in [1, 2] %}{% if x == 2 %}{% break %}{% endif %}a{% else %}b{% endfor %}
{% for x in [1, 2] %}{% set y %}a{% if x == 1 %}{% continue %}{% endif %}b{% endset %}{{ y }}{% endfor %} {% for x in [1, 2] %}{% with z = x %}{% if z == 2 %}{% break %}{% endif %}{{ z }}{% endwith %}{% endfor %} {% for x in [1] %}{% filter upper %}a{% break %}{% endfilter %}{% endfor %}
{{ 'a\rb\x0bc\u2028d' | indent(2) }} {{ 'a\n' | indent(1, true, true) }}|{{ [none, none] | sort }} {{ 'ba' | sort(attribute='x') }} {{ [[2, 'b'], [1, 'a']] | sort(attribute=0) }} {{ words | sort(attribute='missing') }}
{{ (1, 2) is sequence }} {{ [] | default('x', true) }} {{ people | map(attribute='a.b') | list }} {{ people | map(attribute='a.zz', default=0) | list }} {{ numbers | map(attribute='a.b', default='-') | list }}
{% if false %}{{ 1 | nofilter }}{{ 1 is notest }}{% endif %}{{ 'x' if true else 1 | nofilter }}
{% macro c() %}{{ 1 | nofilter }}{% endmacro %}
{% for x in [1] %}{{ loop([2]) }}{% endfor %}
{% filter length %}abc{% endfilter %}
{{ nothing[1:] }}
{{ user[1:] }}
{{ missing | int }}
{{ missing | float }}
{{ missing | indent }}
{{ 5 | indent }}
{{ [] in user }}
{{ user.get([]) }}
{{ [[1]] | unique | list }}
{{ [1] is filter }}
{{ ['a', 'b'] | sum(start='') }}
{{ 'ab' | sort(reverse=none) }}
{{ 'a'.replace('a', 'b', 1.5) }}
{{ 1.5 | round(0.5) }}
{{ '%d' % none }}
{{ '%5%' % 1 }}
{{ '%s' % (1, 2) }}
{{ '{:d}'.format('a') }}
{{ '{:.2}'.format(5) }}
{{ '{} {0}'.format(1) }}
{{ '{}'.format() }}
{{ '{'.format() }}
{{ '{x.y}'.format(x=1) }}
{{ (1, 2).copy() }}
{% macro n(a) %}{% endmacro %}{{ n(a=1, **{'a': 2}) }}
{{ dict(*[1, 2]) }}
{{ dict(**5) }}
{{ f(*a, *b) }}
"""


def split_snippets(text):
    """One snippet a line; a line that leaves a tag open, or sits in an indented block, goes on."""
    snippets, current = [], []
    lines = text.strip("\n").split("\n")
    joined = {
        "{{ \"esc": 1,  # number of lines that follow and belong to the snippet
        "{% for m in messages %}{% if m.role == 'user' %}": 1,
        "{%- set x = 5 -%}": 5,
    }
    i = 0
    while i < len(lines):
        more = next((n for start, n in joined.items() if lines[i].startswith(start)), 0)
        snippets.append("\n".join(lines[i : i + 1 + more]))
        i += 1 + more
    return snippets


def compiled(source):
    template = chat_template_utils._compile_jinja_template(source)
    template.globals["strftime_now"] = NOW.strftime
    return template


def render_case(source, one):
    kwargs = {"add_generation_prompt": True, **one["kwargs"]}
    compiled(source)
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [one["messages"]], tools=one["tools"], chat_template=source, bos_token="<s>", eos_token="</s>", **kwargs)
        return rendered[0], None
    except jinja2.exceptions.TemplateError as error:
        return None, {"error": str(error), "raised": type(error) is jinja2.exceptions.TemplateError}
    except Exception as error:  # a type error inside the template
        return None, {"error": str(error), "raised": False}


def main():
    folder = pathlib.Path(os.environ["PROA_TEST_DATA"]) / "chat-templates"
    cases = {**CASES, **NEMOTRON_FACTS}
    if sys.argv[1:2] == ["--show"]:
        text, error = render_case((folder / sys.argv[2]).read_text(encoding="utf-8"), cases[sys.argv[3]])
        print(error if error else text, end="")
        return
    OUT.mkdir(parents=True, exist_ok=True)
    versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}

    renderings = {}
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        rows = renderings[path.name] = {}
        for name, one in cases.items():
            text, error = render_case(source, one)
            if error:
                # An error may quote a message, but no more than needed to recognise it.
                rows[name] = {**error, "error": error["error"][:120]} if error["raised"] else {"error": ""}
            else:
                data = text.encode("utf-8")
                chunks = [hashlib.sha256(data[i : i + CHUNK]).hexdigest()[:4] for i in range(0, len(data), CHUNK)]
                rows[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "chunks": "".join(chunks)}

    own = {}
    for path in sorted((OUT / "own").glob("*.jinja")):
        with open(path, encoding="utf-8", newline="") as file:
            source = file.read()
        rows = own[path.name] = {}
        for name in OWN_CASES:
            text, error = render_case(source, CASES[name])
            rows[name] = error if error else {"text": text}

    snippets = []
    for source in split_snippets(SNIPPETS):
        row = {"source": source}
        try:
            row["output"] = compiled(source).render(**SNIPPET_CONTEXT)
        except jinja2.exceptions.TemplateError as error:
            row["error"] = str(error)
            row["raised"] = type(error) is jinja2.exceptions.TemplateError
        except Exception as error:
            row["error"] = str(error)
            row["raised"] = False
        snippets.append(row)

    def compact(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def write(name, head, key, rows):
        """`head` and one line for each element of `rows`, an object or a list."""
        named = isinstance(rows, dict)
        lines = [f"{compact(k)}:{compact(rows[k])}" for k in rows] if named else [compact(row) for row in rows]
        opening, closing = ("{", "}") if named else ("[", "]")
        text = compact(head)[:-1] + f',"{key}":{opening}\n' + ",\n".join(lines) + f"\n{closing}}}\n"
        (OUT / name).write_text(text, encoding="utf-8")

    write("conversations.json", versions, "cases", cases)
    write("renderings.json", {**versions, "now": NOW.isoformat(), "chunk": CHUNK}, "templates", renderings)
    write("own.json", versions, "templates", own)
    write("snippets.json", {**versions, "context": SNIPPET_CONTEXT}, "snippets", snippets)


if __name__ == "__main__":
    main()
