"""GGUF twins of the tiny checkpoints: same float32 values, the names, shapes and transforms of llama.cpp's converter.

No released model mixes dense and MoE layers, and llama.cpp does not load such a file; the twin that does so holds the
tensors that each layer kind would have in a file of its own, which is all a reader needs to tell the layers apart.
"""

import gguf
import numpy as np

RENAMES = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.q_proj.weight": "attn_q.weight",
    "mixer.k_proj.weight": "attn_k.weight",
    "mixer.v_proj.weight": "attn_v.weight",
    "mixer.o_proj.weight": "attn_output.weight",
    "mixer.up_proj.weight": "ffn_up.weight",
    "mixer.down_proj.weight": "ffn_down.weight",
    "mixer.gate.weight": "ffn_gate_inp.weight",
    "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mixer.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mixer.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "mixer.fc1_latent_proj.weight": "ffn_latent_down.weight",
    "mixer.fc2_latent_proj.weight": "ffn_latent_up.weight",
}


def tensors(w, cfg):
    """Published names -> GGUF names with numpy shapes (the reverse of ggml's ne order)."""
    out = {
        "token_embd.weight": w["backbone.embeddings.weight"],
        "output_norm.weight": w["backbone.norm_f.weight"],
        "output.weight": w["lm_head.weight"],
    }
    for n, kind in enumerate(cfg.layers):
        source, block = f"backbone.layers.{n}.", f"blk.{n}."
        for hf, name in RENAMES.items():
            if source + hf in w:
                out[block + name] = w[source + hf]
        if kind == "M":
            out[block + "ssm_conv1d.weight"] = w[source + "mixer.conv1d.weight"][:, 0, :]
            out[block + "ssm_a"] = -np.exp(w[source + "mixer.A_log"])[:, None]
            out[block + "ssm_d"] = w[source + "mixer.D"][:, None]
            out[block + "ssm_norm.weight"] = w[source + "mixer.norm.weight"].reshape(cfg.groups, -1)
        if kind == "E":
            for part in ("up", "down"):
                stack = [w[source + f"mixer.experts.{e}.{part}_proj.weight"] for e in range(cfg.experts)]
                out[block + f"ffn_{part}_exps.weight"] = np.stack(stack)
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in out.items()}


def add_vocabulary(writer, vocab):
    """A byte-level vocabulary of single characters: enough for loaders that insist on one, useless for text."""
    special = ["<unk>", "<s>", "</s>"]
    tokens = special + [chr(0x21 + i) for i in range(min(vocab - 4, 94))]
    tokens += ["!!"] + [f"<extra_{i}>" for i in range(vocab - len(tokens) - 1)]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (vocab - 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("pixtral")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)


def write_tensors(writer, named, packed={}):
    """`packed` lies over `named`: arrays of bytes with the type they are of, or further tensors with None."""
    for name, value in named.items():
        if name not in packed:
            writer.add_tensor(name, value)
    for name, (value, kind) in packed.items():
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(path, w, cfg, name, packed={}):
    raw, moe = cfg.raw, "E" in cfg.layers
    arch = "nemotron_h_moe" if moe else "nemotron_h"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(len(cfg.layers))
    writer.add_context_length(2**20)  # what the converter writes for the whole family
    writer.add_embedding_length(cfg.hidden)
    writer.add_vocab_size(cfg.vocab)
    width = {"E": raw.get("moe_intermediate_size", 0), "-": raw["intermediate_size"]}
    writer.add_feed_forward_length([width.get(kind, 0) for kind in cfg.layers])
    writer.add_head_count(cfg.heads)
    writer.add_head_count_kv([cfg.kv_heads if kind == "*" else 0 for kind in cfg.layers])
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_layer_norm_rms_eps(cfg.eps)
    writer.add_layer_norm_eps(cfg.eps)
    # Written by the converter and to be ignored: the architecture has no rotary embedding.
    writer.add_rope_freq_base(raw["rope_theta"])
    writer.add_rope_dimension_count(cfg.hidden // cfg.heads // 2 * 2)
    writer.add_rope_scaling_finetuned(False)
    writer.add_ssm_conv_kernel(cfg.conv_kernel)
    writer.add_ssm_state_size(cfg.state)
    writer.add_ssm_group_count(cfg.groups)
    writer.add_ssm_inner_size(cfg.mamba_heads * cfg.mamba_head_dim)
    writer.add_ssm_time_step_rank(cfg.mamba_heads)
    if moe:
        writer.add_expert_count(cfg.experts)
        writer.add_expert_used_count(cfg.top_k)
        writer.add_expert_shared_count(1)
        writer.add_expert_feed_forward_length(raw["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(raw["moe_shared_expert_intermediate_size"])
        writer.add_expert_weights_norm(cfg.renormalise)
        writer.add_expert_weights_scale(cfg.scaling)
        writer.add_expert_group_count(cfg.expert_groups)
        writer.add_expert_group_used_count(cfg.top_groups)
        if cfg.latent:
            writer.add_moe_latent_size(cfg.latent)
    add_vocabulary(writer, cfg.vocab)
    write_tensors(writer, tensors(w, cfg), packed)


def check(path, w, cfg):
    """Reads the file back with gguf's reader: every tensor has the shape and the bits that were meant."""
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    meant = tensors(w, cfg)
    assert stored.keys() == meant.keys()
    for name, value in meant.items():
        assert [int(d) for d in stored[name].shape] == list(value.shape[::-1]), name
        assert stored[name].data.tobytes() == value.tobytes(), name
