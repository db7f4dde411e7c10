"""Goldens for quantised Nemotron-H: tiny checkpoints as ModelOpt exports them, with logits of their decoded weights.

    python tools/goldens/nemotron_h_quantised.py --out tests/goldens/nemotron_h_quantised

Per case a folder as nemotron_h.py writes it. The logits are those of the float64 forward pass (nemotron_h_numpy.py) on
what the stored bytes mean; weights and activations are not rounded any further. The layouts, names and exclusions follow
published checkpoints: FP8 and NVFP4 leave out lm_head, attention, the Mamba-2 layer before it and the router;
MIXED_PRECISION names what it quantises.
"""

import argparse
import json
import pathlib
import zlib

import gguf
import gguf_twin
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from nemotron_h import as_float64, clear_routing, kept_rows, write_json
from nemotron_h_cases import build, config, moe_keys, spell, to_bf16
from nemotron_h_numpy import Config, forward

TOLERANCE = 1e-4
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
BOUNDS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
TIES_GO_UP = np.array([False, True, False, True, False, True, False])
TOKENS = [7, 37]


def raw_config(hidden, width):
    return config(
        "EM*M-",
        hidden,
        64,
        {"mamba_num_heads": 8, "mamba_head_dim": hidden // 8, "n_groups": 2, "ssm_state_size": 4},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32},
        moe_keys(4, 2, width, width, 2.5),
        torch_dtype="bfloat16",
    )


def modules(w, kinds):
    """Names without .weight of the linear layers of some kinds, in the order of the weights."""
    return [name[: -len(".weight")] for name in w if any(kind in name for kind in kinds) and name.endswith(".weight")]


QUANTISED = (".3.mixer.in_proj", ".3.mixer.out_proj", "experts.", ".4.mixer.")
EXCLUDED = [
    "lm_head",
    "backbone.layers.1.mixer.in_proj",
    "backbone.layers.1.mixer.out_proj",
    *(f"backbone.layers.2.mixer.{x}_proj" for x in "qkvo"),
    "backbone.layers.1.mixer.conv1d",
    "backbone.layers.3.mixer.conv1d",
]


def e4m3(x):
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(torch.float8_e4m3fn)


def float64(tensor):
    return tensor.float().numpy().astype(np.float64)


class Fp8:
    """Values over a scale of the whole matrix, or of each row."""

    algo = "FP8"

    def __init__(self, w, per_row=False):
        amax = np.abs(w).max(axis=-1 if per_row else None, keepdims=True)
        self.scale = torch.from_numpy((amax / 448).astype(np.float32))
        self.weight = e4m3(np.clip(w / self.scale.numpy(), -448, 448))
        self.decoded = float64(self.weight) * float64(self.scale)


class Nvfp4:
    """E2M1 over an E4M3 scale of 16 columns and a scale of the matrix; `headroom` 256 where blocks may end at 4 or 6."""

    algo = "NVFP4"

    def __init__(self, w, headroom=448):
        rows, cols = w.shape
        self.global_scale = torch.tensor(np.float32(np.abs(w).max() / (6 * headroom)))
        blocks = w.reshape(rows, cols // 16, 16)
        scale = np.abs(blocks).max(axis=-1) / (6 * self.global_scale.item())
        scale[scale == 0] = 1
        self.scale = e4m3(np.clip(scale, 2.0**-9, 448))
        unit = float64(self.scale)[..., None] * self.global_scale.item()
        magnitude = np.abs(blocks / unit)[..., None]
        code = ((magnitude > BOUNDS) | ((magnitude == BOUNDS) & TIES_GO_UP)).sum(axis=-1) + 8 * (blocks < 0)
        self.codes = code.reshape(rows, cols).astype(np.uint8)
        self.weight = torch.from_numpy(self.codes[:, 0::2] | (self.codes[:, 1::2] << 4))
        self.decoded = (E2M1[code] * float64(self.scale)[..., None]).reshape(rows, cols) * self.global_scale.item()


def write(folder, raw, files, tensors, w, about):
    cfg = Config.parse(raw)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n")
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=1) + "\n")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    w = as_float64(w)
    rng = np.random.default_rng(zlib.crc32(folder.name.encode()))
    sequences = [{"token_ids": clear_routing(rng, cfg, [w], n), "rows": kept_rows(n)} for n in TOKENS]
    logits = {f"logits_{i}": forward(cfg, w, s["token_ids"]).astype(np.float32) for i, s in enumerate(sequences)}
    safetensors.numpy.save_file(logits, folder / "golden.safetensors")
    golden = {
        "case": folder.name,
        "about": about,
        "source": "numpy in float64 on the decoded weights",
        "sequences": [s | {"tensor": f"logits_{i}"} for i, s in enumerate(sequences)],
        "tolerance": {"rms_relative": TOLERANCE},
        "facts": [],
    }
    write_json(folder / "golden.json", golden)


