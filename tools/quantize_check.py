"""What `proa quantize` writes against ggml's own quantisers: every block of every tensor, byte for byte.

    proa quantize models/proa-buoy buoy-q4_0.gguf --to q4_0
    python tools/quantize_check.py models/proa-buoy buoy-q4_0.gguf [more.gguf ...]

The original weights are quantised again by ggml_quantize_chunk of the llama.cpp library (without an importance matrix,
as llama-quantize does) and by the gguf package where it can. Needs gguf, safetensors, torch, numpy, and the library:
that of llama-cpp-python, or any libggml-base.so by --library. Logits are what quantize_check_llama.py compares.
"""
import argparse
import ctypes
import pathlib

import gguf
import numpy as np
import safetensors.torch
import torch

HF = {
    "token_embd.weight": "backbone.embeddings.weight", "output_norm.weight": "backbone.norm_f.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
LAYER = {
    "attn_norm.weight": "norm.weight", "ssm_in.weight": "mixer.in_proj.weight",
    "ssm_conv1d.weight": "mixer.conv1d.weight", "ssm_conv1d.bias": "mixer.conv1d.bias", "ssm_dt.bias": "mixer.dt_bias",
    "ssm_a": "mixer.A_log", "ssm_d": "mixer.D", "ssm_norm.weight": "mixer.norm.weight",
    "ssm_out.weight": "mixer.out_proj.weight", "attn_q.weight": "mixer.q_proj.weight",
    "attn_k.weight": "mixer.k_proj.weight", "attn_v.weight": "mixer.v_proj.weight",
    "attn_output.weight": "mixer.o_proj.weight", "ffn_gate_inp.weight": "mixer.gate.weight",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_up_shexp.weight": "mixer.shared_experts.up_proj.weight",
    "ffn_down_shexp.weight": "mixer.shared_experts.down_proj.weight", "ffn_up.weight": "mixer.up_proj.weight",
    "ffn_down.weight": "mixer.down_proj.weight",
}  # fmt: skip


def library(path):
    if not path:
        import llama_cpp

        path = next((pathlib.Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))
    lib = ctypes.CDLL(str(path.resolve()))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return lib


def original(weights, name):
    """The tensor of the source in F32, as the converter would hand it to the quantiser."""
    if name in HF:
        return weights[HF[name]]
    _, layer, rest = name.split(".", 2)
    prefix = f"backbone.layers.{layer}."
    for part in ("up", "down"):
        if rest == f"ffn_{part}_exps.weight":
            experts = [k for k in weights if k.startswith(prefix + "mixer.experts.") and f".{part}_proj." in k]
            return np.stack([weights[prefix + f"mixer.experts.{e}.{part}_proj.weight"] for e in range(len(experts))])
    value = weights[prefix + LAYER[rest]]
    return -np.exp(value) if rest == "ssm_a" else value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("files", type=pathlib.Path, nargs="+")
    parser.add_argument("--library", type=pathlib.Path, help="libggml-base.so")
    args = parser.parse_args()
    weights = {}
    for shard in sorted(args.source.glob("*.safetensors")):
        weights |= {k: v.to(torch.float32).numpy() for k, v in safetensors.torch.load_file(shard).items()}
    lib = library(args.library)
    for file in args.files:
        reader = gguf.GGUFReader(file)
        blocks = differ = package_blocks = package_differ = 0
        errors = []
        for tensor in reader.tensors:
            x = np.ascontiguousarray(original(weights, tensor.name), dtype=np.float32)
            x = x.reshape(-1, int(tensor.shape[0]))
            stored = tensor.data.tobytes()
            kind = tensor.tensor_type
            elements, size = gguf.constants.GGML_QUANT_SIZES[kind]
            count = x.size // elements
            ours = np.frombuffer(stored, np.uint8).reshape(count, size)
            if kind == gguf.GGMLQuantizationType.F32:
                same = np.allclose(np.frombuffer(stored, np.float32), x.ravel(), rtol=2e-7, atol=0)
                if not same:
                    print(f"{file.name}: {tensor.name} differs")
                continue
            theirs = np.empty(len(stored), np.uint8)
            lib.ggml_quantize_chunk(int(kind), x.ctypes.data, theirs.ctypes.data, 0, x.shape[0], x.shape[1], None)
            theirs = theirs.reshape(count, size)
            wrong = (ours != theirs).any(1)
            blocks += count
            differ += int(wrong.sum())
            if wrong.any():
                errors.append((tensor.name, kind.name, int(wrong.sum()), count))
            if wrong.any():
                y = gguf.quants.dequantize(ours, kind).reshape(x.shape)
                t = gguf.quants.dequantize(theirs, kind).reshape(x.shape)
                e_ours, e_theirs = np.square(y - x).sum(), np.square(t - x).sum()
                errors[-1] += (f"squared error {e_ours / e_theirs:.6f} of theirs",)
            try:
                again = np.ascontiguousarray(gguf.quants.quantize(x, kind)).view(np.uint8).reshape(count, size)
                package_blocks += count
                package_differ += int((again != ours).any(1).sum())
            except NotImplementedError:
                pass
        print(f"{file.name}: {differ} of {blocks} blocks differ from ggml_quantize_chunk, "
              f"{package_differ} of {package_blocks} from the gguf package")
        for error in errors[:4]:
            print("   ", *error)


if __name__ == "__main__":
    main()
