#include <algorithm>

#include "backends/cuda/device.cuh"
#include "backends/cuda/dummy.h"

namespace proa::cuda {
namespace {

constexpr int kThreads = 128;

template <class F>
constexpr int kUnitBytes = dummy_is_plain<F> ? 4 : static_cast<int>(sizeof(typename F::Block));
template <class F>
constexpr int kUnits = kThreads * std::max(1, 64 / kUnitBytes<F>);  // of a tile
template <class F>
constexpr int kWords = [] {  // of a unit
  if constexpr (dummy_is_plain<F>) {
    return 1;
  } else {
    return DummyUnit<F>::words;
  }
}();

// Units of odd sizes are made in shared memory, a tile at a time, and leave it 16 bytes by 16.
template <class F>
__global__ void __launch_bounds__(kThreads)
    dummy_kernel(DummyFill fill, uint64_t first_unit, std::byte* out, uint64_t bytes) {
  constexpr int kTileBytes = kUnits<F> * kUnitBytes<F>;
  static_assert(kTileBytes % 16 == 0);
  __shared__ alignas(16) std::byte tile[kTileBytes];
  wait_for_predecessor();
  for (uint64_t t = blockIdx.x; t * kTileBytes < bytes; t += gridDim.x) {
    const uint64_t unit = first_unit + t * kUnits<F>, begin = t * kTileBytes;
#pragma unroll 1
    for (int u = static_cast<int>(threadIdx.x); u < kUnits<F>; u += kThreads) {
      const uint64_t index = (unit + static_cast<uint64_t>(u)) * kWords<F>;
      const auto low = static_cast<uint32_t>(index);
      const uint32_t key = dummy_key1(fill, index), next_key = dummy_key1(fill, index + (kWords<F> - 1));
      uint32_t words[kWords<F>];
#pragma unroll
      for (int i = 0; i < kWords<F>; ++i) {
        const uint32_t at = low + static_cast<uint32_t>(i);
        words[i] = dummy_word(fill.key[0], at < low ? next_key : key, at);
      }
      if constexpr (dummy_is_plain<F>) {
        reinterpret_cast<uint32_t*>(tile)[u] = DummyUnit<F>::make(fill, words[0]);
      } else {
        DummyUnit<F>::make(fill, words, reinterpret_cast<typename F::Block*>(tile)[u]);
      }
    }
    __syncthreads();
    const int here = static_cast<int>(min(uint64_t{kTileBytes}, bytes - begin));
    for (int i = static_cast<int>(threadIdx.x); i < here / 16; i += kThreads) {
      reinterpret_cast<uint4*>(out + begin)[i] = reinterpret_cast<const uint4*>(tile)[i];
    }
    if (const int i = here / 16 * 16 + static_cast<int>(threadIdx.x); i < here) out[begin + i] = tile[i];
    __syncthreads();
  }
}

}  // namespace

void fill_dummy(const DummyFill& fill, uint64_t begin, std::byte* out, size_t bytes, const Launch& launch) {
  if (bytes == 0) return;
  visit_format(fill.format, [&](auto f) {
    using F = decltype(f);
    const uint64_t tiles = (bytes - 1) / (kUnits<F> * kUnitBytes<F>)+1;
    const auto blocks = static_cast<unsigned>(std::min<uint64_t>(tiles, static_cast<uint64_t>(launch.num_sms()) * 16));
    launch(dummy_kernel<F>, blocks, kThreads, 0, fill, begin / kUnitBytes<F>, out, bytes);
  });
}

}  // namespace proa::cuda
