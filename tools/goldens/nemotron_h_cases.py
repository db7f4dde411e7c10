"""The tiny Nemotron-H checkpoints: configs, random weights that make every mixer count, spelling in the files."""

import numpy as np
from nemotron_h_numpy import mixer, rms, rms_norm, round_bf16

BASE = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "chunk_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "mamba_ssm_cache_dtype": "float32",
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "num_logits_to_keep": 1,
    "partial_rotary_factor": 1.0,
    "rescale_prenorm_residual": True,
    "residual_in_fp32": False,
    "rope_theta": 10000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "time_step_floor": 1e-4,
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "torch_dtype": "float32",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
}

# Members without Mamba or MoE layers still carry these keys; the values are plausible and unused.
MAMBA = {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
DENSE = {"intermediate_size": 36}


def moe_keys(experts, top_k, width, shared, scaling, **more):
    return {
        "n_routed_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "moe_shared_expert_intermediate_size": shared,
        "n_shared_experts": 1,
        "routed_scaling_factor": scaling,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
    } | more


def config(pattern, hidden, vocab, *parts, drop=(), **more):
    out = BASE | {"hidden_size": hidden, "vocab_size": vocab, "hybrid_override_pattern": pattern}
    out |= {"num_hidden_layers": len(pattern)} | MAMBA | ATTENTION | DENSE
    for part in parts:
        out |= part
    out |= more
    return {key: out[key] for key in sorted(out) if key not in drop}


# name -> what the case shows, config, token counts, how the files are written.
# prefix: base-model prefix of the tensor names; fused: experts as one 3-D tensor; shards: number of safetensors files;
# long_memory: share of SSM groups with softplus(dt_bias) < time_step_min; gguf: write a GGUF twin; bf16_twin: folder
# of the same model with BF16 weights.
CASES = {
    "m_e_attn": {
        "about": "all four layer kinds, names and split experts as published",
        "config": config(
            "M*EM-E",
            64,
            97,
            {"mamba_num_heads": 6, "mamba_head_dim": 12, "n_groups": 2, "ssm_state_size": 8},
            {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20},
            moe_keys(8, 3, 12, 28, 2.5),
            norm_eps=1e-5,
        ),
        "tokens": [1, 7, 37],
        "gguf": True,
        "bf16_twin": "m_e_attn_bf16",
    },
    "mamba_only": {
        "about": "three Mamba-2 layers, odd hidden size, long memory over many chunks and a ragged last chunk",
        "config": config(
            "MMM",
            45,
            101,
            {"mamba_num_heads": 6, "mamba_head_dim": 8, "n_groups": 3, "ssm_state_size": 16},
        ),
        "tokens": [1, 7, 37, 301],
        "long_memory": 2 / 3,
    },
    "attn_only": {
        "about": "attention 16:2 and dense MLP, rope keys to be ignored, epsilon spelled rms_norm_eps",
        "config": config(
            "*-*",
            40,
            113,
            {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 8},
            drop=("layer_norm_epsilon",),
            rms_norm_eps=0.003,
            rope_theta=500,
            partial_rotary_factor=0.5,
        ),
        "tokens": [1, 7, 37],
    },
    "moe_latent": {
        "about": "latent MoE, top-5 of 16, scale 5",
        "config": config(
            "ME*E",
            48,
            97,
            {"mamba_num_heads": 4, "mamba_head_dim": 10, "n_groups": 2, "ssm_state_size": 8},
            {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10},
            moe_keys(16, 5, 12, 24, 5.0, moe_latent_size=20, moe_shared_expert_overlap=False),
        ),
        "tokens": [1, 7, 37],
        "gguf": True,
    },
    "moe_groups": {
        "about": "group-limited routing, not renormalised, finite time_step_limit, backbone. with fused experts",
        "config": config(
            "EM*E",
            40,
            103,
            {"mamba_num_heads": 4, "mamba_head_dim": 10, "n_groups": 2, "ssm_state_size": 8},
            {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8},
            moe_keys(12, 3, 14, 22, 1.5, n_group=4, topk_group=2, norm_topk_prob=False),
            time_step_limit=[0.01, 0.5],
        ),
        "tokens": [1, 7, 37],
        "fused": True,
    },
    "dense": {
        "about": "dense member, spelled attention_head_dim and norm_eps, legacy mamba_* aliases",
        "config": config(
            "M-M*-",
            44,
            103,
            {"mamba_num_heads": 8, "mamba_head_dim": 7, "ssm_state_size": 8},
            {"num_attention_heads": 10, "num_key_value_heads": 2, "attention_head_dim": 7},
            drop=("layer_norm_epsilon", "head_dim", "n_groups", "conv_kernel", "time_step_min", "time_step_max"),
            norm_eps=0.002,
            mamba_n_groups=4,
            mamba_d_conv=4,
            mamba_dt_min=0.001,
            mamba_dt_max=0.1,
            intermediate_size=50,
        ),
        "tokens": [1, 7, 37, 131],
        "gguf": True,
    },
    "lightning": {
        "about": "layers_block_type, model. prefix with fused experts, two shards, mtp.* tensors to be ignored",
        "config": config(
            "MEM*E",
            44,
            107,
            {"mamba_num_heads": 4, "mamba_head_dim": 9, "n_groups": 2, "ssm_state_size": 8},
            {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10},
            moe_keys(8, 2, 10, 18, 2.5, moe_latent_size=None, moe_shared_expert_overlap=True),
            drop=("hybrid_override_pattern",),
            layers_block_type=["mamba", "moe", "mamba", "attention", "moe"],
            mtp_layers_block_type=["attention", "moe"],
            num_nextn_predict_layers=1,
            # transformers 5 writes an infinite float as this object, since JSON has no infinity.
            time_step_limit=[0.0, {"__float__": "Infinity"}],
        ),
        "tokens": [1, 7, 37],
        "prefix": "model.",
        "fused": True,
        "shards": 2,
        "bf16_twin": "lightning_bf16",
    },
}

# The BF16 twins: `config` is laid over the case's own, None removes a key. lightning_bf16 covers the fourth spelling of
# the tensors (model. with split experts) and the config as transformers 5 saves it.
TWINS = {
    "m_e_attn_bf16": {"config": {"torch_dtype": "bfloat16"}},
    "lightning_bf16": {
        "prefix": "model.",
        "config": {
            "dtype": "bfloat16",
            "layers_block_type": ["linear_attention", "moe", "linear_attention", "full_attention", "moe"],
            "mtp_layers_block_type": ["full_attention", "moe"],
            "num_hidden_layers": None,
            "torch_dtype": None,
        },
    },
}


def twin_config(raw, twin):
    out = raw | TWINS[twin]["config"]
    return {key: out[key] for key in sorted(out) if key not in TWINS[twin]["config"] or out[key] is not None}


def matrix(rng, rows, cols, gain=1.0):
    return rng.standard_normal((rows, cols)) * (gain / np.sqrt(cols))


def norm_weight(rng, size):
    return rng.uniform(0.5, 1.5, size)


def inverse_softplus(x):
    return np.log(np.expm1(x))


def mamba_weights(rng, cfg, long_memory):
    nh, inner, bc = cfg.mamba_heads, cfg.mamba_heads * cfg.mamba_head_dim, cfg.groups * cfg.state
    per_group = nh // cfg.groups
    is_long = np.arange(nh) // per_group < round(long_memory * cfg.groups)
    if not is_long.any():
        is_long = np.arange(nh) % per_group == 1  # one head of every group
    dt = np.exp(rng.uniform(np.log(0.02), np.log(0.5), nh))
    dt[is_long] = np.exp(rng.uniform(np.log(1e-4), np.log(5e-4), is_long.sum()))
    # Long-memory heads get a small D: otherwise their skip would hide what the state does.
    skip = rng.uniform(0.4, 1.2, nh) * rng.choice([-1.0, 1.0], nh)
    skip[is_long] *= 0.01
    gains = [(1.0, inner), (1.5, inner), (2.0, bc), (2.0, bc), (0.7, nh)]
    return {
        "in_proj.weight": np.concatenate([matrix(rng, rows, cfg.hidden, gain) for gain, rows in gains]),
        "conv1d.weight": rng.standard_normal((inner + 2 * bc, 1, cfg.conv_kernel)) * 0.6,
        "conv1d.bias": rng.standard_normal(inner + 2 * bc) * 0.3,
        "dt_bias": inverse_softplus(dt),
        "A_log": np.log(np.where(is_long, rng.uniform(2.0, 16.0, nh), rng.uniform(0.5, 8.0, nh))),
        "D": skip,
        "norm.weight": norm_weight(rng, inner),
        "out_proj.weight": matrix(rng, cfg.hidden, inner),
    }


def attention_weights(rng, cfg):
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    return {
        "q_proj.weight": matrix(rng, q, cfg.hidden, 1.6),
        "k_proj.weight": matrix(rng, kv, cfg.hidden, 1.3),
        "v_proj.weight": matrix(rng, kv, cfg.hidden),
        "o_proj.weight": matrix(rng, cfg.hidden, q),
    }


def mlp_weights(rng, hidden, width, prefix=""):
    return {
        prefix + "up_proj.weight": matrix(rng, width, hidden),
        prefix + "down_proj.weight": matrix(rng, hidden, width),
    }


def moe_weights(rng, cfg):
    io = cfg.latent or cfg.hidden
    out = {
        "gate.weight": matrix(rng, cfg.experts, cfg.hidden, 1.5),
        "gate.e_score_correction_bias": rng.permutation(np.linspace(-0.4, 0.4, cfg.experts)),
    }
    for e in range(cfg.experts):
        out |= mlp_weights(rng, io, cfg.raw["moe_intermediate_size"], f"experts.{e}.")
    if cfg.latent:
        out["fc1_latent_proj.weight"] = matrix(rng, io, cfg.hidden)
        out["fc2_latent_proj.weight"] = matrix(rng, cfg.hidden, io)
    return out | mlp_weights(rng, cfg.hidden, cfg.raw["moe_shared_expert_intermediate_size"], "shared_experts.")


OUTPUT = {"M": "out_proj.weight", "*": "o_proj.weight", "-": "down_proj.weight"}


def build(rng, cfg, long_memory=0.0):
    """Random float32 weights under published names; each mixer adds about as much as the residual already holds."""
    w = {
        "backbone.embeddings.weight": rng.standard_normal((cfg.vocab, cfg.hidden)),
        "backbone.norm_f.weight": norm_weight(rng, cfg.hidden),
        "lm_head.weight": matrix(rng, cfg.vocab, cfg.hidden),
    }
    ids = rng.integers(0, cfg.vocab, 64)
    h = w["backbone.embeddings.weight"][ids]
    for n, kind in enumerate(cfg.layers):
        base = f"backbone.layers.{n}."
        w[base + "norm.weight"] = norm_weight(rng, cfg.hidden)
        if kind == "M":
            own = mamba_weights(rng, cfg, long_memory)
        elif kind == "*":
            own = attention_weights(rng, cfg)
        elif kind == "E":
            own = moe_weights(rng, cfg)
        else:
            own = mlp_weights(rng, cfg.hidden, cfg.raw["intermediate_size"])
        w |= {base + "mixer." + name: value for name, value in own.items()}
        u = rms_norm(h, w[base + "norm.weight"], cfg.eps)
        trace = {}
        out = mixer(cfg, w, n, u, trace=trace)
        if kind == "E":
            scale = {"experts": 0.8 * rms(h) / rms(trace["routed"]), "shared": 0.6 * rms(h) / rms(trace["shared"])}
            for e in range(cfg.experts):
                w[base + f"mixer.experts.{e}.down_proj.weight"] *= scale["experts"]
            w[base + "mixer.shared_experts.down_proj.weight"] *= scale["shared"]
        else:
            w[base + "mixer." + OUTPUT[kind]] *= rms(h) / rms(out)
        h = h + mixer(cfg, w, n, u)
    return {name: value.astype(np.float32) for name, value in w.items()}


def mtp_weights(rng, cfg):
    """One multi-token-prediction step (attention + MoE), present in the file and never read by the trunk."""
    out = {f"mtp.layers.0.{name}.weight": norm_weight(rng, cfg.hidden) for name in ("enorm", "hnorm", "norm")}
    out["mtp.layers.0.eh_proj.weight"] = matrix(rng, cfg.hidden, 2 * cfg.hidden)
    out |= {f"mtp.layers.0.mixer.{name}": value for name, value in attention_weights(rng, cfg).items()}
    out |= {f"mtp.layers.1.{name}.weight": norm_weight(rng, cfg.hidden) for name in ("norm", "final_layernorm")}
    out |= {f"mtp.layers.1.mixer.{name}": value for name, value in moe_weights(rng, cfg).items()}
    return {name: value.astype(np.float32) for name, value in out.items()}


def to_bf16(w):
    """Rounds what published checkpoints store in BF16: everything but the router's correction bias.

    The router weight is rounded too and stored as F32, so that an implementation that keeps it in BF16 agrees.
    """
    return {n: v if n.endswith("e_score_correction_bias") else round_bf16(v) for n, v in w.items()}


def spell(w, cfg, prefix="backbone.", fused=False):
    """Renames published names to another spelling: base-model prefix, experts as one 3-D tensor."""
    out = {}
    for name, value in w.items():
        target = prefix + name[len("backbone.") :] if name.startswith("backbone.") else name
        if fused and ".experts." in name:
            head, tail = target.split(".experts.")
            e, matrix_name, _ = tail.split(".")
            key = f"{head}.experts.{matrix_name}"
            out.setdefault(key, [None] * cfg.experts)[int(e)] = value
        else:
            out[target] = value
    return {name: np.stack(v) if isinstance(v, list) else np.ascontiguousarray(v) for name, v in out.items()}
