// The kernels beside linear.h, each in the file of its op. All pointers are device memory.
#pragma once

#include "backends/cuda/launch.h"
#include "ops/backend.h"

namespace proa::cuda {

// embed.cu
void embed(const Embed& op, const Launch& launch);

// rope.cu
void rope(const Rope& op, const Launch& launch);

// route.cu. `logits` [num_tokens, n_routed_experts]; `tickets` [num_tokens] zeros, and zeros again afterwards.
bool route_fused(const Route& op, float* logits, uint32_t* tickets, const Launch& launch);  // false: not for this case
size_t route_many_floats(const Route& op);  // of `memory`; 0: not for this case
void route_many(const Route& op, float* logits, float* memory, const Launch& launch);
void choose_experts(const Route& op, const float* logits, const Launch& launch);  // from logits that are there

// moe.cu. Sorts the choices of tokens by expert: an expert's slots follow one another, and tiles of up to `tile` of
// them are listed.
struct SortedChoices {
  int32_t* token;        // [choices] of each slot
  int32_t* slot;         // [choices] of each choice
  int32_t* tile_expert;  // [tiles] -1: nobody's
  int32_t* tile_first;   // [tiles] first slot
  int32_t* tile_count;   // [tiles] slots
};
void sort_choices(const int32_t* topk_ids, int choices, int per_token, int n_experts, int tile, int tiles,
                  const SortedChoices& sorted, const Launch& launch);
// x[t] (+)= sum over k of weights[t, k] · y[slot of (t, k)]
void combine_experts(const float* y, const int32_t* slot, const float* weights, int num_tokens, int per_token,
                     int width, bool add, float* x, const Launch& launch);

// mamba2.cu. `activated` [num_tokens, conv_dim] and `tickets` [num_seqs, n_groups] as above.
void conv_ssm_step(const ConvSsmStep& op, float* activated, uint32_t* tickets, const Launch& launch);
void ssd_chunk(const SsdChunk& op, float* activated, const Launch& launch);

// attend.cu. Keys of a query may be shared out among attend_splits() blocks, whose parts lie in `partial` until the
// last one joins them.
int attend_splits(const Attend& op, const Launch& launch);
size_t attend_partial_floats(const Attend& op, int splits);
size_t attend_tickets(const Attend& op);
void attend(const Attend& op, int splits, float* partial, uint32_t* tickets, const Launch& launch);
constexpr int kManyQueries = 64;  // tokens, from which on attend_many() may have them
// Queries and weights with an FP8 cache: one F16 of 11 bits, or two where tokens are few.
inline double attend_fp8_rounding(int num_tokens) { return num_tokens >= kManyQueries ? 0x1p-11 : 0x1p-22; }
// attend_many.cu: queries of prefill, whose keys and values are in the cache already.
bool takes_attend_many(const Attend& op, const Launch& launch);
void attend_many(const Attend& op, const Launch& launch);

// sample.cu. `partial` [num_rows, kSampleParts].
struct SamplePart {
  double sum;     // of exp(logit - best)
  float best;     // logit
  float value;    // best after bias and penalties
  int32_t id;     // its token
  int32_t above;  // logits that are better than the forced token's
};
constexpr int kSampleParts = 64;
void sample(const Sample& op, SamplePart* partial, const Launch& launch);

}  // namespace proa::cuda
