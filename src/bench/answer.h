// Is the answer right, before it is timed: the model on its device against the same bits on the plain reference.
#pragma once

#include "bench/report.h"
#include "core/result.h"
#include "models/model.h"
#include "ops/backend.h"

namespace proa {

struct AnswerConfig {
  int num_tokens = 8;  // of a random prompt, each step's logits compared
  uint64_t seed = 0;
  Format kv_cache_dtype = Format::BF16;
  // By how much logits may be off, relative to their spread over the vocabulary. F32 arithmetic stays below 1e-4 on the
  // goldens; the rest is for a cached key that rounds to the other side, or two experts that all but tie. What the
  // backend rounds away of the inputs of products (Backend::product_rounding) comes on top,
  // four times since it adds up over layers.
  double relative_noise = 1e-3;
};

// `reference_model` holds the same weights on `reference`, whose ops are the plain loops. The prompt runs as one
// prefill and then, for its second half, token by token. KL(reference || device) must stay below (relative_noise ·
// spread)^2 / 2, which is the KL of two softmaxes whose logits differ by independent noise of that size; the best token
// must be the same wherever the reference's lead exceeds twice relative_noise · spread. Errors: no memory.
Result<AnswerCheck> check_answer(const Model& model, Backend& backend, const Model& reference_model, Backend& reference,
                                 const AnswerConfig& config);

}  // namespace proa
