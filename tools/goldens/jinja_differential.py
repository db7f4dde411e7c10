#!/usr/bin/env python3
"""Makes random templates, renders each by jinja2 (in transformers' settings) and by ours, and prints where they differ.

  ninja -C build/release jinja_lines
  python tools/goldens/jinja_differential.py [--driver build/release/src/chat/jinja_lines] [--count 20000] [--seed 1]

Needs jinja2 and transformers. A difference that is found belongs, made small, into the snippets of chat_templates.py.
Not compared: the words of errors, values whose text is an address in memory, and what this program refuses by design
(integers beyond 64 bits, and filters, methods and blocks that its error calls unsupported). jinja2 computes constant parts
when it compiles, where a slice of what has none is undefined in place of an error; that is not imitated.
"""

import argparse
import collections
import copy
import json
import pathlib
import random
import re
import subprocess
import sys
import warnings

import chat_templates

CONTEXT = {
    **chat_templates.SNIPPET_CONTEXT,
    "html": "<a href='x'>\"&\" </a>",
    "mixed_list": [3, "b", None, True, 2.5, [1], {"k": "v"}],
    "table": [["a", 1], ["b", 2], ["a", 3]],
    "tree": [{"n": "r", "kids": [{"n": "x", "kids": []}, {"n": "y", "kids": [{"n": "z", "kids": []}]}]}],
    "unicode": "Ünï-Ж漢🙂 é\u00a0\t\u200b",
}
BY_DESIGN = re.compile(r"overflow|not supported|too large|too wide|bad integer|too many steps|too much data|nested too"
                       r"|cannot be sliced|slice indices must|calls too deeply|too big|too long|has no such format|precision of 0")
ADDRESS = re.compile(r" at 0x|<(generator|function|built-in|bound|Macro|method|Loop|class|reversed|list_rev|str_|map|filter|transformers)", re.I)


