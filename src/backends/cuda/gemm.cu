#include "backends/cuda/gemm.cuh"

namespace proa::cuda {

// Each format's kernel is compiled in a file of its own kind, see gemm_formats_*.cu.
#define PROA_FORMAT(F) extern template void gemm::launch<F>(const Gemm&, int tiles, const Launch&);
PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT

namespace {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareShared = 200 << 10;

// A float of a row in shared memory: groups of 32 lie 33 apart, for lanes that read one column of each.
__device__ __forceinline__ int place_of(int k) { return k + k / 32; }

// Calls f(k, floats) for the floats of `from` at k, 4 * kAtOnce of them asked for before the first is used. Columns
// from begin + 4 * me on, in steps of 4 * all.
constexpr int kAtOnce = 4;
template <typename F>
__device__ __forceinline__ void for_fours(const float* from, int begin, int end, int me, int all, F&& f) {
  for (int first = begin + 4 * me; first < end; first += 4 * all * kAtOnce) {
    float4 v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int k = first + 4 * all * i;
      if (k < end) v[i] = __ldcg(reinterpret_cast<const float4*>(from + k));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int k = first + 4 * all * i;
      if (k < end) f(k, v[i]);
    }
  }
}

// A block takes a row. kFours: what it reads can be read by four floats.
template <Order kOrder, bool kFours>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_halves_kernel(const __grid_constant__ Prepare a, const __grid_constant__ Halves out) {
  extern __shared__ float values[];  // [place_of(cols)]
  __shared__ float room[2 * kWarp];
  wait_for_predecessor();
  start_successor();
  const int tid = static_cast<int>(threadIdx.x), lane = lane_id();
  const int64_t slot = blockIdx.x, row = a.rows ? __ldcg(a.rows + slot) : slot;
  const float* x = a.x + row * a.x_stride;
  float squares = 0, largest = 0;
  if (a.input == Input::gated) {
    const float* z = a.z + row * a.z_stride;
    const int width = a.cols / a.n_groups;
    for (int group = warp_id(); group < a.n_groups; group += kPrepareThreads / kWarp) {
      float sum = 0;
      const auto add = [&](int k, float y, float gate) {
        const float v = y * silu(gate);
        sum += v * v;
        values[place_of(k)] = v;
      };
      if constexpr (kFours) {
        // The gates first: they wait where the products will be.
        const auto each = [&](int k, const float4& v, auto&& f) {
          f(k, v.x), f(k + 1, v.y), f(k + 2, v.z), f(k + 3, v.w);
        };
        for_fours(z, group * width, (group + 1) * width, lane, kWarp, [&](int k, const float4& v) {
          each(k, v, [&](int at, float gate) { values[place_of(at)] = gate; });
        });
        for_fours(x, group * width, (group + 1) * width, lane, kWarp, [&](int k, const float4& v) {
          each(k, v, [&](int at, float y) { add(at, y, values[place_of(at)]); });
        });
        __syncwarp();
      } else {
        for (int k = group * width + lane; k < (group + 1) * width; k += kWarp) add(k, __ldcg(x + k), __ldcg(z + k));
      }
      const float r = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(width) + a.eps);
      for (int k = group * width + lane; k < (group + 1) * width; k += kWarp) {
        const float v = values[place_of(k)] * r * a.norm[k];
        largest = fmaxf(largest, fabsf(v));
        values[place_of(k)] = v;
      }
    }
  } else {
    const auto add = [&](int k, float v) {
      squares += v * v;
      if (a.input == Input::normed) v *= a.norm[k];
      largest = fmaxf(largest, fabsf(v));
      values[place_of(k)] = v;
    };
    if constexpr (kFours) {
      for_fours(x, 0, a.cols, tid, kPrepareThreads,
                [&](int k, const float4& v) { add(k, v.x), add(k + 1, v.y), add(k + 2, v.z), add(k + 3, v.w); });
    } else {
      for (int k = tid; k < a.cols; k += kPrepareThreads) add(k, __ldcg(x + k));
    }
  }
  const float2 all = block_sum_max(squares, largest, room);
  const float norm = a.input == Input::normed ? 1.0f / sqrtf(all.x / static_cast<float>(a.cols) + a.eps) : 1.0f;
  const float power = half_scale(all.y * norm), factor = norm * power;
  if (tid == 0) out.unscale[slot] = 1.0f / power;
  for (int chunk = tid; 8 * chunk < out.stride; chunk += kPrepareThreads) {
    const int group = chunk / 4, quarter = chunk % 4;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int k = 32 * group + column_of(kOrder, i / 2, 2 * quarter + i % 2);
      v[i] = k < a.cols ? values[place_of(k)] * factor : 0.0f;
    }
    uint4 halves;
    halves.x = bits_of(__floats2half2_rn(v[0], v[1]));
    halves.y = bits_of(__floats2half2_rn(v[2], v[3]));
    halves.z = bits_of(__floats2half2_rn(v[4], v[5]));
    halves.w = bits_of(__floats2half2_rn(v[6], v[7]));
    *reinterpret_cast<uint4*>(out.x + slot * out.stride + 8 * chunk) = halves;
  }
}

}  // namespace

int gemm_tokens(Format format, const Launch& launch) {
  if (launch.shared_limit() < gemm::kSharedBytes || format == Format::F32) return 0;
  return visit_format(format,
                      [](auto f) { return gemm::Plan<decltype(f)>::kFits ? gemm::Plan<decltype(f)>::kTokens : 0; });
}

void prepare_halves(const Prepare& op, uint8_t order, const Halves& out, const Launch& launch) {
  if (op.slots == 0) return;
  const size_t shared = sizeof(float) * (static_cast<size_t>(op.cols) + static_cast<size_t>(op.cols) / 32 + 1);
  if (shared > kPrepareShared) return launch.keep(cudaErrorInvalidValue);
  const auto by_fours = [](const float* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
  };
  const bool fours = by_fours(op.x, op.x_stride) && op.cols % (4 * op.n_groups) == 0 &&
                     (op.input != Input::gated || by_fours(op.z, op.z_stride));
  const auto start = [&]<Order kOrder>(std::integral_constant<Order, kOrder>) {
    launch(fours ? prepare_halves_kernel<kOrder, true> : prepare_halves_kernel<kOrder, false>, dim3(op.slots),
           dim3(kPrepareThreads), shared, op, out);
  };
  switch (static_cast<Order>(order)) {
    case Order::nibbles:
      return start(std::integral_constant<Order, Order::nibbles>());
    case Order::bytes:
      return start(std::integral_constant<Order, Order::bytes>());
    case Order::plain:
      return start(std::integral_constant<Order, Order::plain>());
    case Order::parts:
      return start(std::integral_constant<Order, Order::parts>());
    case Order::nvfp4:
      return start(std::integral_constant<Order, Order::nvfp4>());
  }
}

void multiply_many(Format format, const Gemm& op, int tiles, const Launch& launch) {
  visit_format(format, [&](auto f) { gemm::launch<decltype(f)>(op, tiles, launch); });
}

}  // namespace proa::cuda
