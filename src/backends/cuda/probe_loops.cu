#include <algorithm>
#include <type_traits>
#include <vector>

#include "backends/cuda/device.cuh"
#include "backends/cuda/probe.h"
#include "backends/cuda/stopwatch.h"

namespace proa::cuda {

// Not anonymous: tests/scripts/probe_asm_test.py finds the loops in the program and counts their products.
namespace probe_loop {

constexpr int kThreads = 256;  // two warpgroups, of which one feeds the tensor cores while the other waits

// Bits that the compiler does not know, so that every product has to be computed.
__device__ __forceinline__ uint32_t noise(int i) {
  const uint32_t x = (threadIdx.x + kThreads * static_cast<uint32_t>(i) + 1) * 2654435761u;
  return (x ^ x >> 15) * 2246822519u;
}

struct Int8 {
  using Sum = int32_t;
  static __device__ __forceinline__ uint32_t operands(int i) { return noise(i); }
};
struct Bf16 {  // +-[0.5, 2)
  using Sum = float;
  static __device__ __forceinline__ uint32_t operands(int i) { return (noise(i) & 0x80ff80ffu) | 0x3f003f00u; }
};

// Results must be able to matter.
template <typename Sum, int kCount>
__device__ __forceinline__ void consume(const Sum (&sums)[kCount], uint32_t* sink) {
  uint32_t all = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<Sum, float>) {
      all = all * 31 + __float_as_uint(sums[i]);
    } else {
      all = all * 31 + static_cast<uint32_t>(sums[i]);
    }
  }
  if (all == 0x12345678u) *sink = all;
}

template <int kSums, int kTimes>
__global__ void __launch_bounds__(kThreads) f32_ffma(int iterations, uint32_t* sink) {
  const float a = __uint_as_float((noise(0) & 0x807fffffu) | 0x3f000000u), b = static_cast<float>(noise(1));
  float x[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) x[i] = static_cast<float>(noise(2 + i));
#pragma unroll 1
  for (; iterations > 0; --iterations) {
#pragma unroll
    for (int n = 0; n < kTimes; ++n) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) x[i] = fmaf(x[i], a, b);
    }
  }
  consume(x, sink);
}

__device__ __forceinline__ void multiply_int8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class T, int kTiles>
__device__ __forceinline__ void mma(int iterations, uint32_t* sink) {
  uint32_t a[4], b[kTiles][2];
  typename T::Sum c[kTiles][4], sums[kTiles * 4];
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = T::operands(i);
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) b[t][i] = T::operands(4 + 2 * t + i);
#pragma unroll
    for (int i = 0; i < 4; ++i) c[t][i] = static_cast<typename T::Sum>(t);
  }
#pragma unroll 1
  for (; iterations > 0; --iterations) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if constexpr (std::is_same_v<T, Bf16>) {
        multiply<true>(c[t], a[0], a[1], a[2], a[3], b[t][0], b[t][1]);
      } else {
        multiply_int8(c[t], a, b[t]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kTiles * 4; ++i) sums[i] = c[i / 4][i % 4];
  consume(sums, sink);
}
template <int kTiles>
__global__ void __launch_bounds__(kThreads) bf16_mma(int iterations, uint32_t* sink) {
  mma<Bf16, kTiles>(iterations, sink);
}
template <int kTiles>
__global__ void __launch_bounds__(kThreads) int8_mma(int iterations, uint32_t* sink) {
  mma<Int8, kTiles>(iterations, sink);
}

// Products of a warpgroup: 64 rows, a quarter of them in each of its four warps, by 256 columns whose operand lies in
// shared memory. Only sm_90a has them; elsewhere these kernels are empty.

#define PROA_TEN(t) "%" t "0,%" t "1,%" t "2,%" t "3,%" t "4,%" t "5,%" t "6,%" t "7,%" t "8,%" t "9,"
#define PROA_SUMS                                                                                                    \
  "{" PROA_TEN("") PROA_TEN("1") PROA_TEN("2") PROA_TEN("3") PROA_TEN("4") PROA_TEN("5") PROA_TEN("6") PROA_TEN("7") \
      PROA_TEN("8") PROA_TEN("9") PROA_TEN("10") PROA_TEN("11") "%120,%121,%122,%123,%124,%125,%126,%127}"
