// What kernels share: dependent launch, reductions, asynchronous copies, the tensor-core product.
//
// Kernels of a step are launched with programmatic dependent launch where the device has it (sm_90 and newer): a kernel
// starts while its predecessor still runs, fetches what does not depend on it, and then calls wait_for_predecessor().
// Only after that does it call start_successor(), so a kernel that runs early may rely on all but its predecessor.
// Activations are read with __ldcg: the first-level cache of an early kernel may hold what was there before.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace proa::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void start_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x / kWarp); }

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  return value;
}

// Sum and maximum over the block, to every thread. `room` holds 2 * 32 floats and is free again at the next barrier.
__device__ __forceinline__ float2 block_sum_max(float sum, float max, float* room) {
  sum = warp_sum(sum);
  max = warp_max(max);
  if (lane_id() == 0) {
    room[warp_id()] = sum;
    room[kWarp + warp_id()] = max;
  }
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  sum = warp_sum(lane_id() < warps ? room[lane_id()] : 0.0f);
  max = warp_max(lane_id() < warps ? room[kWarp + lane_id()] : 0.0f);
  return {sum, max};
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, both aligned, without registers and past the first-level cache.
__device__ __forceinline__ void copy_async_to(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
// The same to an address in shared memory, or 16 zeros there; `global` is then not read.
__device__ __forceinline__ void copy_async_or_zero(uint32_t shared, const void* global, bool there) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last `kLeft` closed groups have arrived, for the copies of this thread.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// c += a · b, m16n8k16 with F32 sums, of F16 or BF16 pairs.
template <bool kBf16>
__device__ __forceinline__ void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  if constexpr (kBf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
// Four 8x8 matrices of 16-bit values as operands of that product: lane l gives the address of row l % 8 of matrix l / 8
// and gets values 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each; transposed: of column l / 4.
__device__ __forceinline__ uint4 load_matrices(uint32_t address) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(address));
  return m;
}
__device__ __forceinline__ uint4 load_matrices_transposed(uint32_t address) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(address));
  return m;
}

__device__ __forceinline__ uint32_t bits_of(__half2 value) { return *reinterpret_cast<uint32_t*>(&value); }
__device__ __forceinline__ __half2 halves_of(uint32_t bits) { return *reinterpret_cast<__half2*>(&bits); }
__device__ __forceinline__ uint32_t bits_of(__nv_bfloat162 value) { return *reinterpret_cast<uint32_t*>(&value); }

// Two E4M3 in the lower bytes as F16, which holds them exactly. Before sm_89, NaN comes out as 480.
__device__ __forceinline__ uint32_t e4m3_to_halves(uint32_t pair) {
#if __CUDA_ARCH__ >= 890
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
  return halves;
#else
  const uint32_t high = __byte_perm(pair, 0, 0x1404);  // in the upper bytes of either half
  return bits_of(__hmul2(halves_of((high & 0x80008000u) | ((high & 0x7f007f00u) >> 1)), __float2half2_rn(256.0f)));
#endif
}

// 2^x within 2^-22 of itself; 2^0 is 1, 2^-inf is 0.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Into the second-level cache, by one warp.
__device__ __forceinline__ void prefetch(const void* from, int bytes) {
  const auto* first = static_cast<const uint8_t*>(from);
#pragma unroll 1
  for (int at = 128 * lane_id(); at < bytes; at += 128 * kWarp) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(first + at));
  }
}
// Division and root by the hardware's approximations, off by two units of the last place: the exact ones are calls.
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + expf(-x)); }
__device__ __forceinline__ float inverse_rms(float squares, int count, float eps) {
  return rsqrtf(__fdividef(squares, static_cast<float>(count)) + eps);
}

// value / scale. By one nothing is divided: a quotient that is not a number loses its bits here.
__device__ __forceinline__ float over(float value, float scale) { return scale == 1 ? value : value / scale; }

// relu(x)^2, or silu.
__device__ __forceinline__ float activated(bool relu2, float x) {
  if (!relu2) return silu(x);
  return x > 0 ? x * x : 0.0f;
}

}  // namespace proa::cuda
