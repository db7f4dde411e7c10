#include <algorithm>

#include "backends/cuda/attend_one.cuh"
#include "backends/cuda/conv_ssm.cuh"
#include "backends/cuda/matvec.cuh"
#include "backends/cuda/route.cuh"
#include "backends/cuda/step.h"

namespace proa::cuda {
namespace {

// How dynamic shared memory is divided, in bytes, each a multiple of 16.
struct StepMemory {
  int operands = 0;  // also the room of stages that are no products
  int group_sums = 0;
  int rms = 0;
  int ring = 0;
  static constexpr int kPadding = 128;  // behind the ring: a product may look a block further than its row
  int total() const { return operands + group_sums + rms + ring + kPadding; }
};

constexpr int kStageWords = sizeof(Stage) / sizeof(uint2);  // a thread copies one
static_assert(sizeof(Stage) % sizeof(uint2) == 0 && kStageWords <= kConsumerThreads);

// Until `count` arrivals have been there. A step that never ends would hold the device: it stops with an error.
__device__ __forceinline__ void wait_for_count(const uint32_t* arrivals, uint32_t count, int what = 0) {
  for (uint32_t tries = 0;; ++tries) {
    uint32_t now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrivals) : "memory");
    if (now >= count) return;
#ifdef PROA_STEP_DEBUG
    if (tries == 1u << 21) {
      printf("block %d thread %d: %u of %u, wait %d\n", blockIdx.x, threadIdx.x, now, count, what);
      return;
    }
#endif
    if (tries == 1u << 24) __trap();  // seconds
  }
}
__device__ __forceinline__ void arrive_at(uint32_t* arrivals) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(arrivals), "r"(1) : "memory");
}

__device__ void produce(const Stage* stages, int count, StepSync* sync, Shared& shared, uint8_t* ring, int ring_bytes) {
  Producer producer(shared, ring, ring_bytes);
  const uint32_t blocks = gridDim.x;
  for (int s = 0; s < count; ++s) {
    const Stage& stage = stages[s];
    if (stage.kind != Stage::Kind::matvec) continue;
    const Experts& experts = stage.matvec.experts;
    const auto wait_for_experts = [&] {
      if (stage.routes) {
        if (lane_id() == 0) wait_for_count(&sync->logits, (stage.routed_before + 1) * blocks, 1000 + s);
        __syncwarp();
        choose(stage.route, stage.logits, shared.expert_id, shared.expert_weight, blockIdx.x == 0, shared.choice);
        __syncwarp();
      } else {
        if (lane_id() == 0) wait_for_count(&sync->stages, s * blocks, 2000 + s);
        __syncwarp();
      }
      // Those of the sum that follows too: consumers ask for them before a piece of it has come.
      int sum = s + 1;
      while (sum < count && !(stages[sum].kind == Stage::Kind::matvec && narrow(stages[sum].matvec))) ++sum;
      for (int k = lane_id(); k < experts.count; k += kWarp) {
        if (!stage.routes) {
          shared.expert_id[k] = __ldcg(experts.ids + k);
          shared.expert_weight[k] = __ldcg(experts.weights + k);
        } else if (blockIdx.x == 0) {
          stage.route.topk_ids[k] = shared.expert_id[k];
          stage.route.topk_weights[k] = shared.expert_weight[k];
        }
        const int id = shared.expert_id[k];
        for (int i = 0; i < 2 && (i == 0 || sum < count); ++i) {
          const Experts& of = i ? stages[sum].matvec.experts : experts;
          shared.data[i][k] = reinterpret_cast<const uint8_t*>(of.data[id]);
          shared.scales[i][k] = of.scales ? reinterpret_cast<const uint8_t*>(of.scales[id]) : nullptr;
          shared.expert_scale[i][k] = of.scale ? of.scale[id] : 1.0f;
        }
      }
      __syncwarp();
    };
    int elements = 0, bytes = 0;
    switch (stage.format) {
#define PROA_FORMAT(F)                                                        \
  case Format::F:                                                             \
    elements = F::block_elements, bytes = static_cast<int>(sizeof(F::Block)); \
    break;
      PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT
    }
    producer.produce(stage.matvec, stage.plan, stage.format == Format::E2M1, elements, bytes, wait_for_experts);
  }
}

template <int kSteps, typename Wait>
__device__ void attend_stage(const AttendOne& a, uint8_t* memory, Wait&& wait) {
  const int block = static_cast<int>(blockIdx.x);
  const bool takes_part = block < a.num_kv_heads * a.splits;
  if (takes_part) attend_begin<kSteps>(a, block, memory);
  wait();
  if (takes_part) attend_finish<kSteps>(a, memory, consumers_sync);
}

