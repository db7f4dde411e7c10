#!/usr/bin/env python3
"""Speed of proa against llama.cpp on the same GGUF file and the same cores, run A-B-A-B as processes.

  pip install llama-cpp-python==0.3.36
  tools/peers/llama_cpp.py SmolLM2-135M-Instruct.Q4_1.gguf
  tools/peers/llama_cpp.py MODEL.gguf --rounds 9 --decode 512 --cpus 0,1 --json > result.json

First both answer greedily and the first tokens must agree: a fast wrong answer is no result. Then llama.cpp's settings
(threads, flash attention) are tried three times each and the fastest decode of all is the peer from there on; proa runs with as many
threads as there are cores. Each round runs proa, then llama.cpp, each in a process of its own that loads the model, reads
the prompt and decodes the same number of tokens, end-of-text ignored. Reported: decode and prefill tok/s of both, the ratio
per round (median, min, max), and the wall time from the start of the process proa to the first byte of its answer.

llama.cpp decodes by its C interface with greedy choice over the logits, without its sampler chain, tokenizer or text
output in the measured loop, so nothing of Python but one argmax per token is counted; that argmax is also measured and
subtracted.
"""
import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPT = ("The history of the bicycle is a history of small improvements. The first machines had no pedals at all; the rider "
          "pushed against the ground with both feet and hoped for a gentle slope. Later inventors fixed cranks to the front "
          "wheel, and because one turn of the pedals meant one turn of the wheel, the wheel grew until the rider sat higher "
          "than a horse and fell just as far. The chain changed everything, because")


