"""A synthesised checkpoint means the same to others: log probabilities of proa against llama.cpp or transformers.

    proa synth NVIDIA-Nemotron-3-Nano-30B-A3B --layers 7 --scale-down 16 -q q4_0 -o tiny.gguf
    python tools/synth_check.py build/release/apps/proa tiny.gguf       # llama.cpp (needs llama-cpp-python)
    proa synth NVIDIA-Nemotron-3-Nano-30B-A3B --layers 7 --scale-down 16 -o tiny
    python tools/synth_check.py build/release/apps/proa tiny            # transformers (needs torch)

proa continues a prompt greedily; the other program is forced along the same tokens. Printed: the largest difference of
the log probabilities of the five likeliest tokens at each place, and how often the likeliest is the same; of
transformers also the RMS of what each kind of mixer adds, against that of the residual it is added to. llama.cpp rounds
activations to 8 bits, transformers runs in F32 with its dt floor removed (tools/goldens/nemotron_h.py).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

PROMPT = " bababa dabababi gadada fedibaba zavabu"


def ours(proa, model, prompt, tokens):
    out = subprocess.run(
        [proa, "run", model, "--raw", "-p", prompt, "--max-tokens", str(tokens), "--temperature", "0", "--logprobs", "5",
         "--ignore-eos", "--max-model-len", "512", "--json"],
        check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


def log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def llama_cpp(path, ids):
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_gpu_layers=0)
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def transformers(path, ids):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / "goldens"))
    import nemotron_h
    import torch

    raw = json.loads((path / "config.json").read_text())
    model = nemotron_h.load(str(path), raw, torch.float32)
    sizes = {}

    def watch(layer):
        def hook(module, args, kwargs, out):
            out = out[0] if isinstance(out, tuple) else out
            sizes.setdefault(layer.block_type, []).append(float(out.float().pow(2).mean().sqrt()))

        layer.mixer.register_forward_hook(hook, with_kwargs=True)

    for layer in model.model.layers:
        watch(layer)
    residual = float(model.get_input_embeddings()(torch.tensor([ids])).detach().float().pow(2).mean().sqrt())
    logits = nemotron_h.prefill(model, ids)
    print(f"embedding: RMS {residual:.3f}")
    for kind, values in sizes.items():
        print(f"{kind}: output RMS {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    return logits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proa")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompt", default=PROMPT)
    args = parser.parse_args()

    answer = ours(args.proa, str(args.model), args.prompt, args.tokens)
    prompt, drawn = answer["prompt_token_ids"], answer["token_ids"]
    peer = transformers if args.model.is_dir() else llama_cpp
    theirs = log_softmax(peer(args.model, prompt + drawn))
    worst, same = 0.0, 0
    for i, entry in enumerate(answer["logprobs"]):
        row = theirs[len(prompt) + i - 1]
        same += int(row.argmax()) == entry["token_id"]
        worst = max(worst, *(abs(row[top["token_id"]] - top["logprob"]) for top in entry["top_logprobs"]))
    print(f"{args.model}: {len(prompt)} + {len(drawn)} tokens; likeliest token the same at {same} of {len(drawn)}; "
          f"log probabilities within {worst:.2e}; deviation of logits {theirs.std(-1).mean():.2f}")


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
