// The ops of one token as stages of one kernel, which all SMs run together from the first to the last. Weights do not
// depend on activations: in each block one warp fetches them, stage after stage, as far ahead as shared memory holds
// them, while the others compute and wait for each other between stages. So the weights of a stage are there when its
// input is, though a step is a chain of many small products.
//
// Blocks are divided into crews. What one crew alone goes on with, it alone waits for: the heads of one group of a
// Mamba layer, or one expert. Then a crew's part of the sum over all parts is added to the residual, and a wait of all
// for all follows only there, once a layer.
//
// The residual of a step is `x + sums`: what layers add is summed as integers, so that the order does not matter.
#pragma once

#include <vector>

#include "backends/cuda/attend_one.h"
#include "backends/cuda/form.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/matvec.h"
#include "ops/mamba2.h"
#include "ops/route.h"

namespace proa::cuda {

// Warps of a block that compute. With the one that fetches they are four for each quarter of an SM's registers.
constexpr int kConsumers = 15;
constexpr int kConsumerThreads = kConsumers * 32;
// Warps that share a tile of rows: what a tile costs beside its products is shared by few, and tiles go on side by
// side.
constexpr int kTeam = 5;
constexpr int kTeams = kConsumers / kTeam;
constexpr int kStepThreads = kConsumerThreads + 32;
constexpr int kMostCrews = 8;  // as many as the groups of Mamba layers

constexpr int kKeptItems = 4;  // of a thread: parts of the input that stay in registers

// How a product is cut into pieces, a piece being what one place of the ring holds; made on the host.
struct MatVecPlan {
  int tile_rows = 0;     // of a piece at most
  int total_groups = 0;  // of 32 columns, all parts of the input
  // 0: matrices, 1: experts
  int part_cols[2] = {};     // columns of a piece
  int parts[2] = {};         // pieces of a row
  int part_bytes[2] = {};    // of a row
  int last_bytes[2] = {};    // likewise, in the last part
  int pitch[2] = {};         // bytes from row to row of a piece
  bool contiguous[2] = {};   // rows stay as they lie, and pitch is their stride
  int scales_pitch[2] = {};  // 0: none

  Form form{};
  int matrix_cols = 0, expert_cols = 0;  // of the input's parts; widen: the experts have those of the matrices
  int matrix_rows = 0, expert_rows = 0;  // that are shared out among blocks
  int n_groups = 1;                      // of a gated norm
  // crew_parts: columns of a crew, how many bytes of a row those are, and crews that have a part of matrix 0.
  int crew_cols = 0, crew_bytes = 0, matrix_crews = 0;
  // How the input comes into registers.
  enum class Way : uint8_t { any, normed, normed_twice, gated, plain } way = Way::any;
  // What replaces a division by the groups of an expert, or of a group of the norm: times this, over 2^20.
  uint32_t inverse = 0;
};

struct Stage {
  enum class Kind : uint8_t { matvec, conv_ssm_step, attend, join } kind = Kind::matvec;
  int adds_to = 0;          // the version of the residual whose sums a stage adds to
  bool after_crew = false;  // waits for the stages of its crew only

  // matvec. With a router (widen) its blocks compute a logit each on the way and all choose the experts.
  Format format{};
  bool aligned = false;  // every row begins at a multiple of four bytes
  MatVec matvec;
  MatVecPlan plan;
  bool routes = false;
  int routed_before = 0;  // such stages
  Route route;
  float* logits = nullptr;  // [n_routed_experts]

  ConvSsmStep ssm;
  uint32_t* tickets = nullptr;  // [n_groups] zeros, and zeros again afterwards
  int chunk_rows = 0;           // rows of a head that a block takes at once

  AttendOne attend;  // join is the stage after it, of the same
};

// What blocks wait on. Zeros before and after a step.
struct StepSync {
  struct alignas(128) Crew {
    uint32_t stages;  // arrivals: blocks that have done a stage
  } crews[kMostCrews];
  uint32_t logits;  // arrivals: blocks that have written their logits
  uint32_t done;    // blocks
};

// What stages add to. Its version 0 is `x`; version n is version n - 1, which lies in `x` and `spare` by turns, and the
// sums n - 1, which are in place (n - 1) % 3. A version that has been read gets sums. At the end all is in `x` again.
struct Residual {
  float* x = nullptr;  // [size], 16-byte aligned; null: no stage adds
  float* spare = nullptr;
  int64_t* sums = nullptr;  // [3, stride], times 2^kResidualBits; zeros before and after a step
  int64_t stride = 0;
  int size = 0;      // a multiple of 8
  int versions = 0;  // the last one
};
constexpr int kResidualBits = 34;
constexpr int64_t kNoNumber = int64_t{1} << 58;  // added for what is none or too large

constexpr int kMaxRoutedExperts = 512;  // that a stage can choose from

// Blocks of a step, on a device of so many SMs, and their crews.
constexpr int step_blocks(int num_sms) { return num_sms >= kMostCrews ? num_sms / kMostCrews * kMostCrews : num_sms; }
constexpr int step_crews(int blocks) { return blocks % kMostCrews == 0 ? kMostCrews : 1; }

// Whether a stage can do this route as well.
bool can_route(const Route& route, const Stage& stage, const Launch& launch);
Stage matvec_stage(Format format, const MatVec& op, const Launch& launch);
Stage conv_ssm_stage(const ConvSsmStep& op, uint32_t* tickets, const Launch& launch);
// What can be a stage; kernels.h has the rest.
bool is_stage(const ConvSsmStep& op);
bool is_stage(const Attend& op);

// Whether `stage` can follow in the same kernel: its versions of the residual are those of `stages`.
bool can_follow(const std::vector<Stage>& stages, const Stage& stage);
bool can_add_to(const std::vector<Stage>& stages, const float* y);
// Puts `stage` behind the others, and divides what it does, and what the stage before it does, among crews if it can.
void append(std::vector<Stage>& stages, Stage stage, const Launch& launch);

// Cuts the products into pieces, when all stages are known.
void finish(std::vector<Stage>& stages, const Launch& launch);
// `stages` on the device, `host` the same, finished; `residual` holds memory, the rest of it is set here.
void run_step(const Stage* stages, const std::vector<Stage>& host, StepSync* sync, Residual residual,
              const Launch& launch);

}  // namespace proa::cuda