def child(request):
    """One run of llama.cpp in this process; prints a JSON object."""
    sys.path.pop(0)  # the folder of this file, whose name is the library's
    import llama_cpp as lc
    import numpy as np

    silent = lc.llama_log_callback(lambda level, text, user: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    started = time.perf_counter()
    model = lc.llama_model_load_from_file(request["model"].encode(), lc.llama_model_default_params())
    if not model:
        sys.exit(f"{request['model']}: llama.cpp cannot load it")
    vocab = lc.llama_model_get_vocab(model)
    params = lc.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 4096, 512, 512
    params.n_threads = params.n_threads_batch = request["threads"]
    params.flash_attn_type = request["flash_attn"]
    context = lc.llama_init_from_model(model, params)
    load = time.perf_counter() - started

    text = request["prompt"].encode()
    ids = (lc.llama_token * (len(text) + 8))()
    count = lc.llama_tokenize(vocab, text, len(text), ids, len(ids), False, True)
    size = lc.llama_vocab_n_tokens(vocab)
    batch = lc.llama_batch_init(512, 0, 1)
    choosing = 0.0

    def step(tokens, position):
        nonlocal choosing
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position + i, 1, 0
            batch.logits[i] = int(i + 1 == len(tokens))
        if lc.llama_decode(context, batch) != 0:
            sys.exit("llama_decode failed")
        logits = lc.llama_get_logits_ith(context, len(tokens) - 1)
        begin = time.perf_counter()
        best = int(np.ctypeslib.as_array(logits, (size,)).argmax())
        choosing += time.perf_counter() - begin
        return best

    started = time.perf_counter()
    for begin in range(0, count, 512):
        token = step(list(ids[begin:min(begin + 512, count)]), begin)
    prefill = time.perf_counter() - started
    answer, choosing, started = [token], 0.0, time.perf_counter()
    for i in range(request["decode"]):
        answer.append(step([answer[-1]], count + i))
    decode = time.perf_counter() - started - choosing
    print(json.dumps({"load_s": load, "prefill_tokens": count, "prefill_s": prefill, "decode_tokens": request["decode"],
                      "decode_s": decode, "token_ids": answer, "version": lc.__version__,
                      "system_info": lc.llama_print_system_info().decode().strip()}))


def run_llama_cpp(args, setting, decode):
    request = {"model": args.model, "prompt": args.prompt, "decode": decode, **setting}
    done = subprocess.run([args.python, __file__, "--child", json.dumps(request)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"llama.cpp failed: {done.stderr.strip()}\nIs llama-cpp-python installed for {args.python}? See --python.")
    return json.loads(done.stdout)


def run_proa(args, decode):
    """A run of decode tokens after the first; its timings and tokens."""
    command = [args.proa, "run", args.model, "--raw", "-p", args.prompt, "--temperature", "0", "--max-tokens", str(decode + 1),
               "--ignore-eos", "--json", "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"proa failed: {done.stderr.strip()}")
    answer = json.loads(done.stdout)
    return {**answer["timings"], "token_ids": answer["token_ids"]}


def first_byte_seconds(args):
    """From the start of the process to the first byte of a streamed answer."""
    command = [args.proa, "run", args.model, "-p", "What is gravity?", "--temperature", "0", "--max-tokens", "8",
               "--threads", str(args.threads)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0) as process:
        process.stdout.read(1)
        elapsed = time.perf_counter() - started
        process.stdout.read()
    return elapsed


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def speed(run, phase):
    return run[f"{phase}_tokens"] / run[f"{phase}_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--proa", default=str(ROOT / "build/release/apps/proa"))
    parser.add_argument("--python", default=sys.executable, help="a Python with llama-cpp-python (default: this one)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=256, help="tokens decoded per run after the first (default 256)")
    parser.add_argument("--cpus", help="cores for both, as in 0,1 (default: all this process may use)")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--json", action="store_true", help="one JSON object with every run in place of the table")
    args = parser.parse_args()
    if args.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in args.cpus.split(",")})
    cores = args.threads = len(os.sched_getaffinity(0))

    def say(text):
        print(text, file=sys.stderr, flush=True)

    settings = [{"threads": threads, "flash_attn": flash} for threads in sorted({1, cores}) for flash in (0, 1)]
    trials = []
    for setting in settings:
        run = max((run_llama_cpp(args, setting, args.decode) for _ in range(3)), key=lambda r: speed(r, "decode"))
        trials.append({**setting, "decode_tok_s": speed(run, "decode"), "prefill_tok_s": speed(run, "prefill")})
        say(f"llama.cpp {setting}: decode {trials[-1]['decode_tok_s']:.1f} tok/s, prefill {trials[-1]['prefill_tok_s']:.0f} tok/s")
    best = settings[max(range(len(trials)), key=lambda i: trials[i]["decode_tok_s"])]

    ours, theirs = run_proa(args, 16)["token_ids"], run["token_ids"][:17]
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), len(theirs))
    if same < 4:
        sys.exit(f"the answers differ from token {same} on, so their speeds are not compared: {ours} and {theirs}")

    rounds = []
    for number in range(args.rounds):
        proa, peer = run_proa(args, args.decode), run_llama_cpp(args, best, args.decode)
        rounds.append({
            "proa_decode_tok_s": speed(proa, "decode"), "llama_cpp_decode_tok_s": speed(peer, "decode"),
            "proa_prefill_tok_s": speed(proa, "prefill"), "llama_cpp_prefill_tok_s": speed(peer, "prefill"),
            "proa_load_s": proa["load_s"], "llama_cpp_load_s": peer["load_s"], "proa_first_byte_s": first_byte_seconds(args),
        })
        r = rounds[-1]
        say(f"round {number + 1}: decode {r['proa_decode_tok_s']:.1f} / {r['llama_cpp_decode_tok_s']:.1f} tok/s, "
            f"first byte {r['proa_first_byte_s']:.3f} s")

    def ratio(phase):
        return spread([r[f"proa_{phase}_tok_s"] / r[f"llama_cpp_{phase}_tok_s"] for r in rounds])

    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "model": pathlib.Path(args.model).name, "cpu": cpu, "cores": cores, "commit": commit,
        "llama_cpp_python": run["version"], "llama_cpp_system_info": run["system_info"], "llama_cpp_trials": trials,
        "llama_cpp_setting": {**best, "kv": "F16"}, "prompt_tokens": run["prefill_tokens"], "decode_tokens": args.decode,
        "same_greedy_tokens_of_17": same, "decode_ratio": ratio("decode"), "prefill_ratio": ratio("prefill"),
        **{name: spread([r[name] for r in rounds]) for name in rounds[0]}, "rounds": rounds,
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['model']}, {cpu}, {cores} cores, commit {commit}, llama-cpp-python {run['version']} {result['llama_cpp_setting']}")
    print(f"llama.cpp: {run['system_info']}")
    print(f"{'':28}{'median':>10}{'min':>10}{'max':>10}")
    for name in ("decode_ratio", "prefill_ratio", *rounds[0]):
        print(f"{name:28}" + "".join(f"{result[name][key]:10.3f}" for key in ("median", "min", "max")))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        child(json.loads(sys.argv[2]))
    else:
        main()
