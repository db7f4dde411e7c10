// The kernel of step.h, a template over the formats that it knows.
#pragma once

#include "backends/cuda/attend_one.cuh"
#include "backends/cuda/conv_ssm.cuh"
#include "backends/cuda/matvec.cuh"
#include "backends/cuda/route.cuh"

namespace proa::cuda {

// Parts of a stage are functions of their own, so that one does not take registers from another: local memory is slow
// where shared memory has nearly all of the first-level cache.
#define PROA_PART static __device__ __noinline__

// With -DPROA_STEP_TRACE=N (cmake -DCMAKE_CUDA_FLAGS=-DPROA_STEP_TRACE=200) the N-th step of a process prints how long
// the blocks took for each part of each stage, in clocks: the fastest, the one in the middle, the slowest and which
// that was.
#ifdef PROA_STEP_TRACE
constexpr int kTraced = 200;  // stages
static __device__ long long step_trace[256][kTraced][8];
static __device__ int step_traces;
#define PROA_TRACE(s, i) \
  if (threadIdx.x == 0 && (s) < kTraced) step_trace[blockIdx.x][s][i] = clock64()
#define PROA_TRACE_PRODUCER(s, i) \
  if (lane_id() == 0 && (s) < kTraced) step_trace[blockIdx.x][s][i] = clock64()
#else
#define PROA_TRACE(s, i)
#define PROA_TRACE_PRODUCER(s, i)
#endif

// How dynamic shared memory is divided, in bytes, each a multiple of 16.
struct StepMemory {
  int operands = 0;  // also the room of stages that are no products
  int group_sums = 0;
  int rms = 0;
  int ring = 0;
  static constexpr int kPadding = 128;  // behind the ring: a product may look a block further than its row
  int total() const;
};

// In device memory.
struct StepPlaces {
  StepSync* sync;
  Residual residual;
  int crews;
};

constexpr int kAheadBytes = 160 * 1024;                     // of a block, see prefetch_ahead()
constexpr int kStageWords = sizeof(Stage) / sizeof(uint2);  // a thread copies one
static_assert(sizeof(Stage) % sizeof(uint2) == 0 && kStageWords <= kConsumerThreads);

// Until `count` arrivals have been there. A step that never ends would hold the device: it stops with an error.
__device__ __forceinline__ void wait_for_count(const uint32_t* arrivals, uint32_t count) {
  for (uint32_t tries = 0;; ++tries) {
    uint32_t now;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrivals) : "memory");
    if (now >= count) break;
    if (tries == 1u << 24) __trap();  // seconds
  }
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
}
__device__ __forceinline__ void arrive_at(uint32_t* arrivals) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(arrivals), "r"(1) : "memory");
}

// By one warp: until a block's crew, or all, have done `stages`.
__device__ __forceinline__ void wait_for_stages(const StepPlaces& places, int stages, bool crew_only) {
  const int size = static_cast<int>(gridDim.x) / places.crews, lane = lane_id();
  const int crew = crew_only ? static_cast<int>(blockIdx.x) / size : lane;
  if (lane < (crew_only ? 1 : places.crews)) {
    wait_for_count(&places.sync->crews[crew].stages, static_cast<uint32_t>(stages * size));
  }
  __syncwarp();
}

// What consumers read before they wait.
__device__ __forceinline__ void prefetch_early(const Stage& stage) {
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  if (stage.kind == Stage::Kind::matvec) {
    const MatVec& a = stage.matvec;
    const int cols = stage.plan.matrix_cols;
    if (a.norm) {  // a part by each block
      const int part = (cols / blocks + 32) / 32 * 32;
      if (part * block < cols) prefetch(a.norm + part * block, 4 * min(part, cols - part * block));
    }
    const RouteRows rows{stage.routes ? &stage.route : nullptr, nullptr};
    for (int k = 0; k < rows.count(); ++k) prefetch(rows.row(k), 4 * stage.route.hidden_size);
  }
  if (stage.kind == Stage::Kind::conv_ssm_step) {
    prefetch_conv_ssm(stage.ssm, stage.chunk_rows,
                      chunks_of_block(stage.ssm.shape, stage.chunk_rows, stage.after_crew));
  }
}

