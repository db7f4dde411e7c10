#include <algorithm>
#include <limits>

#include "backends/cuda/step.cuh"
#include "backends/cuda/step.h"

namespace proa::cuda {

extern template bool launch_step<StepQ4_0>(const Stage*, const std::vector<Stage>&, const StepPlaces&, StepMemory,
                                           const Launch&);
extern template bool launch_step<StepQ5_0>(const Stage*, const std::vector<Stage>&, const StepPlaces&, StepMemory,
                                           const Launch&);
extern template bool launch_step<StepMxfp4>(const Stage*, const std::vector<Stage>&, const StepPlaces&, StepMemory,
                                            const Launch&);
extern template bool launch_step<StepModelOpt>(const Stage*, const std::vector<Stage>&, const StepPlaces&, StepMemory,
                                               const Launch&);
extern template bool launch_step<AnyFormat>(const Stage*, const std::vector<Stage>&, const StepPlaces&, StepMemory,
                                            const Launch&);

namespace {

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int up_16(int bytes) { return (bytes + 15) / 16 * 16; }

// Of crew_parts.
int crew_cols(const MatVec& op) {
  const int of_experts = op.mode == MatVec::Mode::plain ? 0 : op.experts.count * op.experts.shape.cols;
  return ((op.num_matrices > 0 ? op.matrices[0].cols : 0) + of_experts) / kMostCrews;
}

MatVecPlan::Way way_of(const MatVec& op, const MatVecPlan& plan) {
  const auto at_16 = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const int items = plan.total_groups * 4;  // of eight columns
  if (plan.matrix_cols % 32 != 0 || plan.expert_cols % 32 != 0 || !at_16(op.x) || !at_16(op.z) || !at_16(op.norm) ||
      plan.form.order == CodeOrder::eighths) {
    return MatVecPlan::Way::any;
  }
  switch (op.input) {
    case Input::normed:
      if (items <= kConsumerThreads) return MatVecPlan::Way::normed;
      if (items <= 2 * kConsumerThreads) return MatVecPlan::Way::normed_twice;
      break;
    case Input::gated:
      if (plan.matrix_cols / plan.n_groups % 32 == 0 && items <= 2 * kConsumerThreads) return MatVecPlan::Way::gated;
      break;
    case Input::plain:
      if (items <= kKeptItems * kConsumerThreads) return MatVecPlan::Way::plain;
      break;
  }
  return MatVecPlan::Way::any;
}

template <class F>
MatVecPlan plan_of(const MatVec& op, int blocks, int piece_bytes) {
  MatVecPlan plan;
  const bool sum = op.mode == MatVec::Mode::narrow, in_parts = op.share == Share::crew_parts;
  const int expert_count = op.mode == MatVec::Mode::plain ? 0 : op.experts.count;
  int cols[2] = {op.num_matrices > 0 ? op.matrices[0].cols : 0, expert_count > 0 ? op.experts.shape.cols : 0};
  int rows = 0;  // of a block
  if (sum) {
    rows = op.num_matrices > 0 ? op.matrices[0].rows : op.experts.shape.rows;
  } else {
    for (int i = 0; i < op.num_matrices; ++i) rows += op.matrices[i].rows;
    if (expert_count > 0) {
      const int of_experts = expert_count * op.experts.shape.rows;
      rows = op.share == Share::crew_rows ? rows + of_experts : std::max(rows, of_experts);
    }
  }
  rows = ceil_div(rows, in_parts ? blocks / kMostCrews : blocks);
  constexpr auto kBlockBytes = static_cast<int>(sizeof(typename F::Block));
  plan.n_groups = op.n_groups;
  if (in_parts) {
    plan.n_groups = std::max(1, op.n_groups / kMostCrews);
    plan.crew_cols = crew_cols(op);
    plan.crew_bytes = plan.crew_cols / F::block_elements * kBlockBytes;
    plan.matrix_crews = cols[0] / plan.crew_cols;
    if (cols[0] > 0) cols[0] = plan.crew_cols;
  }
  const int row_bytes[2] = {ceil_div(cols[0], F::block_elements) * kBlockBytes,
                            ceil_div(cols[1], F::block_elements) * kBlockBytes};
  for (int kind = 0; kind < 2; ++kind) {
    if (cols[kind] == 0) continue;
    // As rows lie eight of them may well fall into different banks.
    const Matrix& m = kind ? op.experts.shape : op.matrices[0];
    const int banks = static_cast<int>(m.stride % 128);
    plan.contiguous[kind] = F::block_elements != 2 && m.stride == row_bytes[kind] && banks != 0 && banks != 64;
  }
  // The height of a tile, and into how many parts its columns go: what takes a team the fewest instructions, of which a
  // piece costs so many beside its products.
  constexpr int kPerProduct = 26, kPerPair = 14, kPerPiece = 600;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int tile = 1; tile <= std::min(kMaxTileRows, std::max(rows, 1)); ++tile) {
    MatVecPlan one = plan;
    one.tile_rows = tile;
    int64_t cost = 0;
    bool fits = true;
    for (int kind = 0; kind < 2; ++kind) {
      if (cols[kind] == 0) continue;
      // Parts of 64 columns keep the alignment of rows, and whole pairs of groups.
      const int unit = std::max(64, F::block_elements);
      for (int parts = 1;; ++parts) {
        const int part =
            parts == 1 ? ceil_div(cols[kind], 32) * 32 : ceil_div(ceil_div(cols[kind], parts), unit) * unit;
        one.part_cols[kind] = part;
        one.parts[kind] = ceil_div(cols[kind], part);
        one.part_bytes[kind] = ceil_div(part, F::block_elements) * kBlockBytes;
        one.last_bytes[kind] = ceil_div(cols[kind] - (one.parts[kind] - 1) * part, F::block_elements) * kBlockBytes;
        one.contiguous[kind] = plan.contiguous[kind] && one.parts[kind] == 1;
        int units = ceil_div(one.part_bytes[kind] + 15, 16);
        // A row pitch at which eight rows fall into different banks, of 16 bytes for each lane or of fewer.
        const bool wide = kBlockBytes * 32 / F::block_elements >= 64;
        while (wide ? units % 8 != 4 : units % 2 == 0) ++units;
        one.pitch[kind] = 16 * units;
        if (F::block_elements == 2) one.scales_pitch[kind] = (ceil_div(part / 16 + 15, 16) | 1) * 16;  // E2M1
        const int row = one.contiguous[kind] ? row_bytes[kind] : one.pitch[kind] + one.scales_pitch[kind];
        fits = tile * row + 64 <= piece_bytes;
        if (fits || part <= unit) break;
      }
      const int octets = ceil_div(tile, 8), pairs = ceil_div(one.part_cols[kind] / 32, 2);
      cost += one.parts[kind] * (int64_t{ceil_div(pairs, kTeam)} * (octets * kPerProduct + kPerPair) + kPerPiece);
    }
    cost *= ceil_div(ceil_div(std::max(rows, 1), tile), kTeams);
    if (tile > 1 && (!fits || cost >= least)) continue;
    least = fits ? cost : least;
    plan = one;
  }
  const bool sum_of_all = sum && !in_parts;
  plan.total_groups = sum_of_all ? ceil_div(cols[0], 32) + expert_count * ceil_div(cols[1], 32)
                                 : ceil_div(op.num_matrices > 0 ? cols[0] : cols[1], 32);
  plan.form = form_as<F>();
  plan.matrix_cols = op.num_matrices > 0 ? cols[0] : sum_of_all ? 0 : cols[1];
  plan.expert_cols = sum_of_all ? cols[1] : 0;
  for (int i = 0; i < (sum ? std::min(op.num_matrices, 1) : op.num_matrices); ++i)
    plan.matrix_rows += op.matrices[i].rows;
  if (sum && op.num_matrices == 0) plan.matrix_rows = op.experts.shape.rows;
  if (op.mode == MatVec::Mode::widen) plan.expert_rows = expert_count * op.experts.shape.rows;
  plan.way = way_of(op, plan);
  const int divisor = op.input == Input::gated ? plan.matrix_cols / plan.n_groups / 32 : ceil_div(plan.expert_cols, 32);
  plan.inverse = (1u << 20) / static_cast<uint32_t>(std::max(divisor, 1)) + 1;
  return plan;
}

MatVecPlan plan_of(Format format, const MatVec& op, int piece_bytes, const Launch& launch) {
  const int blocks = step_blocks(launch.num_sms());
  return visit_format(format, [&](auto f) { return plan_of<decltype(f)>(op, blocks, piece_bytes); });
}

StepMemory layout_of(const std::vector<Stage>& stages, const Launch& launch) {
  StepMemory layout;
  for (const Stage& stage : stages) {
    if (stage.kind == Stage::Kind::conv_ssm_step) {
      layout.operands = std::max(layout.operands, up_16(static_cast<int>(conv_ssm_room(stage.ssm.shape))));
      continue;
    }
    if (stage.kind == Stage::Kind::attend) {
      layout.operands = std::max(layout.operands, static_cast<int>((attend_room(stage.attend) + 127) / 128 * 128));
    }
    if (stage.kind != Stage::Kind::matvec) continue;
    const Form form = stage.plan.form;
    const int groups = stage.plan.total_groups;
    layout.operands = std::max(layout.operands, groups * group_bytes(form.kind));
    if (form.minima) layout.group_sums = std::max(layout.group_sums, up_16(8 * groups));
    if (stage.matvec.input == Input::gated) {
      layout.rms = std::max(layout.rms, up_16(4 * std::max(groups, stage.plan.n_groups)));
    }
  }
  layout.ring = (launch.shared_limit() - layout.total()) / 128 * 128;
  return layout;
}

}  // namespace

