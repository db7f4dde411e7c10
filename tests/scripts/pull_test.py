"""proa pull against a hub that misbehaves (hub_server.py), and what is in the cache afterwards.

PROA_BINARY names the program (default build/release/apps/proa). No network but 127.0.0.1.
"""
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

import hub_server as hs

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROA = os.environ.get("PROA_BINARY", str(ROOT / "build/release/apps/proa"))
TIMEOUT_S = 60
BIG = bytes(range(256)) * 1024 * 12  # 3 MB
FILES = {"config.json": b"{}", "model.safetensors": BIG, "deep/er/notes.txt": b"notes", "empty.txt": b""}
LFS = ["model.safetensors"]


def setUpModule():
    if not os.access(PROA, os.X_OK):
        raise AssertionError(f"{PROA} is not there: build it, or set PROA_BINARY")
    with tempfile.TemporaryDirectory() as folder:
        said = subprocess.run([PROA, "pull", "a/b", "--endpoint", "http://127.0.0.1:9", "--retries", "0",
                               "--download-dir", folder], capture_output=True, text=True, timeout=TIMEOUT_S).stderr
    if "built without libcurl" in said:
        raise unittest.SkipTest("the program was built without libcurl")


class PullTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.home = pathlib.Path(scratch.name)
        self.cache = self.home / "hub"
        self.repository = self.cache / "models--org--name"
        self.snapshot = self.repository / "snapshots" / hs.COMMIT

    def hub(self, files=None, lfs=LFS, **options):
        hub = hs.Hub(FILES if files is None else files, lfs, **options)
        self.addCleanup(hub.__exit__)
        return hub

    def environment(self, hub, **extra):
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith(("HF_", "HUGGING"))}
        return {**kept, "HF_HOME": str(self.home), "HF_ENDPOINT": hub.url, "NO_COLOR": "1", **extra}

    def command(self, *arguments):
        timeout = [] if "--timeout" in arguments else ["--timeout", "1"]
        return [PROA, "pull", *map(str, arguments or [hs.ID]), "--retry-wait", "0.01", *timeout]

    def proa(self, hub, *arguments, **environment):
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, errors="replace",
                              timeout=TIMEOUT_S, env=self.environment(hub, **environment))

    def pulled(self, hub, *arguments, **environment):
        done = self.proa(hub, *arguments, **environment)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.check_cache(hub)
        return done.stdout

    def refused(self, hub, *arguments, says=(), code=1, **environment):
        done = self.proa(hub, *arguments, **environment)
        self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("proa: "), done.stderr)
        for word in [says] if isinstance(says, str) else says:
            self.assertIn(word, done.stderr)
        self.check_cache(hub)
        return done.stderr

    def check_cache(self, hub):
        """Nothing has its final name but what is right, and nothing lies outside of the layout."""
        names = {hub.etag(name): content for name, content in hub.files.items()}
        for blob in self.repository.glob("blobs/*"):
            if blob.suffix != ".incomplete":
                self.assertEqual(blob.read_bytes(), names[blob.name], blob)
        for path in self.repository.glob("snapshots/**/*"):
            if path.is_symlink():
                self.assertEqual(path.read_bytes(), hub.files[str(path.relative_to(self.snapshot))])
                self.assertTrue(os.readlink(path).startswith("../../"), os.readlink(path))
            else:
                self.assertTrue(path.is_dir(), path)
        self.assertLessEqual({p.name for p in self.home.iterdir()}, {"hub", "token"})
        if self.cache.exists():
            self.assertLessEqual({p.name for p in self.cache.iterdir()}, {".locks", "models--org--name"})

    def partial(self, hub, name):
        return self.repository / "blobs" / (hub.etag(name) + ".incomplete")