__device__ void consume(const Stage* stages, int count, StepSync* sync, Shared& shared,
                        uint2 (&current)[2][kStageWords], uint8_t* memory, const StepMemory& layout) {
  const int tid = static_cast<int>(threadIdx.x);
  const uint32_t blocks = gridDim.x;
  auto* group_sums = reinterpret_cast<float*>(memory + layout.operands);
  auto* rms = reinterpret_cast<float*>(memory + layout.operands + layout.group_sums);
  const uint8_t* ring = memory + layout.operands + layout.group_sums + layout.rms;
  Consumer consumer{shared, memory, reinterpret_cast<const uint8_t*>(group_sums), ring, {}, warp_id()};
  const auto words_of = [&](int s) { return reinterpret_cast<const uint2*>(stages + s); };
  if (tid < kStageWords) current[0][tid] = __ldg(words_of(0) + tid);
  consumers_sync();
  for (int s = 0; s < count; ++s) {
    const Stage& stage = *reinterpret_cast<const Stage*>(current[s % 2]);
    uint2 next = {};
    if (tid < kStageWords && s + 1 < count) next = __ldg(words_of(s + 1) + tid);
    const auto go_on = [&] {
      consumers_sync();
      if (tid < kStageWords) current[(s + 1) % 2][tid] = next;
      if (stage.kind == Stage::Kind::matvec && stage.matvec.output == Output::add) {
        const MatVec& a = stage.matvec;
        const Range mine = share_of(matrix_rows(a));
        const float* y = a.num_matrices > 0 ? a.matrices[0].y : a.experts.shape.y;
        if (tid < kMaxOldRows && mine.begin + tid < mine.end) shared.old[tid] = __ldcg(y + mine.begin + tid);
      }
    };
    const auto wait = [&] {
      if (tid == 0) wait_for_count(&sync->stages, s * blocks, s);
      go_on();
    };
    const auto done = [&] {
      if (lane_id() == 0) arrive_at(&sync->stages);
    };
    if (stage.kind == Stage::Kind::conv_ssm_step) {
      auto* channels = reinterpret_cast<float*>(memory);
      const int rows = chunk_rows(stage.ssm.shape, static_cast<int>(blocks));
      if (stage.ssm.shape.ssm_state_size <= 128) {
        conv_ssm_stage<4>(stage.ssm, rows, stage.tickets, channels, wait, done);
      } else {
        conv_ssm_stage<8>(stage.ssm, rows, stage.tickets, channels, wait, done);
      }
      continue;
    }
    if (stage.kind == Stage::Kind::attend) {
      consumers_sync();  // the memory is that of operands before
      if (stage.attend.head_dim <= 64) {
        attend_stage<4>(stage.attend, memory, wait);
      } else {
        attend_stage<8>(stage.attend, memory, wait);
      }
      consumers_sync();
      if (warp_id() == 0) done();
      continue;
    }
    if (stage.kind == Stage::Kind::join) {
      // With one share there is nothing to join, and whoever waits next waits for both stages.
      if (attend_shares(stage.attend).count == 1) {
        go_on();
      } else {
        wait();
        attend_join(stage.attend, static_cast<int>(blockIdx.x) * kConsumers + warp_id(),
                    static_cast<int>(blocks) * kConsumers);
        consumers_sync();
      }
      if (warp_id() == 0) done();
      continue;
    }
    const OperandMaker maker{
        stage.matvec,    form_of(stage.format),  stage.plan.total_groups, memory, group_sums, rms, shared.room,
        &shared.unscale, shared.expert_scale[1], shared.expert_weight};
    const RouteRows rows{stage.routes ? &stage.route : nullptr, &shared.sums[0][0][0]};
    maker.make(rows, wait, [&](float scale) {
      const int mine = rows.count();
      if (warp_id() > 0) return;
      for (int k = lane_id(); k < mine; k += kWarp) {
        float dot = 0;
        for (int w = 0; w < kConsumers; ++w) dot += rows.partial[k * kConsumers + w];
        __stcg(stage.logits + rows.expert(k), dot * scale * stage.route.gate.scale);
      }
      __syncwarp();
      if (lane_id() == 0) arrive_at(&sync->logits);
    });
    consumers_sync();
    consumer.multiply_stage(stage, done);
  }
  // The last block leaves zeros behind.
  consumers_sync();
  if (tid == 0 && atomicAdd(&sync->done, 1u) == blocks - 1) {
    sync->stages = sync->logits = sync->done = 0;
  }
}

__global__ void __launch_bounds__(kStepThreads, 1)
    step_kernel(const Stage* stages, int count, StepSync* sync, const __grid_constant__ StepMemory layout) {
  extern __shared__ uint4 memory[];
  __shared__ Shared shared;
  __shared__ alignas(16) uint2 current[2][kStageWords];
  auto* bytes = reinterpret_cast<uint8_t*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
#if __CUDA_ARCH__ >= 900
      init_barrier(&shared.full[i], 1);
#else
      init_barrier(&shared.full[i], kWarp);
#endif
      init_barrier(&shared.empty[i], kConsumers);
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    shared.tiles_left = 0;
  }
  if (threadIdx.x < kSums) shared.arrived[threadIdx.x] = 0;
  __syncthreads();
  if (warp_id() == kConsumers) {
    produce(stages, count, sync, shared, bytes + layout.operands + layout.group_sums + layout.rms, layout.ring);
#if __CUDA_ARCH__ < 900
    wait_for_copies<0>();
#endif
  } else {
    consume(stages, count, sync, shared, current, bytes, layout);
  }
}

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int up_16(int bytes) { return (bytes + 15) / 16 * 16; }