// All that a block keeps in shared memory, from its beginning; operands and the ring come after it.
struct alignas(128) BlockMemory {
  Shared shared;
  uint2 stages[2][kStageWords];  // this stage and the next
  uint2 ahead_words[kStageWords];
  __device__ const Stage& ahead() const { return *reinterpret_cast<const Stage*>(ahead_words); }  // that is fetched
  bool last;
  StepPlaces places;
  StepMemory layout;
};
extern __shared__ __align__(128) uint8_t step_memory[];
__device__ __forceinline__ BlockMemory& block_memory() { return *reinterpret_cast<BlockMemory*>(step_memory); }
__device__ __forceinline__ uint8_t* operand_memory() { return step_memory + sizeof(BlockMemory); }

// While the choice of experts is awaited memory would idle: this block's rows of the matrices that come after go to the
// second-level cache.
__device__ __forceinline__ void prefetch_ahead(const Stage* stages, int s, int count) {
#if __CUDA_ARCH__ >= 900
  int bytes = kAheadBytes;
#pragma unroll 1
  for (int t = s + 1; t < count && t < s + 3 && bytes > 0; ++t) {
    const Stage& stage = stages[t];
    if (stage.kind != Stage::Kind::matvec || stage.matvec.num_matrices == 0) continue;
    const Matrix& m = stage.matvec.matrices[0];
    const Range mine = share_of(m.rows);
    const uint8_t* from = m.data + static_cast<int64_t>(mine.begin) * m.stride;
    const int size = min(static_cast<int>((mine.end - mine.begin) * m.stride), bytes) & ~15;
    bytes -= size;
    from -= reinterpret_cast<uintptr_t>(from) & 15;
    if (lane_id() == 0 && size > 0) {
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(size) : "memory");
    }
  }
#endif
}

// Until the experts of stage s are chosen, and where they lie is in shared memory; by the warp that fetches. After a
// wait the first-level cache is empty: what can be read before is.
PROA_PART void wait_for_experts(const Stage* stages, int s, int count) {
  const Stage& stage = block_memory().ahead();
  const StepPlaces& places = block_memory().places;
  Shared& shared = block_memory().shared;
  // Those of the sum that follows too: consumers ask for them before a piece of it has come.
  int sum = s + 1;
  while (sum < count && !(stages[sum].kind == Stage::Kind::matvec && narrow(stages[sum].matvec))) ++sum;
  const Experts& up = stage.matvec.experts;
  const Experts& down = stages[min(sum, count - 1)].matvec.experts;
  const bool sums = sum < count, listed = stage.routes && stage.route.n_routed_experts <= kListedExperts;
  const auto *data = up.data, *scales = up.scales, *down_data = sums ? down.data : data;
  const auto* down_scales = sums ? down.scales : nullptr;
  const float *scale = up.scale, *down_scale = sums ? down.scale : nullptr;
  const int chosen = up.count, k = lane_id();
  PROA_TRACE_PRODUCER(s, 4);
  const bool tells = blockIdx.x == gridDim.x - 1;  // has experts' rows if any block has
  int id = 0;
  float weight = 0;
  if (stage.routes) {
    for (int e = k; listed && e < stage.route.n_routed_experts; e += kWarp) {
      shared.listed[0][e] = reinterpret_cast<const uint8_t*>(data[e]);
      shared.listed[1][e] = reinterpret_cast<const uint8_t*>(down_data[e]);
    }
    const auto wait = [&] {
      if (k == 0) wait_for_count(&places.sync->logits, static_cast<uint32_t>(stage.routed_before + 1) * gridDim.x);
      __syncwarp();
      PROA_TRACE_PRODUCER(s, 5);
    };
    if (stage.route.n_group > 1 || stage.route.n_routed_experts > ExpertChoice::kMost) {
      wait();
      choose(stage.route, stage.logits, shared.expert_id, shared.expert_weight, tells, shared.choice);
      __syncwarp();
      if (k < chosen) id = shared.expert_id[k], weight = shared.expert_weight[k];
    } else {
      const ExpertChoice choice(stage.route);
      wait();
      choice.choose(stage.logits, &id, &weight, tells);
    }
  } else {
    wait_for_stages(places, s, false);
    if (k < chosen) id = __ldcg(up.ids + k), weight = __ldcg(up.weights + k);
  }
  PROA_TRACE_PRODUCER(s, 6);
  if (k < chosen) {
    shared.expert_id[k] = id;
    shared.expert_weight[k] = weight;
    shared.data[0][k] = listed ? shared.listed[0][id] : reinterpret_cast<const uint8_t*>(data[id]);
    shared.data[1][k] = listed ? shared.listed[1][id] : reinterpret_cast<const uint8_t*>(down_data[id]);
    shared.scales[0][k] = scales ? reinterpret_cast<const uint8_t*>(scales[id]) : nullptr;
    shared.scales[1][k] = down_scales ? reinterpret_cast<const uint8_t*>(down_scales[id]) : nullptr;
    shared.expert_scale[0][k] = scale ? scale[id] : 1.0f;
    shared.expert_scale[1][k] = down_scale ? down_scale[id] : 1.0f;
    if (stage.routes && tells) {
      stage.route.topk_ids[k] = id;
      stage.route.topk_weights[k] = weight;
    }
  }
  __syncwarp();
  PROA_TRACE_PRODUCER(s, 7);
}