class Grammar:
    def __init__(self, rng):
        self.rng = rng

    def pick(self, *choices):
        return self.rng.choice(choices)

    def string(self):
        text = self.pick("", "a", "ab", "abc", " a b ", "A-b c", "x,y,z", "é漢", "<b>", "it's", "say \\\"q\\\"", "1", "42",
                         " 7 ", "1.5", "-3", "name", "age", "\\n", "a\\nb\\n", "\\t", "\\u00e9", "%s", "%d|%5s", "{}", "{0}-{x}",
                         "{:>5}", "{:.2f}", "0x1f", "true", "e", "b", "aXbXc", "...", "\\\\")
        return self.pick(f'"{text}"', f'"{text}"', "'%s'" % text.replace("'", "\\'").replace('\\"', '"'))

    def number(self):
        return self.pick("0", "1", "2", "3", "-1", "7", "10", "1.5", "-2.5", "0.0", "1e3", "100", "2.675", "5", "0.1", "1_000")

    def name(self):
        return self.pick(*CONTEXT, "missing", "x", "y", "loop", "ns")

    def attribute(self):
        return self.pick("name", "tags", "items", "nested", "role", "content", "age", "a", "b", "s", "l", "missing", "keys",
                         "values", "get", "n", "kids", "deep", "index", "count")

    def args(self, depth, most=2):
        return ", ".join(self.expr(depth - 1) for _ in range(self.rng.randint(0, most)))

    def method(self, depth):
        e = lambda: self.expr(depth - 1)
        s, n = self.string, self.number
        return self.pick(
            lambda: f"upper()", lambda: "lower()", lambda: "title()", lambda: "capitalize()", lambda: "swapcase()",
            lambda: "strip()", lambda: f"strip({s()})", lambda: f"lstrip({s()})", lambda: f"rstrip({e()})",
            lambda: f"split({s()})", lambda: "split()", lambda: f"split({s()}, {n()})", lambda: f"rsplit({s()}, 1)",
            lambda: f"split(none, {n()})", lambda: f"rsplit(maxsplit={n()})", lambda: f"splitlines({self.pick('', 'true')})",
            lambda: f"replace({s()}, {s()})", lambda: f"replace({s()}, {s()}, {n()})", lambda: f"startswith({s()})",
            lambda: f"endswith(({s()}, {s()}))", lambda: f"find({s()})", lambda: f"rfind({s()}, {n()})", lambda: f"index({e()})",
            lambda: f"count({s()})", lambda: f"join({e()})", lambda: f"partition({s()})", lambda: f"rpartition({s()})",
            lambda: f"zfill({n()})", lambda: f"center({n()}, {self.pick(repr('*'), s())})", lambda: f"ljust({n()})", lambda: f"rjust({n()}, 'é')",
            lambda: f"removeprefix({s()})", lambda: f"removesuffix({s()})", lambda: f"format({self.args(depth, 3)})",
            lambda: f"format({e()}, x={e()})", lambda: "isdigit()", lambda: "isalpha()", lambda: "isalnum()", lambda: "isspace()",
            lambda: "isupper()", lambda: "islower()", lambda: "istitle()", lambda: "isascii()", lambda: "isidentifier()",
            lambda: "isprintable()", lambda: f"expandtabs({self.pick('', '4', '0')})", lambda: "casefold()", lambda: "isnumeric()",
            lambda: "isdecimal()", lambda: "items()", lambda: "keys()", lambda: "values()", lambda: f"get({e()})",
            lambda: f"get({e()}, {e()})", lambda: "copy()", lambda: f"count({e()})", lambda: f"startswith({s()}, {n()})",
            lambda: f"find({s()}, {n()}, {n()})", lambda: f"append({e()})", lambda: f"pop()", lambda: f"count({s()}, {n()})",
            lambda: f"endswith({s()}, {n()}, {n()})", lambda: f"index({e()}, {n()})")()

    def filter(self, depth):
        e = lambda: self.expr(depth - 1)
        s, n = self.string, self.number
        attribute = lambda: self.pick("'name'", "'age'", "'a.b'", "0", "'0'", "'role'", "'missing'", "1", s())
        test = lambda: self.pick("'defined'", "'string'", "'odd'", "'gt', 2", "'in', [1, 2, 'a']", "'equalto', 30", "'none'",
                                 "'mapping'", "'==', 1", "'ne', 'x'", "'divisibleby', 3", "'sequence'", "'lt', 'b'")
        flag = lambda: self.pick("true", "false", "1", "none")
        return self.pick(
            lambda: "upper", lambda: "lower", lambda: "title", lambda: "capitalize", lambda: "trim", lambda: f"trim({s()})",
            lambda: "length", lambda: "count", lambda: "first", lambda: "last", lambda: "list", lambda: "string", lambda: "int",
            lambda: f"int({e()})", lambda: f"int(0, {self.pick('2', '8', '16', '0', '36')})", lambda: "float",
            lambda: f"float({e()})", lambda: "abs", lambda: "round", lambda: f"round({n()})", lambda: f"round({n()}, 'floor')",
            lambda: "round(1, 'ceil')", lambda: "tojson", lambda: f"tojson(indent={self.pick('0', '1', '2', '4', 'none', 'true', s())})",
            lambda: f"tojson(sort_keys={flag()})", lambda: f"tojson(ensure_ascii={flag()})",
            lambda: f"tojson(separators=({s()}, {s()}))", lambda: f"default({e()})", lambda: f"default({e()}, {flag()})",
            lambda: f"d({e()})", lambda: f"join({s()})", lambda: f"join({s()}, {attribute()})", lambda: "join",
            lambda: f"join({e()}, attribute={attribute()})", lambda: "sort", lambda: f"sort(reverse={flag()})",
            lambda: f"sort(attribute={attribute()})", lambda: f"sort({flag()}, {flag()}, {attribute()})",
            lambda: "reverse | list", lambda: "reverse", lambda: "unique | list", lambda: f"unique(attribute={attribute()}) | list",
            lambda: f"unique({flag()}) | list", lambda: "min", lambda: "max", lambda: f"min({flag()}, {attribute()})",
            lambda: f"max(attribute={attribute()})", lambda: "sum", lambda: f"sum(attribute={attribute()})", lambda: f"sum(start={e()})",
            lambda: f"map({attribute()}) | list", lambda: f"map(attribute={attribute()}) | list",
            lambda: f"map(attribute={attribute()}, default={e()}) | list", lambda: "map('upper') | list", lambda: "map('length') | list",
            lambda: f"map('replace', {s()}, {s()}) | join({s()})", lambda: "map('string') | list", lambda: f"map('default', {e()}) | list",
            lambda: f"select({test()}) | list", lambda: f"reject({test()}) | list", lambda: "select | list", lambda: "reject | list",
            lambda: f"selectattr({attribute()}) | list", lambda: f"selectattr({attribute()}, {test()}) | list",
            lambda: f"rejectattr({attribute()}, {test()}) | list", lambda: f"rejectattr({attribute()}) | list",
            lambda: "dictsort", lambda: f"dictsort({flag()}, {self.pick(repr('key'), repr('value'))}, {flag()})", lambda: "items | list",
            lambda: f"indent({self.pick('2', '0', s(), '4, true', '2, false, true', 'first=true')})", lambda: f"replace({s()}, {s()})",
            lambda: f"replace({e()}, {e()}, {n()})", lambda: "e", lambda: "escape", lambda: "safe", lambda: "forceescape",
            lambda: "wordcount", lambda: f"attr({self.pick(repr('name'), repr('upper'), s())})", lambda: f"format({self.args(depth)})",
            lambda: f"batch({self.pick('2', '3', '1', '0', '10')}) | list", lambda: f"batch(3, {e()}) | list",
            lambda: f"slice({self.pick('2', '3', '1')}) | list", lambda: f"slice(2, {e()}) | list",
            lambda: f"groupby({attribute()})", lambda: f"groupby({attribute()}, default={e()})", lambda: f"groupby({attribute()}, case_sensitive=true)",
            lambda: f"truncate({self.pick('5', '10', '3', '20', '255')})", lambda: f"truncate(6, {flag()}, {s()}, {n()})",
            lambda: f"center({self.pick('', '9', n())})", lambda: f"map('selectattr', {attribute()}) | list",
            lambda: "map('first') | list", lambda: "map('int') | sum", lambda: f"map('attr', {attribute()}) | list")()

    def test(self, depth):
        e = lambda: self.expr(depth - 1)
        return self.pick(
            lambda: "defined", lambda: "undefined", lambda: "none", lambda: "string", lambda: "number", lambda: "integer",
            lambda: "float", lambda: "boolean", lambda: "true", lambda: "false", lambda: "mapping", lambda: "sequence",
            lambda: "iterable", lambda: "callable", lambda: "odd", lambda: "even", lambda: f"divisibleby {self.number()}",
            lambda: f"divisibleby({e()})", lambda: "upper", lambda: "lower", lambda: f"eq({e()})", lambda: f"equalto {self.atom(0)}",
            lambda: f"ne({e()})", lambda: f"gt({e()})", lambda: f"lt({e()})", lambda: f"ge({e()})", lambda: f"le({e()})",
            lambda: f"in({e()})", lambda: f"sameas({self.pick('none', 'true', 'false', '1')})", lambda: "escaped", lambda: "filter",
            lambda: "test", lambda: f"lessthan({e()})", lambda: f"greaterthan({e()})")()

    def atom(self, depth):
        return self.pick(
            self.string, self.string, self.number, self.number, self.name, self.name, self.name, self.name,
            lambda: self.pick("true", "false", "none"),
            lambda: "[" + self.args(depth, 3) + "]",
            lambda: "(" + self.expr(depth - 1) + ", " + self.args(depth, 2) + ")",
            lambda: "{" + ", ".join(f"{self.pick(self.string(), self.number(), 'none')}: {self.expr(depth - 1)}"
                                    for _ in range(self.rng.randint(0, 3))) + "}",
            lambda: f"range({self.args(1, 3) or 3})", lambda: f"dict({self.pick('', 'table')})", lambda: f"dict(a={self.expr(depth - 1)})")()

    def expr(self, depth):
        if depth <= 0:
            return self.atom(0)
        e = lambda: self.expr(depth - 1)
        return self.pick(
            lambda: self.atom(depth), lambda: self.atom(depth),
            lambda: f"{e()} {self.pick('+', '-', '*', '/', '//', '%', '**', '~')} {e()}",
            lambda: f"({e()} {self.pick('+', '-', '*', '/', '//', '%', '~')} {e()})",
            lambda: f"{e()} {self.pick('==', '!=', '<', '<=', '>', '>=', 'in', 'not in')} {e()}",
            lambda: f"{e()} {self.pick('and', 'or')} {e()}", lambda: f"not {e()}", lambda: f"({self.pick('-', '+')}{e()})",
            lambda: f"{e()} if {e()} else {e()}", lambda: f"({e()} if {e()})",
            lambda: f"({e()}).{self.attribute()}", lambda: f"({e()}).{self.method(depth)}", lambda: f"({e()}).{self.method(depth)}",
            lambda: f"({self.string()} ~ {e()}).{self.method(depth)}", lambda: f"{self.string()}.{self.method(depth)}",
            lambda: f"({e()})[{e()}]", lambda: f"({e()})[{self.slice()}]", lambda: f"{self.name()}[{self.slice()}]",
            lambda: f"{e()} | {self.filter(depth)}", lambda: f"({e()}) | {self.filter(depth)}", lambda: f"{self.name()} | {self.filter(depth)}",
            lambda: f"{self.name()} | {self.filter(depth)}", lambda: f"{e()} is {self.pick('', 'not ')}{self.test(depth)}",
            lambda: f"{self.name()} is {self.pick('', 'not ')}{self.test(depth)}", lambda: f"{self.name()}.{self.attribute()}",
            lambda: f"{self.string()} % {e()}", lambda: f"{self.string()} % ({e()}, {e()})",
            lambda: f"'{self.percent()}' % {self.pick(self.number(), self.number(), e())}",
            lambda: f"'{{{self.spec()}}}'.format({self.pick(self.number(), self.number(), self.string(), e())})")()

    def percent(self):
        r = self.rng
        return ("a%" + self.pick("", "-", "0", "+", " ", "#", "-0", "+0") + self.pick("", "1", "5", "12") + self.pick("", ".0", ".2", ".5")
                + self.pick(*"sdrxXofeEgGci%"))

    def spec(self):
        return (self.pick("", "0", "!r", "!s") + self.pick("", ":" + self.pick("", "<", ">", "^", "*^", "0=", "é>") + self.pick("", "+", " ", "-")
                + self.pick("", "#") + self.pick("", "0") + self.pick("", "3", "8", "12") + self.pick("", "", ",", "_") + self.pick("", "", ".0", ".3")
                + self.pick("", "s", "d", "f", "e", "g", "%", "x", "b", "o", "X", "c", "G")))

    def slice(self):
        part = lambda: self.pick("", "", self.number(), "-1", "1", "2", "none")
        return f"{part()}:{part()}" + self.pick("", f":{self.pick('', '2', '-1', '-2', '1')}")

    def space(self):
        return self.pick("", "", " ", "\n", "  \n", "\n  ", "a", " b ", "\n\n", "\t", "é ", "c\n")

    def tag(self, text):
        return "{%" + self.pick("", "", "-", "+") + f" {text} " + self.pick("", "", "-", "+") + "%}"

    def block(self, depth, in_loop=False):
        body = lambda loop=in_loop: self.body(depth - 1, loop)
        e = lambda: self.expr(2)
        choices = [
            lambda: "{{" + self.pick("", "", "-", "+") + f" {self.expr(depth)} " + self.pick("", "", "-") + "}}",
            lambda: "{{ " + self.expr(depth + 1) + " }}",
            lambda: "{#" + self.pick("", "-", "+") + " c " + self.pick("", "-", "+") + "#}",
            lambda: self.tag("raw") + "{{ x }} " + self.tag("endraw"),
            lambda: self.tag(f"set {self.pick('x', 'y')} = {e()}"),
            lambda: self.tag(f"set x, y = {e()}, {e()}"),
        ]
        if depth > 0:
            choices += [
                lambda: self.tag(f"if {e()}") + body() + self.tag("endif"),
                lambda: self.tag(f"if {e()}") + body() + self.tag(f"elif {e()}") + body() + self.tag("else") + body() + self.tag("endif"),
                lambda: self.tag(f"for x in {e()}") + body(True) + self.tag("endfor"),
                lambda: self.tag(f"for x in {e()} if {e()}") + body(True) + self.tag("else") + body() + self.tag("endfor"),
                lambda: self.tag(f"for x, y in {self.pick('user.items()', 'table', 'mixed | dictsort', e())}") + body(True) + self.tag("endfor"),
                lambda: self.tag("for x in tree recursive") + "{{ x.n }}({{ loop.depth }}{{ loop(x.kids) }})" + body(True) + self.tag("endfor"),
                lambda: self.tag(f"set x{self.pick('', ' | upper', ' | trim')}") + body() + self.tag("endset"),
                lambda: self.tag(f"filter {self.filter(1)}") + body() + self.tag("endfilter"),
                lambda: self.tag(f"with x = {e()}, y = {e()}") + body() + self.tag("endwith"),
                lambda: self.tag(f"macro m(x, y={e()})") + self.body(depth - 1, False) + self.pick("", "{{ caller() }}", "{{ varargs }}", "{{ kwargs }}")
                        + self.tag("endmacro") + f"{{{{ m({self.args(1)}) }}}}",
                lambda: self.tag("macro m(x)") + "<{{ caller(x) }}>" + self.tag("endmacro") + self.tag(f"call(y) m({e()})") + self.body(depth - 1, False)
                        + self.tag("endcall"),
                lambda: self.tag(f"set ns = namespace(x={e()})") + self.tag(f"for y in {e()}") + self.tag(f"set ns.x = {e()}") + body(True)
                        + self.tag("endfor") + "{{ ns.x }}",
                lambda: self.tag("generation") + body(False) + self.tag("endgeneration"),
                lambda: f"{{{{ m(*{self.pick('numbers', '[1]', e())}) }}}}{{{{ dict(**{self.pick('user', e())}) }}}}",
            ]
        if in_loop:
            choices += [lambda: self.tag(self.pick("break", "continue")), lambda: self.tag(f"if {e()}") + self.tag(self.pick("break", "continue")) + self.tag("endif"),
                        lambda: "{{ loop." + self.pick("index", "index0", "first", "last", "length", "revindex", "revindex0", "previtem", "nextitem", "depth",
                                                       "cycle('a', 'b')", "changed(x)") + " }}"]
        return self.rng.choice(choices)()

    def body(self, depth, in_loop=False):
        return "".join(self.space() + self.block(depth, in_loop) for _ in range(self.rng.randint(1, 3))) + self.space()

    def template(self):
        if self.rng.random() < 0.5:
            return "{{ " + self.expr(self.rng.randint(1, 4)) + " }}"
        return self.body(self.rng.randint(0, 3))