bool can_route(const Route& route, const Stage& stage, const Launch& launch) {
  const MatVec& matvec = stage.matvec;
  const int rows = ceil_div(route.n_routed_experts, step_blocks(launch.num_sms()));  // of a block
  const auto at_16 = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return (stage.plan.way == MatVecPlan::Way::normed || stage.plan.way == MatVecPlan::Way::normed_twice) &&
         matvec.mode == MatVec::Mode::widen && matvec.num_matrices > 0 && matvec.x == route.x &&
         matvec.norm == route.norm && matvec.eps == route.eps && matvec.experts.ids == route.topk_ids &&
         matvec.experts.count == route.num_experts_per_tok && route.num_tokens == 1 &&
         route.gate.format == Format::F32 && !route.gate.scales && route.n_routed_experts <= kMaxRoutedExperts &&
         rows * kConsumers <= kTeam * kRowsToWrite && route.num_experts_per_tok <= kMaxExperts &&
         route.hidden_size % 32 == 0 && route.hidden_size <= 8 * 2 * kConsumerThreads &&
         route.gate.row_stride % 16 == 0 && at_16(route.gate.data) && at_16(route.x) && at_16(route.norm);
}

Stage matvec_stage(Format format, const MatVec& op, const Launch& launch) {
  Stage stage;
  stage.kind = Stage::Kind::matvec;
  stage.format = format;
  stage.matvec = op;
  stage.plan = plan_of(format, op, 0, launch);
  stage.aligned = op.mode == MatVec::Mode::plain || op.experts.shape.stride % 4 == 0;  // experts' data always is
  stage.aligned = stage.aligned && stage.plan.crew_bytes % 4 == 0;
  for (int i = 0; i < op.num_matrices; ++i) {
    const Matrix& m = op.matrices[i];
    stage.aligned = stage.aligned && m.stride % 4 == 0 && reinterpret_cast<uintptr_t>(m.data) % 4 == 0;
  }
  return stage;
}

