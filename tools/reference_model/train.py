"""Trains proa-buoy; saves and resumes exactly.

    python tools/reference_model/train.py --tokenizer models/proa-buoy/tokenizer.json --out run --steps 13000

Everything follows from --seed and --steps: batch i is made from (seed, i) by worker processes, the optimizer has no
randomness. --stop-after ends a run early (seconds); the next run with the same arguments goes on from the state in
--state. With --check-steps a run goes on a little after saving, and the next one prints both losses of those steps.

Where time is what is given, leave --steps out: the rate of learning is held until a run with --last finds from its
time per step how many steps fit before --stop-after. It prints them; given as --steps and --decay-from they repeat it.
"""

import argparse
import csv
import hashlib
import multiprocessing
import os
import pathlib
import re
import time

import numpy as np
import tokenizers
from generator import KEYS, conversation, pieces

SHORT, LONG = (32, 2048), (16, 4096)  # sequences, tokens
LONG_EVERY = 5
LATE = 6310  # first batch of the second half: harder kinds more often, looser phrasings
REST_WEIGHT = 0.02  # of the loss on everything that is not an answer
PEAK_LR, WARMUP, DECAY, WEIGHT_DECAY = 3e-3, 200, 0.4, 0.05  # DECAY: last share of the steps, linear to zero
BALANCE = 1e-3
TALLY_AFTER, TALLY_WEIGHT = 11, 0.1  # layers below the tally's tap (two attention layers lie above), its loss
MOST_EQUAL, MOST_BEYOND = 12, 32  # classes of the tally
MOST_READINGS = 16 * 72 * 8  # of a batch
PROBE, SAFETY = 240, 0.975  # steps that tell the time per step, the first quarter apart; share of the time left to fill
FP8_FROM = 1 / 6  # of the decay: from there on every other batch rounds keys and values as an FP8 cache does
READING = re.compile(r"^\d\d:\d\d" + "".join(rf" {c}([\d.]+|--)" for c in KEYS) + r"(?=\n|<)", re.MULTILINE)
LIMIT = re.compile(r"(\w+)(>=|<)([\d.]+)")


def tallies(text):
    """(place behind it, equal, beyond) of every reading in the window of `text`, missing ones left out.

    equal: how many readings of its channel up to this one are the same, one after another. beyond: how many readings of
    its channel up to this one are beyond the limit; None without a limit.
    """
    rows = list(READING.finditer(text))
    if not rows:
        return
    limits = {c: (sense, float(v)) for c, sense, v in LIMIT.findall(text[: rows[0].start()].rpartition("limits ")[2])}
    for i, channel in enumerate(KEYS, 1):
        sense, limit = limits.get(channel, (None, 0))
        before, equal, beyond = None, 0, 0
        for row in rows:
            v = row[i]
            equal, before = equal + 1 if v == before else 1, v
            if v != "--":
                beyond += float(v) >= limit if sense == ">=" else float(v) < limit
                yield row.end(i), equal, beyond if sense else None


def encode(tokenizer, system, turns, marks=None):
    """Token ids of a conversation and which of them belong to answers; also (kind, language, begin, end) of those.

    `marks` gets (token, equal, beyond) of every reading, see `tallies`.
    """
    parts = list(pieces(system, turns))
    ids, is_answer, spans = [], [], []
    for (text, kind, language), part in zip(parts, tokenizer.encode_batch([text for text, _, _ in parts])):
        if kind:
            spans.append((kind, language, len(ids), len(ids) + len(part.ids)))
        elif marks is not None and (tally := list(tallies(text))):
            last = {end: token for token, (_, end) in enumerate(part.offsets)}  # every digit is a token
            marks += [(len(ids) + last[end], equal, beyond) for end, equal, beyond in tally]
        ids += part.ids
        is_answer += [kind is not None] * len(part.ids)
    return ids, is_answer, spans


def shape(index):
    """(sequences, tokens, ((share, fewest, most readings of a window), …)) of batch `index`.

    Windows grow: with few readings to look through, looking things up is learned sooner, and more questions fit.
    """
    if index < 2000:
        return *SHORT, ((1.0, 10, 14),)
    if index < 3000:
        return *SHORT, ((0.5, 10, 14), (0.5, 14, 24))
    if index % LONG_EVERY < LONG_EVERY - 1:
        return *SHORT, ((0.25, 10, 23), (0.75, 24, 30))
    return *LONG, ((0.25, 24, 40), (0.75, 40, 72))


