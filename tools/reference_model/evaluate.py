"""Makes the held-out set and scores a checkpoint on it.

    python tools/reference_model/evaluate.py --model models/proa-buoy --write models/proa-buoy/held_out.jsonl
    python tools/reference_model/evaluate.py --model models/proa-buoy --report scores.json --per-cell 500

An answer counts only if every character is right. The greedy answer equals the expected one exactly if, with the
expected answer as input, the most likely token is the expected token at every position, <|im_end|> included; so one
forward pass scores a question without generating. All stations and a quarter of the phrasings are unseen in training.

`file`: the questions of held_out.jsonl, each alone after its window. `single`: more of these. `chat`: the same kinds
of questions one after another in one conversation per window, in random order, right answers in the history.
"""

import argparse
import collections
import json
import math
import multiprocessing
import pathlib
import time

import numpy as np
import tokenizers
from generator import KINDS, LANGUAGES, conversation
from train import encode

SEED = 20_000_003  # training seeds are small
FILE_PER_CELL = 40  # questions per kind and language in held_out.jsonl: 13 x 6 x 40 = 3,120


def held_out(mode, index, seed=SEED):
    """The conversation of one window: (system, turns). Window `index` is asked in language index % 6."""
    rng = np.random.default_rng([seed, mode == "chat", index])
    rows = int(rng.integers(24, 31) if rng.random() < 0.8 else rng.integers(31, 73))
    kinds = [KINDS[i] for i in rng.permutation(len(KINDS))]
    return conversation(rng, rows, len(kinds), seed == SEED, kinds, LANGUAGES[index % 6], before=0)


def split(system, turns):
    """Each turn of a conversation as the first one after the window."""
    head, mark, first = turns[0][2].rpartition("\n\n")
    head += mark
    for i, (kind, language, question, answer, unseen) in enumerate(turns):
        yield system, [(kind, language, head + (question if i else first), answer, unseen)]


def write_file(path, windows=6 * FILE_PER_CELL, seed=SEED):
    with open(path, "w") as out:
        for index in range(windows):
            system, turns = held_out("single", index, seed)
            content = turns[0][2].rpartition("\n\n")
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": content[0] + content[1] + "{question}"})
            questions = [
                {"kind": kind, "language": language, "question": question if i else content[2], "answer": answer,
                 "unseen_phrasing": bool(unseen)}
                for i, (kind, language, question, answer, unseen) in enumerate(turns)
            ]  # fmt: skip
            line = {"id": index, "messages": messages, "questions": questions}
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def prepare(job):
    """Token sequences of one window: (ids, [(kind, language, begin, end, unseen, answer)])."""
    tokenizer_file, mode, index = job
    tokenizer = tokenizers.Tokenizer.from_file(tokenizer_file)
    system, turns = held_out(mode, index)
    out = []
    for s, t in split(system, turns) if mode != "chat" else [(system, turns)]:
        ids, _, spans = encode(tokenizer, s, t)
        out.append((np.array(ids, np.int32), [(*x, turn[4], turn[3]) for x, turn in zip(spans, t)]))
    return out


def score(model, device, sequences, tokens_per_batch=65536):
    """Yields (kind, language, right, unseen, answer) of every question."""
    import torch

    for length in (2048, 4096):
        group = [s for s in sequences if (len(s[0]) <= 2048) == (length == 2048)]
        count = tokens_per_batch // length if device == "cuda" else 4
        for i in range(0, len(group), count):
            batch = np.zeros((count, length), np.int64)
            for row, (ids, _) in zip(batch, group[i : i + count]):
                row[: len(ids)] = ids[:length]
            ids = torch.from_numpy(batch).to(device)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                guess = model(ids).detach().argmax(-1)
            good = (guess[:, :-1] == ids[:, 1:]).cpu().numpy()  # good[:, t - 1] judges token t
            for row, (ids, spans) in zip(good, group[i : i + count]):
                for kind, language, begin, end, unseen, answer in spans:
                    if end <= length:
                        yield kind, language, bool(row[begin - 1 : end - 1].all()), unseen, answer


def summarise(results):
    cells = collections.defaultdict(list)
    for kind, language, right, unseen, answer in results:
        cells[kind, language].append((right, unseen, answer))
    table = {}
    for (kind, language), rows in sorted(cells.items()):
        answers = collections.Counter(a for _, _, a in rows)
        n = len(rows)
        new = [right for right, unseen, _ in rows if unseen]
        table[f"{kind}/{language}"] = {
            "questions": n,
            "exact": sum(r for r, _, _ in rows) / n,
            "exact_unseen_phrasing": sum(new) / max(len(new), 1),
            "majority": max(answers.values()) / n,
            "entropy_bits": -sum(c / n * math.log2(c / n) for c in answers.values()),
        }
    return table


def show(table, key="exact"):
    print(f"{key:22}" + "".join(f"{language:>8}" for language in LANGUAGES))
    for kind in KINDS:
        print(f"{kind:22}" + "".join(f"{100 * table[f'{kind}/{language}'][key]:8.2f}" for language in LANGUAGES))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder with tokenizer.json and weights")
    parser.add_argument("--weights", type=pathlib.Path, help="default: model.safetensors in --model")
    parser.add_argument("--write", type=pathlib.Path, help="write the held-out file and stop")
    parser.add_argument("--write-calibration", type=pathlib.Path, help="12 windows as in training, for proa quantize")
    parser.add_argument("--report", type=pathlib.Path)
    parser.add_argument("--per-cell", type=int, default=FILE_PER_CELL, help="single questions per kind and language")
    parser.add_argument("--chat-per-cell", type=int, default=0)
    parser.add_argument("--fp8-cache", action="store_true", help="also with keys and values rounded to E4M3")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.write:
        return write_file(args.write)
    if args.write_calibration:
        return write_file(args.write_calibration, 12, 1)

    import torch
    from model import NemotronH, load_exported
    from safetensors.torch import load_file

    begin = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = NemotronH()
    load_exported(model, load_file(args.weights or args.model / "model.safetensors"))
    model = model.to(device)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        for layer in model.backbone.layers:
            layer.compile(dynamic=False)
    else:
        torch.set_grad_enabled(False)
    report = {}
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for mode, count in (("file", FILE_PER_CELL), ("single", args.per_cell), ("chat", args.chat_per_cell)):
            if not count:
                continue
            if mode == "single" and count == FILE_PER_CELL:
                continue
            jobs = [(str(args.model / "tokenizer.json"), mode, i) for i in range(6 * count)]
            sequences = [s for window in pool.imap(prepare, jobs, 32) for s in window]
            for fp8 in (False, True)[: 1 + args.fp8_cache]:
                model.set_fp8_cache(fp8)
                name = f"{mode}, FP8 cache" if fp8 else mode
                report[name] = table = summarise(score(model, device, sequences))
                asked = sum(c["questions"] for c in table.values())
                right = sum(c["questions"] * c["exact"] for c in table.values())
                print(f"\n{name}: {100 * right / asked:.2f} % of {asked} questions, {time.time() - begin:.0f} s")
                for key in ("exact", "exact_unseen_phrasing", "majority"):
                    show(table, key)
                print(f"lowest cell {min(c['exact'] for c in table.values()):.4f}, "
                      f"largest majority {max(c['majority'] for c in table.values()):.3f}, entropy "
                      f"{min(c['entropy_bits'] for c in table.values()):.1f} bits or more", flush=True)  # fmt: skip
    if args.report:
        args.report.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