Stage conv_ssm_stage(const ConvSsmStep& op, uint32_t* tickets, const Launch& launch) {
  Stage stage;
  stage.kind = Stage::Kind::conv_ssm_step;
  stage.ssm = op;
  stage.tickets = tickets;
  stage.chunk_rows = chunk_rows(op.shape, step_blocks(launch.num_sms()));
  return stage;
}

bool is_stage(const ConvSsmStep& op) {
  const Mamba2Shape& shape = op.shape;
  return op.num_seqs == 1 && op.tokens_per_seq == 1 && shape.conv_kernel == kStepTaps &&
         shape.ssm_state_size <= kStepLanes * kWarp && shape.head_dim + 2 * shape.ssm_state_size <= kConsumerThreads &&
         reinterpret_cast<uintptr_t>(op.weights.conv_weight) % 16 == 0;
}

bool is_stage(const Attend& op) { return op.batch->num_tokens == 1 && takes_attend_one(op); }

namespace {

bool adds(const Stage& stage) { return stage.kind == Stage::Kind::matvec && stage.matvec.output == Output::add; }
float* sum_of(const MatVec& op) { return op.num_matrices > 0 ? op.matrices[0].y : op.experts.shape.y; }
int sum_rows(const MatVec& op) { return op.num_matrices > 0 ? op.matrices[0].rows : op.experts.shape.rows; }
const float* residual_of(const std::vector<Stage>& stages) {
  for (const Stage& stage : stages) {
    if (adds(stage)) return sum_of(stage.matvec);
  }
  return nullptr;
}

// A stage again, shared out in another way.
Stage shared(const Stage& stage, MatVec op, Share share, const Launch& launch) {
  op.share = share;
  Stage again = matvec_stage(stage.format, op, launch);
  again.routes = stage.routes, again.route = stage.route, again.logits = stage.logits;
  again.routed_before = stage.routed_before, again.adds_to = stage.adds_to;
  again.after_crew = share == Share::crew_parts;
  return again;
}

// Parts of rows by crews: whole blocks of the format, and whole groups of 32 columns.
bool divides_rows(const Stage& stage, int cols) {
  const FormatInfo& format = info(stage.format);
  return cols % 32 == 0 && cols % static_cast<int>(format.block_elements) == 0;
}

// in_proj before this: each crew makes what its groups' heads take, and goes on with it.
void share_heads(Stage& in_proj, Stage& conv, const Launch& launch) {
  const Mamba2Shape& shape = conv.ssm.shape;
  MatVec op = in_proj.matvec;
  const int inner = shape.num_heads * shape.head_dim, states = shape.n_groups * shape.ssm_state_size;
  const int parts[] = {inner, inner, states, states, shape.num_heads};
  static_assert(std::size(parts) == kMaxMatrices);
  if (in_proj.kind != Stage::Kind::matvec || op.mode != MatVec::Mode::plain || op.num_matrices != 1 ||
      op.output != Output::store || op.matrices[0].y != conv.ssm.projected ||
      op.matrices[0].rows != 2 * inner + 2 * states + shape.num_heads || shape.n_groups % kMostCrews != 0 ||
      inner / conv.chunk_rows % kMostCrews != 0) {
    return;
  }
  const Matrix all = op.matrices[0];
  int first = 0;
  for (int i = 0; i < kMaxMatrices; ++i) {
    Matrix& part = op.matrices[i] = all;
    part.rows = parts[i];
    part.data += static_cast<int64_t>(first) * all.stride;
    if (part.group_scales) part.group_scales += static_cast<int64_t>(first) * all.scales_stride;
    if (part.row_scales) part.row_scales += first;
    part.y += first;
    first += parts[i];
  }
  op.num_matrices = kMaxMatrices;
  in_proj = shared(in_proj, op, Share::crew_rows, launch);
  conv.after_crew = true;
}

// The product that adds what those heads have made.
void share_parts(const Stage& conv, Stage& out_proj, const Launch& launch) {
  const MatVec& op = out_proj.matvec;
  if (conv.kind != Stage::Kind::conv_ssm_step || !conv.after_crew || !adds(out_proj) ||
      op.mode != MatVec::Mode::plain || op.num_matrices != 1 || op.input != Input::gated || op.x != conv.ssm.y ||
      op.z != conv.ssm.projected || op.n_groups % kMostCrews != 0 || op.matrices[0].cols % kMostCrews != 0 ||
      !divides_rows(out_proj, op.matrices[0].cols / kMostCrews) || op.x_row) {
    return;
  }
  out_proj = shared(out_proj, op, Share::crew_parts, launch);
}

// Experts of as many columns as a crew's part has: each crew has its expert, or a part of the shared one.
void share_experts(Stage& up, Stage& down, const Launch& launch) {
  const MatVec &widen = up.matvec, &narrow = down.matvec;
  if (up.kind != Stage::Kind::matvec || widen.mode != MatVec::Mode::widen || !adds(down) ||
      narrow.mode != MatVec::Mode::narrow || widen.num_matrices > 1 || narrow.num_matrices != widen.num_matrices ||
      widen.experts.count != narrow.experts.count || widen.output != Output::activate) {
    return;
  }
  const int cols = narrow.experts.shape.cols, shared_cols = narrow.num_matrices > 0 ? narrow.matrices[0].cols : 0;
  const int shared_rows = widen.num_matrices > 0 ? widen.matrices[0].rows : 0;
  const float* hidden = widen.num_matrices > 0 ? widen.matrices[0].y : widen.experts.shape.y;
  if (shared_cols + narrow.experts.count * cols != kMostCrews * cols || shared_cols % cols != 0 ||
      shared_rows != shared_cols || widen.experts.shape.rows != cols || narrow.x != hidden || narrow.x_row ||
      widen.experts.shape.y != hidden + shared_rows || !divides_rows(down, cols)) {
    return;
  }
  up = shared(up, widen, Share::crew_rows, launch);
  down = shared(down, narrow, Share::crew_parts, launch);
}

}  // namespace

