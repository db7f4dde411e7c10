"""Goldens for Nemotron-H: tiny random checkpoints with logits of the official implementation.

    python tools/goldens/nemotron_h.py --out tests/goldens/nemotron_h

Per case a folder: config.json, generation_config.json, weights (safetensors, some with a GGUF twin),
golden.safetensors (`logits_i` F32 [rows, vocab] for sequence i) and golden.json, which says what is in it.
Deterministic: the same versions write the same bytes.

The official class floors dt at time_step_min in its chunked path; this is removed here at run time, so dt is
softplus(dt + dt_bias), clamped by time_step_limit where the config has one, both in prefill and in decode. Every golden
is checked against an independent float64 forward pass (nemotron_h_numpy.py), which also states how far the logits move
when one fact of the model is broken on purpose.

Made with transformers 5.23.0, torch 2.15.0, numpy 2.4.6, safetensors 0.8.0, gguf 0.19.0, Python 3.11 (all CPU).
"""

import argparse
import json
import pathlib
import re
import zlib

import gguf_twin
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from nemotron_h_cases import CASES, TWINS, build, mtp_weights, spell, to_bf16, twin_config
from nemotron_h_numpy import BREAKS, Config, applicable, forward, rms
from transformers.models.nemotron_h import modeling_nemotron_h as official

TOLERANCE = 1e-4  # rms(difference) / rms(logits) that an engine with F32 activations must keep
VISIBLE = 100 * TOLERANCE  # what breaking a fact must at least do, in the case that shows it best
AGREEMENT = 2e-5  # max |official - numpy| / rms(logits)
ROUTE_GAP = 0.02  # least distance between the last chosen and the first rejected score, so that rounding cannot flip it


def unfloor(model):
    """Replaces the official dt floor by the config's time_step_limit, in the chunked and in the recurrent path."""
    low, high = (float(v) for v in model.config.time_step_limit)
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = (low, high)

    def step(state, hidden_states, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, **kwargs):
        dt = torch.clamp(torch.nn.functional.softplus(dt + dt_bias.to(dt.dtype)), low, high)
        return ORIGINAL_STEP(state, hidden_states, dt, A, B, C, D, z=z, **kwargs)

    official.mamba2_selective_state_update = step


ORIGINAL_STEP = official.mamba2_selective_state_update


def load(folder, raw, dtype, floored=False):
    """The official model as its own loader reads the folder, dt floor removed unless `floored`."""
    config = transformers.AutoConfig.from_pretrained(folder)
    # Spellings of older members that the official config class does not map.
    config.head_dim = raw.get("head_dim") or raw["attention_head_dim"]
    config.layer_norm_epsilon = next(raw[k] for k in ("layer_norm_epsilon", "norm_eps", "rms_norm_eps") if k in raw)
    model, info = official.NemotronHForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (folder, problem, info[problem])
    if dtype == torch.float64:
        model = model.double()
    if not floored:
        unfloor(model)
    return model.eval()


