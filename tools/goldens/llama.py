"""Goldens for Llama: tiny random checkpoints with logits of the official implementation, and their GGUF twins.

    python tools/goldens/llama.py --out tests/goldens/llama

Per case a folder as tools/goldens/nemotron_h.py writes it: config.json, model.safetensors, model.gguf, golden.json and
golden.safetensors with `logits_i` F32 [rows, vocab]. The GGUF twin has the rows of q and k permuted per head, from
rotate-half order (pairs i, i + d/2) to adjacent pairs (2i, 2i + 1), as llama.cpp's converter does; a tied model has no
output.weight there. Deterministic.

Made with transformers 5.23.0, torch 2.15.0, numpy 2.4.6, safetensors 0.8.0, gguf 0.19.0, Python 3.11 (all CPU).
"""

import argparse
import pathlib
import types
import zlib

import gguf
import gguf_twin
import numpy as np
import safetensors.numpy
import torch
import transformers
from nemotron_h import AGREEMENT, TOLERANCE, deviation, prefill, worst, write_json
from nemotron_h_cases import matrix, norm_weight
from nemotron_h_numpy import attention, rms, rms_norm, silu

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 42,
    "intermediate_size": 44,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 100000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 97,
}
CASES = {"untied": CONFIG, "tied": CONFIG | {"tie_word_embeddings": True}}
LENGTHS = [1, 7, 37]

RENAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def forward(raw, w, ids, rope=True):
    """Logits [T, vocab] in float64, and how large each sub-layer's output is beside the residual."""
    shape = types.SimpleNamespace(
        heads=raw["num_attention_heads"], kv_heads=raw["num_key_value_heads"], head_dim=raw["head_dim"], raw=raw
    )
    rotary = (raw["rope_theta"], raw["head_dim"]) if rope else None
    eps, ratios = raw["rms_norm_eps"], []
    h = w["model.embed_tokens.weight"][np.asarray(ids)]
    for n in range(raw["num_hidden_layers"]):
        own = {name.split(".", 3)[3]: v for name, v in w.items() if name.startswith(f"model.layers.{n}.")}
        parts = {name[len("self_attn.") :]: v for name, v in own.items() if name.startswith("self_attn.")}
        out = attention(shape, parts, rms_norm(h, own["input_layernorm.weight"], eps), frozenset(), rotary)
        ratios.append(rms(out) / rms(h))
        h = h + out
        u = rms_norm(h, own["post_attention_layernorm.weight"], eps)
        gated = silu(u @ own["mlp.gate_proj.weight"].T) * (u @ own["mlp.up_proj.weight"].T)
        out = gated @ own["mlp.down_proj.weight"].T
        ratios.append(rms(out) / rms(h))
        h = h + out
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return rms_norm(h, w["model.norm.weight"], eps) @ head.T, ratios