__device__ __forceinline__ void produce(const Stage* stages, int count, uint8_t* ring, int ring_bytes) {
  Producer producer(block_memory().shared, ring, ring_bytes);
  for (int s = 0; s < count; ++s) {
    __syncwarp();
    for (int i = lane_id(); i < kStageWords; i += kWarp) {
      block_memory().ahead_words[i] = __ldg(reinterpret_cast<const uint2*>(stages + s) + i);
    }
    __syncwarp();
    const Stage& stage = block_memory().ahead();
    prefetch_early(stage);
    if (stage.kind != Stage::Kind::matvec) continue;
    bool waited = false;
    producer.produce(stage.matvec, stage.plan, [&] {
      prefetch_ahead(stages, s, count);
      wait_for_experts(stages, s, count);
      waited = true;
    });
    if (stage.matvec.mode == MatVec::Mode::widen && !waited) prefetch_ahead(stages, s, count);
  }
}

// A stage's way in and out, for consumers.
struct Gate {
  int s;
  uint2 next;  // this thread's part of the next stage

  __device__ const StepPlaces& places() const { return block_memory().places; }
  __device__ const Stage& stage() const { return *reinterpret_cast<const Stage*>(block_memory().stages[s % 2]); }

  // Until all stages before are done.
  __device__ __forceinline__ void wait() const {
    PROA_TRACE(s, 1);
    if (warp_id() == 0) wait_for_stages(places(), s, stage().after_crew);
    PROA_TRACE(s, 2);
    go_on();
  }
  // The same, where that does not matter.
  __device__ __forceinline__ void go_on() const {
    const int tid = static_cast<int>(threadIdx.x);
    consumers_sync();
    if (tid < kStageWords) block_memory().stages[(s + 1) % 2][tid] = next;
  }
  // By one warp, when all of the block is done.
  __device__ __forceinline__ void done() const {
    const int crew = static_cast<int>(blockIdx.x) / (static_cast<int>(gridDim.x) / places().crews);
    if (lane_id() == 0) arrive_at(&places().sync->crews[crew].stages);
  }
  __device__ __forceinline__ RouteRows route_rows() const {
    return {stage().routes ? &stage().route : nullptr, &block_memory().shared.sums[0][0]};
  }
  __device__ __forceinline__ void routed(float scale) const {
    if (warp_id() > 0) return;
    const RouteRows rows = route_rows();
    for (int k = lane_id(); k < rows.count(); k += kWarp) {
      float dot = 0;
      for (int w = 0; w < kConsumers; ++w) dot += rows.partial[k * kConsumers + w];
      __stcg(stage().logits + rows.expert(k), dot * scale * stage().route.gate.scale);
    }
    __syncwarp();
    if (lane_id() == 0) arrive_at(&places().sync->logits);
  }
};

