#include "backends/cuda/gemm.cuh"
#include "backends/cuda/row.cuh"

namespace proa::cuda {

// Each format's kernel is compiled in a file of its own kind, see gemm_formats_*.cu.
#define PROA_FORMAT(F) extern template void gemm::launch<F>(const Gemm&, int tiles, const Launch&);
PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT

namespace {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareShared = 200 << 10;

// What vectors become, and what they are multiplied with before and their products after.
struct Power {
  float before, after;
};
template <Order kTheOrder>
struct AsHalves {
  using Value = __half;
  static constexpr Order kOrder = kTheOrder;
  static __device__ Power power(const Halves&, float largest) {
    const float power = half_scale(largest);
    return {power, 1.0f / power};
  }
};
struct AsBf16 {
  using Value = __nv_bfloat16;
  static constexpr Order kOrder = Order::plain;
  static __device__ Power power(const Halves&, float) { return {1, 1}; }
};
struct AsE4m3 {
  using Value = uint8_t;
  static constexpr Order kOrder = Order::plain;
  static __device__ Power power(const Halves& out, float largest) {
    const float scale = out.scale > 0 ? out.scale : fmaxf(largest, 0x1p-100f) / 448.0f;
    return {1.0f / scale, scale};
  }
};

// A block takes a row. kFours: what it reads can be read by four floats.
template <class As, bool kFours>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_halves_kernel(const __grid_constant__ Prepare a, const __grid_constant__ Halves out) {
  extern __shared__ float values[];  // [place_of(cols)]
  __shared__ float room[2 * kWarp];
  wait_for_predecessor();
  start_successor();
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t slot = blockIdx.x;
  const RowInShared row = load_row<kFours>(a, slot, values, room);
  const Power power = As::power(out, row.largest);
  const float factor = row.norm * power.before;
  if (tid == 0) out.unscale[slot] = power.after;
  for (int chunk = tid; 8 * chunk < out.stride; chunk += kPrepareThreads) {
    const int group = chunk / 4, quarter = chunk % 4;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool halves = std::is_same_v<typename As::Value, __half>;
      const int k = 32 * group + (halves ? column_of(As::kOrder, i / 2, 2 * quarter + i % 2) : 8 * quarter + i);
      v[i] = k < a.cols ? values[place_of(k)] * factor : 0.0f;
    }
    auto* to = reinterpret_cast<typename As::Value*>(out.x) + slot * out.stride + 8 * chunk;
    if constexpr (std::is_same_v<As, AsBf16>) {
      *reinterpret_cast<uint4*>(to) = {
          bits_of(__floats2bfloat162_rn(v[0], v[1])), bits_of(__floats2bfloat162_rn(v[2], v[3])),
          bits_of(__floats2bfloat162_rn(v[4], v[5])), bits_of(__floats2bfloat162_rn(v[6], v[7]))};
      continue;
    } else if constexpr (std::is_same_v<As, AsE4m3>) {
      *reinterpret_cast<uint2*>(to) = {gemm::as_e4m3(v[0], v[1], v[2], v[3]), gemm::as_e4m3(v[4], v[5], v[6], v[7])};
      continue;
    }
    uint4 halves;
    halves.x = bits_of(__floats2half2_rn(v[0], v[1]));
    halves.y = bits_of(__floats2half2_rn(v[2], v[3]));
    halves.z = bits_of(__floats2half2_rn(v[4], v[5]));
    halves.w = bits_of(__floats2half2_rn(v[6], v[7]));
    *reinterpret_cast<uint4*>(to) = halves;
  }
}

// Four values from column 4 a of a group of 32 on, where `As` has them; to: the group's first. Called by whole warps,
// lane l with a == l % 8.
template <class As>
__device__ __forceinline__ void put_four(typename As::Value* to, float4 v, float factor) {
  constexpr Order kOrder = As::kOrder;
  const int a = lane_id() % 8;
  v.x *= factor, v.y *= factor, v.z *= factor, v.w *= factor;
  const auto put = [&](int at, float first, float second) {
    *reinterpret_cast<uint32_t*>(to + at) = bits_of(__floats2half2_rn(first, second));
  };
  if constexpr (std::is_same_v<As, AsBf16>) {
    *reinterpret_cast<uint2*>(to + 4 * a) = {bits_of(__floats2bfloat162_rn(v.x, v.y)),
                                             bits_of(__floats2bfloat162_rn(v.z, v.w))};
  } else if constexpr (std::is_same_v<As, AsE4m3>) {
    *reinterpret_cast<uint32_t*>(to + 4 * a) = gemm::as_e4m3(v.x, v.y, v.z, v.w);
  } else if constexpr (kOrder == Order::nibbles) {
    put(2 * a, v.x, v.z);
    put(16 + 2 * a, v.y, v.w);
  } else if constexpr (kOrder == Order::bytes) {
    put(a % 2 * 16 + a / 2 * 2, v.x, v.z);
    put(a % 2 * 16 + 8 + a / 2 * 2, v.y, v.w);
  } else if constexpr (kOrder == Order::plain) {
    put(a % 2 * 16 + a / 2 * 2, v.x, v.y);
    put(a % 2 * 16 + 8 + a / 2 * 2, v.z, v.w);
  } else if constexpr (kOrder == Order::parts) {
    put(a / 4 * 16 + a % 4 * 2, v.x, v.y);
    put(a / 4 * 16 + 8 + a % 4 * 2, v.z, v.w);
  } else {
    static_assert(kOrder == Order::nvfp4);
    // Its pairs are eight columns apart: of either two lanes one makes the first two pairs.
    const bool upper = a / 2 % 2 != 0;
    const float first = __shfl_xor_sync(~0u, upper ? v.x : v.z, 2), second = __shfl_xor_sync(~0u, upper ? v.y : v.w, 2);
    const int at = a / 4 * 16 + a % 2 * 4 + (upper ? 2 : 0);
    put(at, upper ? first : v.x, upper ? v.z : first);
    put(at + 8, upper ? second : v.y, upper ? v.w : second);
  }
}

// kWarps take a row, all of which is in their registers: kFours times four columns a lane.
constexpr int kRowThreads = 128;
template <class As, int kWarps, int kFours>
__global__ void __launch_bounds__(kRowThreads)
    prepare_row_kernel(const __grid_constant__ Prepare a, const __grid_constant__ Halves out) {
  constexpr int kRows = kRowThreads / kWarp / kWarps, kStep = 4 * kWarp * kWarps;
  static_assert(kRows * kWarps * kWarp == kRowThreads && (kRows == 1 || kWarps == 1));
  __shared__ float room[2 * kWarp];
  wait_for_predecessor();
  start_successor();
  const int first = 4 * (static_cast<int>(threadIdx.x) % (kWarps * kWarp));
  const int64_t slot = int64_t{blockIdx.x} * kRows + warp_id() / kWarps;
  if (slot >= a.slots) return;
  const float* x = a.x + (a.rows ? __ldcg(a.rows + slot) : slot) * a.x_stride;
  float4 v[kFours];
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int k = first + kStep * i;
    v[i] = k < a.cols ? __ldcg(reinterpret_cast<const float4*>(x + k)) : float4{};
  }
  float squares = 0, largest = 0;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    if (a.input == Input::normed) {
      squares += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
      const int k = first + kStep * i;
      const float4 n = k < a.cols ? __ldg(reinterpret_cast<const float4*>(a.norm + k)) : float4{};
      v[i].x *= n.x, v[i].y *= n.y, v[i].z *= n.z, v[i].w *= n.w;
    }
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v[i].x), fabsf(v[i].y)), fmaxf(fabsf(v[i].z), fabsf(v[i].w))));
  }
  float2 all;
  if constexpr (kRows == 1) {
    all = block_sum_max(squares, largest, room);
  } else {
    all = {warp_sum(squares), warp_max(largest)};
  }
  const float norm = a.input == Input::normed ? 1.0f / sqrtf(all.x / static_cast<float>(a.cols) + a.eps) : 1.0f;
  const Power power = As::power(out, all.y * norm);
  if (first == 0) out.unscale[slot] = power.after;
  auto* to = reinterpret_cast<typename As::Value*>(out.x) + slot * out.stride + first / 32 * 32;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    if (first / (4 * kWarp) * (4 * kWarp) + kStep * i < out.stride) {
      put_four<As>(to + kStep * i, v[i], norm * power.before);
    }
  }
}

