#!/usr/bin/env python3
"""Writes tests/goldens/family/: what the published checkpoints of the family hold, tensor by tensor, at full size and
without data. Needs nothing but Python.

Written from the tensor lists of the models (reference nemotron-h 1, 3.2, 4, 5.3, 5.4), not from the loader. Each
description is checked here against the published counts of tensors and parameters, file sizes and bytes per token before
it is written. A line is one of

  config FILE                        of src/models/configs, for a Hugging Face folder
  quant NAME VALUE                   a field of "quantization" in hf_quant_config.json
  exclude PATTERN                    an entry of its exclude_modules
  quantized ALGO PATTERN             entries of its quantized_layers
  meta TYPE KEY VALUE                metadata of a GGUF file
  tensor TYPE [SIZES] PATTERN        sizes in PyTorch order; {0-3,7,a} in a pattern stands for each of its items
  expect NAME VALUE                  what the loader must find
  kind KIND TYPE MATRICES PARAMETERS BYTES   weights of a kind, with their scales; vectors as F32, as they are held
"""
import itertools
import math
import pathlib
import re

GOLDENS = pathlib.Path(__file__).resolve().parents[2] / "tests/goldens/family"
VOCAB = 131072

HF_BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
GGML_BLOCKS = {"F32": (1, 4), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q5_0": (32, 22), "Q5_1": (32, 24),
               "IQ4_NL": (32, 18), "MXFP4": (32, 17), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)}


def ranges(layers):
    """[0, 1, 2, 7] -> "{0-2,7}"; one layer is bare."""
    layers = sorted(layers)
    if len(layers) == 1:
        return str(layers[0])
    runs = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def expand(pattern):
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = []
    for i, part in enumerate(parts):
        if i % 2 == 0:
            choices.append([part])
            continue
        items = []
        for item in part.split(","):
            run = re.fullmatch(r"(\d+)-(\d+)", item)
            items += [str(n) for n in range(int(run[1]), int(run[2]) + 1)] if run else [item]
        choices.append(items)
    return ["".join(choice) for choice in itertools.product(*choices)]


