#include <algorithm>
#include <array>

#include "backends/cuda/linear.h"
#include "backends/cuda/matmul.cuh"
#include "backends/cuda/matmul_stream.cuh"
#include "backends/cuda/row.cuh"

namespace proa::cuda {

// Each format's kernels are compiled in a file of their own, so that builds run side by side: linear_formats_*.cu.
#define PROA_FORMAT(F)                                                            \
  extern template void matmul::launch<F>(std::span<const MatMul>, const Launch&); \
  extern template void matmul_stream::launch<F>(std::span<const MatMul>, const Launch&);
PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT

void multiply_matrices(Format format, std::span<const MatMul> ops, const Launch& launch) {
  visit_format(format, [&](auto f) {
    // Those that stream go together, and the others likewise.
    std::array<MatMul, kMaxMatMuls> streamed, others;
    size_t num_streamed = 0, num_others = 0;
    for (const MatMul& op : ops) {
      const bool streams = matmul_stream::takes<decltype(f)>(op, launch);
      (streams ? streamed[num_streamed++] : others[num_others++]) = op;
    }
    matmul_stream::launch<decltype(f)>({streamed.data(), num_streamed}, launch);
    matmul::launch<decltype(f)>({others.data(), num_others}, launch);
  });
}

OperandForm operand_form(Format format) {
  return visit_format(format, [](auto f) -> OperandForm {
    using Frag = Fragment<decltype(f)>;
    return {Frag::kBf16, static_cast<uint8_t>(Frag::kOrder)};
  });
}

namespace {

constexpr int kPrepareThreads = 1024;  // of a vector where there are few, else kManyPrepareThreads
constexpr int kManyPrepareThreads = 256;

struct Prepares {
  Prepare op[2];
};

// A block takes a vector.
template <bool kFours>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const __grid_constant__ Prepares all) {
  extern __shared__ float values[];
  __shared__ float room[2 * kWarp];
  const bool second = static_cast<int>(blockIdx.x) >= all.op[0].slots;
  const Prepare& a = all.op[second];
  const int slot = static_cast<int>(blockIdx.x) - (second ? all.op[0].slots : 0);
  wait_for_predecessor();
  start_successor();
  const RowInShared row = load_row<kFours>(a, slot, values, room);
  const float power = a.bf16 ? 1.0f : half_scale(row.largest), factor = row.norm * power;
  if (threadIdx.x == 0) a.out.unscale[slot] = 1.0f / power;
  const int groups = (a.cols + 31) / 32, units = a.bf16 ? 4 : 2;
  uint4* out = a.out.fragments + static_cast<int64_t>(slot / 8) * groups * units * kWarp + slot % 8 * 4;
  // All four lanes of a group's half do the same number of turns.
  for (int i = static_cast<int>(threadIdx.x); i < 8 * groups; i += static_cast<int>(blockDim.x)) {
    const int group = i / 8, half = i / 4 % 2, j = i % 4;
    float v[4], total = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int k = 32 * group + column_of(static_cast<Order>(a.order), j, 4 * half + n);
      v[n] = k < a.cols ? values[place_of(k)] * factor : 0.0f;
      total += v[n];
    }
    uint4* to = out + (group * units + half) * kWarp + j;
    if (a.bf16) {
      uint32_t low[3], high[3];
      split_pair<true>(v[0], v[1], low);
      split_pair<true>(v[2], v[3], high);
      to[0] = {low[0], high[0], low[1], high[1]};
      to[2 * kWarp] = {low[2], high[2], 0, 0};
    } else {
      uint32_t low[2], high[2];
      split_pair<false>(v[0], v[1], low);
      split_pair<false>(v[2], v[3], high);
      to[0] = {low[0], high[0], low[1], high[1]};
    }
    const uint32_t quad = 0xfu << (lane_id() & ~3);
    total += __shfl_xor_sync(quad, total, 1);
    total += __shfl_xor_sync(quad, total, 2);
    if (j == 0) a.out.group_sums[(static_cast<int64_t>(slot) * groups + group) * 2 + half] = total;
  }
}

}  // namespace

void prepare(std::span<const Prepare> ops, const Launch& launch) {
  Prepares all = {};
  size_t shared = 0;
  int slots = 0;
  for (size_t i = 0; i < ops.size() && i < 2; ++i) {
    all.op[i] = ops[i];
    slots += ops[i].slots;
    shared = std::max(shared, row_bytes(ops[i].cols));
  }
  if (slots == 0) return;
  if (shared > static_cast<size_t>(launch.shared_limit())) return launch.keep(cudaErrorInvalidValue);
  const bool fours = std::ranges::all_of(ops, reads_by_fours);
  const int threads = slots <= launch.num_sms() ? kPrepareThreads : kManyPrepareThreads;
  launch(fours ? prepare_kernel<true> : prepare_kernel<false>, dim3(slots), dim3(threads), shared, all);
}

}  // namespace proa::cuda