// A block takes a row of gated groups, a warp a group.
constexpr int kGatedGroups = 8;
template <class As, int kFours>
__global__ void __launch_bounds__(kGatedGroups* kWarp)
    prepare_gated_kernel(const __grid_constant__ Prepare a, const __grid_constant__ Halves out) {
  __shared__ float most[kGatedGroups];
  wait_for_predecessor();
  start_successor();
  const int lane = lane_id(), group = warp_id(), width = a.cols / a.n_groups;
  const int64_t slot = blockIdx.x, row = a.rows ? __ldcg(a.rows + slot) : slot;
  const float* x = a.x + row * a.x_stride + group * width;
  const float* z = a.z + row * a.z_stride + group * width;
  const float* weight = a.norm + group * width;
  float4 v[kFours], gate[kFours];
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int k = 4 * (lane + kWarp * i);
    const bool there = group < a.n_groups && k < width;
    v[i] = there ? __ldcg(reinterpret_cast<const float4*>(x + k)) : float4{};
    gate[i] = there ? __ldcg(reinterpret_cast<const float4*>(z + k)) : float4{};
  }
  float squares = 0, largest = 0;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    v[i].x *= silu(gate[i].x), v[i].y *= silu(gate[i].y), v[i].z *= silu(gate[i].z), v[i].w *= silu(gate[i].w);
    squares += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
  }
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + a.eps);
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int k = 4 * (lane + kWarp * i);
    const bool there = group < a.n_groups && k < width;
    const float4 n = there ? __ldg(reinterpret_cast<const float4*>(weight + k)) : float4{};
    v[i].x *= r * n.x, v[i].y *= r * n.y, v[i].z *= r * n.z, v[i].w *= r * n.w;
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v[i].x), fabsf(v[i].y)), fmaxf(fabsf(v[i].z), fabsf(v[i].w))));
  }
  largest = warp_max(largest);
  if (lane == 0) most[group] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kGatedGroups; ++i) largest = fmaxf(largest, most[i]);
  const Power power = As::power(out, largest);
  if (threadIdx.x == 0) out.unscale[slot] = power.after;
  auto* to = reinterpret_cast<typename As::Value*>(out.x) + slot * out.stride;
  if (group < a.n_groups) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      if (4 * kWarp * i < width) put_four<As>(to + group * width + lane / 8 * 32 + 4 * kWarp * i, v[i], power.before);
    }
  }
  constexpr int kValues = 4 / sizeof(typename As::Value);  // of a word
  for (int64_t k = a.cols + kValues * static_cast<int>(threadIdx.x); k < out.stride;
       k += kValues * kGatedGroups * kWarp) {
    *reinterpret_cast<uint32_t*>(to + k) = 0;
  }
}