def split(w, quantised):
    """What is stored in BF16 or F32, and the float64 weights that the whole checkpoint means."""
    plain, meaning = {}, {}
    for name, value in w.items():
        q = quantised.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        meaning[name] = value if q is None else q.decoded
        if q is None:
            keep = name.endswith(("mixer.gate.weight", "e_score_correction_bias"))  # F32 in published checkpoints
            plain[name] = torch.from_numpy(value) if keep else torch.from_numpy(value).bfloat16()
    return plain, meaning


def stored(name, q, input_scale, as_list=False):
    """The tensors of one module. Some exports write scalars as [1]."""
    shape = [1] if as_list else []
    if isinstance(q, Fp8):
        scale = q.scale.reshape(shape) if q.scale.numel() == 1 else q.scale
        out = {f"{name}.weight": q.weight, f"{name}.weight_scale": scale}
    else:
        out = {f"{name}.weight": q.weight, f"{name}.weight_scale": q.scale}
        out[f"{name}.weight_scale_2"] = q.global_scale.reshape(shape)
    if input_scale:
        out[f"{name}.input_scale"] = torch.tensor(0.017).reshape(shape)
    return out


def hf_quant_config(algo, group_size):
    quantization = {"quant_algo": algo, "kv_cache_quant_algo": "FP8", "exclude_modules": EXCLUDED}
    if group_size:
        quantization["group_size"] = group_size
    return {"hf_quant_config.json": {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": quantization}}


def weights(raw, seed):
    return to_bf16(build(np.random.default_rng(seed), Config.parse(raw)))


def fp8(out):
    raw = raw_config(32, 24)
    w = weights(raw, 1)
    quantised = {name: Fp8(w[name + ".weight"]) for name in modules(w, QUANTISED)}
    tensors, meaning = split(w, quantised)
    for i, (name, q) in enumerate(quantised.items()):
        tensors |= stored(name, q, input_scale=True, as_list=i % 2 == 1)
    write(out / "fp8", raw, hf_quant_config("FP8", None), tensors, meaning, "FP8 per tensor, scales as [] and as [1]")


def fp8_channel(out):
    """Stacked experts under model.; transformers renamed the tensors and left hf_quant_config.json as it was."""
    raw = raw_config(32, 24)
    w = weights(raw, 2)
    quantised = {name: Fp8(w[name + ".weight"], "down_proj" not in name) for name in modules(w, QUANTISED)}
    plain, meaning = split(w, quantised)
    tensors = {name: torch.from_numpy(value) for name, value in spell(
        {n: v.float().numpy() for n, v in plain.items()}, Config.parse(raw), "model.").items()}
    tensors = {n: v if "gate." in n else v.bfloat16() for n, v in tensors.items()}
    stacks = {}
    for i, (name, q) in enumerate(quantised.items()):
        name = name.replace("backbone.", "model.")
        if ".mixer.experts." in name:
            head, tail = name.split(".mixer.experts.")
            stacks.setdefault(f"{head}.mixer.experts.{tail.split('.')[1]}", []).append(q)
        else:
            part = stored(name, q, input_scale=False)
            if i % 2 and q.scale.numel() > 1:
                part[name + ".weight_scale"] = q.scale.reshape(-1)
            tensors |= part
    for name, parts in stacks.items():
        tensors[name] = torch.stack([q.weight for q in parts])
        scale = torch.stack([q.scale for q in parts])  # [E, N, 1], or [E, 1, 1] which is written as [E]
        tensors[name + "_weight_scale"] = scale if scale.shape[1] > 1 else scale.reshape(-1)
    files = hf_quant_config("FP8_PER_CHANNEL_PER_TOKEN", None)
    about = "FP8 per channel, scales as [N] and [N, 1]; experts stacked, their down_proj with one scale each"
    write(out / "fp8_channel", raw, files, tensors, meaning, about)


def to_gguf_blocks(q):
    """NVFP4 blocks of GGUF: four scales, then 8 bytes per 16 values with value j low and j + 8 high."""
    rows, cols = q.codes.shape
    scales = q.scale.view(torch.uint8).numpy().reshape(rows, cols // 64, 4)
    codes = q.codes.reshape(rows, cols // 64, 4, 2, 8)
    nibbles = (codes[..., 0, :] | (codes[..., 1, :] << 4)).reshape(rows, cols // 64, 32)
    packed = np.concatenate([scales, nibbles], axis=-1).reshape(rows, cols // 64 * 36)
    kind = gguf.GGMLQuantizationType.NVFP4
    assert np.array_equal(gguf.quants.dequantize(packed, kind) * np.float64(q.global_scale.item()), q.decoded)
    return packed


def nvfp4(out):
    raw = raw_config(64, 64)
    w = weights(raw, 3)
    # Rows of 64 columns at least, so that the twin in GGUF has the same values.
    names = [name for name in modules(w, QUANTISED) if w[name + ".weight"].shape[1] % 64 == 0]
    quantised = {name: Nvfp4(w[name + ".weight"]) for name in names}
    tensors, meaning = split(w, quantised)
    for name, q in quantised.items():
        tensors |= stored(name, q, input_scale=True)
    files = hf_quant_config("NVFP4", 16)
    files["hf_quant_config.json"]["quantization"]["exclude_modules"] += ["backbone.layers.4.mixer.down_proj"]
    write(out / "nvfp4", raw, files, tensors, meaning, "NVFP4 with activation scales, and the same values in GGUF")

    cfg = Config.parse(raw)
    bf16, kind = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.NVFP4
    packed = {
        name: (gguf.quants.quantize(value, bf16), bf16)
        for name, value in gguf_twin.tensors(as_float32(meaning), cfg).items()
        if value.ndim == 2 and min(value.shape) >= 16  # the matrices, of which the quantised ones are replaced below
    }
    for n, layer in enumerate(cfg.layers):
        for hf, name in gguf_twin.RENAMES.items():
            if q := quantised.get(f"backbone.layers.{n}.{hf}".removesuffix(".weight")):
                stem = f"blk.{n}.{name}".removesuffix(".weight")
                packed[stem + ".weight"] = (to_gguf_blocks(q), kind)
                packed[stem + ".scale"] = (q.global_scale.numpy().reshape(1), None)
        for part in ("up", "down") if layer == "E" else ():
            qs = [quantised[f"backbone.layers.{n}.mixer.experts.{e}.{part}_proj"] for e in range(cfg.experts)]
            packed[f"blk.{n}.ffn_{part}_exps.weight"] = (np.stack([to_gguf_blocks(q) for q in qs]), kind)
            packed[f"blk.{n}.ffn_{part}_exps.scale"] = (np.array([q.global_scale.item() for q in qs], np.float32), None)
    gguf_twin.write(out / "nvfp4/model.gguf", as_float32(meaning), cfg, "tiny NVFP4", packed)


def as_float32(w):
    return {name: value.astype(np.float32) for name, value in w.items()}


def mixed(out):
    raw = raw_config(32, 32)
    w = weights(raw, 4)
    quantised = {}
    for name in modules(w, ("in_proj", "out_proj", ".4.mixer.up_proj")):
        quantised[name] = Fp8(w[name + ".weight"])
    for name in modules(w, ("experts.", ".4.mixer.down_proj", "lm_head", "embeddings")):
        quantised[name] = Nvfp4(w[name + ".weight"], headroom=256)
    tensors, meaning = split(w, quantised)
    listed = {}
    for name, q in quantised.items():
        fp8_module = isinstance(q, Fp8)
        tensors |= stored(name, q, input_scale=fp8_module, as_list=fp8_module)
        listed[name] = {"quant_algo": "FP8"} if fp8_module else {"quant_algo": "W4A16_NVFP4", "group_size": 16}
    for part in "kv":
        tensors[f"backbone.layers.2.mixer.{part}_proj.{part}_scale"] = torch.ones(1)
    raw["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": listed,
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False},
        "ignore": ["backbone.layers.*.mixer.conv1d", "mtp*"],
        "producer": {"name": "modelopt", "version": "0.44.0rc5"},
    }
    about = "FP8 and weight-only NVFP4 by a map in config.json, embeddings and lm_head too, scales of the KV cache"
    write(out / "mixed", raw, {}, tensors, meaning, about)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder that receives one folder per case")
    args = parser.parse_args()
    for make in (fp8, fp8_channel, nvfp4, mixed):
        make(args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{size / 1e3:.0f} kB in {args.out}")


if __name__ == "__main__":
    main()
