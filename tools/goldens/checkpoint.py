#!/usr/bin/env python3
"""Writes tests/goldens/checkpoint/tiny.{gguf,safetensors} and split-*.gguf with the official writers. Needs gguf,
safetensors, torch.

The readers' tests know the contents: value i of each tensor is i / 4 - 3, so that every format but the quantised ones
holds it exactly.
"""
import pathlib

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

folder = pathlib.Path(__file__).parents[2] / "tests/goldens/checkpoint"


def values(*shape):
    return (np.arange(np.prod(shape, dtype=int)) / 4 - 3).astype(np.float32).reshape(shape)


writer = gguf.GGUFWriter(folder / "tiny.gguf", "tiny")
writer.add_uint8("test.u8", 200)
writer.add_int8("test.i8", -100)
writer.add_uint16("test.u16", 60000)
writer.add_int16("test.i16", -30000)
writer.add_uint32("test.u32", 4000000000)
writer.add_int32("test.i32", -2000000000)
writer.add_uint64("test.u64", 1 << 63)
writer.add_int64("test.i64", -(1 << 40))
writer.add_float32("test.f32", 0.5)
writer.add_float64("test.f64", 1e300)
writer.add_bool("test.bool", True)
writer.add_string("test.string", "grüße")
writer.add_array("test.i32s", [2, 0, -1])
writer.add_array("test.f32s", [0.25, -1.5])
writer.add_array("test.bools", [True, False, True])
writer.add_array("test.strings", ["a", "", "ü b"])
for name in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"]:
    qtype = gguf.GGMLQuantizationType[name]
    data = gguf.quants.quantize(values(3, 64), qtype)
    writer.add_tensor(f"matrix.{name}", data, raw_dtype=qtype)
writer.add_tensor("vector", values(5))
writer.add_tensor("cube", values(2, 3, 4))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

save_file(
    {
        "f32": torch.from_numpy(values(3, 4)),
        "f16": torch.from_numpy(values(2, 3, 4)).half(),
        "bf16": torch.from_numpy(values(6, 1, 4)).bfloat16(),
        "scalar": torch.tensor(-3.0),
        "empty": torch.zeros(0, 4),
        "i64": torch.arange(3),
        "u8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "f8": torch.from_numpy(values(4)).to(torch.float8_e4m3fn),
    },
    folder / "tiny.safetensors",
    metadata={"format": "pt"},
)

writer = gguf.GGUFWriter(folder / "split.gguf", "tiny", split_max_tensors=2, small_first_shard=True)
writer.add_string("test.string", "in the first part")
for name in "abc":
    writer.add_tensor(name, values(3, 4))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