def by_jinja2(source):
    try:
        return chat_templates.compiled(source).render(**copy.deepcopy(CONTEXT)), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def main():
    warnings.simplefilter("ignore", SyntaxWarning)
    parser = argparse.ArgumentParser()
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--driver", default=str(root / "build/release/src/chat/jinja_lines"))
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, default=30, help="differences to print")
    options = parser.parse_args()
    grammar = Grammar(random.Random(options.seed))
    driver = subprocess.Popen([options.driver], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    counts = collections.Counter()
    found = []
    for _ in range(options.count):
        source = grammar.template()
        if re.search(r"\*\* ", source) and re.search(r"\*\*.*\*\*", source):
            continue  # towers of powers take Python minutes
        text, error = by_jinja2(source)
        driver.stdin.write(json.dumps({"source": source, "context": CONTEXT}) + "\n")
        driver.stdin.flush()
        answer = json.loads(driver.stdout.readline())
        ours = answer.get("output")
        if text is not None and ADDRESS.search(text):
            counts["address"] += 1
        elif ours == text:
            counts["same error" if text is None else "same text"] += 1
        elif ours is None and BY_DESIGN.search(answer["error"]):
            counts["refused by design"] += 1
        else:
            counts["different"] += 1
            found.append((len(source), source, text if error is None else "raises " + error, ours if ours is not None else "fails: " + answer["error"]))
    for _, source, theirs, ours in sorted(found)[: options.most]:
        print(f"{source!r}\n  jinja2 {theirs!r}\n  ours   {ours!r}")
    print(dict(counts))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