bool can_follow(const std::vector<Stage>& stages, const Stage& stage) {
  if (stage.kind != Stage::Kind::matvec) return true;
  if (adds(stage) && !can_add_to(stages, sum_of(stage.matvec))) return false;
  const float* residual = residual_of(stages);
  if (!residual) return true;
  // A version of the residual is taken in only where inputs are normed.
  return stage.matvec.x != residual || stage.matvec.input == Input::normed;
}

bool can_add_to(const std::vector<Stage>& stages, const float* y) {
  const float* residual = residual_of(stages);
  return !residual || residual == y;
}

void append(std::vector<Stage>& stages, Stage stage, const Launch& launch) {
  int version = 0;
  bool read = true;
  for (const Stage& before : stages) {
    if (before.kind == Stage::Kind::matvec && before.matvec.version == version) read = true;
    if (!adds(before)) continue;
    version = before.adds_to + 1;
    read = false;
  }
  if (stage.kind == Stage::Kind::matvec && stage.matvec.x == residual_of(stages)) stage.matvec.version = version;
  if (adds(stage)) stage.adds_to = read ? version : version - 1;
  if (!stages.empty() && step_blocks(launch.num_sms()) % kMostCrews == 0) {
    Stage& before = stages.back();
    if (stage.kind == Stage::Kind::conv_ssm_step) share_heads(before, stage, launch);
    if (stage.kind == Stage::Kind::matvec && stage.matvec.input == Input::gated) share_parts(before, stage, launch);
    if (stage.kind == Stage::Kind::matvec) share_experts(before, stage, launch);
  }
  stages.push_back(stage);
}

void finish(std::vector<Stage>& stages, const Launch& launch) {
  const StepMemory layout = layout_of(stages, launch);
  for (Stage& stage : stages) {
    if (stage.kind != Stage::Kind::matvec) continue;
    stage.plan = plan_of(stage.format, stage.matvec, layout.ring / 5, launch);
  }
}

void run_step(const Stage* stages, const std::vector<Stage>& host, StepSync* sync, Residual residual,
              const Launch& launch) {
  for (const Stage& stage : host) {
    if (!adds(stage)) continue;
    residual.x = sum_of(stage.matvec);
    residual.size = sum_rows(stage.matvec);
    residual.versions = stage.adds_to + 1;
  }
  const StepPlaces places = {sync, residual, step_crews(step_blocks(launch.num_sms()))};
  const StepMemory layout = layout_of(host, launch);
  const auto try_set = [&](auto formats) {
    return launch_step<decltype(formats)>(stages, host, places, layout, launch);
  };
  try_set(StepQ4_0()) || try_set(StepQ5_0()) || try_set(StepMxfp4()) || try_set(StepModelOpt()) || try_set(AnyFormat());
}

}  // namespace proa::cuda
