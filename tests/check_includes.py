#!/usr/bin/env python3
"""Checks every #include "folder/..." in src/ and apps/ against the table in ARCHITECTURE.md under "## Floors".

  tests/check_includes.py            the repository this file is in; prints FILE:LINE of what the table does not allow
  tests/check_includes.py --root DIR another one

Rules: a folder includes itself and what the last column of its row names; test files (`*_test.cpp`, `*_test.h`,
`*_cases.h`, `testing.h`) include any floor and are included by test files alone; apps/ includes everything; only apps/, tests and
backends/ itself include backends/. A folder of src/ without a row, a row without a folder, a row that names an unknown
folder and rows that together allow a cycle are errors too. Headers of libraries are not looked at.
"""
import argparse
import pathlib
import re
import sys

SOURCES = (".h", ".cpp", ".cu", ".cuh", ".inc")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')
NOTHING = "nothing of ours"


class TableError(Exception):
    pass


def read_table(text):
    """{folder: set of folders it may include}, from the table under "## Floors"."""
    section = re.search(r"^## Floors$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not section:
        raise TableError('ARCHITECTURE.md has no heading "## Floors"')
    table = {}
    for line in section.group(1).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        folder = re.match(r"`([a-z_]+)/?`", cells[0])
        if not line.startswith("|") or not folder:
            continue
        names = set() if cells[-1] == NOTHING else {name.strip(" `/") for name in cells[-1].split(",")}
        table[folder.group(1)] = names
    if not table:
        raise TableError('ARCHITECTURE.md has no table under "## Floors"')
    for folder, names in table.items():
        for name in sorted(names - set(table)):
            raise TableError(f"ARCHITECTURE.md: the row of {folder}/ names {name!r}, which has no row")
    check_order(table)
    return table


def check_order(table):
    """Includes must go down: no folder reaches itself."""
    for start in table:
        reached, new = set(), set(table[start])
        while new:
            reached |= new
            new = {name for folder in new for name in table[folder]} - reached
        if start in reached:
            raise TableError(f"ARCHITECTURE.md: the rows let {start}/ include itself by way of another folder")


def folder_of(path, root):
    parts = path.relative_to(root).parts
    return parts[1] if parts[0] == "src" else parts[0]


def is_test(path):
    stem = pathlib.PurePath(path).stem
    return stem.endswith(("_test", "_cases")) or stem == "testing"


def check_file(path, root, table):
    """Errors of one file, as FILE:LINE: sentence."""
    folder = folder_of(path, root)
    if is_test(path):
        return []
    errors = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = INCLUDE.match(line)
        if not match:
            continue
        where, target = f"{path.relative_to(root)}:{number}", match.group(1)
        first = target.split("/")[0]
        if "/" not in target or first.startswith("."):
            errors.append(f'{where}: "{target}" must be written from src/, as "{folder}/..."')
        elif first not in table and first != "apps":
            continue
        elif is_test(target):
            errors.append(f'{where}: "{target}" is for tests')
        elif folder == "apps":
            continue
        elif first == "backends" and folder != "backends":
            errors.append(f'{where}: "{target}": only apps/ and tests know a concrete backend')
        elif first != folder and first not in table[folder]:
            allowed = ", ".join(sorted(table[folder])) or NOTHING
            errors.append(f'{where}: {folder}/ may not include "{target}" (allowed: {allowed})')
    return errors


def check(root):
    """Every error of the tree at root, and how many files were read."""
    table = read_table((root / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    folders = {path.name for path in (root / "src").iterdir() if path.is_dir()}
    errors = [f"src/{name}/: has no row in ARCHITECTURE.md" for name in sorted(folders - set(table))]
    errors += [f"ARCHITECTURE.md: src/{name}/ does not exist" for name in sorted(set(table) - folders)]
    files = [path for top in ("src", "apps") for path in sorted((root / top).rglob("*"))
             if path.suffix in SOURCES and (top == "apps" or folder_of(path, root) in table)]
    for path in files:
        errors += check_file(path, root, table)
    return errors, len(files)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1])
    try:
        errors, count = check(parser.parse_args().root.resolve())
    except (TableError, OSError) as error:
        sys.exit(f"check_includes: {error}")
    for error in errors:
        print(error)
    if not errors:
        print(f"includes of {count} files agree with ARCHITECTURE.md")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
