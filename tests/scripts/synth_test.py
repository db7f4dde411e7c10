"""proa synth, proa pack and --load-format dummy from the outside: the same answers from disk and from memory, whole files
or none, and one line for what cannot be."""
import json
import os
import resource
import signal
import subprocess
import time
import unittest

from proa_case import PROA, ProaCase, proa

NANO = "NVIDIA-Nemotron-3-Nano-30B-A3B"
TINY = ["--layers", 7, "--scale-down", 32]
ASK = ["--raw", "-p", " dabababi gadada", "--max-tokens", 6, "--temperature", 0, "--max-model-len", 64, "--json"]


class Case(ProaCase):
    def answer(self, *arguments):
        return json.loads(self.ok("run", *arguments, *ASK))["token_ids"]


class Synth(Case):
    def test_from_disk_and_from_memory_answers_are_the_same(self):
        config = self.folder / "bf16"
        self.ok("synth", NANO, *TINY, "-o", config, "--max-shard-size", 0.003)
        self.assertTrue((config / "model.safetensors.index.json").exists())
        for precision in ("bf16", "fp8", "nvfp4", "q4_0", "q4_k_m", "mxfp4"):
            with self.subTest(precision):
                path = config
                if precision != "bf16":
                    path = self.folder / (precision if precision in ("fp8", "nvfp4") else f"{precision}.gguf")
                    self.ok("synth", NANO, *TINY, "-q", precision, "-o", path)
                from_disk = self.answer(path)
                self.assertEqual(len(from_disk), 6)
                self.assertEqual(from_disk, self.answer(config, "--load-format", "dummy", "-q", precision))
        self.assertNotEqual(self.answer(config), self.answer(config, "--load-format", "dummy", "--seed", 1))

    def test_what_cannot_be_is_one_line(self):
        out = self.folder / "out"
        rows = [  # arguments, code, part of the message
            (["synth", "Nemotron-5", "-o", out], 1, NANO),
            (["synth", NANO, "-q", "q4_9", "-o", out], 1, "q4_k_m"),
            (["synth", NANO, "-q", "q4_0", "-o", out], 1, "a name that ends in .gguf"),
            (["synth", NANO, "-q", "fp8", "-o", f"{out}.gguf"], 1, "a folder"),
            (["synth", NANO, *TINY, "-o", self.folder / "none" / "out"], 1, "none"),
            (["synth", NANO, *TINY, "-o", self.folder], 1, "a name that is free"),
            (["synth", NANO, "--layers", 53, "-o", out], 1, "--layers: expected 1 to 52"),
            (["synth", NANO, "--scale-down", 0, "-o", out], 1, "--scale-down"),
            (["synth", NANO], 2, "--output"),
            (["run", NANO, "-p", "x"], 1, "--load-format dummy"),
            (["run", NANO, "-q", "q4_0", "-p", "x"], 1, "--load-format dummy"),
            (["run", NANO, "--load-format", "dumy", "-p", "x"], 2, "--load-format"),
            (["run", NANO, "--load-format", "dummy", "-q", "q9", "-p", "x"], 1, "bf16"),
        ]
        for arguments, code, message in rows:
            with self.subTest(arguments):
                done = proa(*arguments)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(message, done.stderr)
                self.assertEqual(done.stderr.count("\n"), 1)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_model_larger_than_memory_names_one_that_fits(self):
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
        if available > 240e9:
            self.skipTest("all of Super fits")
        done = proa("run", "NVIDIA-Nemotron-3-Super-120B-A12B", "--load-format", "dummy", "-p", "x")
        self.assertEqual(done.returncode, 1)
        self.assertIn("weights 241 GB", done.stderr)

    def test_a_full_disk_leaves_nothing(self):
        limit = 1 << 20
        for name in ("out", "out.gguf"):
            done = proa("synth", NANO, *TINY, "-o", self.folder / name,
                        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
            self.assertEqual(done.returncode, 1)
            self.assertIn("File too large", done.stderr)
            self.assertEqual(list(self.folder.iterdir()), [])

    def test_an_interrupt_leaves_nothing(self):
        out = self.folder / "out.gguf"
        process = subprocess.Popen([PROA, "synth", NANO, "--layers", "7", "--scale-down", "2", "-q", "bf16", "-o", str(out)],
                                   stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(self.folder.iterdir()):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertIn("interrupted", errors)
        self.assertEqual(list(self.folder.iterdir()), [])


class Pack(Case):
    def test_a_packed_checkpoint_answers_like_its_source(self):
        for source, more in ((self.folder / "hf", []), (self.folder / "a.gguf", ["-q", "q4_0"])):
            self.ok("synth", NANO, *TINY, *more, "-o", source)
            packed = self.folder / "a.proa"
            self.ok("pack", source, "-o", packed, "--force")
            self.assertEqual(self.answer(packed), self.answer(source))
            self.assertIn("whole", self.ok("pack", packed, "--verify"))
            self.ok("pack", source, "-o", packed, "--verify")
        other = proa("pack", self.folder / "hf", "-o", packed, "--verify")
        self.assertEqual(other.returncode, 1)
        self.assertIn("made of", other.stderr)
        with open(packed, "r+b") as file:
            file.seek(-100_000, os.SEEK_END)
            file.write(b"damage")
        damaged = proa("pack", packed, "--verify")
        self.assertEqual(damaged.returncode, 1)
        self.assertIn("a.gguf", damaged.stderr)
        for arguments, message in (([packed, "-o", self.folder / "b"], "packed already"),
                                   ([self.folder / "hf", "-o", packed], "a name that is free"),
                                   ([self.folder / "hf"], "-o")):
            done = proa("pack", *arguments)
            self.assertEqual(done.returncode, 1)
            self.assertIn(message, done.stderr)


if __name__ == "__main__":
    unittest.main()
