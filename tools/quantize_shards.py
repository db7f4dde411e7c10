#!/usr/bin/env python3
"""Quantises a checkpoint that never lies on the disk as a whole: each shard is made, quantised and removed.

    python3 tools/quantize_shards.py build/release/apps/proa NVIDIA-Nemotron-3-Nano-30B-A3B /tmp/nano-q4_0.gguf --to q4_0
    python3 tools/quantize_shards.py PROA MODEL OUT --to fp8 --calibration ranges.json --layers 7 --scale-down 8

The shards are dummy weights from `proa synth --shard N`; with downloads it is the same loop. Printed: per shard the time,
the largest resident set of the quantising process and the disk in use; at the end all of it, and the largest. The mapped
source counts as resident while it is read: it is given back tensor by tensor. --check reads the result with
`proa inspect`, and compares it with the result of one run over all shards (small sizes only).
"""
import argparse
import hashlib
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time


def disk(path):
    """Bytes that a file or folder takes on the disk."""
    if path.is_dir():
        return sum(f.stat().st_blocks * 512 for f in path.rglob("*") if f.is_file())
    return path.stat().st_blocks * 512 if path.exists() else 0


def digest(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {f.name if path.is_dir() else "": hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proa")
    parser.add_argument("model")
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--to", required=True)
    parser.add_argument("--calibration", help="ranges (.json); made up where it is missing and needed")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--scale-down", type=int, default=1)
    parser.add_argument("--max-shard-size", type=float, default=5.0, help="GB of a shard of the source")
    parser.add_argument("--work", type=pathlib.Path, help="where shards are made; default: OUTPUT.source")
    parser.add_argument("--memory-gb", type=float, help="limit of the address space that a process may fill with data")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    work = args.work or pathlib.Path(f"{args.output}.source")
    shape = ["--layers", args.layers, "--scale-down", args.scale_down, "--max-shard-size", args.max_shard_size]

    def run(*words):
        def limit():
            if args.memory_gb:
                size = int(args.memory_gb * 1e9)
                resource.setrlimit(resource.RLIMIT_DATA, (size, size))

        done = subprocess.run([args.proa, *map(str, words)], capture_output=True, text=True, preexec_fn=limit)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout

    flags = ["--to", args.to, "--threads", args.threads, "--json"]
    if args.to in ("fp8", "nvfp4"):
        ranges = args.calibration
        if not ranges:
            ranges = f"{args.output}.ranges.json"
            pathlib.Path(ranges).write_text('{"inputs": {}, "default": 8}\n')
        flags += ["--calibration", ranges]
    begin, peak_memory, peak_disk, source, shards, number = time.time(), 0, 0, 0, 1, 1
    while number <= shards:
        made = run("synth", args.model, *shape, "--shard", number, "-o", work, "--force", "--json", "--threads", args.threads)
        shards, source = made["shards"], source + made["bytes"]
        done = run("quantize", work, args.output, *flags, "--as-they-come")
        partial = pathlib.Path(f"{args.output}.partial")
        in_use = disk(work) + disk(partial) + disk(args.output)
        peak_memory, peak_disk = max(peak_memory, done["peak_memory_bytes"]), max(peak_disk, in_use)
        print(f"shard {number} of {shards}: {made['bytes'] / 1e9:.2f} GB made in {made['seconds']:.1f} s, "
              f"{done['items']} tensors quantised in {done['seconds']:.1f} s, {done['items_left']} left, "
              f"memory {done['peak_memory_bytes'] / 1e6:.0f} MB, disk {in_use / 1e9:.2f} GB", flush=True)
        shutil.rmtree(work)
        number += 1
    assert done["whole"], "shards are done and the output is not whole"
    print(f"{args.output}: {done['bytes'] / 1e9:.2f} GB of {source / 1e9:.2f} GB in {time.time() - begin:.0f} s; "
          f"peak memory {peak_memory / 1e6:.0f} MB, peak disk {peak_disk / 1e9:.2f} GB")
    if args.check:
        print(run("inspect", args.output)[:600])
        whole = args.output.with_name("whole-" + args.output.name)
        run("synth", args.model, *shape, "-o", work, "--force", "--json")
        # A name is in the header of a GGUF file, so both sources have the same.
        run("quantize", work, whole, *flags)
        same = digest(args.output) == digest(whole)
        print("the same bytes as one run over all shards:", same)
        shutil.rmtree(work)
        shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
        if not same:
            sys.exit(1)


if __name__ == "__main__":
    main()
