"""The include check, on the repository and on small trees that break one rule each."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import check_includes  # noqa: E402

TABLE = """# Architecture

## Floors

| folder | what belongs there | may include |
|---|---|---|
| `core/` | nouns | nothing of ours |
| `ops/` | operations | core |
| `backends/` | hardware | core, ops |
| `models/` | architectures | core, ops |

## After

| `later/` | not part of the table | core |
"""

# The base case: everything is allowed.
FILES = {
    "src/core/core.h": "#pragma once\n#include <vector>\n",
    "src/ops/ops.h": '#include "core/core.h"\n',
    "src/ops/ops.cpp": '#include "ops/ops.h"\n#include "library/library.h"\n',
    "src/ops/testing.h": '#include "backends/backends.h"\n',
    "src/ops/ops_test.cpp": '#include "ops/testing.h"\n#include "backends/cpu/cpu.h"\n#include "models/model.h"\n',
    "src/backends/cpu/cpu.h": '#include "ops/ops.h"\n#include "backends/backends.h"\n',
    "src/models/model.h": '#include "core/core.h"\n#include "ops/ops.h"\n',
    "apps/proa.cpp": '#include "backends/cpu/cpu.h"\n#include "apps/commands.h"\n#include "models/model.h"\n',
}

# Name, changed files, what the only error must say.
BROKEN = [
    ("upwards", {"src/core/core.h": '\n#include "ops/ops.h"\n'}, 'src/core/core.h:2: core/ may not include "ops/ops.h"'),
    ("sideways", {"src/ops/ops.cpp": '#include "models/model.h"\n'}, "src/ops/ops.cpp:1: ops/ may not include"),
    ("spaces", {"src/ops/ops.cpp": '  #  include "models/model.h"\n'}, "src/ops/ops.cpp:1"),
    ("backend", {"src/models/model.h": '#include "backends/cpu/cpu.h"\n'}, "only apps/ and tests know a concrete backend"),
    ("apps", {"src/models/model.h": '#include "apps/commands.h"\n'}, "models/ may not include"),
    ("relative", {"src/ops/ops.cpp": '#include "../core/core.h"\n'}, "must be written from src/"),
    ("bare", {"src/ops/ops.cpp": '#include "ops.h"\n'}, "must be written from src/"),
    ("test header", {"src/ops/ops.cpp": '#include "ops/testing.h"\n'}, "is for tests"),
    ("test header in apps", {"apps/proa.cpp": '#include "core/damage_test.h"\n'}, "is for tests"),
    ("deep file", {"src/ops/cpu/deep.h": '#include "models/model.h"\n'}, "src/ops/cpu/deep.h:1"),
    ("folder without a row", {"src/extra/extra.h": ""}, "src/extra/: has no row"),
]

BAD_TABLES = [
    ("no heading", TABLE.replace("## Floors", "## Walls"), 'no heading "## Floors"'),
    ("no rows", "## Floors\n\ntext\n", "no table"),
    ("unknown name", TABLE.replace("nouns | nothing of ours", "nouns | cores"), "names 'cores'"),
    ("cycle", TABLE.replace("nouns | nothing of ours", "nouns | models"), "include itself"),
]


def errors_of(files, table=TABLE):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder).resolve()
        for name, text in {**files, "ARCHITECTURE.md": table}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return check_includes.check(root)[0]


class CheckIncludes(unittest.TestCase):
    def test_repository(self):
        root = pathlib.Path(__file__).resolve().parents[2]
        errors, count = check_includes.check(root)
        self.assertEqual(errors, [])
        self.assertGreater(count, 0)

    def test_base_case_is_clean(self):
        self.assertEqual(errors_of(FILES), [])

    def test_broken_rules(self):
        for name, change, expected in BROKEN:
            with self.subTest(name):
                errors = errors_of({**FILES, **change})
                self.assertEqual(len(errors), 1, errors)
                self.assertIn(expected, errors[0])

    def test_row_without_a_folder(self):
        files = {name: text for name, text in FILES.items() if not name.startswith("src/models/")}
        self.assertEqual(errors_of(files), ["ARCHITECTURE.md: src/models/ does not exist"])

    def test_bad_tables(self):
        for name, table, expected in BAD_TABLES:
            with self.subTest(name), self.assertRaisesRegex(check_includes.TableError, expected):
                errors_of(FILES, table)


if __name__ == "__main__":
    unittest.main()
