// What a checkpoint is and what it costs to run, gathered without touching its matrices: headers, metadata, tokenizer,
// template.
#pragma once

#include <nlohmann/json.hpp>

#include "apps/open_engine.h"
#include "core/result.h"

namespace proa {

// An object with these members; bytes and counts are plain numbers.
//   model, container ("huggingface" or "gguf"), files, tensors, tensor_bytes, quantization (as the checkpoint says, or
//     null)
//   architecture, layer_pattern, num_hidden_layers, layers {mamba, attention, moe, mlp}, hidden_size, vocab_size,
//     max_position_embeddings, n_routed_experts, num_experts_per_tok
//   parameters {total, active, embedding}
//   weights [{kind, format, count, parameters, bytes, bits_per_weight}], unused [{what, count, parameters, bytes}]
//   tokenizer {type, pre, vocab_size, merges, control_tokens, bos {id, text}, eos [{id, text}], adds_bos}
//   chat_template {from, bytes, system, tools, thinking, content_parts}, or null without one
//   generation {temperature, top_p, top_k, min_p, repetition_penalty, eos_token_ids}
//   step {kv_cache_dtype, kv_bytes_per_token, ssm_state_bytes, conv_state_bytes, weight_bytes_per_token, decode_flops,
//     batches [{num_seqs, distinct_experts, weight_bytes, bytes_per_token}]}
//   memory {max_num_seqs, contexts [{max_model_len, weights, kv, state, workspace, step, total}]}
//   backend {device, description, memory_total, memory_free, on_reference [],
//     cuda_architectures [{name, devices, has_run}] that this program holds code for; where there are any and another
//     device was taken, cuda_unavailable: what keeps cuda:0 from being used, or null}
// tokenizer, chat_template and generation are {error} where the checkpoint has them broken or lacks them. Errors: what
// keeps the model itself from being opened.
Result<nlohmann::ordered_json> inspect(const OpenOptions& options);

}  // namespace proa
