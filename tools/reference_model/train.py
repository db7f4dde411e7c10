"""Trains proa-buoy; saves and resumes exactly.

    python tools/reference_model/train.py --tokenizer models/proa-buoy/tokenizer.json --out run --steps 16000

Everything follows from --seed: batch i is made from (seed, i) by worker processes, the optimizer has no randomness.
--stop-after ends a run early (seconds); the next run with the same arguments goes on from the state in --state.
With --check-steps a run goes on a little after saving, and the next one prints both losses of those steps.
"""

import argparse
import csv
import hashlib
import multiprocessing
import os
import pathlib
import time

import numpy as np
import tokenizers
from generator import conversation, pieces

SHORT, LONG = (32, 2048), (16, 4096)  # sequences, tokens
LONG_EVERY = 5
LATE = 6310  # first batch of the second half: harder kinds more often, looser phrasings
REST_WEIGHT = 0.02  # of the loss on everything that is not an answer
PEAK_LR, WARMUP, DECAY, WEIGHT_DECAY = 3e-3, 200, 0.4, 0.05  # DECAY: last share of the steps, linear to zero
BALANCE = 1e-3


def encode(tokenizer, system, turns):
    """Token ids of a conversation and which of them belong to answers; also (kind, language, begin, end) of those."""
    parts = list(pieces(system, turns))
    ids, is_answer, spans = [], [], []
    for (_, kind, language), part in zip(parts, tokenizer.encode_batch([text for text, _, _ in parts])):
        if kind:
            spans.append((kind, language, len(ids), len(ids) + len(part.ids)))
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
    """Ids [b, l + 1] and answer flags [b, l + 1]: one conversation per row, cut where the row is full."""
    count, length, windows = shape(index)
    ids, flags = np.zeros((count, length + 1), np.int32), np.zeros((count, length + 1), bool)
    for j in range(count):
        rng = np.random.default_rng([seed, index, j])
        _, low, high = windows[rng.choice(len(windows), p=[share for share, _, _ in windows])]
        rows = int(rng.integers(low, high + 1))
        row, flag = [], []
        turns = (length - 50 * rows - 110) // 38 + 4
        while len(row) <= length:
            rng = np.random.default_rng([seed, index, j, turns])
            row, flag, _ = encode(tokenizer, *conversation(rng, rows, turns, late=index >= LATE))
            turns += 8
        ids[j], flags[j] = row[: length + 1], flag[: length + 1]
    return ids, flags


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


def learning_rate(step, steps, first=0):
    """Warm up, hold, decay linearly to zero."""
    return PEAK_LR * min((step - first + 1) / WARMUP, 1.0, (steps - step) / (DECAY * steps))


def make_optimizer_class():
    import torch

    class MuonAdam:
        """Muon for the matrices of the mixers, Adam for everything else; state in F32.

        Muon (Jordan 2024): momentum, then the nearest semi-orthogonal matrix by Newton-Schulz, scaled to Adam's size
        (0.2 sqrt(max(rows, columns))). Matrices of one shape are stacked and done together.
        """

        def __init__(self, model):
            stacks, rest = {}, []
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
    parser.add_argument("--steps", type=int, required=True, help="of the whole training; the schedule depends on it")
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds")
    parser.add_argument("--check-steps", type=int, default=0, help="steps after saving, to be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() - 1)
    parser.add_argument("--tiny", type=int, default=0, help="rows per batch, for a try on a CPU")
    args = parser.parse_args()
    begin = time.time()
    args.out.mkdir(parents=True, exist_ok=True)

    import torch

    saved = None
    if args.state and args.state.exists():
        saved = torch.load(args.state, map_location="cpu", weights_only=False)
    first = saved["step"] if saved else args.first
    batches = Batches(args.tokenizer, args.seed, first, args.workers)

    import torch.nn.functional as F
    from model import NemotronH, export, load_exported
    from safetensors.torch import load_file, save_file

    what = {"seed": args.seed, "steps": args.steps, "first": args.first, "tiny": args.tiny,
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
    optimizer = make_optimizer_class()(model)
    expected = {}
    if saved:
        model.load_state_dict(saved["model"])
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

    def losses(ids, flags):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        answer = flags[:, 1:].flatten()
        total = answer.sum()
        return (loss * answer).sum() / total, (loss * ~answer).sum() / (len(loss) - total)

    def save(step, after):
        if args.state:
            # The place in the data is the step: batch i is made from (seed, i).
            state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state(), "after": after}
            state |= {"arguments": what, "rng": torch.get_rng_state()}
            if device == "cuda":
                state["cuda_rng"] = torch.cuda.get_rng_state()
            torch.save(state, args.state.with_suffix(".part"))
            args.state.with_suffix(".part").rename(args.state)

    log_file = open(args.out / "log.csv", "a", newline="")
    log = csv.writer(log_file)
    if not first:
        log.writerow("step tokens answer_loss rest_loss learning_rate seconds tokens_per_second waited".split())
    step, tokens, window_tokens, started, window_start, waited = first, 0, 0, None, time.time(), 0.0
    check = {}
    stop_at = args.steps
    sums = torch.zeros(3, device=device)
    source = iter(batches)
    while True:
        asked = time.time()
        ids, flags = next(source)
        waited += time.time() - asked
        if args.tiny:
            ids, flags = ids[: args.tiny], flags[: args.tiny]
        ids, flags = torch.from_numpy(ids).to(device).long(), torch.from_numpy(flags).to(device)
        answer_loss, rest_loss = losses(ids, flags)
        (answer_loss + REST_WEIGHT * rest_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate(step, args.steps, args.first))
        model.balance(BALANCE)
        for p in model.parameters():
            p.grad = None
        sums += torch.stack([answer_loss.detach(), rest_loss.detach(), torch.ones((), device=device)])
        if step in expected:
            print(f"step {step}: loss {answer_loss.item():.9f}, before the resume {expected[step]:.9f}", flush=True)
        step += 1
        tokens += flags.numel() - len(flags)
        window_tokens += flags.numel() - len(flags)
        if step > stop_at:
            check[step - 1] = answer_loss.item()
            if step >= stop_at + args.check_steps:
                break
            continue
        if step == first + 10 or (step % 100 == 0 and step > first + 10):
            a, r, n = sums.tolist()
            sums.zero_()
            now = time.time()
            speed = window_tokens / (now - window_start)
            row = [step, tokens, f"{a / n:.5f}", f"{r / n:.5f}"]
            row += [f"{learning_rate(step - 1, args.steps, args.first):.3e}"]
            row += [f"{now - begin:.1f}", f"{speed:.0f}", f"{waited:.1f}"]
            log.writerow(row)
            log_file.flush()
            print(*row, flush=True)
            window_tokens, window_start = 0, now
        if step == args.steps or (step % 10 == 0 and time.time() - begin > args.stop_after):
            save(step, {})
            weights = {k: v.clone() for k, v in export(model).items()}
            if step == args.steps or not args.check_steps:
                break
            stop_at = step
    batches.close()
    if check:  # what came after the saved state, for the next run to repeat
        saved = torch.load(args.state, map_location="cpu", weights_only=False)
        torch.save(saved | {"after": check}, args.state)
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    print(f"stopped at step {stop_at if check else step} of {args.steps}, {time.time() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
