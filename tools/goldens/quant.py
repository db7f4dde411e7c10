#!/usr/bin/env python3
"""Writes tests/goldens/quant/blocks.txt: what gguf.quants makes of a few blocks. Needs the packages gguf and numpy.

First line: "input" and the floats as hex; then per format its name, the encoded bytes and the decoded floats as hex.
"""
import pathlib

import gguf
import numpy as np

random = np.random.default_rng(7)
n = 32
blocks = [
    random.standard_normal(n),
    random.standard_normal(n) * 0.02,
    np.zeros(n),
    np.full(n, -0.75),  # constant: Q4_1 has no range
    np.arange(n) - 16.0,  # Q4_0: many values halfway between levels
    np.arange(n) / 8.0,  # positive only
    -np.arange(n) * 3.0,  # negative only
    np.where(np.arange(n) % 2 == 0, 1.5, -1.5),  # two values of the largest magnitude: the first one counts
    np.where(np.arange(n) == 17, 300.0, 0.01),  # an outlier
    random.standard_normal(n) * 1e-6,  # scales that are subnormal halves
    random.standard_normal(n) * 2000,
    (np.arange(n) - 15.5) * 127 / 15.5,  # Q8_0: d = 1, halves rounded away from zero
]
x = np.stack(blocks).astype(np.float32)

out = pathlib.Path(__file__).parents[2] / "tests/goldens/quant/blocks.txt"
with out.open("w") as file:
    print("input", x.tobytes().hex(), file=file)
    for name in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]:
        qtype = gguf.GGMLQuantizationType[name]
        encoded = gguf.quants.quantize(x, qtype)
        decoded = gguf.quants.dequantize(encoded, qtype).astype(np.float32)
        print(name, encoded.tobytes().hex(), decoded.tobytes().hex(), file=file)
