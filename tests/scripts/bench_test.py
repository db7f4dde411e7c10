"""proa bench from the outside: reports, comparison, what it refuses, and Ctrl-C. Sizes are tiny and no time is judged."""
import csv
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROA = os.environ.get("PROA_BINARY", str(ROOT / "build/release/apps/proa"))
MODEL = ROOT / "models/proa-buoy"
QUICK = ("--input-len", "16", "--output-len", "8", "--num-iters", "2", "--probe-seconds", "0")


def bench(*arguments):
    return subprocess.run([PROA, "bench", *map(str, arguments)], capture_output=True, text=True, timeout=120)


class Bench(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def report(self, *flags):
        run = bench(MODEL, *QUICK, "--json", *flags)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        return json.loads(run.stdout)

    def test_every_part_is_measured(self):
        report = self.report("--batch-size", "1,3", "--depth", "0,32")
        rows = report["rows"]
        found = [(row["what"], row["depth"], row["batch"]) for row in rows if row["what"] in ("prefill", "decode")]
        self.assertEqual(found, [("prefill", 0, 1), ("decode", 0, 1), ("decode", 32, 1), ("decode", 0, 3),
                                 ("decode", 32, 3)])
        self.assertTrue({"load", "first_token", "memory"} <= {row["what"] for row in rows})
        self.assertTrue(report["answer"]["passed"])
        self.assertEqual(report["failures"], [])
        plan = report["memory_plan"]
        self.assertEqual(plan["num_slots"], 3)  # the largest point
        self.assertGreater(plan["scratch_bytes"], 0)
        self.assertGreaterEqual(plan["num_blocks"] * plan["block_size"], 3 * (32 + 8 + 8))
        self.assertGreater(plan["device_total_bytes"], plan["device_free_bytes"])
        for field in ("device", "command", "date", "threads"):
            self.assertTrue(report[field], field)
        for row in rows:
            if row["what"] == "decode":
                self.assertEqual(len(row["seconds"]), 2)
                self.assertGreaterEqual(row["distinct_experts"], 4)

    def test_files(self):
        table = self.folder / "rows.csv"
        for _ in range(2):
            run = bench(MODEL, *QUICK, "--batch-size", "1,2", "--csv", table, "--json-file", self.folder / "a.json",
                        "--plot", self.folder / "plot")
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            self.assertIn("proa-buoy", run.stdout)
            self.assertIn("\nmemory: weights ", run.stdout)
        with table.open() as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows) % 2, 0)
        for row in rows:
            self.assertTrue(row["command"] and row["device"], row)
        self.assertTrue((self.folder / "plot-decode-batch.svg").read_text().lstrip().startswith("<svg"))
        compared = bench("compare", self.folder / "a.json", self.folder / "a.json")
        self.assertEqual(compared.returncode, 0, compared.stderr)
        self.assertIn("decode proa-buoy", compared.stdout)

    def test_refusals(self):
        for flags, code, says in (
            ((), 2, "model"),
            ((MODEL, "--input-len", "0"), 2, "--input-len"),
            ((MODEL, "--output-len", "0"), 2, "--output-len"),
            ((MODEL, "--num-iters", "-1"), 2, "--num-iters"),
            ((MODEL, "--batch-size", "x"), 2, "--batch-size"),
            ((MODEL, "--depth", "-1"), 2, "--depth"),
            ((self.folder / "none",), 1, "none"),
            ((MODEL, *QUICK, "--batch-size", "4096", "--depth", "16000000"), 1, "--batch-size"),
            (("NVIDIA-Nemotron-3-Super-120B-A12B", "--load-format", "dummy", "-q", "bf16"), 1, "weights 241 GB"),
            (("NVIDIA-Nemotron-3-Nano-30B-A3B", "--load-format", "dummy", "-q", "q9_9"), 1, "q4_0"),
            (("No-Such-Model", "--load-format", "dummy"), 1, "NVIDIA-Nemotron-3-Nano-30B-A3B"),
            (("compare", self.folder / "a", self.folder / "b"), 1, "a"),
        ):
            with self.subTest(flags=flags):
                run = bench(*flags)
                self.assertEqual(run.returncode, code, run.stdout + run.stderr)
                self.assertIn(says, run.stderr)
                self.assertEqual(run.stdout, "")

    def test_interrupted_prints_what_was_measured(self):
        target = self.folder / "report.json"
        process = subprocess.Popen(
            [PROA, "bench", str(MODEL), "--input-len", "16", "--output-len", "200000", "--num-iters", "9",
             "--json-file", str(target), "--max-model-len", "300000"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(4)  # past the first rows on any machine; what is asserted holds at any moment
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, out + err)
        self.assertNotIn("decode  ", out)
        self.assertEqual([file.name for file in self.folder.iterdir()], ["report.json"])
        self.assertTrue(json.loads(target.read_text())["interrupted"])

    def test_help(self):
        for flags in (("--help",), ("compare", "--help")):
            run = bench(*flags)
            self.assertEqual(run.returncode, 0)
            self.assertIn("Example", run.stdout)


if __name__ == "__main__":
    unittest.main()