constexpr int kPieceBytes = 26624;  // at most, unless the least part of a row is larger

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
  // Of 24 rows where that saves a tile; otherwise of as many as a piece holds whole.
  plan.tile_rows = rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= kMaxTileRows ? kMaxTileRows : 16;
  const auto cut = [&](int kind, int tile_rows) {
    // Parts of 64 columns keep the alignment of rows, and whole pairs of groups.
    const int unit = std::max(64, F::block_elements);
    for (int parts = 1;; ++parts) {
      const int part = parts == 1 ? ceil_div(cols[kind], 32) * 32 : ceil_div(ceil_div(cols[kind], parts), unit) * unit;
      plan.part_cols[kind] = part;
      plan.parts[kind] = ceil_div(cols[kind], part);
      plan.part_bytes[kind] = ceil_div(part, F::block_elements) * static_cast<int>(sizeof(typename F::Block));
      int units = ceil_div(plan.part_bytes[kind] + 15, 16);
      // A row pitch at which eight rows fall into different banks, of 16 bytes for each lane or of fewer.
      const bool wide = sizeof(typename F::Block) * 32 / F::block_elements >= 64;
      while (wide ? units % 8 != 4 : units % 2 == 0) ++units;
      plan.pitch[kind] = 16 * units;
      if (F::block_elements == 2) {  // E2M1, with scales of its own
        plan.scales_bytes[kind] = part / 16;
        plan.scales_pitch[kind] = (ceil_div(part / 16 + 15, 16) | 1) * 16;
      }
      if (tile_rows * (plan.pitch[kind] + plan.scales_pitch[kind]) <= kPieceBytes || part <= unit) return;
    }
  };
  for (int kind = 0; kind < 2; ++kind) {
    if (cols[kind] > 0) cut(kind, plan.tile_rows);
  }
  // Eight whole rows are better than parts of sixteen.
  if (plan.tile_rows == 16 && (plan.parts[0] > 1 || plan.parts[1] > 1)) {
    plan.tile_rows = 8;
    for (int kind = 0; kind < 2; ++kind) {
      if (cols[kind] > 0) cut(kind, plan.tile_rows);
    }
  }
  plan.total_groups = sum ? ceil_div(cols[0], 32) + expert_count * ceil_div(cols[1], 32)
                          : ceil_div(op.num_matrices > 0 ? cols[0] : cols[1], 32);
  return plan;
}

}  // namespace

bool can_route(const Route& route, const MatVec& matvec) {
  const auto at_16 = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return matvec.mode == MatVec::Mode::widen && matvec.input == Input::normed && matvec.num_matrices > 0 &&
         matvec.x == route.x && matvec.norm == route.norm && matvec.eps == route.eps &&
         matvec.experts.ids == route.topk_ids && matvec.experts.count == route.num_experts_per_tok &&
         route.num_tokens == 1 && route.gate.format == Format::F32 && !route.gate.scales &&
         route.n_routed_experts <= kMaxRoutedExperts && route.num_experts_per_tok <= kMaxExperts &&
         route.hidden_size % 32 == 0 && route.hidden_size <= 8 * 2 * kConsumerThreads &&
         route.gate.row_stride % 16 == 0 && at_16(route.gate.data) && at_16(route.x) && at_16(route.norm);
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

bool is_stage(const ConvSsmStep& op) {
  const Mamba2Shape& shape = op.shape;
  return op.num_seqs == 1 && op.tokens_per_seq == 1 && shape.conv_kernel == kStepTaps && shape.ssm_state_size <= 256 &&
         shape.head_dim + 2 * shape.ssm_state_size <= 2 * kConsumerThreads;
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
    const Form form = form_of(stage.format);
    const int groups = stage.plan.total_groups;
    layout.operands = std::max(layout.operands, groups * group_bytes(form.kind));
    if (form.minima) layout.group_sums = std::max(layout.group_sums, up_16(8 * groups));
    if (stage.matvec.input == Input::gated) {
      layout.rms = std::max(layout.rms, up_16(4 * std::max(groups, stage.matvec.n_groups)));
    }
  }
  cudaFuncAttributes attributes;
  launch.keep(cudaFuncGetAttributes(&attributes, step_kernel));
  layout.ring = (launch.shared_limit() - static_cast<int>(attributes.sharedSizeBytes) - layout.total()) / 128 * 128;
  launch.together(step_kernel, dim3(launch.num_sms()), dim3(kStepThreads), static_cast<size_t>(layout.total()), stages,
                  static_cast<int>(host.size()), sync, layout);
}

}  // namespace proa::cuda
