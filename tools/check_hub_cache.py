#!/usr/bin/env python3
"""Checks that huggingface_hub finds what `proa pull` wrote, and proa what huggingface_hub wrote. Needs huggingface_hub.

  tools/check_hub_cache.py [PROA]     default build/release/apps/proa

Both download from the hub of tests/scripts/hub_server.py, on 127.0.0.1; no other network is used.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/scripts"))
import hub_server as hs  # noqa: E402

PROA = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "build/release/apps/proa")
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 4096, "deep/notes.txt": b"notes"}

# In a process of its own, because huggingface_hub reads the environment when it is imported.
SNAPSHOT = """
import sys, huggingface_hub
print(huggingface_hub.snapshot_download("org/name", revision=sys.argv[2] or None, local_files_only=sys.argv[1] == "local"))
"""
CONFIG = """
import transformers
print(transformers.AutoConfig.from_pretrained("org/name", local_files_only=True).model_type)
"""


def run(command, home, hub, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env={**kept, "HF_HOME": home, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **environment})
    if done.returncode != 0:
        sys.exit(f"{command}: exit {done.returncode}\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def tree(home):
    """What is in a cache: links with their targets, files with their contents."""
    root = pathlib.Path(home, "hub/models--org--name")
    return {str(p.relative_to(root)): os.readlink(p) if p.is_symlink() else p.read_bytes()
            for p in root.rglob("*") if p.is_symlink() or p.is_file()}


def main():
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs, hs.Hub(FILES, ["model.safetensors"]) as hub:
        pulled = run([PROA, "pull", "org/name"], ours, hub)
        for revision in ("", "main", hs.COMMIT):
            found = run([*python, SNAPSHOT, "local", revision], ours, hub, HF_HUB_OFFLINE="1")
            assert found == pulled, (found, pulled)
        print("huggingface_hub finds what proa pulled, without a network")
        try:
            import transformers  # noqa: F401
        except ImportError:
            print("transformers is not installed: not tried")
        else:
            assert run([*python, CONFIG], ours, hub, HF_HUB_OFFLINE="1") == "llama"
            print("transformers reads its config")

        downloaded = run([*python, SNAPSHOT, "hub", ""], theirs, hub)
        before = len(hub.requests)
        assert run([PROA, "pull", "org/name", "--offline"], theirs, hub) == downloaded
        assert len(hub.requests) == before
        assert run([PROA, "pull", "org/name"], theirs, hub) == downloaded
        assert all("/resolve/" not in request[1] for request in hub.requests[before:])
        print("proa finds what huggingface_hub downloaded, and fetches none of it again")

        # huggingface_hub also keeps the listing, as trees/COMMIT.json; it does without where there is none.
        differing = {name for name in tree(ours).keys() | tree(theirs).keys()
                     if tree(ours).get(name) != tree(theirs).get(name) and not name.startswith("trees/")}
        if differing:
            sys.exit(f"the caches differ in {sorted(differing)}")
        print("both caches hold the same")


if __name__ == "__main__":
    main()