#define PROA_4(k, i) k(c[i]), k(c[(i) + 1]), k(c[(i) + 2]), k(c[(i) + 3])
#define PROA_16(k, i) PROA_4(k, i), PROA_4(k, (i) + 4), PROA_4(k, (i) + 8), PROA_4(k, (i) + 12)
#define PROA_64(k, i) PROA_16(k, i), PROA_16(k, (i) + 16), PROA_16(k, (i) + 32), PROA_16(k, (i) + 48)
#define PROA_128(k) PROA_64(k, 0), PROA_64(k, 64)
#define PROA_WGMMA(instruction, left, right, flags)                                                           \
  "{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned." instruction " " PROA_SUMS ", " left \
  ", " right ", add" flags ";}"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <bool kLeftShared>
__device__ __forceinline__ void multiply_wide(float (&c)[128], const uint32_t (&a)[4], uint64_t left, uint64_t right) {
  if constexpr (kLeftShared) {
    asm volatile(PROA_WGMMA("m64n256k16.f32.bf16.bf16", "%128", "%129", ", 1, 1, 0, 0")
                 : PROA_128("+f")
                 : "l"(left), "l"(right));
  } else {
    asm volatile(PROA_WGMMA("m64n256k16.f32.bf16.bf16", "{%128,%129,%130,%131}", "%132", ", 1, 1, 0")
                 : PROA_128("+f")
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right));
  }
}
template <bool kLeftShared>
__device__ __forceinline__ void multiply_wide(int32_t (&c)[128], const uint32_t (&a)[4], uint64_t left,
                                              uint64_t right) {
  if constexpr (kLeftShared) {
    asm volatile(PROA_WGMMA("m64n256k32.s32.s8.s8", "%128", "%129", "") : PROA_128("+r") : "l"(left), "l"(right));
  } else {
    asm volatile(PROA_WGMMA("m64n256k32.s32.s8.s8", "{%128,%129,%130,%131}", "%132", "")
                 : PROA_128("+r")
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right));
  }
}

// Where an operand of 32 bytes a row lies (PTX ISA, "Matrix Descriptor Format"). Swizzled: rows of 128 bytes, of which
// a product takes a quarter, 1024 bytes from eight rows to the next eight. Otherwise: 8 x 16 bytes together, the other
// half of these rows behind them.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, bool swizzled) {
  const uint64_t leading = swizzled ? 16 : 128, stride = swizzled ? 1024 : 256;
  return (address >> 4 & 0x3fffu) | leading >> 4 << 16 | stride >> 4 << 32 | (swizzled ? uint64_t{1} << 62 : 0);
}
#endif

template <class T, bool kLeftShared, bool kSwizzled>
__device__ __forceinline__ void wgmma(int iterations, uint32_t* sink) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kSteps = 4, kTimes = 4;  // 128 bytes a row, four times
  constexpr int kRight = 256 * 128, kLeft = 64 * 128;
  __shared__ alignas(1024) uint32_t memory[(kRight + 2 * kLeft) / 4];
  for (int i = 0; i < static_cast<int>(sizeof memory / 4) / kThreads; ++i) {
    memory[i * kThreads + static_cast<int>(threadIdx.x)] = T::operands(i);
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();

  const uint32_t address = shared_address(memory);
  const uint64_t right = descriptor(address, kSwizzled);
  const uint64_t left = descriptor(address + kRight + threadIdx.x / 128 * kLeft, kSwizzled);
  constexpr uint64_t kRightStep = (kSwizzled ? 32 : kRight / kSteps) / 16;
  constexpr uint64_t kLeftStep = (kSwizzled ? 32 : kLeft / kSteps) / 16;
  uint32_t a[kSteps][4];
  typename T::Sum c[128];
#pragma unroll
  for (int i = 0; i < kSteps * 4; ++i) a[i / 4][i % 4] = T::operands(i);
#pragma unroll
  for (int i = 0; i < 128; ++i) c[i] = static_cast<typename T::Sum>(i);
#pragma unroll 1
  for (; iterations > 0; --iterations) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int n = 0; n < kTimes * kSteps; ++n) {
      const int step = n % kSteps;
      multiply_wide<kLeftShared>(c, a[step], left + step * kLeftStep, right + step * kRightStep);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  consume(c, sink);
#endif
}
template <bool kLeftShared, bool kSwizzled>
__global__ void __launch_bounds__(kThreads) bf16_wgmma(int iterations, uint32_t* sink) {
  wgmma<Bf16, kLeftShared, kSwizzled>(iterations, sink);
}
template <bool kLeftShared, bool kSwizzled>
__global__ void __launch_bounds__(kThreads) int8_wgmma(int iterations, uint32_t* sink) {
  wgmma<Int8, kLeftShared, kSwizzled>(iterations, sink);
}

