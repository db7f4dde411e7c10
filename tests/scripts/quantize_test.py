"""proa quantize and proa eval from the outside, on the built-in model: files that answer, runs that were interrupted and
go on, a disk that is full, one line for what cannot be."""
import json
import resource
import signal
import subprocess
import time
import unittest

from proa_case import PROA, ROOT, ProaCase, proa

BUOY = ROOT / "models/proa-buoy"
HELD_OUT = BUOY / "held_out.jsonl"


class Case(ProaCase):
    def quantize(self, precision, *flags):
        out = self.folder / (precision if precision in ("fp8", "nvfp4") else f"{precision}.gguf")
        self.ok("quantize", BUOY, out, "--to", precision, *flags)
        return out


class Quantize(Case):
    def test_precisions_answer_like_the_original(self):
        ranges = self.folder / "ranges.json"
        calibration = ["--calibration", BUOY / "calibration.jsonl", "--calibration-tokens", 2000]
        models = [self.quantize("fp8", *calibration, "--save-calibration", ranges)]
        models += [self.quantize("nvfp4", "--calibration", ranges), self.quantize("q4_0")]
        self.assertGreater(json.loads(ranges.read_text())["tokens"], 1000)
        out = self.ok("eval", BUOY, *models, "--questions", HELD_OUT, "--json", "--limit", 13)
        report = json.loads(out)
        rows = report["rows"]
        self.assertEqual([row["questions"] for row in rows], [13] * 4)
        self.assertGreaterEqual(rows[0]["right"], 10)
        for row, kl in zip(rows[1:], (0.02, 0.1, 0.1)):
            self.assertLessEqual(abs(row["right"] - rows[0]["right"]), 3, row["name"])
            self.assertLess(row["answers"]["kl"], kl, row["name"])
            self.assertGreater(row["answers"]["top1_agreement"], 0.97, row["name"])
            self.assertLess(row["weight_bytes"], 0.72 * rows[0]["weight_bytes"])
        command = ["proa", "eval", BUOY, *models, "--questions", HELD_OUT, "--limit", 13, "--json"]
        self.assertEqual(sorted(report["machine"]["command"].split()), sorted(map(str, command)))

    def test_what_cannot_be_is_one_line(self):
        out = self.folder / "out.gguf"
        (self.folder / "there").write_text("x")
        rows = [  # arguments, code, part of the message
            ([BUOY, out, "--to", "q4_k_m"], 1, "one of fp8, nvfp4"),
            ([BUOY, out, "--to", "fp8"], 1, "a folder"),
            ([BUOY, self.folder / "out", "--to", "q4_0"], 1, "a name that ends in .gguf"),
            ([BUOY, self.folder / "out", "--to", "fp8"], 1, "--calibration"),
            ([BUOY, self.folder / "out", "--to", "fp8", "--calibration", self.folder / "none.txt"], 1, "none.txt"),
            ([BUOY, self.folder / "out", "--to", "fp8", "--calibration", BUOY / "config.json"], 1, "inputs"),
            ([BUOY, self.folder / "nowhere/out.gguf", "--to", "q4_0"], 1, "nowhere"),
            ([BUOY, self.folder / "there", "--to", "nvfp4", "--calibration", "none"], 1, "a name that is free"),
            ([self.folder / "none", out, "--to", "q4_0"], 1, "none"),
            ([BUOY, out], 2, "--to"),
        ]
        for arguments, code, message in rows:
            with self.subTest(arguments):
                done = proa("quantize", *arguments)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(message, done.stderr)
                self.assertTrue(done.stderr.startswith("proa: ") and done.stderr.count("\n") == 1, done.stderr)
                self.assertEqual(done.stdout, "")
        self.assertEqual({p.name for p in self.folder.iterdir()}, {"there"}, "nothing is left")

    def test_a_file_that_may_not_grow(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        out = self.folder / "out.gguf"
        done = proa("quantize", BUOY, out, "--to", "q4_0", preexec_fn=limit)
        self.assertEqual(done.returncode, 1)
        self.assertIn("File too large", done.stderr)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_full_disk(self):
        """A file system of 2 MB of its own, which a kernel that lets users mount one gives."""
        disk = self.folder / "disk"
        disk.mkdir()
        mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
                 f'mount -t tmpfs -o size=2m none {disk} && "$@"; code=$?; ls -A {disk}; exit $code', "sh"]
        try:
            if subprocess.run([*mount, "true"], capture_output=True).returncode:
                self.skipTest("no file system can be mounted here")
        except FileNotFoundError:
            self.skipTest("no unshare here")
        ranges = self.folder / "ranges.json"
        ranges.write_text('{"inputs": {}, "default": 8}')
        for name, flags in (("out.gguf", ["q4_0"]), ("out", ["fp8", "--calibration", ranges])):
            with self.subTest(name):
                done = subprocess.run([*mount, PROA, "quantize", BUOY, disk / name, "--to", *flags], capture_output=True, text=True)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertRegex(done.stderr, rf"^proa: .*{name}: expected [0-9.]+ MB of free disk, found 2")
                self.assertEqual(done.stdout, "", "nothing is left")

    def test_interrupted_it_goes_on(self):
        config = self.folder / "big"
        self.ok("synth", "NVIDIA-Nemotron-3-Nano-30B-A3B", "--layers", 7, "--scale-down", 12, "-o", config)
        out, whole = self.folder / "out.gguf", self.folder / "whole.gguf"
        self.ok("quantize", config, whole, "--to", "q4_0")
        interrupted = 0
        for _ in range(40):
            process = subprocess.Popen([PROA, "quantize", config, out, "--to", "q4_0", "--threads", "1"],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            deadline = time.time() + 30
            while not (self.folder / "out.gguf.partial").exists() and process.poll() is None and time.time() < deadline:
                time.sleep(0.002)
            if interrupted < 2:  # asked to stop, then killed
                process.send_signal((signal.SIGINT, signal.SIGKILL)[interrupted])
            _, errors = process.communicate(timeout=60)
            if process.returncode == 0:
                break
            self.assertFalse(out.exists())
            if interrupted == 0:
                self.assertEqual(process.returncode, 130, errors)
                self.assertIn("goes on from here", errors)
            else:
                self.assertEqual(process.returncode, -signal.SIGKILL, errors)
            interrupted += 1
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(out.read_bytes(), whole.read_bytes())
        self.assertEqual([p.name for p in self.folder.iterdir() if "partial" in p.name], [])


class Eval(Case):
    def write(self, *lines):
        path = self.folder / "questions.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    def test_choices_text_caches_and_reports(self):
        window = json.loads(HELD_OUT.read_text().splitlines()[0])["messages"][-1]["content"]
        ask = window.replace("{question}", "What was the wind at 01:00?")
        questions = self.write(
            {"question": ask, "choices": ["Wind at 01:00: 19.4 kn.", "Wind at 01:00: 91.4 kn."], "answer": "A", "kind": "choice"},
            {"question": ask, "answer": "19.4", "match": "contains", "kind": "find"},
            {"question": ask, "answer": "never said", "kind": "wrong"},
        )
        text = self.folder / "text.txt"
        text.write_text(window[:400])
        plot, output, said = (self.folder / name for name in ("plot.svg", "out.json", "said.jsonl"))
        table = self.ok("eval", BUOY, "--questions", questions, "--text", text, "--kv-cache-dtype", "fp8",
                        "--mamba-ssm-cache-dtype", "float32,bfloat16", "--plot", plot, "--output", output,
                        "--predictions", said, "--max-tokens", 40)
        self.assertIn("state bfloat16", table)
        rows = json.loads(output.read_text())["rows"]
        self.assertEqual([(r["kv_cache_dtype"], r["mamba_ssm_cache_dtype"]) for r in rows],
                         [("fp8", "float32"), ("fp8", "bfloat16")])
        for row in rows:
            kinds = {kind: cell["right"] for kind, cell in row["by_kind"].items()}
            self.assertEqual(kinds, {"choice": 1, "find": 1, "wrong": 0}, row["name"])
        self.assertGreater(rows[1]["text"]["kl"], 0)
        self.assertLess(rows[1]["text"]["kl"], 0.1)
        self.assertTrue(plot.read_text().startswith("<svg") and "href" not in plot.read_text())
        lines = [json.loads(line) for line in said.read_text().splitlines()]
        self.assertEqual(lines[0]["answers"][0]["text"], "Wind at 01:00: 19.4 kn.")

    def test_needles(self):
        out = json.loads(self.ok("eval", BUOY, "--needle", "1K", "--needle-style", "buoy", "--needles", 3, "--counts", 2,
                                 "--json"))
        kinds = out["rows"][0]["by_kind"]
        self.assertEqual({k: v["questions"] for k, v in kinds.items()}, {"needle 1K": 3, "count 1K": 2})
        self.assertEqual(kinds["needle 1K"]["right"], 3)

    def test_what_cannot_be_is_one_line(self):
        good = self.write({"question": "a", "answer": "b"})
        bad = self.folder / "bad.jsonl"
        bad.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
        long = self.folder / "long.jsonl"
        long.write_text(json.dumps({"question": "x " * 5000, "answer": "b"}))
        rows = [
            ([BUOY], 1, "something to evaluate on"),
            ([BUOY, "--questions", self.folder / "none"], 1, "none"),
            ([BUOY, "--questions", bad], 1, "bad.jsonl:2: answer"),
            ([BUOY, "--questions", long], 1, "--max-model-len"),
            ([BUOY, "--questions", good, "--match", "fuzzy"], 1, "--match"),
            ([BUOY, "--questions", good, "--kv-cache-dtype", "int3"], 1, "--kv-cache-dtype"),
            ([BUOY, "--questions", good, "--mamba-ssm-cache-dtype", "int3"], 1, "--mamba-ssm-cache-dtype"),
            ([BUOY, "--needle", "7X"], 1, "8K or 1M"),
            ([self.folder / "model", "--questions", good], 1, "model"),
            (["--questions", good], 2, "models"),
        ]
        for arguments, code, message in rows:
            with self.subTest(arguments):
                done = proa("eval", *arguments)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(message, done.stderr)
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)


if __name__ == "__main__":
    unittest.main()
