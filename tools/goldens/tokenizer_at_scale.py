#!/usr/bin/env python3
"""The same ids as Hugging Face `tokenizers` on at least a megabyte of every kind of text, with rates.

    cmake --preset release -DPROA_BENCH=ON && ninja -C build/release tokenizer_bench
    python tools/goldens/tokenizer_at_scale.py --work FOLDER NAME=OURS[=TOKENIZER_JSON] ...

OURS is what our program opens (tokenizer.json or GGUF); TOKENIZER_JSON, for GGUF, the same vocabulary as
tools/goldens/tokenizer_vocabularies.py converts it; a GGUF there is given to llama.cpp instead (llama-cpp-python). Texts are made in FOLDER/texts unless they are there
(tools/goldens/tokenizer_texts.py). Invalid UTF-8 is given to us as it is, to `tokenizers` after Python's errors="replace".
Prints per vocabulary and class: texts, bytes, tokens, mismatches, MB/s of ours and of `tokenizers` (processor time of one
thread each, ours the best of three passes, theirs one). Exit code 1 with any mismatch; the first of each class are shown. Needs tokenizers.
"""

import argparse
import os
import pathlib
import struct
import subprocess
import sys
import time
import types

os.environ["TOKENIZERS_PARALLELISM"] = "false"
HERE = pathlib.Path(__file__).resolve()


def records(path, item):
    data, at = path.read_bytes(), 0
    while at < len(data):
        count, = struct.unpack_from("<I", data, at)
        yield data[at + 4:at + 4 + count * item]
        at += 4 + count * item


class LlamaCpp:
    """llama.cpp's tokenizer as `tokenizers` would be used."""

    def __init__(self, path):
        from llama_cpp import Llama
        self.llama = Llama(path, vocab_only=True, verbose=False)

    def encode(self, text, add_special_tokens):
        return types.SimpleNamespace(ids=self.llama.tokenize(text.encode(), add_bos=add_special_tokens, special=True))

    def decode(self, ids, skip_special_tokens):
        return self.llama.detokenize(ids, special=not skip_special_tokens).decode("utf-8", "replace")


def compare(name, tokenizer, texts, ids_path, shown):
    texts = [t.decode("utf-8", "replace") for t in texts]
    start = time.thread_time()
    theirs = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
    seconds = time.thread_time() - start
    mismatches = 0
    for text, expected, ours in zip(texts, theirs, records(ids_path, 4), strict=True):
        ours = list(struct.unpack(f"<{len(ours) // 4}i", ours))
        if ours == expected:
            continue
        mismatches += 1
        if mismatches <= shown:
            at = next((i for i, (a, b) in enumerate(zip(ours, expected)) if a != b), min(len(ours), len(expected)))
            near = [[tokenizer.decode([i], skip_special_tokens=False) for i in ids[max(at - 1, 0):at + 4]] for ids in (ours, expected)]
            print(f"  {name}: token {at}: ours {ours[at:at + 4]} {near[0]}, theirs {expected[at:at + 4]} {near[1]}", file=sys.stderr)
    return mismatches, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabularies", nargs="+", metavar="NAME=OURS[=TOKENIZER_JSON]")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--bench", default=str(HERE.parents[2] / "build/release/bench/tokenizer_bench"))
    parser.add_argument("--classes", nargs="*", help="only these")
    parser.add_argument("--show", type=int, default=2, help="mismatches to show per class")
    arguments = parser.parse_args()
    texts = arguments.work / "texts"
    if not texts.exists():
        subprocess.run([sys.executable, str(HERE.parent / "tokenizer_texts.py"), str(texts)], check=True)
    import tokenizers

    print(f"tokenizers {tokenizers.__version__}")
    total = 0
    for vocabulary in arguments.vocabularies:
        name, ours, *json_path = vocabulary.split("=")
        files = sorted(p for p in texts.glob("*.texts") if not arguments.classes or p.stem in arguments.classes)
        ids = arguments.work / "ids" / name
        ids.mkdir(parents=True, exist_ok=True)
        lines = subprocess.run([arguments.bench, ours, *map(str, files), "--ids", str(ids)], check=True, capture_output=True,
                               text=True).stdout.splitlines()
        start = time.thread_time()
        path = json_path[0] if json_path else ours
        tokenizer = LlamaCpp(path) if path.endswith(".gguf") else tokenizers.Tokenizer.from_file(path)
        print(f"\n{name}: {lines[0]}; tokenizers {time.thread_time() - start:.3f} s")
        print(f"{'class':12} {'texts':>6} {'bytes':>9} {'tokens':>8} {'mismatches':>10} {'MB/s':>7} {'tokenizers':>10}")
        for path, line in zip(files, lines[1:], strict=True):
            _, count, size, tokens, _, rate = line.split()
            mismatches, seconds = compare(path.stem, tokenizer, list(records(path, 1)), ids / f"{path.stem}.ids", arguments.show)
            total += mismatches
            print(f"{path.stem:12} {count:>6} {size:>9} {tokens:>8} {mismatches:>10} {rate:>7} {int(size) / seconds / 1e6:>10.2f}", flush=True)
    print(f"\n{total} mismatches")
    return total > 0


if __name__ == "__main__":
    sys.exit(main())
