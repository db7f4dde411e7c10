"""Nemotron-H in float64 numpy, written from the equations alone: the second opinion on the official implementation.

`forward()` takes published tensor names (`backbone.*`, one matrix per expert) and a parsed `config.json`. It is a plain
recurrence over tokens, with no chunks and no caches. Every `breaks` name changes one fact of the model on purpose, so
that a golden can state how far the logits move when an engine gets that fact wrong.
"""

import dataclasses
import math

import numpy as np

KINDS = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "moe": "E", "mlp": "-"}

# break name -> (fact number in the model's reference; 0 = not numbered, what the break does)
BREAKS = {
    "paired_layers": (1, "two mixers under one residual add"),
    "residual_after_norm": (1, "the residual is the normed input"),
    "rope": (2, "rotary embedding with the rope_theta and partial_rotary_factor of the config"),
    "plain_relu": (3, "relu instead of relu squared"),
    "silu_gated": (3, "silu(up) * up instead of relu(up)^2"),
    "bias_in_weights": (4, "router weights taken from the biased scores"),
    "bias_not_selecting": (4, "experts selected without e_score_correction_bias"),
    "softmax_router": (4, "softmax instead of sigmoid scores"),
    "no_renormalisation": (4, "norm_topk_prob ignored"),
    "no_routed_scaling": (4, "routed_scaling_factor forgotten"),
    "scaled_shared_expert": (4, "routed_scaling_factor applied to the shared expert too"),
    "no_group_limit": (4, "n_group and topk_group ignored"),
    "norm_before_gate": (5, "grouped norm first, gate after"),
    "one_norm_group": (5, "one norm over all channels"),
    "split_x_first": (6, "in_proj read as x | z | B | C | dt"),
    "split_c_before_b": (6, "in_proj read as z | x | C | B | dt"),
    "split_dt_first": (6, "in_proj read as dt | z | x | B | C"),
    "dt_floor": (7, "dt floored at time_step_min"),
    "dt_ceiling": (7, "dt capped at time_step_max"),
    "dt_limit_ignored": (7, "a finite time_step_limit not applied"),
    "bf16_state": (8, "SSM state rounded to BF16 after every token"),
    "interleaved_groups": (0, "head h uses B/C group h mod n_groups"),
    "interleaved_kv": (0, "query head i uses kv head i mod num_key_value_heads"),
    "no_conv_bias": (0, "convolution bias dropped"),
    "reversed_conv": (0, "convolution taps in reverse order"),
    "no_skip": (0, "D dropped"),
    "default_eps": (0, "norm epsilon 1e-5 whatever the config says"),
}


@dataclasses.dataclass
class Config:
    """The fields of config.json that the forward pass reads, under one spelling each."""

    layers: str
    hidden: int
    vocab: int
    eps: float
    heads: int
    kv_heads: int
    head_dim: int
    mamba_heads: int
    mamba_head_dim: int
    groups: int
    state: int
    conv_kernel: int
    dt_limit: tuple
    experts: int
    top_k: int
    expert_groups: int
    top_groups: int
    renormalise: bool
    scaling: float
    latent: int | None
    raw: dict

    @staticmethod
    def parse(raw):
        def get(*names, default=None):
            return next((raw[n] for n in names if raw.get(n) is not None), default)

        listed = raw.get("layers_block_type")
        layers = "".join(KINDS[kind] for kind in listed) if listed else raw["hybrid_override_pattern"]
        limit = get("time_step_limit", "mamba_dt_limit", default=[0.0, math.inf])
        limit = tuple(math.inf if isinstance(v, dict) or v == "Infinity" else float(v) for v in limit)
        return Config(
            layers=layers,
            hidden=raw["hidden_size"],
            vocab=raw["vocab_size"],
            eps=get("layer_norm_epsilon", "norm_eps", "rms_norm_eps"),
            heads=raw["num_attention_heads"],
            kv_heads=raw["num_key_value_heads"],
            head_dim=get("head_dim", "attention_head_dim"),
            mamba_heads=raw["mamba_num_heads"],
            mamba_head_dim=raw["mamba_head_dim"],
            groups=get("n_groups", "mamba_n_groups"),
            state=raw["ssm_state_size"],
            conv_kernel=get("conv_kernel", "mamba_d_conv"),
            dt_limit=limit,
            experts=get("n_routed_experts", default=0),
            top_k=get("num_experts_per_tok", default=0),
            expert_groups=get("n_group", default=1),
            top_groups=get("topk_group", default=1),
            renormalise=get("norm_topk_prob", default=True),
            scaling=get("routed_scaling_factor", default=1.0),
            latent=raw.get("moe_latent_size"),
            raw=raw,
        )