// A row per loop. The script reads it: a warp does `products` of `operations` each in an iteration.
struct Loop {
  Probe what;
  void (*kernel)(int iterations, uint32_t* sink);
  double products, operations;
  int registers;  // with fewer the kernel is empty: it was not compiled for this device
};
constexpr Loop kLoops[] = {
    {Probe::f32, f32_ffma<8, 32>, 256, 2 * 32, 0},
    {Probe::f32, f32_ffma<16, 16>, 256, 2 * 32, 0},
    {Probe::bf16, bf16_mma<8>, 8, 2 * 16 * 8 * 16, 0},
    {Probe::bf16, bf16_mma<16>, 16, 2 * 16 * 8 * 16, 0},
    {Probe::int8, int8_mma<8>, 8, 2 * 16 * 8 * 32, 0},
    {Probe::int8, int8_mma<16>, 16, 2 * 16 * 8 * 32, 0},
    {Probe::bf16, bf16_wgmma<false, false>, 16, 2 * 16 * 256 * 16, 128},
    {Probe::bf16, bf16_wgmma<false, true>, 16, 2 * 16 * 256 * 16, 128},
    {Probe::bf16, bf16_wgmma<true, true>, 16, 2 * 16 * 256 * 16, 128},
    {Probe::int8, int8_wgmma<false, false>, 16, 2 * 16 * 256 * 32, 128},
    {Probe::int8, int8_wgmma<false, true>, 16, 2 * 16 * 256 * 32, 128},
    {Probe::int8, int8_wgmma<true, true>, 16, 2 * 16 * 256 * 32, 128},
};

}  // namespace probe_loop

double arithmetic_probe(Probe what, double seconds, const Launch& launch) {
  constexpr double kSliceSeconds = 0.002;  // long beside a launch, short enough for loops to alternate
  struct Candidate {
    const probe_loop::Loop* loop;
    int blocks;
    double iterations = 100;
    double rate = 0;
  };
  std::vector<Candidate> candidates;
  for (const probe_loop::Loop& loop : probe_loop::kLoops) {
    cudaFuncAttributes attributes;
    int per_sm = 0;
    if (loop.what != what || cudaFuncGetAttributes(&attributes, loop.kernel) != cudaSuccess ||
        attributes.numRegs < loop.registers ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, loop.kernel, probe_loop::kThreads, 0) != cudaSuccess) {
      continue;
    }
    candidates.push_back({&loop, launch.num_sms() * per_sm});
  }
  cudaGetLastError();  // of a kernel that is not there
  uint32_t* sink = nullptr;
  if (candidates.empty() || cudaMalloc(&sink, sizeof *sink) != cudaSuccess) return cudaGetLastError(), 0;
  const Stopwatch stopwatch(launch);
  double best = 0, spent = 0;
  for (int round = 0; round < 4 || spent < seconds; ++round) {
    for (Candidate& c : candidates) {
      if (round > 3 && c.rate < 0.85 * best) continue;  // who fell behind stays behind
      const double elapsed = stopwatch.seconds([&] {
        c.loop->kernel<<<c.blocks, probe_loop::kThreads, 0, launch.stream()>>>(static_cast<int>(c.iterations), sink);
      });
      if (elapsed <= 0) return cudaFree(sink), 0;
      spent += elapsed;
      const double warps = static_cast<double>(c.blocks) * (probe_loop::kThreads / kWarp);
      // Rounds before the loop is long enough only say how long it must be.
      if (elapsed > kSliceSeconds / 2) {
        c.rate = std::max(c.rate, c.iterations * warps * c.loop->products * c.loop->operations / elapsed);
        best = std::max(best, c.rate);
      }
      c.iterations = std::clamp(c.iterations * kSliceSeconds / elapsed, c.iterations / 16, c.iterations * 16);
    }
  }
  cudaFree(sink);
  return best;
}

}  // namespace proa::cuda
