#!/usr/bin/env python3
"""Writes tests/goldens/quant/: what gguf.quants makes of a few blocks. Needs the packages gguf and numpy.

blocks.txt: first "input" and the floats as hex; then, for each format that gguf.quants can encode, its name, the encoded
bytes and the decoded floats as hex.

decode.txt: for each format its name, the floats of the first of 2048 random blocks as hex, and a checksum of each 64
blocks. Random bytes have every pattern of scales among them: NaN, infinite and subnormal halves, all bytes.
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

ENCODED = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"]
DECODED = ENCODED + ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "NVFP4"]
BLOCKS = 2048
PER_CHECKSUM = 64


def random_bytes(seed, count):
    """Little-endian words of splitmix64."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count // 8 + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).view(np.uint8)[:count]


def checksum(values):
    """Sum of bits · (2i + 1) · an odd number, modulo 2^64; all NaN count as one."""
    bits = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32)).astype(np.uint64)
    odd = np.arange(len(bits), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    with np.errstate(over="ignore"):
        return int((bits * odd * np.uint64(0x9E3779B97F4A7C15)).sum(dtype=np.uint64))


folder = pathlib.Path(__file__).parents[2] / "tests/goldens/quant"
with (folder / "blocks.txt").open("w") as file:
    print("input", x.tobytes().hex(), file=file)
    for name in ENCODED:
        qtype = gguf.GGMLQuantizationType[name]
        encoded = gguf.quants.quantize(x, qtype)
        decoded = gguf.quants.dequantize(encoded, qtype).astype(np.float32)
        print(name, encoded.tobytes().hex(), decoded.tobytes().hex(), file=file)

with (folder / "decode.txt").open("w") as file, np.errstate(all="ignore"):
    for name in DECODED:
        qtype = gguf.GGMLQuantizationType[name]
        elements, size = gguf.constants.GGML_QUANT_SIZES[qtype]
        encoded = random_bytes(int(qtype), BLOCKS * size).reshape(BLOCKS, size)
        decoded = np.ascontiguousarray(gguf.quants.dequantize(encoded, qtype).astype(np.float32)).reshape(BLOCKS, elements)
        groups = decoded.reshape(BLOCKS // PER_CHECKSUM, PER_CHECKSUM * elements)
        print(name, decoded[0].tobytes().hex(), *(f"{checksum(group):016x}" for group in groups), file=file)
