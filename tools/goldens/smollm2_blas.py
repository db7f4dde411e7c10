#!/usr/bin/env python3
"""Makes tests/goldens/smollm2/goldens_blas.*: llama.cpp on the Q4_1 file itself, activations not rounded.

  CMAKE_ARGS="-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS" pip install llama-cpp-python==0.3.36   (and what smollm2.py needs)
  tools/goldens/smollm2_blas.py SmolLM2-135M-Instruct.Q4_1.gguf

smollm2.py tells why llama.cpp's CPU kernels, which round activations to 8 bits, are no measure below a mean KL of several
1e-3. Built with BLAS, llama.cpp widens the weights of a batch of 32 tokens or more and multiplies in F32 (SGEMM), on the
same file. So every batch here has at least 32 tokens: a shorter prompt is filled up behind its end, and greedy decoding
advances each prompt twice (40 tokens a step). What is kept, and how, is smollm2.py's. The script stops unless the result is
within a mean KL of 1e-5 of smollm2.py's golden `weights`: a run that did not go through BLAS is 3e-3 away.
"""
import argparse
import ctypes
import json
import pathlib
import sys

import llama_cpp as lc
import numpy as np
from safetensors.numpy import load_file, save_file

import smollm2 as base

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIN_BATCH = 32


class BlasModel(base.Model):
    def __init__(self, path):
        params = lc.llama_model_default_params()
        params.use_extra_bufts = False  # repacked weights would stay with the 8-bit kernels
        self.model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            sys.exit(f"{path}: llama.cpp cannot load it")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.vocab_size = lc.llama_vocab_n_tokens(self.vocab)


def padded(context, ids, sequence=0):
    """Logits [len(ids), vocab_size]. Tokens that only fill the batch come last, see the others and are forgotten."""
    fill = [ids[-1]] * max(0, MIN_BATCH - len(ids))
    logits = context.decode_batch([(token, position, sequence) for position, token in enumerate(ids + fill)])
    lc.llama_memory_seq_rm(lc.llama_get_memory(context.handle), sequence, len(ids), -1)
    return logits[:len(ids)]


def greedy(context, prompts):
    """As smollm2.py's, every prompt twice so that a step is a batch of at least MIN_BATCH tokens."""
    names = ("token_ids", "second_ids", "best_logits", "second_logits")
    twice = prompts + prompts
    results = [{name: [] for name in names} for _ in twice]
    rows = [padded(context, prompt["token_ids"], i)[-1] for i, prompt in enumerate(twice)]
    for step in range(base.STEPS):
        for result, row in zip(results, rows):
            second, best = (int(i) for i in np.argsort(row, kind="stable")[-2:])
            for name, value in zip(names, (best, second, round(float(row[best]), 5), round(float(row[second]), 5))):
                result[name].append(value)
        rows = context.decode_batch([(result["token_ids"][-1], len(prompt["token_ids"]) + step, i)
                                     for i, (prompt, result) in enumerate(zip(twice, results))])
    return results[:len(prompts)]


def perplexity(context, ids):
    nll, scored = 0.0, 0
    starts = list(range(0, len(ids), base.WINDOW))
    if len(ids) - starts[-1] < MIN_BATCH:
        sys.exit("the last window is too short for BLAS")
    for start in starts:
        window = ids[start:start + base.WINDOW]
        context.clear()
        log_probs = base.log_softmax(context.decode_batch([(t, p, 0) for p, t in enumerate(window)])[:-1])
        nll -= float(log_probs[np.arange(len(window) - 1), window[1:]].sum())
        scored += len(window) - 1
    return {"nll": nll, "scored": scored, "perplexity": float(np.exp(nll / scored))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=pathlib.Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/goldens/smollm2")
    args = parser.parse_args()
    silent = lc.llama_log_callback(lambda level, text, user: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))

    stored = json.loads((args.out / "goldens.json").read_text())
    old = load_file(args.out / "goldens.safetensors")
    prompts = [{"token_ids": p["token_ids"], "positions": p["positions"]} for p in stored["prompts"]]
    model = BlasModel(args.gguf)

    context = model.context("base", len(prompts))
    logits = np.concatenate([padded(context, p["token_ids"], i)[p["positions"]] for i, p in enumerate(prompts)])
    lc.llama_free(context.handle)

    # Against the golden `weights`, over what it keeps.
    log_q = base.log_softmax(logits)
    ids = old["weights.kept_ids"]
    log_p = old["weights.kept_logits"].astype(np.float64) - old["weights.logsumexp"][:, None]
    log_q = np.take_along_axis(log_q, ids, -1)
    weights = np.repeat([1, base.TAIL_STEP], [base.TOP, ids.shape[-1] - base.TOP])
    kl = float(((np.exp(log_p) * (log_p - log_q) - np.exp(log_p) + np.exp(log_q)) * weights).sum(-1).mean())
    print(f"mean KL to the golden `weights`: {kl:.2e}")
    if not kl < 1e-5:
        sys.exit("these runs did not go through BLAS")

    context = model.context("base")
    score = perplexity(context, old["text_ids"].tolist())
    lc.llama_free(context.handle)
    context = model.context("base", 2 * len(prompts))
    steps = greedy(context, prompts)
    lc.llama_free(context.handle)

    ids, _ = base.kept_ids(logits)
    peak = logits.max(-1, keepdims=True).astype(np.float64)
    save_file({"blas.kept_ids": ids.astype(np.int32), "blas.kept_logits": np.take_along_axis(logits, ids, -1),
               "blas.logsumexp": (np.log(np.exp(logits - peak).sum(-1)) + peak[:, 0]).astype(np.float32)},
              args.out / "goldens_blas.safetensors")
    result = {
        "about": "Made by tools/goldens/smollm2_blas.py from the file of goldens.json.",
        "made_with": {"llama_cpp_python": lc.__version__, "system_info": lc.llama_print_system_info().decode().strip(),
                      "command": "tools/goldens/smollm2_blas.py SmolLM2-135M-Instruct.Q4_1.gguf"},
        "kl_to_weights": kl, "perplexity": score, "greedy": steps,
    }
    (args.out / "goldens_blas.json").write_text(base.compact(json.dumps(result, indent=1)) + "\n")
    print(score)


if __name__ == "__main__":
    main()
