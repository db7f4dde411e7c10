#include <algorithm>

#include "backends/cuda/step.cuh"
#include "backends/cuda/step.h"

namespace proa::cuda {

extern template bool launch_step<StepQ4_0>(const Stage*, const std::vector<Stage>&, StepSync*, StepMemory,
                                           const Launch&);
extern template bool launch_step<StepQ5_0>(const Stage*, const std::vector<Stage>&, StepSync*, StepMemory,
                                           const Launch&);
extern template bool launch_step<StepMxfp4>(const Stage*, const std::vector<Stage>&, StepSync*, StepMemory,
                                            const Launch&);
extern template bool launch_step<StepModelOpt>(const Stage*, const std::vector<Stage>&, StepSync*, StepMemory,
                                               const Launch&);
extern template bool launch_step<AnyFormat>(const Stage*, const std::vector<Stage>&, StepSync*, StepMemory,
                                            const Launch&);

namespace {

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int up_16(int bytes) { return (bytes + 15) / 16 * 16; }

constexpr int kPieceBytes = 26624;  // at most, unless the least part of a row is larger

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
      if (plan.matrix_cols / op.n_groups % 32 == 0 && items <= 2 * kConsumerThreads) return MatVecPlan::Way::gated;
      break;
    case Input::plain:
      if (items <= kKeptItems * kConsumerThreads) return MatVecPlan::Way::plain;
      break;
  }
  return MatVecPlan::Way::any;
}

template <class F>
MatVecPlan plan_of(const MatVec& op, int blocks) {
  MatVecPlan plan;
  const bool sum = op.mode == MatVec::Mode::narrow;
  const int expert_count = op.mode == MatVec::Mode::plain ? 0 : op.experts.count;
  const int cols[2] = {op.num_matrices > 0 ? op.matrices[0].cols : 0, expert_count > 0 ? op.experts.shape.cols : 0};
  int rows = 0;  // of a block
  if (sum) {
    rows = op.num_matrices > 0 ? op.matrices[0].rows : op.experts.shape.rows;
  } else {
    for (int i = 0; i < op.num_matrices; ++i) rows += op.matrices[i].rows;
    if (expert_count > 0) rows = std::max(rows, expert_count * op.experts.shape.rows);
  }
  rows = ceil_div(rows, blocks);
  constexpr auto kBlockBytes = static_cast<int>(sizeof(typename F::Block));
  const int row_bytes[2] = {ceil_div(cols[0], F::block_elements) * kBlockBytes,
                            ceil_div(cols[1], F::block_elements) * kBlockBytes};
  // Every team gets as many tiles, of whole rows if a piece holds enough of them.
  const int longest = std::max(row_bytes[0], row_bytes[1]) + 64;
  int tile = rows;
  for (int each = 1; tile > kMaxTileRows || (tile > 8 && tile * longest > kPieceBytes) || each == 1; ++each) {
    tile = std::max(1, ceil_div(rows, kTeams * each));
  }
  plan.tile_rows = tile;
  for (int kind = 0; kind < 2; ++kind) {
    if (cols[kind] == 0) continue;
    // Parts of 64 columns keep the alignment of rows, and whole pairs of groups.
    const int unit = std::max(64, F::block_elements);
    const int parts = ceil_div(tile * (row_bytes[kind] + 64), kPieceBytes);
    const int part = parts == 1 ? ceil_div(cols[kind], 32) * 32 : ceil_div(ceil_div(cols[kind], parts), unit) * unit;
    plan.part_cols[kind] = part;
    plan.parts[kind] = ceil_div(cols[kind], part);
    plan.part_bytes[kind] = ceil_div(part, F::block_elements) * kBlockBytes;
    plan.last_bytes[kind] = ceil_div(cols[kind] - (plan.parts[kind] - 1) * part, F::block_elements) * kBlockBytes;
    int units = ceil_div(plan.part_bytes[kind] + 15, 16);
    // A row pitch at which eight rows fall into different banks, of 16 bytes for each lane or of fewer.
    const bool wide = kBlockBytes * 32 / F::block_elements >= 64;
    while (wide ? units % 8 != 4 : units % 2 == 0) ++units;
    plan.pitch[kind] = 16 * units;
    if (F::block_elements == 2) plan.scales_pitch[kind] = (ceil_div(part / 16 + 15, 16) | 1) * 16;  // E2M1
    // As they lie they may well do that too.
    const Matrix& m = kind ? op.experts.shape : op.matrices[0];
    const int banks = static_cast<int>(m.stride % 128);
    plan.contiguous[kind] = plan.parts[kind] == 1 && plan.scales_pitch[kind] == 0 && m.stride == row_bytes[kind] &&
                            banks != 0 && banks != 64;
  }
  plan.total_groups = sum ? ceil_div(cols[0], 32) + expert_count * ceil_div(cols[1], 32)
                          : ceil_div(op.num_matrices > 0 ? cols[0] : cols[1], 32);
  plan.form = form_as<F>();
  plan.matrix_cols = op.num_matrices > 0 ? cols[0] : sum ? 0 : cols[1];
  plan.expert_cols = sum ? cols[1] : 0;
  for (int i = 0; i < (sum ? std::min(op.num_matrices, 1) : op.num_matrices); ++i)
    plan.matrix_rows += op.matrices[i].rows;
  if (sum && op.num_matrices == 0) plan.matrix_rows = op.experts.shape.rows;
  if (op.mode == MatVec::Mode::widen) plan.expert_rows = expert_count * op.experts.shape.rows;
  plan.way = way_of(op, plan);
  const int divisor = op.input == Input::gated ? plan.matrix_cols / op.n_groups / 32 : ceil_div(plan.expert_cols, 32);
  plan.inverse = (1u << 20) / static_cast<uint32_t>(std::max(divisor, 1)) + 1;
  return plan;
}

}  // namespace

