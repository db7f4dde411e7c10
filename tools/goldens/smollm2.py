#!/usr/bin/env python3
"""Makes tests/goldens/smollm2/: what llama.cpp computes for SmolLM2-135M-Instruct (Q4_1).

  pip install llama-cpp-python==0.3.36 gguf numpy safetensors
  tools/goldens/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf       (about 3 minutes on 2 cores, 1 GB of disk in /tmp)

Reads   tests/goldens/smollm2/prompts.json   20 prompts written for this purpose
        tests/goldens/smollm2/text.txt       20 kB in several languages, the perplexity text
Writes  tests/goldens/smollm2/goldens.json          settings, token ids, greedy continuations, perplexity, noise
        tests/goldens/smollm2/goldens.safetensors   the logits of selected positions

Two goldens of one model
  llama.cpp multiplies a Q4_1 or Q8_0 weight by an activation that it first rounds to 8 bits per block of 32. Which way
  a value rounds depends on the last bit of everything before it, so two runs of llama.cpp itself on the same file
  (another attention kernel, another batch size) differ by a mean KL of several 1e-3: no program can be closer to such
  a golden than that without repeating its arithmetic bit for bit. Hence two goldens:
    file     the file as it is, activations rounded to 8 bits by llama.cpp. Its noise is recorded.
    weights  the same weights, value by value, written out as F32 (Q4_1 and Q8_0 decode exactly), so that nothing but
             the weights is rounded. Its noise is a million times smaller. This is the number the model has.
  Base settings of both: F32 KV, flash attention off, whole prompt in one batch, 2 threads.

Selected positions ("rows"): 0, 16, 32, ... and the last of each prompt, prompts in their order.

Which logits are kept, and why that is enough
  All 49,152 logits of a row as F32 are 197 kB, ten times too many for a file in the tree. Kept are, by rank, the 512
  largest and then every 64th of the 48,640 others, with logsumexp over the whole vocabulary. With golden P and program
  under test Q,
    KL(P || Q) = sum over tokens of  p log(p / q) - p + q
  because p and q each sum to 1; every term is at least 0 and about p (log(p / q))^2 / 2, so terms of neighbouring ranks
  are alike and one of 64 stands for all: KL ~ sum over the 512 + 64 * sum over the 760. The script computes both sides for
  each of its pairs of runs and stops unless the means agree within 1 %. (Simply dropping the others, or putting
  them into one bucket, loses 5-7 %.) Two rows are kept in full, so that the test can check this too.

Greedy: 64 tokens after each prompt, also past end-of-text; per step the two best ids and logits. The prompts advance side
by side, one token each per batch. To compare, feed the golden's tokens and look at each step's best; it may differ only
where the golden's gap is below the noise (`logit_diff_max` of the golden's pairs).

Perplexity: text.txt is tokenized once, without special tokens, and cut into windows of 512 tokens (the last is shorter).
Each window starts from an empty context, without BOS; every token but a window's first is scored given those before it
in the window. perplexity = exp(nll / scored).
"""
import argparse
import ctypes
import hashlib
import json
import pathlib
import platform
import sys
import tempfile

import gguf
import llama_cpp as lc
import numpy as np
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOP = 512
TAIL_STEP = 64
STRIDE = 16
STEPS = 64
WINDOW = 512
FULL_ROWS = 2
F32_KV = dict(type_k=0, type_v=0)  # ggml's numbers of the types F32 and F16
F16_KV = dict(type_k=1, type_v=1)
# Name of a setting -> (context parameters, tokens per batch). The first is the golden. (The number of threads is not
# among them: it changes no bit.)
SETTINGS = {
    "base": (dict(flash_attn_type=0, **F32_KV), WINDOW),
    "batch_1": (dict(flash_attn_type=0, **F32_KV), 1),
    "kv_f16": (dict(flash_attn_type=0, **F16_KV), WINDOW),
    "flash_attn_kv_f16": (dict(flash_attn_type=1, **F16_KV), WINDOW),
}


class Model:
    def __init__(self, path):
        self.model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
        if not self.model:
            sys.exit(f"{path}: llama.cpp cannot load it")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.vocab_size = lc.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text, special):
        data = text.encode()
        ids = (lc.llama_token * (len(data) + 8))()
        count = lc.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, special)
        return list(ids[:count])

    def context(self, setting, num_seqs=1):
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024 * num_seqs, WINDOW, WINDOW
        params.n_seq_max = num_seqs
        params.n_threads = params.n_threads_batch = 2
        overrides, batch_size = SETTINGS[setting]
        for key, value in overrides.items():
            setattr(params, key, value)
        return Context(lc.llama_init_from_model(self.model, params), self.vocab_size, batch_size)


