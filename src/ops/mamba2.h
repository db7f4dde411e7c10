// The three stages of a Mamba-2 mixer after its input projection (reference nemotron-h 2.4, 2.6; Dao & Gu 2024).
//
// A row of `projected` holds z | x | B | C | dt of widths inner, inner, n_groups·N, n_groups·N, num_heads, where
// inner = num_heads · head_dim and N = ssm_state_size. xBC passes a causal depthwise convolution and SiLU, then per
// head h of group g = h / (num_heads / n_groups):
//   Δ = clamp(softplus(dt + dt_bias), time_step_min, time_step_max)      softplus(v) = v for v > 20
//   S = exp(Δ·A) · S + (Δ·x) ⊗ B_g                                       S [head_dim, N], F32
//   y = S · C_g + D · x
//
// conv_ssm_step does this for sequences of one token each (or a few: every token's state can be kept, so that a
// speculated run is committed by choosing a slot). ssd_chunk does it for sequences of any length. Both compute the same
// function. Several sequences may read one slot; a slot that a sequence writes is no other sequence's, to read or
// write, in the same call, but it may be the one the sequence itself reads. The state is used for y before it is
// rounded to F32, and a slot_in of -1 never looks at what a slot holds.
#pragma once

#include <cstdint>
#include <limits>

#include "ops/cache_spec.h"
#include "ops/weight.h"

namespace proa {

// Taps of the convolution at most: kernels keep them in registers. Published models have 4.
constexpr int kMaxConvKernel = 16;

struct Mamba2Shape {
  int num_heads;
  int head_dim;
  int n_groups;
  int ssm_state_size;
  int conv_kernel;  // 1 to kMaxConvKernel

  int inner() const { return num_heads * head_dim; }
  int conv_dim() const { return inner() + 2 * n_groups * ssm_state_size; }
  int projected() const { return inner() + conv_dim() + num_heads; }
};

struct Mamba2Weights {
  const float* conv_weight;  // [conv_dim, conv_kernel], the last tap multiplies the current token
  const float* conv_bias;    // [conv_dim], or null
  const float* dt_bias;      // [num_heads]
  const float* a;            // [num_heads] A = -exp(A_log)
  const float* d;            // [num_heads]
};

// time_step_limit of config.json; absent there means no limit. time_step_min, time_step_max and time_step_floor are
// constants of initialisation and have no place here (reference nemotron-h 2.5).
struct TimeStepLimit {
  float min = 0;
  float max = std::numeric_limits<float>::infinity();
};

struct ConvSsmStep {
  Mamba2Shape shape;
  Mamba2Weights weights;
  TimeStepLimit limit;
  int num_seqs;
  int tokens_per_seq;      // 1, or the length of a speculated run
  const float* projected;  // [num_seqs · tokens_per_seq, projected]
  StateCacheView cache;
  const int32_t* state_slot_in;   // [num_seqs]; -1: the state is zero
  const int32_t* state_slot_out;  // [num_seqs, tokens_per_seq] slot that takes the state after that token; -1: nowhere
  float* y;                       // [num_seqs · tokens_per_seq, inner] out
};

struct SsdChunk {
  Mamba2Shape shape;
  Mamba2Weights weights;
  TimeStepLimit limit;
  int chunk_size;  // tokens; blocking only, the result does not depend on it but for rounding
  int num_seqs;
  int num_tokens;
  const int32_t* query_start;  // [num_seqs + 1]; token t of the batch is row t - query_start[0] of projected and y
  const float* projected;      // [num_tokens, projected]
  StateCacheView cache;
  const int32_t* state_slot_in;   // [num_seqs]; -1: the state is zero
  const int32_t* state_slot_out;  // [num_seqs]; -1: nowhere. May equal the slot read.
  float* y;                       // [num_tokens, inner] out
};

// residual += W · (norm ⊙ groups(y · silu(z))): the gate comes before the norm, and each of n_groups runs of inner /
// n_groups channels is normed by its own mean square.
struct GatedNormLinearResidual {
  int num_tokens;
  int inner;
  int n_groups;
  const float* y;     // [num_tokens, inner]
  const float* z;     // [num_tokens, inner] with z_stride between rows: the front of `projected`
  int64_t z_stride;   // elements
  const float* norm;  // [inner]
  float eps;
  Weight weight;    // [hidden_size, inner]
  float* residual;  // [num_tokens, hidden_size] in and out
};

void conv_ssm_step_reference(const ConvSsmStep& op);
void ssd_chunk_reference(const SsdChunk& op);  // the recurrence, token by token
void gated_norm_linear_residual_reference(const GatedNormLinearResidual& op);

}  // namespace proa
