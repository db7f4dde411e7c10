"""What `proa quantize --to nvfp4` and `--to fp8` write against ModelOpt's own code, bit for bit.

    pip download --no-deps nvidia-modelopt && unzip nvidia_modelopt-*.whl -d modelopt
    python tools/modelopt_check.py models/proa-buoy buoy-nvfp4 buoy-fp8 --modelopt modelopt

Of ModelOpt only NVFP4QTensor is run, with its three small helpers for amax and padding written here, since the package
imports much else. FP8 is one expression there, (weight / scale).to(float8_e4m3fn): in BF16 where the weight is BF16 and
the scale a scalar, so a value is rounded twice; Proa rounds once, from F32. Both are counted.
"""
import argparse
import pathlib
import sys
import types

import safetensors.torch
import torch


def load_nvfp4(folder):
    def module(name, **members):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(members)
        sys.modules[name].__path__ = []

    class BaseQuantizedTensor:
        def __init__(self, shape, dtype, data):
            self._quantized_data = data

    module("m"), module("m.q"), module("m.q.qtensor"), module("m.q.backends")
    module("m.q.utils", reduce_amax=lambda x, **_: x.abs().amax(), reduce_block_padding=lambda x, **_: x,
           reduce_block_amax=lambda x, **_: x.abs().unflatten(-1, (-1, 16)).amax(-1))  # fmt: skip
    module("m.q.utils.numeric_utils", E2M1_MAX=6.0, E4M3_MAX=448.0, fp8_max_for_normalization=lambda *_, **__: 448.0)
    module("m.q.qtensor.base_qtensor", BaseQuantizedTensor=BaseQuantizedTensor)
    module("m.q.backends.utils", fp4_compatible=lambda: False)
    source = (folder / "modelopt/torch/quantization/qtensor/nvfp4_tensor.py").read_text()
    out = types.ModuleType("m.q.qtensor.nvfp4_tensor")
    out.__package__ = "m.q.qtensor"
    exec(compile(source, "nvfp4_tensor.py", "exec"), out.__dict__)
    return out.NVFP4QTensor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    parser.add_argument("--modelopt", type=pathlib.Path, required=True)
    args = parser.parse_args()
    nvfp4 = load_nvfp4(args.modelopt)
    load = lambda folder: {k: v for f in folder.glob("*.safetensors") for k, v in safetensors.torch.load_file(f).items()}
    weights = load(args.source)
    for folder in args.folders:
        differ = dict.fromkeys(("codes", "scales", "second scales", "FP8 values", "FP8 values of a BF16 division"), 0)
        matrices, elements = 0, 0
        for name, stored in load(folder).items():
            if not name.endswith(".weight") or stored.dtype not in (torch.uint8, torch.float8_e4m3fn):
                continue
            w = weights[name].clone()
            matrices += 1
            elements += w.numel()
            with safetensors.safe_open(next(folder.glob("*.safetensors")), "pt") as file:
                get = lambda suffix: file.get_tensor(name.removesuffix("weight") + suffix)
                if stored.dtype == torch.uint8:
                    q, scales, second = nvfp4.quantize(w, 16)
                    differ["codes"] += int((q._quantized_data != stored).sum())
                    differ["scales"] += int((scales.view(torch.uint8) != get("weight_scale").view(torch.uint8)).sum())
                    differ["second scales"] += int(second != get("weight_scale_2"))
                else:
                    scale = get("weight_scale")
                    differ["scales"] += int(scale != w.abs().amax().float() / 448)
                    once = (w.float() / scale).to(torch.float8_e4m3fn).view(torch.uint8)
                    twice = (w / scale).to(torch.float8_e4m3fn).view(torch.uint8)
                    differ["FP8 values"] += int((once != stored.view(torch.uint8)).sum())
                    differ["FP8 values of a BF16 division"] += int((twice != stored.view(torch.uint8)).sum())
        shown = ", ".join(f"{key} {value}" for key, value in differ.items())
        print(f"{folder.name}: {matrices} matrices of {elements} values; that differ: {shown}")


if __name__ == "__main__":
    main()
