// What every layer of a step is given: the device, the batch, room for activations, and the residual stream it adds to.
#pragma once

#include "core/arena.h"
#include "ops/backend.h"
#include "ops/batch.h"

namespace proa {

struct Forward {
  Backend& backend;
  const Batch& batch;
  Arena& arena;
  float* x;  // [num_tokens, hidden_size] the residual stream, F32
};

}  // namespace proa
