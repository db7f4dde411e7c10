"""Quantised files of the built-in model in llama.cpp: it loads them, and its logits are those of Proa on the same file.

    pip install xllamacpp tokenizers
    python tools/quantize_check_llama.py build/release/apps/proa buoy-f32.gguf buoy-q8_0.gguf [more.gguf ...]

A held-out question is answered greedily by Proa; llama.cpp is given the same tokens. Printed per file: whether its tokenizer
makes the same tokens of the text, how often the likeliest token is the same, and the largest difference, in nats, of the log
probabilities of the twenty likeliest tokens at every place of the answer, once with llama.cpp's attention as plain products
(keys and values in F32) and once as it comes, with its flash attention, which keeps queries, keys, values and, when it
decodes, their running sum in F16. Beside it, how far Proa's log probabilities are from each other where it multiplies F32 and
where it rounds activations to 8 bits (the machine must be able to), as llama.cpp does for every file but F32 and F16.

A file of F32 has no rounded activations: there both must agree to F32 (--bound).
"""
import argparse
import json
import pathlib
import subprocess
import sys

import tokenizers
import xllamacpp

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUOY = ROOT / "models/proa-buoy"
ALTERNATIVES = 20
OFF = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
F32 = xllamacpp.ggml_type.GGML_TYPE_F32


def ours(proa, file, prompt, target):
    words = [proa, "run", file, "-p", prompt, "--temperature", "0", "--logprobs", str(ALTERNATIVES), "--json", "--device",
             "cpu", "--kv-cache-dtype", "float32", "--cpu-target", target]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def alternatives(answer):
    return [{e["token_id"]: e["logprob"] for e in (place, *place["top_logprobs"])} for place in answer["logprobs"]]


def theirs(file, prompt, drawn, plain):
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_gpu_layers, params.verbosity = 4096, 0, 0
    if plain:
        params.flash_attn_type, params.cache_type_k, params.cache_type_v = OFF, F32, F32
    server = xllamacpp.Server(params)
    rows = []
    for i in range(len(drawn)):
        out = server.handle_completions({"prompt": prompt + drawn[:i], "n_predict": 1, "n_probs": ALTERNATIVES, "temperature": 0})
        place = out["choices"][0]["logprobs"]["content"][0]
        rows.append({e["id"]: e["logprob"] for e in place["top_logprobs"]})
    return rows


def distance(a, b):
    """Largest difference of the log probabilities that both name, and at how many places the likeliest is the same."""
    most = max(abs(x[t] - y[t]) for x, y in zip(a, b) for t in x.keys() & y.keys())
    return most, sum(max(x, key=x.get) == max(y, key=y.get) for x, y in zip(a, b))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proa")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--bound", type=float, default=1e-3, help="nats, for F32 files and plain attention")
    args = parser.parse_args()
    window = json.loads((BUOY / "held_out.jsonl").read_text().splitlines()[2])
    prompt = window["messages"][-1]["content"].replace("{question}", window["questions"][4]["question"])
    text = f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think></think>"
    wanted = tokenizers.Tokenizer.from_file(str(BUOY / "tokenizer.json")).encode(text).ids
    wrong = False
    for file in args.files:
        answer = ours(args.proa, file, prompt, "AVX2")
        ids, drawn = answer["prompt_token_ids"], answer["token_ids"]
        assert ids == wanted, f"{file}: not the prompt that the tokenizer makes"
        exact = alternatives(answer)
        rounded = alternatives(ours(args.proa, file, prompt, "AVX3_DL"))
        plain, same = distance(exact, theirs(file, ids, drawn, True))
        flash, same_flash = distance(exact, theirs(file, ids, drawn, False))
        own, _ = distance(exact, rounded)
        print(f"{pathlib.Path(file).name}: {len(ids)} + {len(drawn)} tokens, likeliest the same at {same}; llama.cpp off by "
              f"{plain:.5f} nats, with flash attention {flash:.3f} (likeliest the same at {same_flash}); "
              f"Proa with activations of 8 bits off from itself by {own:.3f}", flush=True)  # fmt: skip
        wrong |= same != len(drawn) or ("f32" in pathlib.Path(file).name and plain > args.bound)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
