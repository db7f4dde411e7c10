"""Clients that others wrote, and the page in a browser, against `proa serve`: tools/serve_clients.py and tools/serve_page.py as tests.

What is installed in this Python and on the PATH runs, the rest is skipped and says what is missing. PROA_BINARY names the
program, PROA_SMOLLM2 the SmolLM2 GGUF; the Nemotron-H is models/proa-buoy.
"""
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROA = os.environ.get("PROA_BINARY", str(ROOT / "build/release/apps/proa"))
sys.path.insert(0, str(ROOT / "tools"))
import serve_clients  # noqa: E402


class Clients:
    """The clients of one server, which runs while there is one that can."""

    def setUp(self):
        if why := serve_clients.missing(self.client()):
            self.skipTest(why)
        if not self.model:
            self.skipTest("PROA_SMOLLM2 is not set")

    def client(self):
        return self._testMethodName.removeprefix("test_")

    @classmethod
    def base(cls):
        if not hasattr(cls, "address"):
            context = serve_clients.served(PROA, cls.model, *cls.flags)
            cls.address = context.__enter__()
            cls.addClassCleanup(context.__exit__, None, None, None)
        return cls.address


def run_client(self):
    print(self.client(), serve_clients.check(self.client(), self.base()), flush=True)


for number, (served_as, model, flags, names) in enumerate(serve_clients.servers(os.environ.get("PROA_SMOLLM2"), serve_clients.HYBRID)):
    title = f"{served_as.replace('-', '')}_{number}"
    tests = {f"test_{name}": run_client for name in names}
    globals()[title] = type(title, (Clients, unittest.TestCase), {"model": model, "flags": flags, "__module__": __name__, **tests})


class Page(unittest.TestCase):
    @unittest.skipUnless(importlib.util.find_spec("playwright"), "playwright is not installed")
    @unittest.skipUnless(shutil.which("chromium"), "no chromium on the PATH")
    def test_in_a_browser(self):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, ROOT / "tools/serve_page.py", PROA, serve_clients.HYBRID, "--output",
                                   folder + "/page.png"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertEqual(sorted(os.listdir(folder)), ["page-phone.png", "page.png"])


if __name__ == "__main__":
    unittest.main()