def make_batch(tokenizer, seed, index):
    """Ids [b, l + 1] and answer flags [b, l + 1]: one conversation per row, cut where the row is full.

    Also [MOST_READINGS, 3]: where in [b, l] a reading ends and the classes of its tally, -1 where there is none.
    """
    count, length, windows = shape(index)
    ids, flags = np.zeros((count, length + 1), np.int32), np.zeros((count, length + 1), bool)
    tally, used = np.zeros((MOST_READINGS, 3), np.int32), 0
    tally[:, 1:] = -1
    for j in range(count):
        rng = np.random.default_rng([seed, index, j])
        _, low, high = windows[rng.choice(len(windows), p=[share for share, _, _ in windows])]
        rows = int(rng.integers(low, high + 1))
        row, flag = [], []
        turns = (length - 50 * rows - 110) // 38 + 4
        while len(row) <= length:
            rng = np.random.default_rng([seed, index, j, turns])
            marks = []
            row, flag, _ = encode(tokenizer, *conversation(rng, rows, turns, late=index >= LATE), marks)
            turns += 8
        ids[j], flags[j] = row[: length + 1], flag[: length + 1]
        for token, equal, beyond in marks:
            if token < length:
                beyond = -1 if beyond is None else min(beyond, MOST_BEYOND - 1)
                tally[used] = j * length + token, min(equal, MOST_EQUAL) - 1, beyond
                used += 1
    return ids, flags, tally


def cut(ids, flags, tally, rows, length=1024):
    """The first tokens of the first rows of a batch."""
    row, token = np.divmod(tally[:, 0], ids.shape[1] - 1)
    inside = (row < rows) & (token < length)
    tally = np.where(inside[:, None], np.stack([row * length + token, *tally.T[1:]], 1), (0, -1, -1)).astype(np.int32)
    return ids[:rows, : length + 1], flags[:rows, : length + 1], tally


def worker(tokenizer_file, seed, first, stride, queue):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = tokenizers.Tokenizer.from_file(tokenizer_file)
    index = first
    while True:
        queue.put(make_batch(tokenizer, seed, index))
        index += stride


class Batches:
    """Batches first, first + 1, … in order, made by `workers` processes."""

    def __init__(self, tokenizer_file, seed, first, workers):
        context = multiprocessing.get_context("spawn")
        self.queues = [context.Queue(6) for _ in range(workers)]
        self.processes = [
            context.Process(target=worker, args=(tokenizer_file, seed, first + w, workers, queue), daemon=True)
            for w, queue in enumerate(self.queues)
        ]
        for process in self.processes:
            process.start()
        self.next = 0

    def __iter__(self):
        while True:
            yield self.queues[self.next].get()
            self.next = (self.next + 1) % len(self.queues)

    def close(self):
        for process in self.processes:
            process.kill()


def learning_rate(step, plan, first=0):
    """Warm up, hold, decay linearly to zero; plan: (steps, first step of the decay), or None while that is open."""
    decay = (plan[0] - step) / (plan[0] - plan[1]) if plan else 1.0
    return PEAK_LR * min((step - first + 1) / WARMUP, 1.0, decay)


