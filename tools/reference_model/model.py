"""Nemotron-H for training: Mamba-2, mixture of experts and attention without positions, in plain PyTorch.

Reads like the checkpoint: parameters have the published names, except that the experts of a layer are one tensor here
(`export` splits them). dt is softplus(dt + dt_bias), never clamped. All experts are computed for all tokens as one wide
MLP whose unchosen parts are multiplied by zero: at this size that is faster than sorting tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["NemotronHForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "chunk_size": 128,
    "conv_kernel": 4,
    "eos_token_id": 11,
    "expand": 2,
    "head_dim": 64,
    "hidden_dropout": 0.0,
    "hidden_size": 256,
    "hybrid_override_pattern": "MEM*EM*EMEM*EM*EME",
    "initializer_range": 0.02,
    "intermediate_size": 288,
    "layer_norm_epsilon": 1e-05,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "mamba_num_heads": 8,
    "mamba_proj_bias": False,
    "mamba_ssm_cache_dtype": "float32",
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "model_type": "nemotron_h",
    "moe_intermediate_size": 96,
    "moe_shared_expert_intermediate_size": 288,
    "n_group": 1,
    "n_groups": 2,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_eps": 1e-05,
    "norm_topk_prob": True,
    "num_attention_heads": 8,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 2,
    "num_logits_to_keep": 1,
    "pad_token_id": 0,
    "rescale_prenorm_residual": True,
    "residual_in_fp32": False,
    "routed_scaling_factor": 2.5,
    "sliding_window": None,
    "ssm_state_size": 64,
    "tie_word_embeddings": False,
    "time_step_floor": 0.0001,
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 1536,
}
CHUNK = 64  # of the scan here; any chunk gives the same function


class RMSNorm(nn.Module):
    def __init__(self, size, groups=1):
        super().__init__()
        self.weight, self.groups = nn.Parameter(torch.ones(size)), groups

    def forward(self, x):
        y = x.float().unflatten(-1, (self.groups, -1))
        y = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + CONFIG["layer_norm_epsilon"])).flatten(-2)
        return y * self.weight


def ssd(x, dt, A, B, C):
    """Chunked scan. x [b, l, h, p], dt [b, l, h] F32, A [h], B and C [b, l, g, n]; returns y like x, without D."""
    b, l, h, p = x.shape
    g, n = B.shape[2:]
    q = min(CHUNK, l)
    c, r, kind = l // q, h // g, x.dtype
    s = (dt * A).view(b, c, q, g, r).permute(0, 1, 3, 4, 2).cumsum(-1)  # [b, c, g, r, q], inclusive, <= 0
    X = (x * dt[..., None]).to(kind).view(b, c, q, g, r, p).permute(0, 1, 3, 4, 2, 5)  # [b, c, g, r, q, p]
    B = B.view(b, c, q, g, n).transpose(2, 3)  # [b, c, g, q, n]
    C = C.view(b, c, q, g, n).transpose(2, 3)

    keep = torch.ones(q, q, dtype=torch.bool, device=x.device).tril()
    decay = (s[..., :, None] - s[..., None, :]).masked_fill(~keep, -torch.inf).exp()
    M = ((C @ B.transpose(-1, -2))[:, :, :, None] * decay).to(kind)  # [b, c, g, r, q, q]
    y = M @ X

    to_end = (s[..., -1:] - s).exp()[..., None]
    S = ((X * to_end).to(kind).transpose(-1, -2) @ B[:, :, :, None]).float()  # [b, c, g, r, p, n], of each chunk
    total = s[..., -1].permute(0, 2, 3, 1).cumsum(-1)  # [b, g, r, c]
    before = F.pad(total, (1, 0))[..., :-1]
    keep = torch.ones(c, c, dtype=torch.bool, device=x.device).tril(-1)
    carry = (before[..., :, None] - total[..., None, :]).masked_fill(~keep, -torch.inf).exp()  # [b, g, r, c, c]
    S = S.permute(0, 2, 3, 1, 4, 5).flatten(4)  # [b, g, r, c, p n]
    S_in = (carry @ S).unflatten(-1, (p, n)).permute(0, 3, 1, 2, 4, 5).to(kind)  # [b, c, g, r, p, n]
    y = y + (C[:, :, :, None] @ S_in.transpose(-1, -2)) * s.exp()[..., None]
    return y.permute(0, 1, 4, 2, 3, 5).reshape(b, l, h, p)


class Mamba2(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads, self.p, self.g, self.n = (
            cfg[k] for k in ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size")
        )
        inner = self.heads * self.p
        conv = inner + 2 * self.g * self.n
        self.sizes = (inner, conv, self.heads)
        self.in_proj = nn.Linear(cfg["hidden_size"], inner + conv + self.heads, bias=False)
        self.conv1d = nn.Conv1d(conv, conv, cfg["conv_kernel"], groups=conv)
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        dt = torch.empty(self.heads).uniform_(math.log(cfg["time_step_min"]), math.log(cfg["time_step_max"])).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.norm = RMSNorm(inner, self.g)
        self.out_proj = nn.Linear(inner, cfg["hidden_size"], bias=False)

    def forward(self, u):
        b, l, _ = u.shape
        inner, gn = self.sizes[0], self.g * self.n
        z, xBC, dt = self.in_proj(u).split(self.sizes, -1)
        k = self.conv1d.kernel_size[0]
        past, w = F.pad(xBC, (0, 0, k - 1, 0)), self.conv1d.weight
        xBC = sum(past[:, j : j + l] * w[:, 0, j] for j in range(k)) + self.conv1d.bias
        x, B, C = F.silu(xBC).to(z.dtype).split((inner, gn, gn), -1)
        x = x.unflatten(-1, (self.heads, self.p))
        dt = F.softplus(dt.float() + self.dt_bias)
        A = -self.A_log.float().exp()
        with torch.autocast(u.device.type, enabled=False):
            y = ssd(x, dt, A, B.unflatten(-1, (self.g, -1)), C.unflatten(-1, (self.g, -1)))
        y = (y + x * self.D[:, None]).flatten(2)
        return self.out_proj(self.norm(y.float() * F.silu(z.float())))


def e4m3(x):
    """The nearest E4M3 (ties to even, at most 448) of each F32, as F32: what a cache of FP8 with scale 1 keeps of x.

    By arithmetic rather than by a cast, which a compiler may leave out.
    """
    power = (x.view(torch.int32) & 0x7F800000).view(torch.float32)  # 2^floor(log2 |x|)
    step = power.clamp(min=2.0**-6) / 8
    return ((x / step).round() * step).clamp(-448, 448)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        # 1: keys and values are rounded to E4M3, and gradients pass as if they were not. A tensor, for one graph to do.
        self.register_buffer("fp8_cache", torch.zeros(()), persistent=False)
        hidden, self.dim = cfg["hidden_size"], cfg["head_dim"]
        q, kv = cfg["num_attention_heads"] * self.dim, cfg["num_key_value_heads"] * self.dim
        self.q_proj, self.k_proj = nn.Linear(hidden, q, bias=False), nn.Linear(hidden, kv, bias=False)
        self.v_proj, self.o_proj = nn.Linear(hidden, kv, bias=False), nn.Linear(q, hidden, bias=False)

    def forward(self, u):
        q, k, v = (p(u).unflatten(-1, (-1, self.dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = ((x + self.fp8_cache * (e4m3(x.float()) - x).detach()).to(x.dtype) for x in (k, v))
        share = q.shape[1] // k.shape[1]  # query head i uses kv head i / share
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Gate(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cfg["n_routed_experts"], cfg["hidden_size"]))
        self.register_buffer("e_score_correction_bias", torch.zeros(cfg["n_routed_experts"]))


class Experts(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        e, i, h = cfg["n_routed_experts"], cfg["moe_intermediate_size"], cfg["hidden_size"]
        self.up_proj, self.down_proj = nn.Parameter(torch.empty(e, i, h)), nn.Parameter(torch.empty(e, h, i))


class SharedExperts(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        h, i = cfg["hidden_size"], cfg["moe_shared_expert_intermediate_size"]
        self.up_proj, self.down_proj = nn.Linear(h, i, bias=False), nn.Linear(i, h, bias=False)


class MoE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.k, self.scale = cfg["num_experts_per_tok"], cfg["routed_scaling_factor"]
        self.gate, self.experts, self.shared_experts = Gate(cfg), Experts(cfg), SharedExperts(cfg)
        self.load = None  # tokens per expert of the last training step

    def route(self, u):
        """Weights [b, l, E], zero where an expert is not chosen, and the number of tokens per expert."""
        with torch.autocast(u.device.type, enabled=False):
            score = F.linear(u.float(), self.gate.weight.float()).sigmoid()
        chosen = (score.detach() + self.gate.e_score_correction_bias).topk(self.k, -1).indices
        mask = torch.zeros_like(score).scatter_(-1, chosen, 1.0)
        w = score * mask
        return w / (w.sum(-1, keepdim=True) + 1e-20) * self.scale, mask.sum((0, 1))

    def forward(self, u):
        w, load = self.route(u)
        up, down = self.experts.up_proj, self.experts.down_proj
        hidden = F.relu(F.linear(u, up.flatten(0, 1))).square().unflatten(-1, up.shape[:2])
        hidden = (hidden * w[..., None].to(hidden.dtype)).flatten(-2)
        y = F.linear(hidden, down.transpose(0, 1).flatten(1))
        return y + self.shared_experts.down_proj(F.relu(self.shared_experts.up_proj(u)).square()), load


class Layer(nn.Module):
    def __init__(self, cfg, letter):
        super().__init__()
        self.norm = RMSNorm(cfg["hidden_size"])
        self.mixer = {"M": Mamba2, "*": Attention, "E": MoE}[letter](cfg)
        self.routed = letter == "E"

    def forward(self, h):
        y = self.mixer(self.norm(h).to(self.norm.weight.dtype))
        return (h + y[0], y[1]) if self.routed else h + y


class NemotronH(nn.Module):
    def __init__(self, cfg=CONFIG):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.embeddings = nn.Embedding(cfg["vocab_size"], cfg["hidden_size"])
        self.backbone.layers = nn.ModuleList(Layer(cfg, letter) for letter in cfg["hybrid_override_pattern"])
        self.backbone.norm_f = RMSNorm(cfg["hidden_size"])
        self.lm_head = nn.Linear(cfg["hidden_size"], cfg["vocab_size"], bias=False)
        for name, p in self.named_parameters():
            if p.ndim > 1 and "conv1d" not in name:
                std = cfg["initializer_range"] if "embed" in name else p.shape[-1] ** -0.5
                residual = name.endswith(("out_proj.weight", "o_proj.weight", "down_proj", "down_proj.weight"))
                nn.init.normal_(p, std=std / math.sqrt(cfg["num_hidden_layers"]) if residual else std)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, ids, tap=0):
        """Logits [b, l, vocab] of ids [b, l]; l is a multiple of CHUNK or at most CHUNK.

        With `tap` also the hidden states [b, l, hidden] after so many layers.
        """
        h = self.backbone.embeddings(ids)
        for i, layer in enumerate(self.backbone.layers):
            if layer.routed:
                h, layer.mixer.load = layer(h)
            else:
                h = layer(h)
            if i + 1 == tap:
                tapped = h
        logits = self.lm_head(self.backbone.norm_f(h))
        return (logits, tapped) if tap else logits

    def set_fp8_cache(self, on):
        for layer in self.backbone.layers:
            if isinstance(layer.mixer, Attention):
                layer.mixer.fp8_cache.fill_(float(on))

    @torch.no_grad()
    def balance(self, speed):
        """Moves each router's bias against the load of its experts, by `speed`; no auxiliary loss is needed."""
        for layer in self.backbone.layers:
            if layer.routed:
                load = layer.mixer.load
                layer.mixer.gate.e_score_correction_bias += speed * (load.mean() - load).sign()


def export(model):
    """Published tensor names and types: BF16, router F32, one tensor per expert."""
    out = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if "mixer.experts." in name:
            stem, kind = name.rsplit(".", 1)
            for e, part in enumerate(value):
                out[f"{stem}.{e}.{kind}.weight"] = part.bfloat16().contiguous().clone()
        else:
            keep = name.endswith(("gate.weight", "e_score_correction_bias"))
            out[name] = value.float() if keep else value.bfloat16()
    return out


def load_exported(model, tensors):
    """Puts exported tensors back (BF16 values in F32 parameters)."""
    state = model.state_dict()
    for name, value in state.items():
        if "mixer.experts." in name:
            stem, kind = name.rsplit(".", 1)
            value.copy_(torch.stack([tensors[f"{stem}.{e}.{kind}.weight"] for e in range(len(value))]))
        else:
            value.copy_(tensors[name])
    model.load_state_dict(state)


if __name__ == "__main__":
    count = sum(p.numel() for p in NemotronH().parameters())
    size = sum(v.numel() * v.element_size() for v in export(NemotronH()).values())
    print(f"{count:,} parameters, {size:,} bytes")
