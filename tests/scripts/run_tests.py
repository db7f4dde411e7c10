#!/usr/bin/env python3
"""Runs what test.sh built: every program ctest knows, and the Python tests in this folder.

  tests/scripts/run_tests.py [WORD]      only entries whose name contains WORD
  tests/scripts/run_tests.py --build build/asan

On a terminal one line shows what runs; the output of what failed comes in full at the end. The last line is
"N passed, N failed, N skipped". Every gtest case counts as one, a program without gtest counts as one, and a program that
dies counts what it had not reported as one failure.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT_S = 900


class Outcome:
    def __init__(self, name):
        self.name, self.passed, self.failed, self.skipped = name, 0, 0, 0
        self.output, self.seconds, self.failures = "", 0.0, []


def read_gtest(report, outcome):
    """Adds up a gtest JSON report."""
    for suite in report["testsuites"]:
        for case in suite["testsuite"]:
            if case.get("failures"):
                outcome.failed += 1
                outcome.failures.append(f"{suite['name']}.{case['name']}")
            elif case["result"] == "COMPLETED":
                outcome.passed += 1
            else:  # SKIPPED, or SUPPRESSED for a DISABLED_ one
                outcome.skipped += 1


def run_program(name, command, working_directory):
    outcome = Outcome(name)
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        started = time.monotonic()
        try:
            done = subprocess.run(command, cwd=working_directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=TIMEOUT_S, errors="replace",
                                  env={**os.environ, "GTEST_OUTPUT": f"json:{report}", "GTEST_COLOR": "no"})
            outcome.output, status = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            text = error.stdout or b""
            outcome.output = text.decode(errors="replace") if isinstance(text, bytes) else text
            outcome.output += f"\n{name}: ended after {TIMEOUT_S} s\n"
            status = 1
        except OSError as error:
            outcome.output, status = f"{name}: {error}\n", 1
        outcome.seconds = time.monotonic() - started
        try:
            read_gtest(json.loads(report.read_text()), outcome)
        except (OSError, ValueError, KeyError):  # no gtest program, or one that died
            outcome.passed = 1 if status == 0 else 0
        if status != 0 and outcome.failed == 0:
            outcome.failed = 1
            outcome.failures.append(f"exit status {status}")
    return outcome


def run_python(path):
    """A unittest file in a process of its own, counted per test."""
    code = ("import json, sys, unittest, importlib; sys.path.insert(0, sys.argv[1]);"
            "suite = unittest.defaultTestLoader.loadTestsFromName(sys.argv[2]);"
            "r = unittest.TextTestRunner(stream=sys.stdout, verbosity=1).run(suite);"
            "bad = [str(t) for t, _ in r.failures + r.errors] + [str(t) for t in r.unexpectedSuccesses];"
            "json.dump([r.testsRun, bad, len(r.skipped)], open(sys.argv[3], 'w'))")
    outcome = Outcome(path.stem)
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        part = run_program(path.stem, [sys.executable, "-c", code, str(path.parent), path.stem, str(report)], ROOT)
        outcome.output, outcome.seconds = part.output, part.seconds
        try:
            total, bad, outcome.skipped = json.loads(report.read_text())
            # Subtests fail one by one but are counted with their test.
            outcome.failures = bad
            outcome.failed = min(len(bad), total) if total else len(bad)
            outcome.passed = max(0, total - outcome.failed - outcome.skipped)
        except (OSError, ValueError):
            outcome.failed, outcome.failures = 1, part.failures or ["no report"]
    return outcome


def entries(build, word):
    """(name, function) of everything to run."""
    shown = subprocess.run(["ctest", "--test-dir", str(build), "--show-only=json-v1"], check=True, capture_output=True)
    for test in json.loads(shown.stdout)["tests"]:
        if word in test["name"] and "command" in test:
            folder = next((p["value"] for p in test.get("properties", []) if p["name"] == "WORKING_DIRECTORY"), str(build))
            yield test["name"], lambda t=test, f=folder: run_program(t["name"], t["command"], f)
        elif word in test["name"]:
            yield test["name"], lambda t=test: run_program(t["name"], ["no-program-was-built"], str(build))
    for path in sorted(pathlib.Path(__file__).parent.glob("*_test.py")):
        if word in path.stem:
            yield path.stem, lambda p=path: run_python(p)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    build = args.build.resolve()
    for name in ("PROA_TEST_DATA", "PROA_SMOLLM2"):
        if not os.environ.get(name):
            os.environ.pop(name, None)  # set but empty is unset
    os.environ.setdefault("PROA_BINARY", str(build / "apps/proa"))

    terminal = sys.stderr.isatty()
    todo = list(entries(build, args.word))
    if not todo:
        sys.exit(f"run_tests: nothing is named {args.word!r}")
    print(f"Running {len(todo)} test programs", file=sys.stderr, flush=True)
    outcomes, running = [], set()

    def show():
        if terminal:
            names = ", ".join(sorted(running))
            print(f"\r\033[K[{len(outcomes)}/{len(todo)}] {names}"[:110], end="", file=sys.stderr, flush=True)

    def run(name, function):
        running.add(name)
        show()
        try:
            return function()
        finally:
            running.discard(name)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, *entry) for entry in todo]):
            outcomes.append(future.result())
            show()
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)

    outcomes.sort(key=lambda outcome: outcome.name)
    for o in outcomes:
        print(f"{o.name:32} {o.passed:5} passed {o.failed:4} failed {o.skipped:4} skipped {o.seconds:8.1f} s")
    for o in outcomes:
        if o.failed:
            print(f"\n--- {o.name} ---\n{o.output.rstrip()}\n--- {o.name}: " + ", ".join(o.failures))
    passed, failed, skipped = (sum(getattr(o, key) for o in outcomes) for key in ("passed", "failed", "skipped"))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
