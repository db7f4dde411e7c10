"""What tests of the program from outside share: a folder of their own, and the program asked to succeed."""
import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROA = os.environ.get("PROA_BINARY", str(ROOT / "build/release/apps/proa"))


def proa(*arguments, **options):
    return subprocess.run([PROA, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


class ProaCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def ok(self, *arguments):
        done = proa(*arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""), arguments)
        return done.stdout