class Context:
    def __init__(self, handle, vocab_size, batch_size):
        self.handle, self.vocab_size, self.batch_size = handle, vocab_size, batch_size

    def clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.handle), True)

    def decode_batch(self, tokens):
        """Logits [len(tokens), vocab_size] of (token id, position, sequence) each."""
        batch = lc.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, 1
        if lc.llama_decode(self.handle, batch) != 0:
            sys.exit("llama_decode failed")
        lc.llama_batch_free(batch)
        return np.ctypeslib.as_array(lc.llama_get_logits(self.handle), (len(tokens), self.vocab_size)).copy()

    def decode(self, ids, sequence=0):
        """Logits [len(ids), vocab_size] of a sequence's first tokens."""
        tokens = [(token, position, sequence) for position, token in enumerate(ids)]
        return np.concatenate([self.decode_batch(tokens[start:start + self.batch_size])
                               for start in range(0, len(tokens), self.batch_size)])


def write_f32_twin(source, target):
    """The same metadata and the same weights, every tensor decoded to F32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = 0 if key == "general.file_type" else field.contents()
        sub_type = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def log_softmax(logits):
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def full_kl(p, q):
    """Per row, in nats, over the whole vocabulary."""
    p, q = log_softmax(p), log_softmax(q)
    return (np.exp(p) * (p - q)).sum(-1)


def kept_ids(logits):
    """Per row the ids kept [num_rows, TOP + rest / TAIL_STEP], and their weights in a sum over the vocabulary."""
    order = np.argsort(-logits, -1, kind="stable")
    tail = order[:, TOP + TAIL_STEP // 2::TAIL_STEP]
    return np.concatenate([order[:, :TOP], tail], -1), np.repeat([1, TAIL_STEP], [TOP, tail.shape[-1]])


def kept_kl(p, q):
    """Per row, from the kept tokens of p alone."""
    ids, weights = kept_ids(p)
    p, q = (np.take_along_axis(log_softmax(x), ids, -1) for x in (p, q))
    return ((np.exp(p) * (p - q) - np.exp(p) + np.exp(q)) * weights).sum(-1)


def compare(p, q):
    """How far run q is from run p, logits [num_rows, vocab_size] each."""
    full, kept = full_kl(p, q), kept_kl(p, q)
    # A constant added to a row's logits changes nothing, so it is taken out.
    centred = (p - p.mean(-1, keepdims=True)) - (q - q.mean(-1, keepdims=True))
    return {
        "kl_mean": float(full.mean()), "kl_median": float(np.median(full)), "kl_max": float(full.max()),
        "kl_mean_of_kept": float(kept.mean()),
        "logit_diff_max": float(np.abs(centred).max()), "logit_diff_mean": float(np.abs(centred).mean()),
        "rows_with_other_best": int((p.argmax(-1) != q.argmax(-1)).sum()), "rows": len(p),
    }


def greedy(context, prompts):
    """Per prompt: STEPS best tokens after it, each with the runner-up, both logits."""
    names = ("token_ids", "second_ids", "best_logits", "second_logits")
    results = [{name: [] for name in names} for _ in prompts]
    logits = [context.decode(prompt["token_ids"], i)[-1] for i, prompt in enumerate(prompts)]
    for step in range(STEPS):
        for result, row in zip(results, logits):
            second, best = (int(i) for i in np.argsort(row, kind="stable")[-2:])
            for name, value in zip(names, (best, second, round(float(row[best]), 5), round(float(row[second]), 5))):
                result[name].append(value)
        logits = context.decode_batch([(result["token_ids"][-1], len(prompt["token_ids"]) + step, i)
                                       for i, (prompt, result) in enumerate(zip(prompts, results))])
    return results


def perplexity(context, ids):
    nll, scored = [], 0
    for start in range(0, len(ids), WINDOW):
        window = ids[start:start + WINDOW]
        context.clear()
        log_probs = log_softmax(context.decode(window)[:-1])
        nll.append(float(-log_probs[np.arange(len(window) - 1), window[1:]].sum()))
        scored += len(window) - 1
    return {"nll": sum(nll), "scored": scored, "perplexity": float(np.exp(sum(nll) / scored)), "window_nll": nll}


def selected_rows(context, prompts):
    rows = []
    for prompt in prompts:
        context.clear()
        rows.append(context.decode(prompt["token_ids"])[prompt["positions"]])
    return np.concatenate(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=pathlib.Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/goldens/smollm2")
    args = parser.parse_args()
    silent = lc.llama_log_callback(lambda level, text, user: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))

    models = {"file": Model(args.gguf)}
    with tempfile.TemporaryDirectory() as folder:
        twin = pathlib.Path(folder) / "f32.gguf"
        write_f32_twin(args.gguf, twin)
        models["weights"] = Model(twin)  # stays mapped after the file's name is gone

    model = models["file"]
    prompts = json.loads((args.out / "prompts.json").read_text())
    for prompt in prompts:
        ids = prompt["token_ids"] = model.tokenize(prompt["text"], special=True)
        prompt["positions"] = sorted({*range(0, len(ids), STRIDE), len(ids) - 1})
    text_ids = model.tokenize((args.out / "text.txt").read_text(), special=False)

    tensors, runs, scores = {}, {}, {}
    for golden, model in models.items():
        for setting in SETTINGS:
            print(f"{golden} {setting}", file=sys.stderr, flush=True)
            context = model.context(setting)
            runs[golden, setting] = selected_rows(context, prompts)
            if setting != "batch_1":  # 6,000 batches of one token say no more than those of the prompts
                scores[golden, setting] = perplexity(context, text_ids)
            lc.llama_free(context.handle)
        print(f"{golden} greedy", file=sys.stderr, flush=True)
        context = model.context("base", len(prompts))
        for prompt, steps in zip(prompts, greedy(context, prompts)):
            prompt.setdefault("greedy", {})[golden] = steps
        lc.llama_free(context.handle)
        logits = runs[golden, "base"]
        ids, _ = kept_ids(logits)
        peak = logits.max(-1, keepdims=True).astype(np.float64)
        tensors[f"{golden}.kept_ids"] = ids.astype(np.int32)
        tensors[f"{golden}.kept_logits"] = np.take_along_axis(logits, ids, -1)
        tensors[f"{golden}.logsumexp"] = (np.log(np.exp(logits - peak).sum(-1)) + peak[:, 0]).astype(np.float32)
    full_rows = np.linspace(0, len(logits) - 1, FULL_ROWS + 2).astype(np.int32)[1:-1]
    tensors["full_rows"] = full_rows
    tensors["weights.full_logits"] = runs["weights", "base"][full_rows]
    tensors["text_ids"] = np.array(text_ids, np.int32)

    noise = {golden: {setting: compare(runs[golden, "base"], runs[golden, setting]) for setting in list(SETTINGS)[1:]}
             for golden in models}
    noise["file_against_weights"] = {"base": compare(runs["weights", "base"], runs["file", "base"])}
    for name, pairs in noise.items():
        for setting, pair in pairs.items():
            if abs(pair["kl_mean_of_kept"] - pair["kl_mean"]) > 0.01 * pair["kl_mean"] + 1e-9:
                sys.exit(f"{name} {setting}: KL of the kept tokens is more than 1 % off: {pair}")

    result = {
        "about": "Made by tools/goldens/smollm2.py, which also says what each field means.",
        "model": {"file": args.gguf.name, "sha256": hashlib.sha256(args.gguf.read_bytes()).hexdigest()},
        "made_with": {
            "llama_cpp_python": lc.__version__, "system_info": lc.llama_print_system_info().decode().strip(),
            "machine": platform.machine(), "settings": {k: {**p, "batch": b} for k, (p, b) in SETTINGS.items()},
            "command": "tools/goldens/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf",
        },
        "tensors": {
            "file.kept_ids, weights.kept_ids": "I32 [num_rows, 512 + 760], best first",
            "file.kept_logits, weights.kept_logits": "F32 [num_rows, 512 + 760]",
            "file.logsumexp, weights.logsumexp": "F32 [num_rows], over the whole vocabulary",
            "full_rows": "I32 [2], the rows kept in full", "weights.full_logits": "F32 [2, vocab_size]",
            "text_ids": "I32 [num_tokens], text.txt",
        },
        "perplexity": {golden: {s: scores[golden, s] for s in SETTINGS if (golden, s) in scores} for golden in models},
        "noise": noise,
        "prompts": prompts,
    }
    save_file(tensors, args.out / "goldens.safetensors")
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (args.out / "goldens.json").write_text(compact(text) + "\n")
    print(json.dumps(noise, indent=1))
    print({golden: {s: r["perplexity"] for s, r in by.items()} for golden, by in result["perplexity"].items()})


def compact(text):
    """Puts arrays of numbers on one line."""
    lines, row = [], None
    for line in text.split("\n"):
        word = line.strip()
        if row is not None:
            row += word if word.startswith("]") or row.endswith("[") else " " + word
            if word.startswith("]"):
                lines.append(row)
                row = None
        elif word.endswith("[") and word != '"prompts": [':
            row = line
        else:
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
