#include "models/step_cost.h"

#include <algorithm>
#include <cmath>

namespace proa {
namespace {

bool tied(const Model& model) {
  return std::none_of(model.weights().begin(), model.weights().end(),
                      [](const WeightUse& weight) { return weight.kind == WeightKind::lm_head; });
}

int64_t active(const WeightUse& weight) { return weight.parameters / weight.num_experts * weight.experts_per_token; }

// Parameters of matrices that multiply each token, and those that multiply only rows whose logits are wanted.
struct Products {
  int64_t layers = 0;
  int64_t lm_head = 0;
};

Products products(const Model& model) {
  Products result;
  const bool is_tied = tied(model);
  for (const WeightUse& weight : model.weights()) {
    if (weight.kind == WeightKind::lm_head || (weight.kind == WeightKind::embedding && is_tied)) {
      result.lm_head += weight.parameters;
    } else if (weight.kind != WeightKind::embedding && weight.kind != WeightKind::vector) {
      result.layers += active(weight);
    }
  }
  return result;
}

int64_t visible(const CacheSpec& spec, int64_t depth) {
  return spec.window ? std::min<int64_t>(spec.window, depth) : depth;
}

// q · K and the sum over V, for one visible token in one layer.
double attention_flops(const Model& model, const CacheSpec& spec) {
  return 4.0 * model.info().num_attention_heads * spec.head_dim;
}

double recurrence_flops(const CacheSpec& spec) {
  return 5.0 * static_cast<double>(spec.ssm_state_elements()) + 2.0 * spec.conv_kernel * spec.conv_dim;
}

}  // namespace

ParameterCount count_parameters(const Model& model) {
  ParameterCount count;
  const bool is_tied = tied(model);
  for (const WeightUse& weight : model.weights()) {
    count.total += weight.parameters;
    if (weight.kind == WeightKind::embedding) count.embedding += weight.parameters;
    if (weight.kind != WeightKind::embedding || is_tied) count.active += active(weight);
  }
  return count;
}

double weight_bytes_of_step(const Model& model, int64_t num_tokens, double distinct_experts) {
  double bytes = 0;
  const bool is_tied = tied(model);
  for (const WeightUse& weight : model.weights()) {
    const auto whole = static_cast<double>(weight.bytes);
    if (weight.kind == WeightKind::expert) {
      bytes += whole / weight.num_experts * std::min<double>(distinct_experts, weight.num_experts);
    } else if (weight.kind == WeightKind::embedding) {
      bytes += whole / model.info().vocab_size * static_cast<double>(num_tokens) + (is_tied ? whole : 0);
    } else {
      bytes += whole;
    }
  }
  return bytes;
}

double weight_bytes_per_token(const Model& model) {
  return weight_bytes_of_step(model, 1, model.info().num_experts_per_tok);
}

double expected_distinct_experts(int n_routed_experts, int num_experts_per_tok, int64_t num_tokens) {
  const double all = n_routed_experts;
  if (all == 0) return 0;
  return all * (1 - std::pow(1 - num_experts_per_tok / all, static_cast<double>(num_tokens)));
}

double expected_distinct_experts(const Model& model, int64_t num_tokens) {
  return expected_distinct_experts(model.info().n_routed_experts, model.info().num_experts_per_tok, num_tokens);
}

StateBytes state_bytes(const Model& model) {
  StateBytes bytes;
  for (const CacheSpec& spec : model.cache_specs()) {
    if (spec.kind != CacheSpec::Kind::state) continue;
    bytes.ssm += spec.ssm_state_elements() * static_cast<int64_t>(sizeof(float));
    bytes.conv += spec.conv_state_elements() * static_cast<int64_t>(sizeof(float));
  }
  return bytes;
}

int64_t kv_bytes_read(const Model& model, Format kv_cache_dtype, int64_t depth) {
  int64_t bytes = 0;
  for (const CacheSpec& spec : model.cache_specs()) {
    if (spec.kind != CacheSpec::Kind::kv) continue;
    bytes += visible(spec, depth) * static_cast<int64_t>(row_bytes(kv_cache_dtype, spec.kv_elements_per_token()));
  }
  return bytes;
}

int64_t kv_bytes_per_token(const Model& model, Format kv_cache_dtype) {
  return kv_bytes_read(model, kv_cache_dtype, 1);
}

double decode_bytes(const Model& model, int64_t num_seqs, double distinct_experts, Format kv_cache_dtype,
                    int64_t depth) {
  const int64_t per_seq = 2 * state_bytes(model).total() + kv_bytes_read(model, kv_cache_dtype, depth);
  return weight_bytes_of_step(model, num_seqs, distinct_experts) + static_cast<double>(num_seqs * per_seq);
}

double decode_flops(const Model& model, int64_t depth) {
  const Products matrices = products(model);
  double flops = 2.0 * static_cast<double>(matrices.layers + matrices.lm_head);
  for (const CacheSpec& spec : model.cache_specs()) {
    if (spec.kind == CacheSpec::Kind::state) flops += recurrence_flops(spec);
    if (spec.kind == CacheSpec::Kind::kv) {
      flops += attention_flops(model, spec) * static_cast<double>(visible(spec, depth));
    }
  }
  return flops;
}

double prefill_flops(const Model& model, int64_t num_tokens) {
  const Products matrices = products(model);
  const auto n = static_cast<double>(num_tokens);
  double flops = 2.0 * (static_cast<double>(matrices.layers) * n + static_cast<double>(matrices.lm_head));
  for (const CacheSpec& spec : model.cache_specs()) {
    if (spec.kind == CacheSpec::Kind::state) flops += recurrence_flops(spec) * n;
    if (spec.kind == CacheSpec::Kind::kv) {
      const auto window = static_cast<double>(visible(spec, num_tokens));  // token i sees min(i, window)
      flops += attention_flops(model, spec) * (window * (window + 1) / 2 + (n - window) * window);
    }
  }
  return flops;
}

}  // namespace proa