def round_bf16(x):
    """Round to the nearest BF16 value, ties to even; the result keeps the input's dtype."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).reshape(np.shape(x)).astype(np.asarray(x).dtype)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def silu(x):
    return x / (1.0 + np.exp(-x))


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def mlp(u, up, down, breaks):
    v = u @ up.T
    if "plain_relu" in breaks:
        v = np.maximum(v, 0.0)
    elif "silu_gated" in breaks:
        v = silu(v) * v
    else:
        v = np.maximum(v, 0.0) ** 2
    return v @ down.T


def mamba(cfg, w, u, breaks, trace):
    tokens, nh, hd, n = len(u), cfg.mamba_heads, cfg.mamba_head_dim, cfg.state
    inner, bc = nh * hd, cfg.groups * n
    p = u @ w["in_proj.weight"].T
    sizes = {"z": inner, "x": inner, "B": bc, "C": bc, "dt": nh}
    order = "z x B C dt".split()
    if "split_x_first" in breaks:
        order = "x z B C dt".split()
    if "split_c_before_b" in breaks:
        order = "z x C B dt".split()
    if "split_dt_first" in breaks:
        order = "dt z x B C".split()
    starts = np.cumsum([0] + [sizes[name] for name in order])
    part = {name: p[:, start : start + sizes[name]] for name, start in zip(order, starts)}

    xbc = np.concatenate([part["x"], part["B"], part["C"]], axis=1)
    taps = w["conv1d.weight"][:, 0, :]
    if "reversed_conv" in breaks:
        taps = taps[:, ::-1]
    k = cfg.conv_kernel
    padded = np.concatenate([np.zeros((k - 1, xbc.shape[1])), xbc])
    conv = sum(padded[j : j + tokens] * taps[:, j] for j in range(k))
    if "no_conv_bias" not in breaks:
        conv = conv + w["conv1d.bias"]
    conv = silu(conv)
    x = conv[:, :inner].reshape(tokens, nh, hd)
    b = conv[:, inner : inner + bc].reshape(tokens, cfg.groups, n)
    c = conv[:, inner + bc :].reshape(tokens, cfg.groups, n)
    group = np.arange(nh) % cfg.groups if "interleaved_groups" in breaks else np.arange(nh) // (nh // cfg.groups)
    b, c = b[:, group], c[:, group]

    dt = np.logaddexp(0.0, part["dt"] + w["dt_bias"])
    if "dt_limit_ignored" not in breaks:
        dt = np.clip(dt, *cfg.dt_limit)
    if "dt_floor" in breaks:
        dt = np.maximum(dt, cfg.raw.get("time_step_min", cfg.raw.get("mamba_dt_min")))
    if "dt_ceiling" in breaks:
        dt = np.minimum(dt, cfg.raw.get("time_step_max", cfg.raw.get("mamba_dt_max")))
    decay = np.exp(dt * -np.exp(w["A_log"]))
    state = np.zeros((nh, hd, n))
    y = np.empty((tokens, nh, hd))
    for t in range(tokens):
        state = decay[t, :, None, None] * state + (dt[t, :, None] * x[t])[:, :, None] * b[t][:, None, :]
        y[t] = np.einsum("hpn,hn->hp", state, c[t])
        if "bf16_state" in breaks:
            state = round_bf16(state)
    if trace is not None:
        skip = w["D"][:, None] * x
        trace.setdefault("scan_over_skip", []).append(rms(y) / rms(skip))
    if "no_skip" not in breaks:
        y = y + w["D"][:, None] * x
    y = y.reshape(tokens, inner)

    norm_groups = 1 if "one_norm_group" in breaks else cfg.groups
    gate = silu(part["z"])
    v = y if "norm_before_gate" in breaks else y * gate
    v = rms_norm(v.reshape(tokens, norm_groups, -1), 1.0, cfg.eps).reshape(tokens, inner) * w["norm.weight"]
    if "norm_before_gate" in breaks:
        v = v * gate
    return v @ w["out_proj.weight"].T


def rotate(x, theta, dims):
    half = dims // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:dims]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., dims:]], axis=-1)


def attention(cfg, w, u, breaks, rope=None):
    """`rope` is (theta, rotated dims) for models that have one; Nemotron-H has none."""
    tokens, d = len(u), cfg.head_dim
    q = (u @ w["q_proj.weight"].T).reshape(tokens, cfg.heads, d)
    k = (u @ w["k_proj.weight"].T).reshape(tokens, cfg.kv_heads, d)
    v = (u @ w["v_proj.weight"].T).reshape(tokens, cfg.kv_heads, d)
    if "rope" in breaks:
        rope = (cfg.raw.get("rope_theta", 10000.0), int(d * cfg.raw.get("partial_rotary_factor", 1.0)) // 2 * 2)
    if rope:
        q, k = rotate(q, *rope), rotate(k, *rope)
    i = np.arange(cfg.heads)
    kv = i % cfg.kv_heads if "interleaved_kv" in breaks else i // (cfg.heads // cfg.kv_heads)
    score = np.einsum("thd,shd->hts", q, k[:, kv]) / math.sqrt(d)
    score = np.where(np.tril(np.ones((tokens, tokens), bool)), score, -np.inf)
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weight, v[:, kv]).reshape(tokens, -1) @ w["o_proj.weight"].T


def route(cfg, w, u, breaks, trace):
    """Returns the chosen experts [T, k] and their weights [T, k]."""
    logits = u @ w["gate.weight"].T
    score = 1.0 / (1.0 + np.exp(-logits))
    if "softmax_router" in breaks:
        score = np.exp(logits - logits.max(axis=1, keepdims=True))
        score /= score.sum(axis=1, keepdims=True)
    biased = score + w["gate.e_score_correction_bias"]

    def select(choice):
        gap = np.full(len(u), np.inf)
        if cfg.expert_groups > 1 and "no_group_limit" not in breaks:
            grouped = choice.reshape(len(u), cfg.expert_groups, -1)
            group_score = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
            best = np.sort(group_score, axis=1)[:, ::-1]
            gap = best[:, cfg.top_groups - 1] - best[:, cfg.top_groups]
            keep = group_score >= best[:, cfg.top_groups - 1 : cfg.top_groups]
            choice = np.where(np.repeat(keep, cfg.experts // cfg.expert_groups, axis=1), choice, -np.inf)
        order = np.argsort(-choice, axis=1, kind="stable")
        best = np.take_along_axis(choice, order, axis=1)
        gap = np.minimum(gap, best[:, cfg.top_k - 1] - best[:, cfg.top_k])
        return order[:, : cfg.top_k], gap

    chosen, gap = select(score if "bias_not_selecting" in breaks else biased)
    weight = np.take_along_axis(biased if "bias_in_weights" in breaks else score, chosen, axis=1)
    if cfg.renormalise and "no_renormalisation" not in breaks:
        weight = weight / (weight.sum(axis=1, keepdims=True) + 1e-20)
    if "no_routed_scaling" not in breaks:
        weight = weight * cfg.scaling
    if trace is not None:
        unbiased = np.sort(select(score)[0], axis=1)
        trace.setdefault("route_gap", []).append(gap)
        trace.setdefault("chosen", []).append(np.sort(chosen, axis=1))
        trace.setdefault("bias_changes", []).append((np.sort(chosen, axis=1) != unbiased).any(axis=1))
    return chosen, weight


def moe(cfg, w, u, breaks, trace):
    chosen, weight = route(cfg, w, u, breaks, trace)
    z = u @ w["fc1_latent_proj.weight"].T if cfg.latent else u
    routed = np.zeros_like(z)
    for e in range(cfg.experts):
        token, slot = np.nonzero(chosen == e)
        out = mlp(z[token], w[f"experts.{e}.up_proj.weight"], w[f"experts.{e}.down_proj.weight"], breaks)
        routed[token] += weight[token, slot][:, None] * out
    if cfg.latent:
        routed = routed @ w["fc2_latent_proj.weight"].T
    shared = mlp(u, w["shared_experts.up_proj.weight"], w["shared_experts.down_proj.weight"], breaks)
    if "scaled_shared_expert" in breaks:
        shared = shared * cfg.scaling
    if trace is not None:
        trace["routed"], trace["shared"] = routed, shared
    return routed + shared


def mixer(cfg, w, n, u, breaks=frozenset(), trace=None):
    """Layer n's mixer on normed input u [T, hidden]; w holds the whole model's float64 tensors."""
    prefix = f"backbone.layers.{n}.mixer."
    own = {name[len(prefix) :]: value for name, value in w.items() if name.startswith(prefix)}
    kind = cfg.layers[n]
    if kind == "M":
        return mamba(cfg, own, u, breaks, trace)
    if kind == "*":
        return attention(cfg, own, u, breaks)
    if kind == "E":
        return moe(cfg, own, u, breaks, trace)
    return mlp(u, own["up_proj.weight"], own["down_proj.weight"], breaks)


def forward(cfg, w, ids, breaks=frozenset(), trace=None):
    """Logits [T, vocab] in float64. `trace` (a dict) collects mixer and routing statistics."""
    if "default_eps" in breaks:
        cfg = dataclasses.replace(cfg, eps=1e-5)
    h = w["backbone.embeddings.weight"][np.asarray(ids)]
    for n in range(len(cfg.layers)):
        if "paired_layers" in breaks and n % 2 == 1:
            h, base = last, h - last
        else:
            base = h
        u = rms_norm(h, w[f"backbone.layers.{n}.norm.weight"], cfg.eps)
        last = mixer(cfg, w, n, u, breaks, trace)
        if trace is not None:
            trace.setdefault("mixer_over_residual", []).append(rms(last) / rms(base))
        h = (u if "residual_after_norm" in breaks else base) + last
    return rms_norm(h, w["backbone.norm_f.weight"], cfg.eps) @ w["lm_head.weight"].T


def applicable(cfg):
    """The breaks that can change this model's output at all."""
    out = ["paired_layers", "residual_after_norm"]
    if "*" in cfg.layers:
        out += ["rope"] + (["interleaved_kv"] if cfg.kv_heads > 1 else [])
    if "E" in cfg.layers or "-" in cfg.layers:
        out += ["plain_relu", "silu_gated"]
    if "E" in cfg.layers:
        out += ["bias_in_weights", "bias_not_selecting", "softmax_router", "no_routed_scaling", "scaled_shared_expert"]
        out += ["no_renormalisation"] if cfg.renormalise else []
        out += ["no_group_limit"] if cfg.expert_groups > 1 else []
    if "M" in cfg.layers:
        out += ["norm_before_gate", "one_norm_group", "split_x_first", "split_c_before_b", "split_dt_first"]
        out += ["dt_ceiling", "bf16_state", "interleaved_groups", "no_conv_bias", "reversed_conv", "no_skip"]
        out += ["dt_floor"] if cfg.dt_limit[0] == 0.0 else []
        out += ["dt_limit_ignored"] if cfg.dt_limit != (0.0, math.inf) else []
    if cfg.eps != 1e-5:
        out += ["default_eps"]
    return sorted(out, key=lambda name: (BREAKS[name][0] or 99, name))