class Layout(PullTest):
    def test_as_huggingface_hub_writes_it(self):
        for blobs in (True, False):  # the listing tells sizes and hashes, or HEAD requests do
            with self.subTest(blobs=blobs):
                hub = self.hub(blobs=blobs)
                self.assertEqual(self.pulled(hub), f"{self.snapshot}\n")
                found = {str(p.relative_to(self.snapshot)): p.read_bytes() for p in self.snapshot.rglob("*") if p.is_file()}
                self.assertEqual(found, FILES)
                self.assertEqual((self.repository / "refs/main").read_text(), hs.COMMIT)
                self.assertEqual(os.readlink(self.snapshot / "deep/er/notes.txt"),
                                 "../../../../blobs/" + hub.etag("deep/er/notes.txt"))
                self.assertEqual({p.name for p in self.repository.glob("blobs/*")}, {hub.etag(name) for name in FILES})

    def test_a_second_pull_fetches_nothing(self):
        hub = self.hub()
        self.pulled(hub)
        (self.snapshot / "config.json").unlink()  # comes back from its blob
        before = len(hub.requests)
        self.pulled(hub)
        self.assertEqual([r[1].split("?")[0] for r in hub.requests[before:]], ["/api/models/org/name/revision/main"])
        self.assertTrue((self.snapshot / "config.json").exists())

    def test_a_damaged_blob_is_fetched_again(self):
        hub = self.hub()
        self.pulled(hub)
        (self.repository / "blobs" / hub.etag("model.safetensors")).write_bytes(BIG[:-1])
        self.pulled(hub)

    def test_revisions(self):
        hub = self.hub()
        hub.revisions |= {"v1.0": hs.COMMIT, "refs/pr/1": hs.COMMIT}
        for arguments, ref in ((["org/name@v1.0"], "v1.0"), (["org/name", "--revision", "refs/pr/1"], "refs/pr/1"),
                               ([f"org/name@{hs.COMMIT}"], None)):
            self.pulled(hub, *arguments)
            if ref:
                self.assertEqual((self.repository / "refs" / ref).read_text(), hs.COMMIT)
        self.assertFalse((self.repository / "refs" / hs.COMMIT).exists())
        self.refused(hub, "org/name@v2", says=["404", "no such revision"])

    def test_run_finds_it(self):
        hub = self.hub({"config.json": b'{"model_type": "fancy"}', "model.safetensors": b"{}"})
        self.pulled(hub)
        done = subprocess.run([PROA, "run", hs.ID, "-p", "x"], capture_output=True, text=True, timeout=TIMEOUT_S,
                              env=self.environment(hub))
        self.assertIn(str(self.snapshot), done.stderr)
        done = subprocess.run([PROA, "run", "org/other", "-p", "x"], capture_output=True, text=True, timeout=TIMEOUT_S,
                              env=self.environment(hub))
        self.assertIn("proa pull org/other", done.stderr)

    def test_dry_run_and_json(self):
        hub = self.hub()
        self.assertIn("3.15 MB  missing   model.safetensors", self.pulled(hub, hs.ID, "--dry-run"))
        self.assertFalse(self.cache.exists())
        plan = json.loads(self.pulled(hub, hs.ID, "--json", "--dry-run"))
        self.assertEqual((plan["commit"], plan["bytes"], plan["missing_bytes"]), (hs.COMMIT, len(BIG) + 7, len(BIG) + 7))
        done = json.loads(self.pulled(hub, hs.ID, "--json"))
        self.assertEqual((done["path"], [f["path"] for f in done["files"]]), (str(self.snapshot), sorted(FILES)))

    def test_offline(self):
        hub = self.hub()
        self.refused(hub, hs.ID, "--offline", says=["org/name", "--offline"])
        self.refused(hub, hs.ID, says=["HF_HUB_OFFLINE"], HF_HUB_OFFLINE="1")
        self.assertEqual(hub.requests, [])
        self.pulled(hub)
        before = len(hub.requests)
        self.assertEqual(self.pulled(hub, hs.ID, HF_HUB_OFFLINE="1"), f"{self.snapshot}\n")
        self.assertEqual(len(hub.requests), before)

    def test_two_at_once(self):
        hub = self.hub()
        hub.fail("store:model.safetensors", hs.slowly(0.5))
        running = [subprocess.Popen(self.command(), env=self.environment(hub), stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True) for _ in range(3)]
        for process in running:
            self.assertEqual(process.communicate(timeout=TIMEOUT_S), (f"{self.snapshot}\n", ""))
            self.assertEqual(process.returncode, 0)
        self.assertEqual(len(hub.gets("model.safetensors")), 1)
        self.check_cache(hub)

    def test_not_enough_room(self):
        hub = self.hub()
        listing = hub.true_listing()
        listing["siblings"][-1] |= {"size": 1 << 47, "lfs": {"sha256": "0" * 64, "size": 1 << 47}}
        hub.listing = listing
        self.refused(hub, says="bytes of room")
        self.assertEqual(hub.gets("model.safetensors"), [])

    def test_a_cache_that_cannot_be_written(self):
        hub = self.hub()
        self.cache.write_text("not a folder")
        self.assertIn("hub", self.proa(hub).stderr)
        self.assertEqual(self.cache.read_text(), "not a folder")
        self.cache.unlink()

    def test_links_in_the_cache_are_not_followed(self):
        hub = self.hub()
        outside = self.home / "hub" / "models--org--name" / "outside"
        outside.mkdir(parents=True)
        self.snapshot.mkdir(parents=True)
        (self.snapshot / "deep").symlink_to(outside)
        victim = outside / "victim"
        victim.write_text("precious")
        (self.repository / "blobs").mkdir()
        self.partial(hub, "model.safetensors").symlink_to(victim)
        done = self.proa(hub)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(victim.read_text(), "precious")
        self.assertEqual([p.name for p in outside.iterdir()], ["victim"])