def build(rng, raw):
    """Float32 weights; gains are chosen so that each sub-layer's output is comparable to the residual."""
    hidden, width, vocab = raw["hidden_size"], raw["intermediate_size"], raw["vocab_size"]
    q, kv = raw["num_attention_heads"] * raw["head_dim"], raw["num_key_value_heads"] * raw["head_dim"]
    w = {"model.embed_tokens.weight": rng.standard_normal((vocab, hidden))}
    for n in range(raw["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": norm_weight(rng, hidden),
            "self_attn.q_proj.weight": matrix(rng, q, hidden, 1.6),
            "self_attn.k_proj.weight": matrix(rng, kv, hidden, 1.3),
            "self_attn.v_proj.weight": matrix(rng, kv, hidden, 1.5),
            "self_attn.o_proj.weight": matrix(rng, hidden, q, 1.5 + n),
            "post_attention_layernorm.weight": norm_weight(rng, hidden),
            "mlp.gate_proj.weight": matrix(rng, width, hidden, 1.5),
            "mlp.up_proj.weight": matrix(rng, width, hidden),
            "mlp.down_proj.weight": matrix(rng, hidden, width, 1.5 + n),
        }
        w |= {f"model.layers.{n}.{name}": value for name, value in layer.items()}
    w["model.norm.weight"] = norm_weight(rng, hidden)
    if not raw["tie_word_embeddings"]:
        w["lm_head.weight"] = matrix(rng, vocab, hidden)
    return {name: value.astype(np.float32) for name, value in w.items()}


def adjacent_pairs(weight, heads):
    """Reorders each head's rows so that the two rows of a rotated pair lie next to each other."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def gguf_tensors(raw, w):
    out = {"token_embd.weight": w["model.embed_tokens.weight"], "output_norm.weight": w["model.norm.weight"]}
    if "lm_head.weight" in w:
        out["output.weight"] = w["lm_head.weight"]
    for n in range(raw["num_hidden_layers"]):
        for hf, name in RENAMES.items():
            value = w[f"model.layers.{n}.{hf}"]
            if "q_proj" in hf:
                value = adjacent_pairs(value, raw["num_attention_heads"])
            if "k_proj" in hf:
                value = adjacent_pairs(value, raw["num_key_value_heads"])
            out[f"blk.{n}.{name}"] = np.ascontiguousarray(value)
    return out


def write_gguf(path, raw, w, name):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_vocab_size(raw["vocab_size"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(raw["num_attention_heads"])
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_key_length(raw["head_dim"])
    writer.add_value_length(raw["head_dim"])
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    writer.add_rope_freq_base(raw["rope_theta"])
    writer.add_rope_dimension_count(raw["head_dim"])
    gguf_twin.add_vocabulary(writer, raw["vocab_size"])
    gguf_twin.write_tensors(writer, gguf_tensors(raw, w))


def make(name, raw, out):
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    rng = np.random.default_rng(zlib.crc32(f"llama {name}".encode()))
    w = build(rng, raw)
    sequences = [[int(t) for t in rng.integers(3, raw["vocab_size"], n)] for n in LENGTHS]
    write_json(folder / "config.json", raw)
    safetensors.numpy.save_file(w, folder / "model.safetensors", metadata={"format": "pt"})
    write_gguf(folder / "model.gguf", raw, w, f"tiny llama {name}")

    model, info = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model = model.double().eval()
    w64 = {key: value.astype(np.float64) for key, value in w.items()}
    logits = [prefill(model, ids) for ids in sequences]
    disagreement = max(worst(a, forward(raw, w64, ids)[0]) for a, ids in zip(logits, sequences))
    ratios = forward(raw, w64, sequences[-1])[1]
    unrotated = deviation(forward(raw, w64, sequences[-1], rope=False)[0], logits[-1])
    print(f"{name}: official against numpy: max difference {disagreement:.1e} of the logits' rms")
    print("  sub-layer / residual:", "  ".join(f"{r:.2f}" for r in ratios))
    print(f"  without rope: {unrotated:.2e}")
    assert disagreement < AGREEMENT and unrotated > 100 * TOLERANCE and all(0.3 <= r <= 3 for r in ratios)

    tensors = {f"logits_{i}": a.astype(np.float32) for i, a in enumerate(logits)}
    safetensors.numpy.save_file(tensors, folder / "golden.safetensors")
    entries = [
        {"token_ids": ids, "rows": list(range(len(ids))), "tensor": f"logits_{i}"} for i, ids in enumerate(sequences)
    ]
    golden = {
        "case": name,
        "about": f"Llama, grouped-query attention, rope theta 1e5, {name} embeddings",
        "source": f"transformers {transformers.__version__}",
        "arithmetic": "float64 weights and linear layers; the class itself keeps norms and softmax in float32",
        "sequences": entries,
        "tolerance": {"rms_relative": TOLERANCE, "official_vs_numpy_max": float(f"{disagreement:.2g}")},
        "facts": [{"fact": 0, "break": "no_rope", "what": "no rope", "sequence": 2, "deviation": round(unrotated, 4)}],
    }
    write_json(folder / "golden.json", golden)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder that receives one folder per case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, raw in CASES.items():
        make(name, raw, args.out)


if __name__ == "__main__":
    main()