@torch.no_grad()
def prefill(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()


@torch.no_grad()
def decode(model, ids):
    """The same logits, one token at a time through the official cache."""
    cache, out = None, []
    for i, token in enumerate(ids):
        # Position and (empty) masks are given, or the model would ask an attention layer that a case need not have.
        position = torch.tensor([[i]])
        step = model(
            torch.tensor([[token]]), past_key_values=cache, use_cache=True, position_ids=position, attention_mask={}
        )
        cache = step.past_key_values
        out.append(step.logits[0, 0].double().numpy())
    return np.stack(out)


def routes(model, ids):
    """Chosen experts per MoE layer, sorted, as the official router picks them."""
    seen, hooks = [], []
    for layer in model.model.layers:
        if layer.block_type == "moe":
            hooks.append(layer.mixer.gate.register_forward_hook(lambda m, i, o: seen.append(o[2].sort(-1)[0].numpy())))
    prefill(model, ids)
    for hook in hooks:
        hook.remove()
    return seen


def as_float64(w):
    return {name: value.astype(np.float64) for name, value in w.items()}


def clear_routing(rng, cfg, variants, count):
    """Random token ids at which no router of any weight variant is nearly undecided."""
    ids = list(rng.integers(3, cfg.vocab, count))
    if "E" not in cfg.layers:
        return [int(t) for t in ids]
    for _ in range(200 * count):
        traces = [{} for _ in variants]
        for w, trace in zip(variants, traces):
            forward(cfg, w, ids, trace=trace)
        gap = np.min([gap for trace in traces for gap in trace["route_gap"]], axis=0)
        close = np.nonzero(gap < ROUTE_GAP)[0]
        if not len(close):
            return [int(t) for t in ids]
        ids[close[0]] = rng.integers(3, cfg.vocab)
    raise RuntimeError("no token sequence with clear routing found")


def kept_rows(count):
    """All positions of a short sequence; every fifth and the last 16 of a long one."""
    return list(range(count)) if count <= 40 else sorted({*range(0, count, 5), *range(count - 16, count)})


def write_json(path, value):
    """Indented JSON with lists of numbers on one line."""
    text = re.sub(r"\[[-+.\de,\s]+\]", lambda m: " ".join(m.group().split()), json.dumps(value, indent=1))
    path.write_text(text.replace("[ ", "[").replace(" ]", "]") + "\n")


def write_weights(folder, named, shards, bf16):
    def save(path, part):
        if bf16:
            keep = ("gate.weight", "e_score_correction_bias")  # F32 in published checkpoints
            part = {
                n: torch.from_numpy(v) if n.endswith(keep) else torch.from_numpy(v).bfloat16() for n, v in part.items()
            }
            safetensors.torch.save_file(part, path, metadata={"format": "pt"})
        else:
            safetensors.numpy.save_file(part, path, metadata={"format": "pt"})

    if shards == 1:
        save(folder / "model.safetensors", named)
        return
    names = list(named)
    cut = [names[i * len(names) // shards : (i + 1) * len(names) // shards] for i in range(shards)]
    weight_map = {}
    for i, part in enumerate(cut):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save(folder / file, {name: named[name] for name in part})
        weight_map |= {name: file for name in part}
    total = sum(v.nbytes for v in named.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def deviation(a, b):
    return rms(a - b) / rms(b)


def worst(a, b):
    return float(np.max(np.abs(a - b))) / rms(b)


def statistics(cfg, w, ids):
    trace = {}
    forward(cfg, w, ids, trace=trace)
    ratios = trace["mixer_over_residual"]
    assert all(0.3 <= r <= 3 for r in ratios), ratios
    print("  mixer / residual:", "  ".join(f"{kind} {r:.2f}" for kind, r in zip(cfg.layers, ratios)))
    if "scan_over_skip" in trace:
        print("  scan / skip:", "  ".join(f"{r:.2f}" for r in trace["scan_over_skip"]))
    out = {"mixer_over_residual": [round(r, 3) for r in ratios]}
    if "E" in cfg.layers:
        changed = float(np.mean(trace["bias_changes"]))
        distinct = [len(np.unique(chosen, axis=0)) for chosen in trace["chosen"]]
        print(f"  bias changes {changed:.0%} of selections; distinct selections per layer {distinct}")
        assert changed > 0.5
        out["bias_changes_selection"] = round(changed, 3)
    return out


def facts(cfg, w, sequences, truth):
    """Deviation of the kept logits of the sequence that shows it best, for every break that applies."""
    out = []
    for name in applicable(cfg):
        shown = [
            deviation(forward(cfg, w, s["token_ids"], {name})[s["rows"]], t[s["rows"]])
            for s, t in zip(sequences, truth)
        ]
        best = int(np.argmax(shown))
        fact, what = BREAKS[name]
        row = {"fact": fact, "break": name, "what": what, "sequence": best, "deviation": float(f"{shown[best]:.4g}")}
        out.append(row)
    return out


def write_checkpoint(folder, cfg, raw, w, mtp, spelling, bf16):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    write_json(folder / "config.json", raw)
    generation = {"bos_token_id": 1, "eos_token_id": [2, 11], "pad_token_id": 0, "do_sample": True}
    write_json(folder / "generation_config.json", generation | {"temperature": 1.0, "top_p": 1.0})
    spelled = spell(w, cfg, spelling.get("prefix", "backbone."), spelling.get("fused", False))
    spelled |= spell(mtp, cfg, "", spelling.get("fused", False))
    write_weights(folder, spelled, spelling.get("shards", 1), bf16)


def golden(folder, name, about, cfg, w, sequences, bf16):
    """Writes golden.json and golden.safetensors next to a checkpoint; returns its facts."""
    w64 = as_float64(w)
    print(f"\n{name}: {about}")
    report = statistics(cfg, w64, sequences[-1]["token_ids"])
    truth = [forward(cfg, w64, s["token_ids"]) for s in sequences]

    model = load(folder, cfg.raw, torch.float64)
    logits = [prefill(model, s["token_ids"]) for s in sequences]
    disagreement = max(worst(a, b) for a, b in zip(logits, truth))
    print(f"  official against numpy: max difference {disagreement:.1e} of the logits' rms")
    assert disagreement < AGREEMENT
    if "M" in cfg.layers:
        stock = load(folder, cfg.raw, torch.float64, floored=True)
        broken = {"dt_floor", "dt_limit_ignored"}
        ids = [s["token_ids"] for s in sequences]
        floored = max(worst(prefill(stock, i), forward(cfg, w64, i, broken)) for i in ids)
        print(f"  official as shipped against numpy with its dt floor: {floored:.1e}")
        assert floored < AGREEMENT
    decoded = load(folder, cfg.raw, torch.float32)
    stepwise = max(worst(decode(decoded, s["token_ids"]), t) for s, t in zip(sequences, truth))
    print(f"  official, F32, token by token, against numpy: {stepwise:.1e}")
    assert stepwise < TOLERANCE

    tensors = {f"logits_{i}": a[s["rows"]].astype(np.float32) for i, (a, s) in enumerate(zip(logits, sequences))}
    tolerance = {"rms_relative": TOLERANCE, "official_vs_numpy_max": float(f"{disagreement:.2g}")}
    entries = [s | {"tensor": f"logits_{i}"} for i, s in enumerate(sequences)]
    if bf16:
        low = load(folder, cfg.raw, torch.bfloat16)
        flips = 0
        for i, s in enumerate(sequences):
            a = prefill(low, s["token_ids"])
            same = [x == y for x, y in zip(routes(low, s["token_ids"]), routes(model, s["token_ids"]))]
            flips += sum(int((~row.all(axis=1)).sum()) for row in same)
            tensors[f"logits_bf16_{i}"] = a[s["rows"]].astype(np.float32)
            measured = deviation(a[s["rows"]], logits[i][s["rows"]])
            entries[i] |= {
                "tensor_bf16": f"logits_bf16_{i}",
                "bf16_rms_relative": float(f"{measured:.4g}"),
                "bf16_bound": float(f"{measured + TOLERANCE:.4g}"),
            }
            print(f"  BF16 arithmetic against F32 on the same weights, {len(s['token_ids'])} tokens: {measured:.2e}")
        print(f"  selections that BF16 arithmetic flips: {flips}")
        tolerance["bf16_selections_flipped"] = flips
        tolerance["bf16_derivation"] = (
            "logits_i: BF16 weights, wider arithmetic; logits_bf16_i: the official model in BF16 arithmetic. An engine "
            "with BF16 weights and F32 activations is within rms_relative of logits_i, so by the triangle inequality "
            "within bf16_bound = bf16_rms_relative + rms_relative of logits_bf16_i, both relative to rms(logits_i)."
        )
    shown = facts(cfg, w64, sequences, truth)
    for row in shown:
        print(f"  fact {row['fact']}  {row['break']:22} {row['deviation']:.2e}  (sequence {row['sequence']})")

    safetensors.numpy.save_file(tensors, folder / "golden.safetensors")
    write_json(
        folder / "golden.json",
        {
            "case": name,
            "about": about,
            "source": f"transformers {transformers.__version__}, dt floor removed",
            "arithmetic": "float64 linear layers; the class itself keeps norms, scan, router and softmax in float32",
            "rows": "all positions of sequences up to 40 tokens, else every fifth and the last 16",
            "sequences": entries,
            "tolerance": tolerance,
            "facts_note": "deviation = rms(broken - right) / rms(right) over the rows of that sequence",
            "facts": shown,
        }
        | report,
    )
    return shown


def make(name, case, out):
    cfg = Config.parse(case["config"])
    rng = np.random.default_rng(zlib.crc32(name.encode()) + case.get("seed", 0))
    w = build(rng, cfg, case.get("long_memory", 0.0))
    mtp = mtp_weights(rng, cfg) if case["config"].get("num_nextn_predict_layers") else {}
    twin = case.get("bf16_twin")
    variants = [as_float64(w)] + ([as_float64(to_bf16(w))] if twin else [])
    sequences = [{"token_ids": clear_routing(rng, cfg, variants, n), "rows": kept_rows(n)} for n in case["tokens"]]

    write_checkpoint(out / name, cfg, case["config"], w, mtp, case, False)
    shown = {name: golden(out / name, name, case["about"], cfg, w, sequences, False)}
    if case.get("gguf"):
        path = out / name / "model.gguf"
        gguf_twin.write(path, w, cfg, f"tiny {name}")
        gguf_twin.check(path, w, cfg)
    if twin:
        rounded, about, raw = to_bf16(w), f"{name} with BF16 weights", twin_config(case["config"], twin)
        cfg = Config.parse(raw)
        write_checkpoint(out / twin, cfg, raw, rounded, to_bf16(mtp), TWINS[twin], True)
        shown[twin] = golden(out / twin, twin, about, cfg, rounded, sequences, True)
    return shown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder that receives one folder per case")
    parser.add_argument("--case", choices=CASES, help="only this case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    shown = {}
    for name in [args.case] if args.case else CASES:
        shown |= make(name, CASES[name], args.out)

    print("\nbest case per break")
    for name, (fact, what) in sorted(BREAKS.items(), key=lambda item: item[1][0] or 99):
        found = [(row["deviation"], case) for case, rows in shown.items() for row in rows if row["break"] == name]
        if found:
            best, case = max(found)
            print(f"  {fact}  {name:22} {best:.2e}  {case:16} {what}")
            assert args.case or best >= VISIBLE, (name, best)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"\n{size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
