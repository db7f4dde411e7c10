"""Goldens of the built-in checkpoint: logits of transformers (F32, dt floor removed) for models/proa-buoy.

    python tools/goldens/buoy.py --out tests/goldens/proa_buoy

Two sequences: the beginning of a held-out window, and a whole one with its question and answer. Kept are logits at every
16th position and the last 16, golden.safetensors `logits_i` F32 [rows, vocab]. Needs torch, transformers, tokenizers,
safetensors; nemotron_h.py says how the official class is repaired.
"""
import argparse
import json
import pathlib

import nemotron_h
import numpy as np
import safetensors.numpy
import tokenizers
import torch

MODEL = pathlib.Path(__file__).parents[2] / "models/proa-buoy"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    window = json.loads((MODEL / "held_out.jsonl").read_text().splitlines()[2])
    question = window["questions"][0]
    first = window["messages"][0]
    system = first["content"] if first["role"] == "system" else ""
    user = window["messages"][-1]["content"].replace("{question}", question["question"])
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}"
    text += "<|im_end|>\n<|im_start|>assistant\n<think></think>" + question["answer"] + "<|im_end|>"
    ids = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids
    model = nemotron_h.load(str(MODEL), json.loads((MODEL / "config.json").read_text()), torch.float32)
    arrays, sequences = {}, []
    for i, part in enumerate((ids[:96], ids)):
        rows = sorted({*range(15, len(part), 64 if i else 16), *range(len(part) - 16, len(part))})
        logits = nemotron_h.prefill(model, part)
        arrays[f"logits_{i}"] = logits[rows].astype(np.float32)
        sequences.append({"token_ids": part, "rows": rows, "tensor": f"logits_{i}"})
        print(f"{len(part)} tokens, RMS of logits {np.sqrt(np.mean(logits**2)):.3f}, "
              f"answer predicted: {(logits[:-1].argmax(-1) == part[1:])[-8:]}")
    safetensors.numpy.save_file(arrays, args.out / "golden.safetensors")
    nemotron_h.write_json(args.out / "golden.json", {"sequences": sequences, "facts": []})


if __name__ == "__main__":
    main()
