#!/usr/bin/env python3
"""Speed of proa against llama.cpp on the same GGUF file and the same cores, run A-B-A-B as processes.

  pip install llama-cpp-python==0.3.36
  tools/peers/llama_cpp.py SmolLM2-135M-Instruct.Q4_1.gguf
  tools/peers/llama_cpp.py MODEL.gguf --rounds 9 --prefill 256 --decode 256 --cpus 0,1 --output result.json
  tools/peers/llama_cpp.py MODEL.gguf --ours run        # by a text and `proa run`, in place of token ids and `proa bench`

First the answers: llama.cpp is given the tokens that proa drew and must find each of them likeliest, or within a small part
of the spread of its logits of the likeliest, since it rounds activations to 8 bits. A fast wrong answer is no result. Prompts
are token ids, so files with random weights serve as well.

Then the settings of llama.cpp are tried one after the other (threads, flash attention, mapping, repacking of weights, size of
a micro-batch), and the fastest for prefill and the fastest for decode, each for itself, are the peer from there on; proa runs
with as many threads as there are cores and no other setting. Both warm up before they are timed. Each round runs proa, then
llama.cpp, each in a process of its own; before each the file must be mapped by no process else, so that a file that fills
the memory is held once. Settings of llama.cpp that copy the weights are left out where the copy and the file do not fit.

Reported: prefill and decode tok/s of both, their ratio per round with median, min and max, and the wall time from the start
of the process proa to the first byte of its answer. llama.cpp decodes by its C interface with greedy choice over the logits,
without its sampler chain, tokenizer or text output in the measured loop, so nothing of Python but one argmax per token is
counted; that argmax is also measured and subtracted.
"""
import argparse
import ctypes
import glob
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
SHORT_PROMPT = 8  # tokens before decode, as in `proa bench`
CHECKED = 16  # tokens of the answer
# How far below llama.cpp's best logit a token of ours may be, in standard deviations of its logits. Activations rounded to
# 8 bits move logits by about a tenth of that; a wrong token is some 4 below.
NOISE = 0.5
SHOWN = ("threads", "flash_attn", "mmap", "repack", "ubatch")


# --- llama.cpp, in a process of its own ---

