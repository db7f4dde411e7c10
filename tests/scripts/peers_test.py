"""What tools/peers/llama_cpp.py can say without llama.cpp."""
import importlib.util
import mmap
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools/peers/llama_cpp.py"


def load():
    spec = importlib.util.spec_from_file_location("peers_llama_cpp", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Peers(unittest.TestCase):
    def test_prompts_are_those_of_the_bench(self):
        # random_prompt(0, 0, 8, vocab_size) of src/bench/measure.cpp
        self.assertEqual(load().random_ids(8, 49152), [26100, 17743, 16876, 29851, 41706, 13025, 27452, 19139])
        self.assertEqual(load().random_ids(8, 131072), [91636, 83279, 33260, 29851, 41706, 78561, 43836, 101059])

    def test_who_maps_a_file_is_found(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 4096)
            file.flush()
            path = os.path.realpath(file.name)
            self.assertEqual(load().holders(path), [])
            with mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ):
                self.assertEqual(load().holders(path), [os.getpid()])

    def test_bad_arguments_are_refused(self):
        rows = [(["/nonexistent.gguf"], "no such file"), ([str(SCRIPT), "--rounds", "0"], "--rounds must be at least 1"),
                ([str(SCRIPT), "--decode", "-3"], "--decode must be at least 1"), ([str(SCRIPT), "--ours", "x"], "invalid choice")]
        for arguments, message in rows:
            with self.subTest(message):
                done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
                self.assertEqual(done.returncode, 2)
                self.assertIn(message, done.stderr)


if __name__ == "__main__":
    unittest.main()