bool can_route(const Route& route, const Stage& stage) {
  const MatVec& matvec = stage.matvec;
  const auto at_16 = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return (stage.plan.way == MatVecPlan::Way::normed || stage.plan.way == MatVecPlan::Way::normed_twice) &&
         matvec.mode == MatVec::Mode::widen && matvec.num_matrices > 0 && matvec.x == route.x &&
         matvec.norm == route.norm && matvec.eps == route.eps && matvec.experts.ids == route.topk_ids &&
         matvec.experts.count == route.num_experts_per_tok && route.num_tokens == 1 &&
         route.gate.format == Format::F32 && !route.gate.scales && route.n_routed_experts <= kMaxRoutedExperts &&
         route.num_experts_per_tok <= kMaxExperts && route.hidden_size % 32 == 0 &&
         route.hidden_size <= 8 * 2 * kConsumerThreads && route.gate.row_stride % 16 == 0 && at_16(route.gate.data) &&
         at_16(route.x) && at_16(route.norm);
}

Stage matvec_stage(Format format, const MatVec& op, const Launch& launch) {
  Stage stage;
  stage.kind = Stage::Kind::matvec;
  stage.format = format;
  stage.matvec = op;
  stage.plan = visit_format(format, [&](auto f) { return plan_of<decltype(f)>(op, launch.num_sms()); });
  stage.aligned = op.mode == MatVec::Mode::plain || op.experts.shape.stride % 4 == 0;  // experts' data always is
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
  stage.chunk_rows = chunk_rows(op.shape, launch.num_sms());
  return stage;
}

bool is_stage(const ConvSsmStep& op) {
  const Mamba2Shape& shape = op.shape;
  return op.num_seqs == 1 && op.tokens_per_seq == 1 && shape.conv_kernel == kStepTaps &&
         shape.ssm_state_size <= kStepLanes * kWarp && shape.head_dim + 2 * shape.ssm_state_size <= kConsumerThreads &&
         reinterpret_cast<uintptr_t>(op.weights.conv_weight) % 16 == 0;
}

bool is_stage(const Attend& op) { return takes_attend_one(op); }

void run_step(const Stage* stages, const std::vector<Stage>& host, StepSync* sync, const Launch& launch) {
  StepMemory layout;
  for (const Stage& stage : host) {
    if (stage.kind == Stage::Kind::conv_ssm_step) {
      layout.operands = std::max(layout.operands, up_16(static_cast<int>(conv_ssm_room(stage.ssm.shape))));
      continue;
    }
    if (stage.kind == Stage::Kind::attend) {
      const size_t bytes = stage.attend.head_dim <= 64 ? sizeof(AttendShared<4>) : sizeof(AttendShared<8>);
      layout.operands = std::max(layout.operands, static_cast<int>((bytes + 127) / 128 * 128));
    }
    if (stage.kind != Stage::Kind::matvec) continue;
    const Form form = stage.plan.form;
    const int groups = stage.plan.total_groups;
    layout.operands = std::max(layout.operands, groups * group_bytes(form.kind));
    if (form.minima) layout.group_sums = std::max(layout.group_sums, up_16(8 * groups));
    if (stage.matvec.input == Input::gated) {
      layout.rms = std::max(layout.rms, up_16(4 * std::max(groups, stage.matvec.n_groups)));
    }
  }
  const auto try_set = [&](auto formats) { return launch_step<decltype(formats)>(stages, host, sync, layout, launch); };
  try_set(StepQ4_0()) || try_set(StepQ5_0()) || try_set(StepMxfp4()) || try_set(StepModelOpt()) || try_set(AnyFormat());
}

}  // namespace proa::cuda