class Choice(PullTest):
    def chosen(self, files, *arguments, lfs=()):
        hub = self.hub({name: name.encode() for name in files}, lfs)
        plan = json.loads(self.pulled(hub, *(arguments or [hs.ID]), "--dry-run", "--json"))
        return [f["path"] for f in plan["files"]]

    def test_weights_once(self):
        text = ["README.md", "config.json", "tokenizer.json"]
        rows = [
            (["model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "original/consolidated.00.pth",
              "consolidated.safetensors"], ["model.safetensors"]),
            (["pytorch_model.bin", "onnx/decoder.json"], ["pytorch_model.bin"]),
            (["m.Q4_0.gguf", "mmproj-F16.gguf"], ["m.Q4_0.gguf"]),
            (["model.safetensors", "m.Q4_0.gguf"], ["model.safetensors"]),
        ]
        for weights, expected in rows:
            with self.subTest(weights):
                self.assertEqual(self.chosen(weights + text), sorted(text + expected))

    def test_gguf(self):
        files = ["README.md", "m.Q4_0.gguf", "m.Q8_0.gguf", "BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]
        self.assertEqual(self.chosen(files, "org/name:Q4_0"), ["README.md", "m.Q4_0.gguf"])
        self.assertEqual(self.chosen(files, "org/name/m.Q8_0.gguf"), ["README.md", "m.Q8_0.gguf"])
        self.assertEqual(self.chosen(files, "org/name:bf16"), sorted(files[3:] + ["README.md"]))
        hub = self.hub({name: b"GGUF" for name in files})
        self.refused(hub, says=["BF16/m-BF16-00001-of-00002.gguf, m.Q4_0.gguf, m.Q8_0.gguf"])
        self.refused(hub, "org/name:Q2_K", says=["m.Q4_0.gguf"])
        hub = self.hub({"m-00001-of-00003.gguf": b"GGUF"})
        self.refused(hub, says=["m-00002-of-00003.gguf, m-00003-of-00003.gguf"])

    def test_pulled_gguf_is_the_path(self):
        hub = self.hub({"m.Q4_0.gguf": b"GGUF", "m.Q8_0.gguf": b"GGUF8"}, ["m.Q4_0.gguf", "m.Q8_0.gguf"])
        self.assertEqual(self.pulled(hub, "org/name:Q4_0"), f"{self.snapshot}/m.Q4_0.gguf\n")

    def test_globs(self):
        files = list(FILES) + ["pytorch_model.bin"]
        self.assertEqual(self.chosen(files, hs.ID, "--include", "*.bin"), ["pytorch_model.bin"])
        self.assertEqual(self.chosen(files, hs.ID, "--include", "*.txt", "--exclude", "deep/*"), ["empty.txt"])
        self.assertEqual(self.chosen(files, hs.ID, "--include", "deep/"), ["deep/er/notes.txt"])
        self.refused(self.hub(), hs.ID, "--include", "*.nothing", says="patterns")


class Misbehaviour(PullTest):
    def test_what_another_try_mends(self):
        rows = [
            ("it hangs up in the middle", [hs.drop_after(1_000_000)], 2),
            ("again and again, but further each time", [hs.drop_after(400_000)] * 4, 5),
            ("it hangs up before the first byte", [hs.drop_after(0)] * 2, 3),
            ("it ignores the range", [hs.drop_after(1_000_000), hs.ignore_range], 2),
            ("it answers another range", [hs.drop_after(1_000_000), hs.wrong_range], 3),
            ("it ends too early and says so", [hs.shorter], 2),
            ("it tells no length", [hs.without_length], 1),
            ("it is busy", [hs.status(500), hs.status(502), hs.status(503, Retry_After="0"), hs.status(429)], 5),
            ("it has no such range", [hs.drop_after(5), hs.status(416)], 3),
            ("it trickles", [hs.trickle], 2),
            ("it hangs up after wrong bytes", [hs.wrong_then_drop], 3),
            ("it is silent", [hs.silent], 2),
        ]
        for what, faults, gets in rows:
            with self.subTest(what):
                self.setUp()
                hub = self.hub()
                hub.fail("store:model.safetensors", *faults)
                self.pulled(hub)
                self.assertEqual(len(hub.gets("model.safetensors")), gets)

    def test_it_resumes_where_it_was(self):
        hub = self.hub()
        hub.fail("store:model.safetensors", hs.drop_after(1_000_000), *[hs.drop_after(0)] * 2)
        self.refused(hub, hs.ID, "--retries", "2", says=["model.safetensors", "2 more tries"])
        self.assertEqual(self.partial(hub, "model.safetensors").stat().st_size, 1_000_000)
        self.assertFalse((self.repository / "refs/main").exists())
        plan = json.loads(self.pulled(hub, hs.ID, "--dry-run", "--json"))
        self.assertEqual([f["partial"] for f in plan["files"] if f["path"] == "model.safetensors"], [1_000_000])
        self.pulled(hub)
        self.assertEqual(hub.gets("model.safetensors")[-1][2]["Range"], "bytes=1000000-")

    def test_what_is_left_of_another_file(self):
        for left in (b"x" * 1000, BIG + b"more", bytes(len(BIG)), BIG):
            with self.subTest(size=len(left)):
                self.setUp()
                hub = self.hub()
                (self.repository / "blobs").mkdir(parents=True)
                self.partial(hub, "model.safetensors").write_bytes(left)
                self.pulled(hub)
                self.assertEqual(len(hub.gets("model.safetensors")), {BIG: 0, b"x" * 1000: 2}.get(left, 1))

    def test_what_it_does_not_mend(self):
        rows = [
            ("wrong content of a large file", "store:model.safetensors", hs.wrong_content, ["hash", "model.safetensors", "deleted"]),
            ("wrong content of a small file", "config.json", hs.wrong_content, ["hash", "config.json", "deleted"]),
            ("more than was said", "store:model.safetensors", hs.longer, [f"{len(BIG)} bytes", "more"]),
            ("401", "config.json", hs.status(401), ["401", "HF_TOKEN"]),
            ("403", "config.json", hs.status(403), ["403"]),
            ("404", "store:model.safetensors", hs.status(404), ["404", "model.safetensors"]),
            ("404 of the listing", "listing", hs.status(404, X_Error_Code="RepoNotFound"), ["404", "no such name"]),
            ("501", "listing", hs.status(501), ["501"]),
            ("a redirect to a file", "config.json", hs.redirect("file:///etc/passwd?Signature=s"), ["redirect", "file:///etc/passwd"]),
            ("a redirect with a name", "config.json", hs.redirect("http://a:b@127.0.0.1/"), ["redirect"]),
            ("a redirect to nonsense", "config.json", hs.redirect("http://[::x/"), ["redirect"]),
            ("headers without end", "config.json", hs.endless_headers, ["headers"]),
            ("control characters in what it says", "listing", hs.status(403, X_Error_Message="\x1b[2J" + "x" * 500), ["403"]),
        ]
        for what, path, fault, says in rows:
            with self.subTest(what):
                self.setUp()
                hub = self.hub()
                hub.fail(path, fault)
                said = self.refused(hub, says=says)
                self.assertNotIn("\x1b", said)
                self.assertNotIn("Signature", said)
                self.assertLess(len(said), 1000)
                self.assertFalse((self.repository / "refs/main").exists())
                if "deleted" in says:
                    self.assertFalse(self.partial(hub, path.removeprefix("store:")).exists())
                self.pulled(hub)  # and then it works

    def test_it_never_gets_better(self):
        rows = [("busy", hs.status(503), 3), ("it hangs up", hs.drop_after(0), 3),
                ("a redirect to itself", hs.redirect("/org/name/resolve/" + hs.COMMIT + "/config.json"), 11)]
        for what, fault, requests in rows:
            with self.subTest(what):
                self.setUp()
                hub = self.hub({"config.json": b"{}"}, [])
                hub.fail("config.json", *[fault] * 50)
                self.refused(hub, hs.ID, "--retries", "2", says="more")
                self.assertEqual(len(hub.gets("config.json")), requests)

    def test_nobody_there(self):
        hub = self.hub()
        hub.__exit__()
        self.refused(hub, hs.ID, "--retries", "1", says=[hub.url, "1 more tries"])

    def test_interrupted(self):
        hub = self.hub()
        hub.fail("store:model.safetensors", hs.drop_after(1_000_000), hs.silent)
        process = subprocess.Popen(self.command(hs.ID, "--timeout", "30"), env=self.environment(hub), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 20
        while len(hub.gets("model.safetensors")) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
        self.assertEqual((process.returncode, out), (130, ""), err)
        self.assertIn("interrupted", err)
        self.assertEqual(self.partial(hub, "model.safetensors").stat().st_size, 1_000_000)
        self.pulled(hub)


class HostileListings(PullTest):
    def test_refused(self):
        def siblings(*entries):
            return {"sha": hs.COMMIT, "siblings": list(entries)}

        def named(name):
            return siblings({"rfilename": name, "size": 1, "blobId": "0" * 40})

        rows = [
            *[(f"file {name[:20]!r}", named(name), "inside the model's folder") for name in (
                "../evil", "/etc/passwd", "a/../../evil", "a//b", "", ".", "..", "a/", "a\\b", "a\0b", "a\nb", "\x1b[2J",
                "x" * 300, "/".join(["d"] * 400))],
            ("a name that is a number", siblings({"rfilename": 5}), "rfilename"),
            ("an entry that is a text", siblings("config.json"), "rfilename"),
            ("a name twice", siblings({"rfilename": "a"}, {"rfilename": "a"}), "twice"),
            ("a file and a folder of one name", siblings({"rfilename": "a"}, {"rfilename": "a/b"}), "different names"),
            ("a negative size", siblings({"rfilename": "a", "size": -1}), "size"),
            ("a size beyond reason", siblings({"rfilename": "a", "size": 1 << 63}), "size"),
            ("a size that is a text", siblings({"rfilename": "a", "size": "1"}), "size"),
            ("too many files", siblings(*[{"rfilename": f"f{i}"} for i in range(20001)]), "20000 files"),
            ("no siblings", {"sha": hs.COMMIT}, "siblings"),
            ("no commit", {"siblings": []}, "commit"),
            ("a commit that is a path", {"sha": "../../evil", "siblings": []}, "commit"),
            ("no files", siblings(), "patterns"),
            ("a list", [], "object"),
            ("no JSON", b"<html>", "JSON"),
            ("half a JSON", b'{"sha": "', "JSON"),
            ("nothing", b"", "JSON"),
            ("a deep one", b"[" * 100000, "JSON"),
            ("bytes that are no text", b'{"sha": "\xff\xfe"}', ""),
            ("a huge one", b'{"sha": "' + b"x" * (17 << 20) + b'"}', "at most 16777216 bytes"),
        ]
        hub = self.hub()
        for what, listing, says in rows:
            with self.subTest(what):
                hub.listing = listing
                said = self.refused(hub, says=says)
                self.assertNotIn("\x1b", said)
                self.assertLess(len(said), 2000)
                self.assertFalse(self.cache.exists())

    def test_hostile_etags_and_sizes(self):
        def answer(**headers):
            def fault(handler, content):
                handler.head(200, {k.replace("_", "-"): v for k, v in headers.items()})
            return fault

        rows = [
            ("no ETag", answer(Content_Length="2"), "ETag"),
            ("an ETag that is a path", answer(Content_Length="2", ETag='"../../evil"'), "ETag"),
            ("a hidden one", answer(Content_Length="2", ETag='".."'), "ETag"),
            ("a long one", answer(Content_Length="2", ETag='"' + "a" * 500 + '"'), "ETag"),
            ("a linked one that is a path", answer(Content_Length="2", X_Linked_Etag='"a/b"', ETag='"abc"'), "ETag"),
            ("no size", answer(ETag='"abc"', X_Linked_Size="none"), "size"),
            ("another commit", answer(ETag='"abc"', X_Repo_Commit="d" * 40), "commit"),
        ]
        for what, fault, says in rows:
            with self.subTest(what):
                hub = self.hub({"config.json": b"{}"}, [], blobs=False)
                hub.fail("HEAD:config.json", fault)
                self.refused(hub, says=says)
                self.assertFalse(self.cache.exists())


class Token(PullTest):
    TOKEN = "hf_secret-of-the-test"

    def check_it_stayed(self, hub, done):
        self.assertNotIn(self.TOKEN, done.stdout + done.stderr)
        for method, path, headers, port in hub.requests:
            self.assertNotIn(self.TOKEN, path)
            self.assertEqual(self.TOKEN in str(headers), port == hub.server.server_port, (method, path))

    def test_where_it_comes_from(self):
        stored, elsewhere = self.home / "token", self.home / "hub" / "elsewhere"
        for what in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "the stored one", "HF_TOKEN_PATH"):
            with self.subTest(what):
                hub = self.hub(token=self.TOKEN)
                stored.unlink(missing_ok=True)
                environment = {}
                if what == "the stored one":
                    stored.write_text(self.TOKEN + "\n")
                elif what == "HF_TOKEN_PATH":
                    elsewhere.write_text(self.TOKEN)
                    environment = {what: str(elsewhere)}
                else:
                    environment = {what: self.TOKEN}
                done = self.proa(hub, **environment)
                elsewhere.unlink(missing_ok=True)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.check_cache(hub)
                self.check_it_stayed(hub, done)

    def test_no_token_and_a_wrong_one(self):
        hub = self.hub(token=self.TOKEN)
        self.refused(hub, says=["401", "set HF_TOKEN", "Access is restricted."])
        said = self.refused(hub, says=["401", "the token was not accepted"], HF_TOKEN="hf_wrong")
        self.assertNotIn("hf_wrong", said)

    def test_a_token_that_is_none(self):
        hub = self.hub()
        for token in ("two words", "a\r\nX-Evil: 1", "x" * 3000):
            said = self.refused(hub, says="HF_TOKEN", HF_TOKEN=token)
            self.assertNotIn(token, said)
        self.assertEqual(hub.requests, [])

    def test_it_is_not_given_to_another_host(self):
        """Not to the store of large files, not by a redirect of the listing, and not when that leads back either."""
        hub = self.hub()
        back = f"{hub.url}/org/name/resolve/{hs.COMMIT}/config.json"
        hub.fail("listing", hs.redirect(f"{hub.store_url}/steal"))
        done = self.proa(hub, HF_TOKEN=self.TOKEN)
        self.assertEqual(done.returncode, 1)
        self.check_it_stayed(hub, done)
        del hub.requests[:]
        hub.faults["/bounce"] = [hs.redirect(back)]
        hub.fail("config.json", hs.redirect(f"{hub.store_url}/bounce"))
        done = self.proa(hub, HF_TOKEN=self.TOKEN)
        self.assertEqual(done.returncode, 0, done.stderr)
        configs = [r for r in hub.requests if r[1].endswith("/config.json")]
        self.assertEqual([self.TOKEN in str(r[2]) for r in configs], [True, False])
        self.assertFalse(any(self.TOKEN in str(r[2]) for r in hub.requests if r[3] == hub.store.server_port))
        self.assertNotIn(self.TOKEN, done.stdout + done.stderr)


class Flags(PullTest):
    def test_wrong_ones(self):
        hub = self.hub()
        rows = [
            (["name"], 1, "org/name"), (["../../etc"], 1, ""), (["org/name@../x"], 1, "after @"),
            (["org/name", "--revision", "../x"], 1, "--revision"), (["org/name", "--endpoint", "ftp://x"], 1, "--endpoint"),
            (["org/name", "--endpoint", "http://a:b@x"], 1, "--endpoint"), (["org/name", "--endpoint", "nonsense"], 1, "--endpoint"),
            (["org/name", "--jobs", "0"], 2, "--jobs"), (["org/name", "--retries", "x"], 2, "--retries"), (["--json"], 2, "model"),
        ]
        for arguments, code, says in rows:
            with self.subTest(arguments):
                self.refused(hub, *arguments, says=says, code=code)
        self.assertEqual(hub.requests, [])

    def test_endpoint_wins_and_may_have_a_path(self):
        hub = self.hub()
        done = self.proa(self.hub(), hs.ID, "--endpoint", hub.url + "/")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(hub.requests)

    def test_home(self):
        hub = self.hub()
        done = self.proa(hub, hs.ID, "--download-dir=~/hub", HOME=str(self.home), HF_HOME="/nowhere")
        self.assertEqual((done.returncode, done.stdout.strip()), (0, str(self.snapshot)), done.stderr)
        self.check_cache(hub)

    def test_help(self):
        done = subprocess.run([PROA, "pull", "--help"], capture_output=True, text=True, timeout=TIMEOUT_S)
        self.assertEqual(done.returncode, 0)
        self.assertIn("Example: proa pull", done.stdout)


if __name__ == "__main__":
    unittest.main()