// A warp takes a row.
constexpr int kLevelThreads = 256;
__global__ void __launch_bounds__(kLevelThreads) level_kernel(const __grid_constant__ HalvesOut out, int rows) {
  wait_for_predecessor();
  start_successor();
  const int lane = lane_id(), groups = static_cast<int>(out.to.stride / 32);
  const int64_t row = int64_t{blockIdx.x} * (kLevelThreads / kWarp) + warp_id();
  if (row >= rows) return;
  const int8_t* powers = out.powers + row * groups;
  int least = kNoPower, most = -kNoPower;
  for (int g = lane; g < groups; g += kWarp) {
    const int power = __ldcg(powers + g);
    if (power != kNoPower) least = min(least, power), most = max(most, power);
  }
  least = __reduce_min_sync(~0u, least);
  most = __reduce_max_sync(~0u, most);
  if (lane == 0) out.to.unscale[row] = most < least ? 1.0f : gemm::power_of(-least);
  if (most <= least) return;
  auto* words = reinterpret_cast<uint32_t*>(out.to.x + row * out.to.stride);
  for (int g = 0; g < groups; ++g) {
    const int power = __ldcg(powers + g);
    if (power == kNoPower || power == least || lane >= 16) continue;
    const float factor = gemm::power_of(least - power);
    const float2 v = __half22float2(halves_of(__ldcg(words + 16 * g + lane)));
    words[16 * g + lane] = bits_of(__floats2half2_rn(v.x * factor, v.y * factor));
  }
}

}  // namespace