__device__ __forceinline__ OperandMaker operand_maker(const Stage& stage) {
  const StepMemory& layout = block_memory().layout;
  Shared& shared = block_memory().shared;
  uint8_t* memory = operand_memory();
  const MatVec& a = stage.matvec;
  const MatVecPlan& plan = stage.plan;
  const int crew = a.share == Share::crew_parts ? crew_of_block() : 0;
  float factor = a.mode == MatVec::Mode::narrow && a.num_matrices > 0 ? a.matrices[0].scale : 1.0f;
  if (a.share == Share::crew_parts && crew >= plan.matrix_crews) {
    const int e = crew - plan.matrix_crews;
    factor = shared.expert_weight[e] * shared.expert_scale[1][e];
  }
  return {a,
          plan,
          block_memory().places.residual,
          crew * plan.crew_cols,
          factor,
          memory,
          reinterpret_cast<float*>(memory + layout.operands),
          reinterpret_cast<float*>(memory + layout.operands + layout.group_sums),
          shared.room,
          &shared.unscale,
          shared.expert_scale[1],
          shared.expert_weight};
}
PROA_PART void make_normed(int s, uint2 next) {
  const Gate gate = {s, next};
  operand_maker(gate.stage()).make_normed<1>(gate.route_rows(), gate);
}
PROA_PART void make_normed_twice(int s, uint2 next) {
  const Gate gate = {s, next};
  operand_maker(gate.stage()).make_normed<2>(gate.route_rows(), gate);
}
PROA_PART void make_gated(int s, uint2 next) {
  const Gate gate = {s, next};
  operand_maker(gate.stage()).make_gated(gate);
}
PROA_PART void make_plain(int s, uint2 next) {
  const Gate gate = {s, next};
  operand_maker(gate.stage()).make_plain(gate);
}
PROA_PART void make_any(int s, uint2 next) {
  const Gate gate = {s, next};
  operand_maker(gate.stage()).make_any(gate);
}

template <class F, bool kAligned>
PROA_PART int3 multiply_stage(int s, int3 state) {
  const Gate gate = {s, {}};
  const StepMemory& layout = block_memory().layout;
  uint8_t* memory = operand_memory();
  Consumer<F, kAligned> consumer{block_memory().shared,
                                 shared_address(memory),
                                 shared_address(memory + layout.operands),
                                 shared_address(memory + layout.operands + layout.group_sums + layout.rms),
                                 sums_of(block_memory().places.residual, gate.stage().adds_to),
                                 {state.x, static_cast<uint32_t>(state.y)},
                                 state.z};
  consumer.multiply_stage(gate.stage(), gate);
  return {consumer.at.slot, static_cast<int>(consumer.at.parity), consumer.turn};
}

// Formats that one kernel knows.
template <class... Fs>
struct FormatSet {
  static bool has(Format format) { return ((format == format_of<Fs>) || ...); }
  __device__ __forceinline__ static int3 multiply(Format format, bool aligned, int s, int3 state) {
    (one<Fs>(format, aligned, s, state), ...);
    return state;
  }

 private:
  template <class F>
  __device__ __forceinline__ static void one(Format format, bool aligned, int s, int3& state) {
    if (format != format_of<F>) return;
    if (kPairsOfWords<F> && aligned) {
      state = multiply_stage<F, kPairsOfWords<F>>(s, state);
    } else {
      state = multiply_stage<F, false>(s, state);
    }
  }
};
#define PROA_FORMAT(F) , F
template <class First, class... Fs>
using RestOf = FormatSet<Fs...>;
using AnyFormat = RestOf<void PROA_FORMATS(PROA_FORMAT)>;
#undef PROA_FORMAT

PROA_PART void conv_ssm(int s, uint2 next) {
  const Gate gate = {s, next};
  const Stage& stage = gate.stage();
  const Turns chunks = chunks_of_block(stage.ssm.shape, stage.chunk_rows, stage.after_crew);
  conv_ssm_stage(stage.ssm, stage.chunk_rows, chunks, stage.tickets, reinterpret_cast<float*>(operand_memory()),
                 block_memory().last, gate);
}

