"""Quantised files of the built-in model in llama.cpp: it loads them, and its logits are those of Proa on the same file.

    python tools/quantize_check_llama.py build/release/apps/proa buoy-q4_0.gguf [more.gguf ...]

A held-out question is answered greedily by Proa; llama.cpp is forced along the same tokens. Printed: tokens by either
tokenizer, how often the likeliest token is the same, and the largest difference of these tokens' log probabilities.
llama.cpp rounds activations to 8 bits on the CPU. The training code, given the dequantised Q8_0 file in F32, is within 6e-6 of
Proa at the answers to three questions (checkpoint b4d2838); with activations rounded to Q8_0 it moves by 0.04 at likely
tokens and by up to 5 nats at unlikely ones. Whether that is all of llama.cpp's distance is not known.
"""
import argparse
import json
import pathlib
import subprocess

import llama_cpp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proa")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    window = json.loads((ROOT / "models/proa-buoy/held_out.jsonl").read_text().splitlines()[2])
    prompt = window["messages"][-1]["content"].replace("{question}", window["questions"][4]["question"])
    for file in args.files:
        out = subprocess.run([args.proa, "run", file, "-p", prompt, "--temperature", "0", "--logprobs", "5", "--json",
                              "--kv-cache-dtype", "float32"], check=True, capture_output=True, text=True)  # fmt: skip
        answer = json.loads(out.stdout)
        ids = answer["prompt_token_ids"] + answer["token_ids"]
        model = llama_cpp.Llama(file, n_ctx=4096, logits_all=True, verbose=False, n_gpu_layers=0)
        text = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n" + prompt
        text += "<|im_end|>\n<|im_start|>assistant\n<think></think>"
        theirs = model.tokenize(text.encode(), add_bos=False, special=True)
        model.eval(ids)
        logits = np.array(model.scores[: len(ids)], dtype=np.float64)
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        same, worst = 0, 0.0
        for i, entry in enumerate(answer["logprobs"]):
            row = logits[len(answer["prompt_token_ids"]) + i - 1]
            same += int(row.argmax()) == entry["token_id"]
            worst = max(worst, abs(row[entry["token_id"]] - entry["logprob"]))
        print(f"{pathlib.Path(file).name}: {len(answer['prompt_token_ids'])} tokens, "
              f"{'the same' if theirs == answer['prompt_token_ids'] else 'others'} by llama.cpp's tokenizer; likeliest "
              f"token the same at {same} of {len(answer['logprobs'])}, log probabilities of these within {worst:.4f}", flush=True)
        model.close()


if __name__ == "__main__":
    main()