class Description:
    def __init__(self, name, title, experts=1, per_token=1):
        self.name, self.title = name, title
        self.experts, self.per_token = experts, per_token
        self.lines, self.names, self.expected = [], set(), []
        self.kinds = {}
        self.file_bytes = self.all_parameters = self.unused = self.unused_parameters = self.kv_scales = 0
        self.parameters = self.active = 0
        self.token_bytes = 0.0

    def line(self, *words):
        self.lines.append(" ".join(str(word) for word in words))

    def tensor(self, dtype, shape, pattern):
        """Puts tensors into the file; returns how many."""
        names = expand(pattern)
        assert not self.names.intersection(names), pattern
        self.names.update(names)
        self.line("tensor", dtype, "[" + ",".join(map(str, shape)) + "]", pattern)
        if dtype in HF_BYTES:
            size = math.prod(shape) * HF_BYTES[dtype]
        else:
            elements, block = GGML_BLOCKS[dtype]
            assert shape[-1] % elements == 0, (pattern, dtype, shape)
            size = math.prod(shape) // elements * block
        self.file_bytes += len(names) * size
        return len(names), size

    def hold(self, kind, stored, matrices, parameters, size):
        """Counts what the model must hold. `matrices` of `parameters` and `size` bytes each."""
        old = self.kinds.get((kind, stored), (0, 0, 0))
        self.kinds[kind, stored] = (old[0] + matrices, old[1] + matrices * parameters, old[2] + matrices * size)
        self.parameters += matrices * parameters
        self.all_parameters += matrices * parameters
        used = matrices * self.per_token // self.experts if kind == "expert" else matrices
        if kind == "embedding":
            self.token_bytes += size / VOCAB
        else:
            self.active += used * parameters
            self.token_bytes += used * size

    def vector(self, dtype, shape, pattern):
        count, _ = self.tensor(dtype, shape, pattern)
        self.hold("vector", dtype, count, math.prod(shape), 4 * math.prod(shape))

    def skip(self, dtype, shape, pattern):
        """A tensor that is there and not used."""
        count, _ = self.tensor(dtype, shape, pattern)
        self.unused += count
        self.unused_parameters += count * math.prod(shape)
        self.all_parameters += count * math.prod(shape)

    def linear(self, kind, rows, cols, module, scheme="BF16"):
        """X.weight and, as ModelOpt stores them, its scales."""
        weight = f"{module}.weight"
        if scheme in HF_BYTES:
            count, size = self.tensor(scheme, [rows, cols], weight)
            return self.hold(kind, scheme, count, rows * cols, size)
        if scheme.startswith("FP8"):
            count, size = self.tensor("F8_E4M3", [rows, cols], weight)
            self.tensor("F32", [], f"{module}.weight_scale")
            self.tensor("F32", [1] if scheme == "FP8[1]" else [], f"{module}.input_scale")
            return self.hold(kind, "F8_E4M3", count, rows * cols, size + 4)
        count, size = self.tensor("U8", [rows, cols // 2], weight)
        _, scales = self.tensor("F8_E4M3", [rows, cols // 16], f"{module}.weight_scale")
        self.tensor("F32", [], f"{module}.weight_scale_2")
        if scheme == "NVFP4":
            self.tensor("F32", [], f"{module}.input_scale")
        return self.hold(kind, "NVFP4", count, rows * cols, size + scales + 4)

    def check(self, what, actual, published):
        assert actual == published, f"{self.name}: {what} {actual:,}, published {published:,}"

    def write(self, tensors, parameters=None, active=None, file_gb=None, mb=None, all_parameters=None):
        self.check("tensors", len(self.names), tensors)
        if parameters:
            self.check("parameters", self.parameters, parameters)
        if all_parameters:
            self.check("parameters with what is unused", self.all_parameters, all_parameters)
        if active:
            self.check("active parameters", self.active, active)
        if file_gb:
            self.check("size in GB", round(self.file_bytes / 1e9, len(str(file_gb).split(".")[1])), file_gb)
        if mb:
            assert abs(self.token_bytes / 1e6 - mb) < 0.001 * mb, f"{self.name}: {self.token_bytes / 1e6} MB a token"
        lines = ["# " + line for line in self.title.strip().splitlines()] + self.lines
        lines += [f"expect tensors {tensors}", f"expect parameters {self.parameters}", f"expect active {self.active}",
                  f"expect unused {self.unused} {self.unused_parameters}", f"expect kv_scales {self.kv_scales}"]
        if mb:
            lines.append(f"expect mb_per_token {mb}")
        lines += [f"kind {kind} {stored} {matrices} {parameters} {size}"
                  for (kind, stored), (matrices, parameters, size) in sorted(self.kinds.items())]
        GOLDENS.mkdir(parents=True, exist_ok=True)
        (GOLDENS / f"{self.name}.txt").write_text("\n".join(lines) + "\n")


class Member:
    """Sizes of a member of the family. `inner`, `conv_dim`, `in_rows` and the rest are as the reference states them."""

    def __init__(self, config, pattern, hidden, attention, mamba, ffn=None, moe=None):
        self.config, self.pattern, self.hidden = config, pattern, hidden
        self.q_rows, self.kv_rows = attention
        self.heads, self.inner, self.conv_dim, self.in_rows = mamba
        self.ffn, self.moe = ffn, moe
        self.layers = {letter: [i for i, mixer in enumerate(pattern) if mixer == letter] for letter in "M*E-"}


class Moe:
    def __init__(self, experts, per_token, width, shared, latent=None, gate="F32"):
        self.experts, self.per_token, self.width, self.shared = experts, per_token, width, shared
        self.latent, self.gate = latent, gate


NANO = Member("NVIDIA-Nemotron-3-Nano-30B-A3B.json", "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", 2688,
              (4096, 256), (64, 4096, 6144, 10304), moe=Moe(128, 6, 1856, 3712))
LIGHTNING = Member("NVIDIA-Nemotron-3.5-Lightning-30B-A3B.json", NANO.pattern, 2688, (4096, 256),
                   (64, 4096, 6144, 10304), moe=Moe(128, 6, 1856, 3712))
SUPER = Member("NVIDIA-Nemotron-3-Super-120B-A12B.json",
               "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME", 4096,
               (4096, 256), (128, 8192, 10240, 18560), moe=Moe(512, 22, 2688, 5376, latent=1024, gate="BF16"))
NANO_4B = Member("NVIDIA-Nemotron-3-Nano-4B.json", "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-", 3136, (5120, 1024),
                 (96, 7680, 9728, 17504), ffn=12544)
NANO_9B = Member("NVIDIA-Nemotron-Nano-9B-v2.json", "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-", 4480,
                 (5120, 1024), (128, 10240, 12288, 22656), ffn=15680)
NANO_12B = Member("NVIDIA-Nemotron-Nano-12B-v2.json",
                  "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-", 5120, (5120, 1024),
                  (128, 10240, 12288, 22656), ffn=20480)
H_8B = Member("Nemotron-H-8B-Base-8K.json", "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-", 4096, (4096, 1024),
              (128, 8192, 10240, 18560), ffn=21504)

# The attention layers and the Mamba layers of Nano as the reference lists them.
NANO_ATTENTION = [5, 12, 19, 26, 33, 42]
NANO_BEFORE_ATTENTION = [4, 11, 18, 25, 32, 41]
assert NANO.layers["*"] == NANO_ATTENTION
assert SUPER.layers["*"] == [7, 16, 25, 36, 47, 58, 69, 78] and NANO_4B.layers["*"] == [12, 17, 24, 32]
assert {letter: len(layers) for letter, layers in NANO.layers.items()} == {"M": 23, "*": 6, "E": 23, "-": 0}
assert {letter: len(layers) for letter, layers in SUPER.layers.items()} == {"M": 40, "*": 8, "E": 40, "-": 0}


def huggingface(name, title, member, scheme=lambda module, layer: "BF16", prefix="backbone."):
    """Everything but MTP. scheme("in_proj", 4) is how a matrix is stored; the layer of embeddings and lm_head is -1."""
    moe = member.moe
    out = Description(name, title, *((moe.experts, moe.per_token) if moe else ()))
    out.line("config", member.config)

    def linears(kind, letter, module, rows, cols, each=""):
        by_scheme = {}
        for layer in member.layers[letter]:
            by_scheme.setdefault(scheme(module, layer), []).append(layer)
        for stored, layers in by_scheme.items():
            path = f"{prefix}layers.{ranges(layers)}.mixer.{each}{module.split('.')[-1]}"
            out.linear(kind, rows, cols, path, stored)

    def vectors(letter, dtype, shape, name_):
        out.vector(dtype, shape, f"{prefix}layers.{ranges(member.layers[letter])}.{name_}")

    hidden = member.hidden
    out.linear("embedding", VOCAB, hidden, f"{prefix}embeddings", scheme("embeddings", -1))
    out.vector("BF16", [hidden], f"{prefix}layers.{{0-{len(member.pattern) - 1}}}.norm.weight")
    linears("mamba", "M", "in_proj", member.in_rows, hidden)
    vectors("M", "BF16", [member.conv_dim, 1, 4], "mixer.conv1d.weight")
    vectors("M", "BF16", [member.conv_dim], "mixer.conv1d.bias")
    vectors("M", "BF16", [member.heads], "mixer.{A_log,D,dt_bias}")
    vectors("M", "BF16", [member.inner], "mixer.norm.weight")
    linears("mamba", "M", "out_proj", hidden, member.inner)
    linears("attention", "*", "q_proj", member.q_rows, hidden)
    for module in ("k_proj", "v_proj"):
        linears("attention", "*", module, member.kv_rows, hidden)
    linears("attention", "*", "o_proj", hidden, member.q_rows)
    if moe:
        width = moe.latent or hidden
        each = f"experts.{{0-{moe.experts - 1}}}."
        out.linear("router", moe.experts, hidden, f"{prefix}layers.{ranges(member.layers['E'])}.mixer.gate", moe.gate)
        vectors("E", "F32", [moe.experts], "mixer.gate.e_score_correction_bias")
        linears("expert", "E", "experts.up_proj", moe.width, width, each)
        linears("expert", "E", "experts.down_proj", width, moe.width, each)
        linears("shared_expert", "E", "shared.up_proj", moe.shared, hidden, "shared_experts.")
        linears("shared_expert", "E", "shared.down_proj", hidden, moe.shared, "shared_experts.")
        if moe.latent:
            linears("latent", "E", "fc1_latent_proj", moe.latent, hidden)
            linears("latent", "E", "fc2_latent_proj", hidden, moe.latent)
    if member.ffn:
        linears("mlp", "-", "up_proj", member.ffn, hidden)
        linears("mlp", "-", "down_proj", hidden, member.ffn)
    out.vector("BF16", [hidden], f"{prefix}norm_f.weight")
    out.linear("lm_head", VOCAB, hidden, "lm_head", scheme("lm_head", -1))
    return out


def mtp(out, member):
    hidden, moe = member.hidden, member.moe
    width = moe.latent or hidden
    out.skip("BF16", [hidden], "mtp.layers.0.{enorm,hnorm,norm}.weight")
    out.skip("BF16", [hidden, 2 * hidden], "mtp.layers.0.eh_proj.weight")
    out.skip("BF16", [member.q_rows, hidden], "mtp.layers.0.mixer.q_proj.weight")
    out.skip("BF16", [member.kv_rows, hidden], "mtp.layers.0.mixer.{k_proj,v_proj}.weight")
    out.skip("BF16", [hidden, member.q_rows], "mtp.layers.0.mixer.o_proj.weight")
    out.skip("BF16", [hidden], "mtp.layers.1.{norm,final_layernorm}.weight")
    out.skip("BF16", [moe.experts, hidden], "mtp.layers.1.mixer.gate.weight")
    out.skip("F32", [moe.experts], "mtp.layers.1.mixer.gate.e_score_correction_bias")
    out.skip("BF16", [moe.width, width], f"mtp.layers.1.mixer.experts.{{0-{moe.experts - 1}}}.up_proj.weight")
    out.skip("BF16", [width, moe.width], f"mtp.layers.1.mixer.experts.{{0-{moe.experts - 1}}}.down_proj.weight")
    out.skip("BF16", [moe.shared, hidden], "mtp.layers.1.mixer.shared_experts.up_proj.weight")
    out.skip("BF16", [hidden, moe.shared], "mtp.layers.1.mixer.shared_experts.down_proj.weight")
    if moe.latent:
        out.skip("BF16", [moe.latent, hidden], "mtp.layers.1.mixer.fc1_latent_proj.weight")
        out.skip("BF16", [hidden, moe.latent], "mtp.layers.1.mixer.fc2_latent_proj.weight")


def kv_scales(out, member):
    for module, scale in (("k_proj", "k_scale"), ("v_proj", "v_scale")):
        count, _ = out.tensor("F32", [1], f"backbone.layers.{ranges(member.layers['*'])}.mixer.{module}.{scale}")
        out.kv_scales += count


def nano_exclusions(out):
    """exclude_modules of the real hf_quant_config.json."""
    out.line("exclude", "lm_head")
    out.line("exclude", f"backbone.layers.{ranges(NANO_BEFORE_ATTENTION)}.mixer.{{in_proj,out_proj}}")
    out.line("exclude", f"backbone.layers.{ranges(NANO_ATTENTION)}.mixer.{{q_proj,k_proj,v_proj,o_proj}}")
    out.line("exclude", f"backbone.layers.{ranges(NANO.layers['M'])}.mixer.conv1d")


def nano_scheme(quantised):
    def scheme(module, layer):
        plain = (module in ("embeddings", "lm_head") or layer in NANO_ATTENTION or
                 (module in ("in_proj", "out_proj") and layer in NANO_BEFORE_ATTENTION))
        return "BF16" if plain else quantised
    return scheme


def huggingface_files():
    active = 3_227_754_816
    huggingface("nano-30b-bf16", "Nemotron-3-Nano-30B-A3B-BF16", NANO).write(
        6243, 31_577_940_288, active, file_gb=63.2, mb=6473)

    fp8 = huggingface("nano-30b-fp8", "Nemotron-3-Nano-30B-A3B-FP8. Whether the real file has k_scale and v_scale is not "
                      "known: here it has.", NANO, nano_scheme("FP8"))
    for field, value in (("quant_algo", "FP8"), ("kv_cache_quant_algo", "FP8")):
        fp8.line("quant", field, value)
    nano_exclusions(fp8)
    kv_scales(fp8, NANO)
    fp8.write(6243 + 2 * 5968 + 12, 31_577_940_288, active, file_gb=32.68, mb=3977)

    nvfp4 = huggingface("nano-30b-nvfp4", "Nemotron-3-Nano-30B-A3B-NVFP4: no scales of keys and values.", NANO,
                        nano_scheme("NVFP4"))
    for field, value in (("quant_algo", "NVFP4"), ("kv_cache_quant_algo", "FP8"), ("group_size", 16)):
        nvfp4.line("quant", field, value)
    nano_exclusions(nvfp4)
    nvfp4.write(24_147, 31_577_940_288, active, file_gb=19.3, mb=2886)

    lightning = huggingface("lightning-30b-bf16", "Nemotron-3.5-Lightning-30B-A3B, with its MTP layer", LIGHTNING)
    mtp(lightning, LIGHTNING)
    lightning.check("MTP tensors", lightning.unused, 270)
    lightning.write(6513, 31_577_940_288, active, all_parameters=32_913_266_240)

    def lightning_scheme(module, layer):
        if module in ("in_proj", "out_proj"):
            return "FP8[1]"
        return "W4A16" if "." in module or module == "lm_head" else "BF16"
    mixed = huggingface("lightning-30b-nvfp4", "Nemotron-3.5-Lightning-30B-A3B-NVFP4: MIXED_PRECISION", LIGHTNING,
                        lightning_scheme)
    mtp(mixed, LIGHTNING)
    mixed.line("quant", "quant_algo", "MIXED_PRECISION")
    mixed.line("quant", "kv_cache_quant_algo", "FP8")
    mixed.line("quantized", "W4A16_NVFP4", "lm_head")
    moe_layers = ranges(LIGHTNING.layers["E"])
    for path in ("experts.{0-127}", "shared_experts"):
        mixed.line("quantized", "W4A16_NVFP4", f"backbone.layers.{moe_layers}.mixer.{path}.{{up_proj,down_proj}}")
    mixed.line("quantized", "FP8", f"backbone.layers.{ranges(LIGHTNING.layers['M'])}.mixer.{{in_proj,out_proj}}")
    mixed.line("exclude", "mtp*")
    kv_scales(mixed, LIGHTNING)
    assert round(mixed.file_bytes / 2**30, 1) == 20.1, mixed.file_bytes
    mixed.write(18_487, 31_577_940_288, active)

    trunk = huggingface("super-120b-bf16", "Nemotron-3-Super-120B-A12B-BF16, with its MTP layer", SUPER)
    mtp(trunk, SUPER)
    trunk.write(42_683, 120_668_707_840, all_parameters=123_611_033_088)

    moe = SUPER.layers["E"]

    def super_scheme(module, layer):
        if module.startswith("experts.") or (module == "shared.down_proj" and layer == moe[19]):
            return "NVFP4"
        fp8 = module in ("in_proj", "out_proj", "shared.up_proj") or (module == "shared.down_proj" and layer < moe[19])
        return "FP8" if fp8 else "BF16"
    mixed = huggingface("super-120b-nvfp4", "Nemotron-3-Super-120B-A12B-NVFP4: MIXED_PRECISION. How many modules are FP8 (139) "
                        "and NVFP4 (40,961) is published; which ones is made up.", SUPER, super_scheme)
    mtp(mixed, SUPER)
    mixed.line("quant", "quant_algo", "MIXED_PRECISION")
    mixed.line("quant", "kv_cache_quant_algo", "FP8")
    mixed.line("quantized", "NVFP4", f"backbone.layers.{ranges(moe)}.mixer.experts.{{0-511}}.{{up_proj,down_proj}}")
    mixed.line("quantized", "NVFP4", f"backbone.layers.{moe[19]}.mixer.shared_experts.down_proj")
    mixed.line("quantized", "FP8", f"backbone.layers.{ranges(SUPER.layers['M'])}.mixer.{{in_proj,out_proj}}")
    mixed.line("quantized", "FP8", f"backbone.layers.{ranges(moe)}.mixer.shared_experts.up_proj")
    mixed.line("quantized", "FP8", f"backbone.layers.{ranges(moe[:19])}.mixer.shared_experts.down_proj")
    kv_scales(mixed, SUPER)
    mixed.write(165_860, 120_668_707_840)

    huggingface("nano-4b-bf16", "Nemotron-3-Nano-4B", NANO_4B).write(263, 3_973_556_832)
    fp8_down = NANO_4B.layers["-"][:4]

    def nano_4b_scheme(module, layer):
        if module == "embeddings":
            return "W4A16"
        return "FP8" if module == "lm_head" or (module == "down_proj" and layer in fp8_down) else "NVFP4"
    small = huggingface("nano-4b-nvfp4", "Nemotron-3-Nano-4B-NVFP4 after its recipe: packed embedding, FP8 lm_head, FP8 "
                        "down_proj in some layers (which ones is made up)", NANO_4B, nano_4b_scheme)
    small.line("quant", "quant_algo", "MIXED_PRECISION")
    small.line("quantized", "W4A16_NVFP4", "backbone.embeddings")
    small.line("quantized", "FP8", "lm_head")
    small.line("quantized", "FP8", f"backbone.layers.{ranges(fp8_down)}.mixer.down_proj")
    small.line("quantized", "NVFP4", f"backbone.layers.{ranges(NANO_4B.layers['-'][4:])}.mixer.down_proj")
    small.line("quantized", "NVFP4", f"backbone.layers.{ranges(NANO_4B.layers['-'])}.mixer.up_proj")
    small.line("quantized", "NVFP4", f"backbone.layers.{ranges(NANO_4B.layers['M'])}.mixer.{{in_proj,out_proj}}")
    small.line("quantized", "NVFP4",
               f"backbone.layers.{ranges(NANO_4B.layers['*'])}.mixer.{{q_proj,k_proj,v_proj,o_proj}}")
    small.write(263 + 2 + 2 * 5 + 3 * (13 + 17 + 2 * 21 + 4 * 4), 3_973_556_832)

    huggingface("nano-9b-v2", "Nemotron-Nano-9B-v2", NANO_9B).write(341, 8_888_227_328)
    huggingface("nano-12b-v2", "Nemotron-Nano-12B-v2. Its 8 heads of keys and values of 128 are not confirmed.",
                NANO_12B).write(369)
    huggingface("h-8b", "Nemotron-H-8B-Base-8K", H_8B).write(311, 8_100_852_736)


# --- GGUF ---

def gguf(name, title, member, types):
    """types("ffn_up_exps", layer) is the type of a matrix; layer -1 for token_embd and output."""
    moe, hidden = member.moe, member.hidden
    out = Description(name, title, *((moe.experts, moe.per_token) if moe else ()))
    arch = "nemotron_h_moe" if moe else "nemotron_h"
    blocks = len(member.pattern)
    nextn = 1 if "mtp" in name else 0
    folded = [1] * nextn  # the MTP block is attention and MoE in one

    def meta(type_, key, value):
        if isinstance(value, list):
            value = ",".join(map(str, value))
        out.line("meta", type_, f"{arch}.{key}" if not key.startswith("general.") else key, value)

    width = moe.width if moe else member.ffn
    meta("string", "general.architecture", arch)
    meta("u32", "block_count", blocks + nextn)
    meta("u32", "context_length", 1048576)
    meta("u32", "embedding_length", hidden)
    meta("u32", "vocab_size", VOCAB)
    meta("i32s", "feed_forward_length", [width if mixer in "E-" else 0 for mixer in member.pattern] + [width] * nextn)
    meta("u32", "attention.head_count", member.q_rows // 128)
    meta("i32s", "attention.head_count_kv",
         [member.kv_rows // 128 if mixer == "*" else 0 for mixer in member.pattern] + [member.kv_rows // 128] * nextn)
    meta("u32", "attention.key_length", 128)
    meta("u32", "attention.value_length", 128)
    meta("f32", "attention.layer_norm_rms_epsilon", 1e-5)
    meta("f32", "attention.layer_norm_epsilon", 1e-5)
    meta("f32", "rope.freq_base", 10000)
    meta("u32", "rope.dimension_count", 84)
    meta("bool", "rope.scaling.finetuned", "false")
    for key, value in (("conv_kernel", 4), ("state_size", 128), ("group_count", 8), ("inner_size", member.inner),
                       ("time_step_rank", member.heads)):
        meta("u32", f"ssm.{key}", value)
    if moe:
        for key, value in (("expert_count", moe.experts), ("expert_used_count", moe.per_token),
                           ("expert_shared_count", 1), ("expert_feed_forward_length", moe.width),
                           ("expert_shared_feed_forward_length", moe.shared), ("expert_group_count", 1),
                           ("expert_group_used_count", 1)):
            meta("u32", key, value)
        meta("bool", "expert_weights_norm", "true")
        meta("f32", "expert_weights_scale", 5.0 if moe.latent else 2.5)
        if moe.latent:
            meta("u32", "moe_latent_size", moe.latent)
    if nextn:
        meta("u32", "nextn_predict_layers", nextn)

    def blk(layers, tensor):
        return f"blk.{ranges(layers)}.{tensor}"

    def matrices(kind, letter, tensor, rows, cols, stack=0):
        by_type = {}
        for layer in member.layers[letter]:
            by_type.setdefault(types(tensor, layer), []).append(layer)
        for type_, layers in by_type.items():
            count, size = out.tensor(type_, [stack, rows, cols] if stack else [rows, cols], blk(layers, tensor + ".weight"))
            out.hold(kind, type_, count * (stack or 1), rows * cols, size // (stack or 1))

    def global_(kind, tensor):
        count, size = out.tensor(types(tensor, -1), [VOCAB, hidden], tensor + ".weight")
        out.hold(kind, types(tensor, -1), count, VOCAB * hidden, size)

    global_("embedding", "token_embd")
    out.vector("F32", [hidden], "output_norm.weight")
    global_("lm_head", "output")
    out.vector("F32", [hidden], f"blk.{{0-{blocks - 1}}}.attn_norm.weight")
    mamba = member.layers["M"]
    matrices("mamba", "M", "ssm_in", member.in_rows, hidden)
    out.vector("F32", [member.conv_dim, 4], blk(mamba, "ssm_conv1d.weight"))
    out.vector("F32", [member.conv_dim], blk(mamba, "ssm_conv1d.bias"))
    out.vector("F32", [member.heads], blk(mamba, "ssm_dt.bias"))
    out.vector("F32", [member.heads, 1], blk(mamba, "{ssm_a,ssm_d}"))
    out.vector("F32", [8, member.inner // 8], blk(mamba, "ssm_norm.weight"))
    matrices("mamba", "M", "ssm_out", hidden, member.inner)
    matrices("attention", "*", "attn_q", member.q_rows, hidden)
    matrices("attention", "*", "attn_k", member.kv_rows, hidden)
    matrices("attention", "*", "attn_v", member.kv_rows, hidden)
    matrices("attention", "*", "attn_output", hidden, member.q_rows)
    if moe:
        inside = moe.latent or hidden
        experts = member.layers["E"]
        count, size = out.tensor("F32", [moe.experts, hidden], blk(experts, "ffn_gate_inp.weight"))
        out.hold("router", "F32", count, moe.experts * hidden, size)
        out.vector("F32", [moe.experts], blk(experts, "exp_probs_b.bias"))
        matrices("expert", "E", "ffn_up_exps", moe.width, inside, moe.experts)
        matrices("expert", "E", "ffn_down_exps", inside, moe.width, moe.experts)
        matrices("shared_expert", "E", "ffn_up_shexp", moe.shared, hidden)
        matrices("shared_expert", "E", "ffn_down_shexp", hidden, moe.shared)
        if moe.latent:
            matrices("latent", "E", "ffn_latent_down", moe.latent, hidden)
            matrices("latent", "E", "ffn_latent_up", hidden, moe.latent)
    if member.ffn:
        matrices("mlp", "-", "ffn_up", member.ffn, hidden)
        matrices("mlp", "-", "ffn_down", hidden, member.ffn)
    if folded and nextn:
        def skip(type_, shape, tensor):
            out.skip(type_, shape, f"blk.{blocks}.{tensor}")
        skip("F32", [hidden], "nextn.{enorm,hnorm,shared_head_norm}.weight")
        skip(types("eh_proj", blocks), [hidden, 2 * hidden], "nextn.eh_proj.weight")
        skip("F32", [hidden], "{attn_norm,post_attention_norm}.weight")
        skip(types("attn_q", blocks), [member.q_rows, hidden], "attn_q.weight")
        skip(types("attn_k", blocks), [member.kv_rows, hidden], "{attn_k,attn_v}.weight")
        skip(types("attn_output", blocks), [hidden, member.q_rows], "attn_output.weight")
        skip("F32", [moe.experts, hidden], "ffn_gate_inp.weight")
        skip("F32", [moe.experts], "exp_probs_b.bias")
        skip(types("ffn_up_exps", blocks), [moe.experts, moe.width, moe.latent or hidden], "ffn_up_exps.weight")
        skip(types("ffn_down_exps", blocks), [moe.experts, moe.latent or hidden, moe.width], "ffn_down_exps.weight")
        skip(types("ffn_up_shexp", blocks), [moe.shared, hidden], "ffn_up_shexp.weight")
        skip(types("ffn_down_shexp", blocks), [hidden, moe.shared], "ffn_down_shexp.weight")
        if moe.latent:
            skip(types("ffn_latent_down", blocks), [moe.latent, hidden], "ffn_latent_down.weight")
            skip(types("ffn_latent_up", blocks), [hidden, moe.latent], "ffn_latent_up.weight")
    return out


WIDE = ("ssm_out", "attn_output")  # 4096 columns: the only ones of Nano that hold blocks of 256
MORE_BITS = [1, 3, 8, 17, 20, 29, 38, 45, 47, 49, 51]  # layers whose ffn_down_* get them


def more_bits(tensor, layer):
    return (tensor.startswith("ffn_down") and layer in MORE_BITS) or (tensor == "attn_v" and layer in (19, 42))


def gguf_files():
    def uniform(type_, output=None, wide=None):
        def types(tensor, layer):
            return output if output and tensor == "output" else wide if wide and tensor in WIDE else type_
        return types

    def k_m(type_, wide):
        def types(tensor, layer):
            if tensor == "output" or more_bits(tensor, layer):
                return "Q8_0"
            return wide if tensor in WIDE else type_
        return types

    def ggml_org(tensor, layer):
        if tensor == "attn_output":
            return "Q6_K"
        return "Q5_0" if tensor == "token_embd" or tensor.endswith("_exps") else "Q8_0"

    def mxfp4_moe(tensor, layer):
        return "MXFP4" if tensor.endswith("_exps") else "Q8_0"

    rows = [  # file, types, GB, MB a token
        ("bf16", uniform("BF16"), 63.2, None),
        ("q8_0", uniform("Q8_0"), 33.6, 3456),
        ("q6_k", uniform("Q8_0", wide="Q6_K"), 33.5, None),
        ("q5_k_m", k_m("Q5_1", "Q5_K"), 26.0, None),
        ("q4_k_m", k_m("Q5_0", "Q4_K"), 24.5, 2506),
        ("ggml-org-q4_k_m", ggml_org, 22.4, 2923),
        ("q4_0", uniform("Q4_0", output="Q8_0"), 18.0, 2022),
        ("iq4_nl", uniform("IQ4_NL", output="Q8_0"), 18.0, 2022),
        ("mxfp4_moe", mxfp4_moe, 18.0, None),
    ]
    for name, types, gb, mb in rows:
        gguf(f"nano-30b-gguf-{name}", f"Nemotron-3-Nano-30B-A3B, GGUF {name.upper()}", NANO, types).write(
            401, 31_577_940_288, 3_227_754_816, file_gb=gb, mb=mb)
    gguf("super-120b-gguf-q4_0-mtp", "Nemotron-3-Super-120B-A12B, GGUF Q4_0, MTP folded into a last block", SUPER,
         uniform("Q4_0", output="Q8_0")).write(763 + 18, 120_668_707_840, all_parameters=123_611_033_088)
    gguf("nano-4b-gguf-q8_0", "Nemotron-3-Nano-4B, GGUF Q8_0", NANO_4B, uniform("Q8_0")).write(263, 3_973_556_832)


if __name__ == "__main__":
    huggingface_files()
    gguf_files()