static_assert(kAttendThreads == kConsumerThreads);
template <int kSteps, bool kFp8>
PROA_PART void attend_stage(int s, uint2 next) {
  const Gate gate = {s, next};
  const AttendOne& a = gate.stage().attend;
  const int block = static_cast<int>(blockIdx.x);
  const bool takes_part = block < a.num_kv_heads * a.splits;
  consumers_sync();  // the memory is that of operands before
  if (takes_part) attend_begin<kSteps, kFp8>(a, block, operand_memory());
  gate.wait();
  if (takes_part) attend_finish<kSteps, kFp8>(a, operand_memory(), consumers_sync);
  consumers_sync();
  if (warp_id() == 0) gate.done();
}
PROA_PART void join_stage(int s, uint2 next) {
  const Gate gate = {s, next};
  const AttendOne& a = gate.stage().attend;
  // With one share there is nothing to join, and whoever waits next waits for both stages.
  if (attend_shares(a).count == 1) {
    gate.go_on();
  } else {
    gate.wait();
    attend_join(a, static_cast<int>(blockIdx.x) * kConsumers + warp_id(), static_cast<int>(gridDim.x) * kConsumers);
  }
  consumers_sync();
  if (warp_id() == 0) gate.done();
}

// The last version of the residual becomes x again, and sums zeros; by one block.
__device__ __forceinline__ void end_residual(const Residual& r) {
  for (int k = static_cast<int>(threadIdx.x); k < r.size; k += kConsumerThreads) {
    r.x[k] = residual_at(r, r.versions, k);
    for (int i = 0; i < 3; ++i) r.sums[i * r.stride + k] = 0;
  }
}

template <class Formats>
__device__ __forceinline__ void consume(const Stage* stages, int count) {
  // Place in the ring, its turn; whose turn a pair of groups is.
  int3 state = {warp_id() / kTeam, 0, warp_id() % kTeam};
  const int tid = static_cast<int>(threadIdx.x);
  const auto word_of = [&](int s) { return __ldg(reinterpret_cast<const uint2*>(stages + s) + tid); };
  if (tid < kStageWords) block_memory().stages[0][tid] = word_of(0);
  consumers_sync();
#pragma unroll 1
  for (int s = 0; s < count; ++s) {
    PROA_TRACE(s, 0);
    const uint2 next = tid < kStageWords && s + 1 < count ? word_of(s + 1) : uint2{};
    const Stage& stage = Gate{s, {}}.stage();
    switch (stage.kind) {
      case Stage::Kind::matvec:
        switch (stage.plan.way) {
          case MatVecPlan::Way::normed:
            make_normed(s, next);
            break;
          case MatVecPlan::Way::normed_twice:
            make_normed_twice(s, next);
            break;
          case MatVecPlan::Way::gated:
            make_gated(s, next);
            break;
          case MatVecPlan::Way::plain:
            make_plain(s, next);
            break;
          case MatVecPlan::Way::any:
            make_any(s, next);
            break;
        }
        consumers_sync();
        PROA_TRACE(s, 3);
        state = Formats::multiply(stage.format, stage.aligned, s, state);
        break;
      case Stage::Kind::conv_ssm_step:
        conv_ssm(s, next);
        break;
      case Stage::Kind::attend:
        if (stage.attend.cache.format == Format::F8_E4M3) {
          stage.attend.head_dim <= 64 ? attend_stage<4, true>(s, next) : attend_stage<8, true>(s, next);
        } else {
          stage.attend.head_dim <= 64 ? attend_stage<4, false>(s, next) : attend_stage<8, false>(s, next);
        }
        break;
      case Stage::Kind::join:
        join_stage(s, next);
        break;
    }
  }
#ifdef PROA_STEP_TRACE
  __threadfence();
  if (tid == 0 && atomicAdd(&step_traces, 1) == PROA_STEP_TRACE * static_cast<int>(gridDim.x) - 1 && count > 20) {
    for (int s = 0; s + 1 < count && s + 1 < kTraced; ++s) {
      printf("stage %d kind %d input %d mode %d rows %d:", s, static_cast<int>(stages[s].kind),
             static_cast<int>(stages[s].matvec.input), static_cast<int>(stages[s].matvec.mode),
             stages[s].plan.tile_rows);
      for (int part = 0; part < 5; ++part) {
        int most = 0;
        long long least_time = 1ll << 60, most_time = -1, sum = 0;
        for (int b = 0; b < static_cast<int>(gridDim.x); ++b) {
          const long long* t = step_trace[b][s];
          const long long end = step_trace[b][s + 1][0];
          const long long time = part < 3 ? t[part + 1] - t[part] : part == 3 ? end - t[3] : end - t[0];
          sum += time;
          if (time > most_time) most_time = time, most = b;
          if (time < least_time) least_time = time;
        }
        const char* names[] = {"early", "wait", "input", "multiply", "all"};
        printf(" %s %lld %lld %lld (%d)", names[part], least_time, sum / gridDim.x, most_time, most);
      }
      if (stages[s].routes) {
        for (int part = 4; part < 8; ++part) {
          long long sum = 0, most = -(1ll << 60);
          int count = 0;
          for (int b = 0; b < static_cast<int>(gridDim.x); ++b) {
            const long long* t = step_trace[b][s];
            if (t[part] == 0) continue;
            sum += t[part] - t[0], ++count;
            most = most > t[part] - t[0] ? most : t[part] - t[0];
          }
          const char* names[] = {"asked", "logits", "chosen", "found"};
          if (count > 0) printf(" %s %lld %lld (%d)", names[part - 4], sum / count, most, count);
        }
      }
      printf("\n");
    }
  }
#endif
  // The last block leaves zeros behind.
  const StepPlaces& places = block_memory().places;
  consumers_sync();
  if (tid == 0) {
    uint32_t before = 0;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(&places.sync->done) : "memory");
    block_memory().last = before == gridDim.x - 1;
  }
  consumers_sync();
  if (!block_memory().last) return;
  if (places.residual.versions > 0) end_residual(places.residual);
  if (tid < places.crews) places.sync->crews[tid].stages = 0;
  if (tid == 0) places.sync->logits = places.sync->done = 0;
}