def random_ids(count, size):
    """The prompt of `proa bench`: splitmix64 over seed 0, sequence 0."""
    mask, counter, ids = 2**64 - 1, 0x9E3779B97F4A7C15, []
    for _ in range(count):
        counter = (counter + 0x9E3779B97F4A7C15) & mask
        x = ((counter ^ counter >> 30) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
        ids.append((x ^ x >> 31) % size)
    return ids


class Peer:
    def __init__(self, request, context_tokens):
        sys.path.pop(0)  # the folder of this file, whose name is the library's
        import llama_cpp as lc
        import numpy as np
        self.lc, self.np, setting = lc, np, request["setting"]
        self.silent = lc.llama_log_callback(lambda level, text, user: None)
        lc.llama_log_set(self.silent, ctypes.c_void_p(0))
        started = time.perf_counter()
        params = lc.llama_model_default_params()
        params.load_mode = lc.LLAMA_LOAD_MODE_MMAP if setting["mmap"] else lc.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = bool(setting["repack"])
        params.n_gpu_layers = request["gpu_layers"]
        self.model = lc.llama_model_load_from_file(request["model"].encode(), params)
        if not self.model:
            sys.exit(f"{request['model']}: llama.cpp cannot load it")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.size = lc.llama_vocab_n_tokens(self.vocab)
        params = lc.llama_context_default_params()
        params.n_ctx = -(-context_tokens // 256) * 256
        params.n_batch = max(512, context_tokens)
        params.n_ubatch = setting["ubatch"]
        params.n_threads = params.n_threads_batch = setting["threads"]
        params.flash_attn_type = setting["flash_attn"]
        self.context = lc.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"{request['model']}: llama.cpp makes no context of {params.n_ctx} tokens")
        self.load_s = time.perf_counter() - started
        self.batch = lc.llama_batch_init(params.n_batch, 0, 1)
        self.choosing = 0.0

    def tokenize(self, text):
        ids = (self.lc.llama_token * (len(text) + 8))()
        count = self.lc.llama_tokenize(self.vocab, text, len(text), ids, len(ids), False, True)
        return list(ids[:count])

    def forget(self):
        self.lc.llama_memory_clear(self.lc.llama_get_memory(self.context), True)

    def logits(self, tokens, position):
        """Of the last of tokens, which begin at a position."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position + i, 1, 0
            batch.logits[i] = int(i + 1 == len(tokens))
        if self.lc.llama_decode(self.context, batch) != 0:
            sys.exit("llama_decode failed")
        return self.np.ctypeslib.as_array(self.lc.llama_get_logits_ith(self.context, len(tokens) - 1), (self.size,))

    def step(self, tokens, position):
        logits = self.logits(tokens, position)
        begin = time.perf_counter()
        best = int(logits.argmax())
        self.choosing += time.perf_counter() - begin
        return best


def child(request):
    """One run of llama.cpp in this process; prints a JSON object."""
    text = request.get("text")
    room = (len(text.encode()) if text else max(request["prefill"], SHORT_PROMPT)) + request["decode"] + CHECKED + 8
    peer = Peer(request, room)
    if text:
        long = short = peer.tokenize(text.encode())
    else:
        long, short = random_ids(request["prefill"], peer.size), random_ids(SHORT_PROMPT, peer.size)
    result = {"load_s": peer.load_s, "version": peer.lc.__version__,
              "system_info": peer.lc.llama_print_system_info().decode().strip()}

    if request.get("forced"):  # tokens of another program: is each the best here, or how far from it
        behind, logits = [], peer.logits(short, 0)
        for i, token in enumerate(request["forced"]):
            behind.append(float((logits.max() - logits[token]) / logits.std()))
            logits = peer.logits([token], len(short) + i)
        result.update(behind=behind, prompt_tokens=len(short))
        print(json.dumps(result))
        return

    peer.step([peer.step(long, 0)], len(long))  # warm up
    peer.forget()
    started = time.perf_counter()
    token = peer.step(long, 0)
    result.update(prefill_tokens=len(long), prefill_s=time.perf_counter() - started)
    if short != long:
        peer.forget()
        token = peer.step(short, 0)
    answer, peer.choosing, started = [token], 0.0, time.perf_counter()
    for i in range(request["decode"]):
        answer.append(peer.step([answer[-1]], len(short) + i))
    result.update(decode_tokens=request["decode"], decode_s=time.perf_counter() - started - peer.choosing, token_ids=answer)
    print(json.dumps(result))


# --- the two programs as processes ---

def holders(path):
    """Processes that have the file mapped."""
    found = []
    for maps in glob.glob("/proc/[0-9]*/maps"):
        try:
            if path in pathlib.Path(maps).read_text():
                found.append(int(maps.split("/")[2]))
        except OSError:  # ended meanwhile, or somebody else's
            pass
    return found


def alone(args):
    """Waits until nobody holds the file: two copies of what fills the memory would both be read from disk."""
    for _ in range(100):
        if not (found := holders(args.path)):
            return
        time.sleep(0.1)
    sys.exit(f"{args.model} is mapped by process {', '.join(map(str, found))}: end it first")


def run_llama_cpp(args, setting, decode, **more):
    alone(args)
    request = {"model": args.path, "setting": setting, "prefill": args.prefill, "decode": decode,
               "gpu_layers": args.gpu_layers, "text": args.prompt if args.ours == "run" else None, **more}
    done = subprocess.run([args.python, __file__, "--child", json.dumps(request)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"llama.cpp failed: {done.stderr.strip()[-2000:]}\nIs llama-cpp-python installed for {args.python}? See --python.")
    return json.loads(done.stdout)


def call_proa(args, command):
    alone(args)
    done = subprocess.run([args.proa, *command, "--threads", str(args.threads)], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"proa failed: {done.stderr.strip() or done.stdout.strip()[-2000:]}")
    return json.loads(done.stdout)


def run_proa(args, decode, ours):
    """The same keys as of llama.cpp."""
    if ours == "run":
        answer = call_proa(args, ["run", args.path, "--raw", "-p", args.prompt, "--temperature", "0", "--max-tokens",
                                  str(decode + 1), "--ignore-eos", "--json"])
        return {**answer["timings"], "token_ids": answer["token_ids"]}
    report = call_proa(args, ["bench", args.path, "--input-len", str(args.prefill), "--output-len", str(decode), "--num-iters",
                              "1", "--no-check", "--probe-seconds", "0", "--json"])
    rows = {row["what"]: row for row in report["rows"]}
    result = {"load_s": rows["load"]["seconds"][0], "token_ids": rows["decode"].get("token_ids", [])}
    for phase in ("prefill", "decode"):
        result[f"{phase}_tokens"], result[f"{phase}_s"] = rows[phase]["num_tokens"], rows[phase]["seconds"][0]
    return result


def first_byte_seconds(args):
    """From the start of the process to the first byte of a streamed answer."""
    alone(args)
    command = [args.proa, "run", args.path, "--raw", "-p", "What is gravity?", "--temperature", "0", "--max-tokens", "8",
               "--ignore-eos", "--threads", str(args.threads)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0) as process:
        process.stdout.read(1)
        elapsed = time.perf_counter() - started
        process.stdout.read()
    return elapsed


# --- what is compared, and how ---

def speed(run, phase):
    return run[f"{phase}_tokens"] / run[f"{phase}_s"]


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def shown(setting):
    return " ".join(f"{name}={setting[name]}" for name in SHOWN)


def say(text):
    print(text, file=sys.stderr, flush=True)


def available_bytes():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            return int(line.split()[1]) * 1024
    return 0


def check_answers(args, setting):
    """llama.cpp on the tokens of proa."""
    ours, text = run_proa(args, CHECKED, args.ours)["token_ids"][:CHECKED], None
    if args.ours == "run" or not ours:  # a bench that does not name its tokens: by a text
        text = args.prompt
        ours = ours or run_proa(args, CHECKED, "run")["token_ids"][:CHECKED]
    if len(ours) < 4:
        sys.exit(f"proa named {len(ours)} tokens of its answer: nothing can be checked, so no speeds are compared")
    behind = run_llama_cpp(args, setting, 0, forced=ours, text=text)["behind"]
    best = sum(value == 0 for value in behind)
    say(f"answers: of {len(ours)} tokens of proa {best} are llama.cpp's best, the furthest is {max(behind):.3f} deviations behind")
    if max(behind) > NOISE or 2 * best < len(ours):
        sys.exit(f"the answers differ, so their speeds are not compared: tokens {ours}, deviations behind llama.cpp's best "
                 f"{[round(value, 3) for value in behind]}")
    return {"tokens": len(ours), "best": best, "furthest_behind": max(behind)}


def choose_settings(args, cores):
    """The fastest setting for each phase, all trials, and what was left out. One setting is changed at a time."""
    copies_fit = 2.2 * os.path.getsize(args.path) < available_bytes()
    start = {"threads": cores, "flash_attn": 0, "mmap": 1, "repack": int(copies_fit), "ubatch": 512}
    others = [("flash_attn", 1), ("ubatch", 128), ("ubatch", 2048)]
    others += [("threads", n) for n in sorted({max(1, cores // 2), 1}) if n != cores]
    others += [("repack", 0), ("mmap", 0)] if copies_fit else []
    left_out = "" if copies_fit else "mmap=0 and repack=1: the copied weights and the file exceed the memory"
    if left_out:
        say(f"llama.cpp without {left_out}")
    trials = []

    def trial(setting):
        if done := [t for t in trials if t["setting"] == setting]:
            return done[0]
        runs = [run_llama_cpp(args, setting, min(args.decode, 64)) for _ in range(args.trials)]
        trials.append({"setting": setting, **{phase: max(speed(run, phase) for run in runs) for phase in ("prefill", "decode")}})
        say(f"llama.cpp {shown(setting)}: prefill {trials[-1]['prefill']:.1f}, decode {trials[-1]['decode']:.1f} tok/s")
        return trials[-1]

    best = {"prefill": trial(start), "decode": trial(start)}
    for name, value in others:
        for phase in best:
            if name == "ubatch" and phase == "decode":
                continue
            tried = trial({**best[phase]["setting"], name: value})
            best = {each: max(best[each], tried, key=lambda t, p=each: t[p]) for each in best}
    return {phase: t["setting"] for phase, t in best.items()}, trials, left_out


def play_round(args, best):
    """proa, then llama.cpp: two processes of it where its phases want different settings."""
    proa = run_proa(args, args.decode, args.ours)
    peers = {phase: None for phase in best}
    for phase, setting in best.items():
        peers[phase] = next((peers[p] for p in peers if peers[p] and best[p] == setting), None) or \
            run_llama_cpp(args, setting, args.decode if best["decode"] == setting else 1)
    result = {}
    for phase in ("prefill", "decode"):
        result[f"proa_{phase}_tok_s"], result[f"llama_cpp_{phase}_tok_s"] = speed(proa, phase), speed(peers[phase], phase)
    result.update(proa_load_s=proa["load_s"], llama_cpp_load_s=peers["decode"]["load_s"])
    if not args.no_first_byte:
        result["proa_first_byte_s"] = first_byte_seconds(args)
    return result, peers["decode"]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--proa", default=str(ROOT / "build/release/apps/proa"))
    parser.add_argument("--python", default=sys.executable, help="a Python with llama-cpp-python (default: this one)")
    parser.add_argument("--ours", choices=("bench", "run"), default="bench", help="the command of proa that is timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=2, help="runs of each setting of llama.cpp, the best counts (default 2)")
    parser.add_argument("--prefill", type=int, default=256, help="tokens of the prompt with --ours bench (default 256)")
    parser.add_argument("--decode", type=int, default=256, help="tokens decoded per run after the first (default 256)")
    parser.add_argument("--cpus", help="cores for both, as in 0,1 (default: all this process may use)")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers that llama.cpp computes on the GPU (999: all)")
    parser.add_argument("--prompt", default=PROMPT, help="the text with --ours run")
    parser.add_argument("--no-first-byte", action="store_true", help="do not time the first byte of an answer")
    parser.add_argument("--json", action="store_true", help="one JSON object with every run in place of the table")
    parser.add_argument("--output", help="write that JSON object to this file too")
    args = parser.parse_args()
    for name in ("rounds", "trials", "prefill", "decode"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if not os.path.isfile(args.model):
        parser.error(f"{args.model}: no such file")
    args.path = os.path.realpath(args.model)
    if args.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in args.cpus.split(",")})
    args.threads = len(os.sched_getaffinity(0))
    return args


def main():
    args = parse_arguments()
    cores = args.threads
    safe = {"threads": cores, "flash_attn": 0, "mmap": 1, "repack": 0, "ubatch": 512}
    answers = check_answers(args, safe)
    best, trials, left_out = choose_settings(args, cores)
    rounds = []
    for number in range(args.rounds):
        r, peer = play_round(args, best)
        rounds.append(r)
        say(f"round {number + 1}: " + ", ".join(
            f"{phase} {r[f'proa_{phase}_tok_s']:.1f} / {r[f'llama_cpp_{phase}_tok_s']:.1f} tok/s" for phase in best))

    def ratio(phase):
        return spread([r[f"proa_{phase}_tok_s"] / r[f"llama_cpp_{phase}_tok_s"] for r in rounds])

    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"], capture_output=True,
                            text=True).stdout.strip()
    result = {
        "model": os.path.basename(args.model), "cpu": cpu, "cores": cores, "commit": commit,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": " ".join(sys.argv), "ours": args.ours,
        "llama_cpp_python": peer["version"], "llama_cpp_system_info": peer["system_info"],
        "llama_cpp_settings": best, "llama_cpp_kv": "F16", "llama_cpp_trials": trials, "llama_cpp_left_out": left_out,
        "prefill_tokens": args.prefill if args.ours == "bench" else None, "decode_tokens": args.decode, "answers": answers,
        "prefill_ratio": ratio("prefill"), "decode_ratio": ratio("decode"),
        **{name: spread([r[name] for r in rounds]) for name in rounds[0]}, "rounds": rounds,
    }
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['model']}, {cpu}, {cores} cores, commit {commit}, llama-cpp-python {result['llama_cpp_python']}")
    for phase, setting in best.items():
        print(f"llama.cpp {phase}: {shown(setting)} kv=F16")
    print(f"llama.cpp: {result['llama_cpp_system_info']}")
    print(f"{'':28}{'median':>10}{'min':>10}{'max':>10}")
    for name in ("prefill_ratio", "decode_ratio", *rounds[0]):
        print(f"{name:28}" + "".join(f"{result[name][key]:10.3f}" for key in ("median", "min", "max")))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        child(json.loads(sys.argv[2]))
    else:
        main()