def make_optimizer_class():
    import torch

    class MuonAdam:
        """Muon for the matrices of the mixers, Adam for everything else; state in F32.

        Muon (Jordan 2024): momentum, then the nearest semi-orthogonal matrix by Newton-Schulz, scaled to Adam's size
        (0.2 sqrt(max(rows, columns))). Matrices of one shape are stacked and done together.
        """

        def __init__(self, model, head):
            stacks, rest = {}, list(head.parameters())
            for name, p in model.named_parameters():
                if p.ndim >= 2 and not any(s in name for s in ("embeddings", "lm_head", "conv1d", "gate")):
                    stacks.setdefault(tuple(p.shape[-2:]), []).append(p)
                else:
                    rest.append(p)
            self.stacks = list(stacks.values())
            self.momenta = [torch.zeros_like(self.stacked(s, False)) for s in self.stacks]
            self.adam = torch.optim.Adam(rest, lr=PEAK_LR, betas=(0.9, 0.95), eps=1e-10, fused=rest[0].is_cuda)

        @staticmethod
        def stacked(params, grad):
            parts = [p.grad if grad else p.data for p in params]
            return torch.cat([x.reshape(-1, *x.shape[-2:]) for x in parts])

        @torch.no_grad()
        def step(self, lr):
            for group in self.adam.param_groups:
                group["lr"] = lr
            self.adam.step()
            for params, momentum in zip(self.stacks, self.momenta):
                g = self.stacked(params, True)
                momentum.lerp_(g, 0.05)
                update = self.orthogonal(g.lerp(momentum, 0.95))
                update = update.float() * (0.2 * max(g.shape[-2:]) ** 0.5)
                at = 0
                for p in params:
                    count = p.numel() // (p.shape[-1] * p.shape[-2])
                    p.data.mul_(1 - lr * WEIGHT_DECAY).add_(update[at : at + count].view_as(p), alpha=-lr)
                    at += count

        @staticmethod
        def orthogonal(g):
            x = g.bfloat16()
            flip = x.shape[-2] > x.shape[-1]
            x = x.transpose(-1, -2) if flip else x
            x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
            for _ in range(5):
                gram = x @ x.transpose(-1, -2)
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
            return x.transpose(-1, -2) if flip else x

        def state(self):
            return {"momenta": self.momenta, "adam": self.adam.state_dict()}

        def load(self, state):
            for mine, saved in zip(self.momenta, state["momenta"]):
                mine.copy_(saved)
            self.adam.load_state_dict(state["adam"])

    return MuonAdam


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the log and the weights")
    parser.add_argument("--state", type=pathlib.Path, help="file of the full state, read if it is there")
    parser.add_argument("--init", type=pathlib.Path, help="start from these BF16 weights with a fresh optimizer …")
    parser.add_argument("--first", type=int, default=0, help="… at this step, warming up again")
    parser.add_argument("--steps", type=int, help="of the whole training; the schedule depends on it")
    parser.add_argument("--decay-from", type=int, help="first step of the decay (default: 60 %% of the steps)")
    parser.add_argument("--last", action="store_true", help="without --steps: choose them so that --stop-after suffices")
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds")
    parser.add_argument("--save-every", type=float, default=100, help="seconds between states on the way")
    parser.add_argument("--check-steps", type=int, default=0, help="steps after saving, to be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=max(os.cpu_count() - 4, 1))
    parser.add_argument("--tiny", type=int, default=0, help="rows of 1,024 tokens per batch, for a try on a CPU")
    args = parser.parse_args()
    begin = time.time()
    args.out.mkdir(parents=True, exist_ok=True)

    import torch

    saved = plan = None
    if args.steps:
        plan = (args.steps, args.decay_from or round((1 - DECAY) * args.steps))
    if args.state and args.state.exists():
        saved = torch.load(args.state, map_location="cpu", weights_only=False)
        if plan and saved["plan"] not in (plan, None):
            raise SystemExit(f"{args.state} has the plan {saved['plan']}, asked for is {plan}")
        plan = plan or saved["plan"]
    first = saved["step"] if saved else args.first
    batches = Batches(args.tokenizer, args.seed, first, args.workers)

    import torch.nn.functional as F
    from model import CONFIG, NemotronH, export, load_exported
    from safetensors.torch import load_file, save_file

    what = {"seed": args.seed, "first": args.first, "tiny": args.tiny,
            "tokenizer": hashlib.sha256(pathlib.Path(args.tokenizer).read_bytes()).hexdigest()}  # fmt: skip
    if saved and saved["arguments"] != what:
        raise SystemExit(f"{args.state} is of another training: {saved['arguments']}, asked for is {what}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(args.seed)
    model = NemotronH()
    if args.init:
        load_exported(model, load_file(args.init))
    model = model.to(device)
    # Tells the tallies from the hidden states: what faults and counts hang on is learned at every reading. Not kept.
    head = torch.nn.Linear(CONFIG["hidden_size"], MOST_EQUAL + MOST_BEYOND).to(device)
    optimizer = make_optimizer_class()(model, head)
    trained = [*model.parameters(), *head.parameters()]
    expected = {}
    if saved:
        model.load_state_dict(saved["model"])
        head.load_state_dict(saved["head"])
        optimizer.load(saved["optimizer"])
        expected = saved["after"]
        torch.set_rng_state(saved["rng"])
        if device == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"])
        print(f"resumed at step {first}", flush=True)
    if device == "cuda":
        for layer in model.backbone.layers:
            layer.compile(dynamic=False)
        torch._dynamo.config.cache_size_limit = 64

    def losses(ids, flags, tally):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits, hidden = model(ids[:, :-1], TALLY_AFTER)
            where, equal, beyond = tally.unbind(-1)
            hidden = hidden.flatten(0, 1).index_select(0, where)
            guess = head(F.rms_norm(hidden, hidden.shape[-1:])).float()
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        answer = flags[:, 1:].flatten()
        total = answer.sum()
        tally_loss = F.cross_entropy(guess[:, :MOST_EQUAL], equal, ignore_index=-1)
        tally_loss = tally_loss + F.cross_entropy(guess[:, MOST_EQUAL:], beyond, ignore_index=-1)
        return (loss * answer).sum() / total, (loss * ~answer).sum() / (len(loss) - total), tally_loss

    def save(step, after):
        if args.state:
            # The place in the data is the step: batch i is made from (seed, i).
            state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state(), "after": after}
            state |= {"head": head.state_dict(), "plan": plan, "tokens": tokens}
            state |= {"arguments": what, "rng": torch.get_rng_state()}
            if device == "cuda":
                state["cuda_rng"] = torch.cuda.get_rng_state()
            write(state)

    def write(state):
        torch.save(state, args.state.with_suffix(".part"))
        args.state.with_suffix(".part").rename(args.state)

    log_file = open(args.out / "log.csv", "a", newline="")
    log = csv.writer(log_file)
    if not first:
        log.writerow(
            "step tokens answer_loss rest_loss tally_loss learning_rate seconds tokens_per_second waited".split()
        )
    step, tokens, window_tokens, window_start, waited = first, saved["tokens"] if saved else 0, 0, time.time(), 0.0
    saved_at = measured_from = time.time()
    check = {}
    stop_at = None
    sums = torch.zeros(4, device=device)
    source = iter(batches)

    def upload(array):
        # From pinned memory, so that the next step is prepared while this one runs.
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor

    while True:
        asked = time.time()
        ids, flags, tally = next(source)
        waited += time.time() - asked
        if args.tiny:
            ids, flags, tally = cut(ids, flags, tally, args.tiny)
        ids, flags, tally = upload(ids).long(), upload(flags), upload(tally).long()
        rounding = plan and step >= plan[1] + FP8_FROM * (plan[0] - plan[1])
        model.set_fp8_cache(bool(rounding and step % 2))
        answer_loss, rest_loss, tally_loss = losses(ids, flags, tally)
        (answer_loss + REST_WEIGHT * rest_loss + TALLY_WEIGHT * tally_loss).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step(learning_rate(step, plan, args.first))
        model.balance(BALANCE)
        for p in trained:
            p.grad = None
        sums += torch.stack([*(x.detach() for x in (answer_loss, rest_loss, tally_loss)), torch.ones_like(sums[0])])
        if step in expected:
            print(f"step {step}: loss {answer_loss.item():.9f}, before the resume {expected[step]:.9f}", flush=True)
        step += 1
        tokens += flags.numel() - len(flags)
        window_tokens += flags.numel() - len(flags)
        if stop_at:
            check[step - 1] = answer_loss.item()
            if step >= stop_at + args.check_steps:
                break
            continue
        if step == first + 10 or (step % 100 == 0 and step > first + 10):
            a, r, t, n = sums.tolist()
            sums.zero_()
            now = time.time()
            row = [step, tokens, *(f"{x / n:.5f}" for x in (a, r, t))]
            row += [f"{learning_rate(step - 1, plan, args.first):.3e}"]
            row += [f"{now - begin:.1f}", f"{window_tokens / (now - window_start):.0f}", f"{waited:.1f}"]
            log.writerow(row)
            log_file.flush()
            print(*row, flush=True)
            window_tokens, window_start = 0, now
        if step == first + PROBE // 4:  # everything is compiled
            sums.tolist()  # waits for the device
            measured_from = time.time()
        if args.last and not plan and step == first + PROBE:
            sums.tolist()
            each = (time.time() - measured_from) / (PROBE - PROBE // 4)
            left = args.stop_after - (time.time() - begin)
            steps = step + max(int(left * SAFETY / each), 1)
            plan = (steps, max(step, round((1 - DECAY) * steps)))
            print(f"{1000 * each:.1f} ms a step: --steps {plan[0]} --decay-from {plan[1]}", flush=True)
            save(step, {})
        finished, late = plan and step == plan[0], time.time() - begin > args.stop_after
        if finished or (step % 10 == 0 and late):
            save(step, {})
            weights = {k: v.clone() for k, v in export(model).items()}
            stop_at = step
            if finished or not args.check_steps:
                break
        elif step % 10 == 0 and time.time() - saved_at > args.save_every:
            save(step, {})
            saved_at = time.time()
    batches.close()
    if check:  # what came after the saved state, for the next run to repeat
        saved = torch.load(args.state, map_location="cpu", weights_only=False)
        write(saved | {"after": check})
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    print(f"stopped at step {stop_at} of {plan[0] if plan else 'an open number'}, {time.time() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