template <class Formats>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_kernel(const Stage* stages, int count, const __grid_constant__ StepPlaces places,
                const __grid_constant__ StepMemory layout) {
  Shared& shared = block_memory().shared;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
#if __CUDA_ARCH__ >= 900
      init_barrier(shared_address(&shared.full[i]), 1);
#else
      init_barrier(shared_address(&shared.full[i]), kWarp);
#endif
      init_barrier(shared_address(&shared.empty[i]), kTeam);
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    block_memory().places = places;
    block_memory().layout = layout;
  }
  __syncthreads();
  if (warp_id() == kConsumers) {
    produce(stages, count, operand_memory() + layout.operands + layout.group_sums + layout.rms, layout.ring);
#if __CUDA_ARCH__ < 900
    wait_for_copies<0>();
#endif
  } else {
    consume<Formats>(stages, count);
  }
}

inline int StepMemory::total() const {
  return static_cast<int>(sizeof(BlockMemory)) + operands + group_sums + rms + ring + kPadding;
}

// Launches the kernel if it knows all formats of the stages.
template <class Formats>
bool launch_step(const Stage* stages, const std::vector<Stage>& host, const StepPlaces& places, StepMemory layout,
                 const Launch& launch) {
  for (const Stage& stage : host) {
    if (stage.kind == Stage::Kind::matvec && !Formats::has(stage.format)) return false;
  }
  launch.together(step_kernel<Formats>, dim3(step_blocks(launch.num_sms())), dim3(kStepThreads),
                  static_cast<size_t>(layout.total()), stages, static_cast<int>(host.size()), places, layout);
  return true;
}

// Each is compiled in a file of its own, step_*.cu, the first that knows all formats is taken: those of llama-quantize
// and of ModelOpt, and one that knows all.
using StepQ4_0 = FormatSet<Q4_0, Q8_0>;
using StepQ5_0 = FormatSet<Q5_0, Q8_0>;
using StepMxfp4 = FormatSet<MXFP4, Q8_0>;
using StepModelOpt = FormatSet<E2M1, F8_E4M3, BF16>;

}  // namespace proa::cuda