bool writes_halves(Format format, const Launch& launch) {
  return gemm_tokens(format, launch) > 0 &&
         visit_format(format, [](auto f) { return gemm::Plan<decltype(f)>::kRows == 256; });
}

void level_halves(const HalvesOut& out, int rows, const Launch& launch) {
  if (rows == 0) return;
  constexpr int kRows = kLevelThreads / kWarp;
  launch(level_kernel, dim3((rows + kRows - 1) / kRows), dim3(kLevelThreads), 0, out, rows);
}

int gemm_tokens(Format format, const Launch& launch) {
  if (launch.shared_limit() < gemm::kSharedBytes || format == Format::F32) return 0;
  return visit_format(format,
                      [](auto f) { return gemm::Plan<decltype(f)>::kFits ? gemm::Plan<decltype(f)>::kTokens : 0; });
}

void prepare_halves(const Prepare& op, uint8_t order, const Halves& out, const Launch& launch) {
  if (op.slots == 0) return;
  const size_t shared = row_bytes(op.cols);
  if (shared > kPrepareShared) return launch.keep(cudaErrorInvalidValue);
  const bool fours = reads_by_fours(op);
  const bool norms = op.input == Input::plain || reinterpret_cast<uintptr_t>(op.norm) % 16 == 0;
  const int width = op.cols / op.n_groups;
  const auto start = [&]<class As>(As) {
    if (fours && norms && op.input != Input::gated && op.cols <= 16 * 4 * kWarp) {
      constexpr int kRows = kRowThreads / kWarp;
      return launch(prepare_row_kernel<As, 1, 16>, dim3((op.slots + kRows - 1) / kRows), dim3(kRowThreads), 0, op, out);
    }
    if (fours && norms && op.input != Input::gated && op.cols <= 8 * 4 * kRowThreads) {
      return launch(prepare_row_kernel<As, kRowThreads / kWarp, 8>, dim3(op.slots), dim3(kRowThreads), 0, op, out);
    }
    if (fours && norms && op.input == Input::gated && op.n_groups <= kGatedGroups && width % (4 * kWarp) == 0 &&
        width <= 8 * 4 * kWarp) {
      return launch(width <= 4 * 4 * kWarp ? prepare_gated_kernel<As, 4> : prepare_gated_kernel<As, 8>, dim3(op.slots),
                    dim3(kGatedGroups * kWarp), 0, op, out);
    }
    launch(fours ? prepare_halves_kernel<As, true> : prepare_halves_kernel<As, false>, dim3(op.slots),
           dim3(kPrepareThreads), shared, op, out);
  };
  if (out.kind == Vectors::e4m3) return start(AsE4m3());
  if (out.kind == Vectors::bf16) return start(AsBf16());
  switch (static_cast<Order>(order)) {
    case Order::nibbles:
      return start(AsHalves<Order::nibbles>());
    case Order::bytes:
      return start(AsHalves<Order::bytes>());
    case Order::plain:
      return start(AsHalves<Order::plain>());
    case Order::parts:
      return start(AsHalves<Order::parts>());
    case Order::nvfp4:
      return start(AsHalves<Order::nvfp4>());
  }
}

void multiply_many(Format format, const Gemm& op, int tiles, const Launch& launch) {
  visit_format(format, [&](auto f) { gemm::launch<decltype(f)>(op, tiles, launch); });
}

}  // namespace proa::cuda
