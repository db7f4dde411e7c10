// c += a · b for a warpgroup of 128 threads or its four warps one by one. a is 64 rows by 16 columns of halves in
// registers, as mma.m16n8k16 has it per warp: lane l holds columns 2 (l % 4) + {0, 1} and 8 more of rows l / 4 and
// 8 more. b is kTokens rows of 64 columns in shared memory, of which 16 take part: 128 bytes a row, its eight chunks of
// 16 bytes exchanged by swizzled(), so that neither copies nor products meet bank conflicts. c of lane l: rows as a, in
// c[4 t + 2 h + e] token 8 t + 2 (l % 4) + e of row 8 h + l / 4.
#pragma once

#include "backends/cuda/device.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(PROA_NO_WGMMA)
#define PROA_WGMMA
#endif

namespace proa::cuda {

// Offset in bytes of chunk `chunk` of row `row`, from an address that is a multiple of 1,024.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

// What others copied into shared memory, and a barrier has shown to this thread, is seen by its products as well.
__device__ __forceinline__ void see_copies() {
#ifdef PROA_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Registers of each thread of this warpgroup from here on, fewer or more than the kernel began with.
template <int kRegisters, bool kMore>
__device__ __forceinline__ void set_registers() {
#ifdef PROA_WGMMA
  if constexpr (kMore) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  if constexpr (!kMore) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
// Before products, whenever their registers were written.
__device__ __forceinline__ void begin_products() {
#ifdef PROA_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void close_products() {
#ifdef PROA_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until all but the last kLeft closed groups are done.
template <int kLeft>
__device__ __forceinline__ void wait_for_products() {
#ifdef PROA_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
}
template <int kCount>
__device__ __forceinline__ void keep_in_registers(float (&c)[kCount]) {
#ifdef PROA_WGMMA
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(c[i])::"memory");
#endif
}

#ifdef PROA_WGMMA
// K-major, 128-byte swizzle, groups of eight rows 1,024 bytes apart.
__device__ __forceinline__ uint64_t descriptor_of(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

// 16 rows of columns in panels of 64, `panel` bytes apart; in a panel rows are 128 bytes, swizzled the same way.
__device__ __forceinline__ uint64_t transposed_descriptor_of(uint32_t address, uint32_t panel) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) | uint64_t{panel >> 4} << 16 | uint64_t{64} << 32 |
         uint64_t{1} << 62;
}

#define PROA_C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define PROA_C16(i) PROA_C4(i), PROA_C4(i + 4), PROA_C4(i + 8), PROA_C4(i + 12)
#define PROA_REGISTERS_32                                                                                           \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31}, "
#define PROA_REGISTERS_64                                                                                           \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "  \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
#define PROA_REGISTERS_96                                                                                 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "  \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "  \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "  \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
#define PROA_BEGIN "{\n.reg .pred p;\nsetp.ne.b32 p, "
#define PROA_WGMMA_64(types) ";\nwgmma.mma_async.sync.aligned.m64n64k16.f32." types " " PROA_REGISTERS_32
#define PROA_WGMMA_128(types) ";\nwgmma.mma_async.sync.aligned.m64n128k16.f32." types " " PROA_REGISTERS_64

// a in registers. kTransposed: b is 16 rows of its columns in shared memory, see transposed_descriptor_of().
template <bool kBf16 = false, bool kTransposed = false>
__device__ __forceinline__ void warpgroup_multiply(float (&c)[32], const uint32_t (&a)[4], uint64_t b) {
#define PROA_END "{%32, %33, %34, %35}, %36, p, 1, 1, %37;\n}"
#define PROA_OPERANDS \
  PROA_C16(0), PROA_C16(16) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed ? 1 : 0)
  if constexpr (kBf16) {
    asm volatile(PROA_BEGIN "1, 0" PROA_WGMMA_64("bf16.bf16") PROA_END : PROA_OPERANDS);
  } else {
    asm volatile(PROA_BEGIN "1, 0" PROA_WGMMA_64("f16.f16") PROA_END : PROA_OPERANDS);
  }
#undef PROA_OPERANDS
#undef PROA_END
}
template <bool kBf16 = false, bool kTransposed = false>
__device__ __forceinline__ void warpgroup_multiply(float (&c)[64], const uint32_t (&a)[4], uint64_t b) {
#define PROA_END "{%64, %65, %66, %67}, %68, p, 1, 1, %69;\n}"
#define PROA_OPERANDS                      \
  PROA_C16(0), PROA_C16(16), PROA_C16(32), \
      PROA_C16(48) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed ? 1 : 0)
  if constexpr (kBf16) {
    asm volatile(PROA_BEGIN "1, 0" PROA_WGMMA_128("bf16.bf16") PROA_END : PROA_OPERANDS);
  } else {
    asm volatile(PROA_BEGIN "1, 0" PROA_WGMMA_128("f16.f16") PROA_END : PROA_OPERANDS);
  }
#undef PROA_OPERANDS
#undef PROA_END
}
// a in shared memory as b; without kAdd, c is what was there no more.
template <bool kBf16>
__device__ __forceinline__ void warpgroup_multiply(float (&c)[64], uint64_t a, uint64_t b, int add) {
#define PROA_END "%64, %65, p, 1, 1, 0, 0;\n}"
#define PROA_OPERANDS PROA_C16(0), PROA_C16(16), PROA_C16(32), PROA_C16(48) : "l"(a), "l"(b), "r"(add)
  if constexpr (kBf16) {
    asm volatile(PROA_BEGIN "%66, 0" PROA_WGMMA_128("bf16.bf16") PROA_END : PROA_OPERANDS);
  } else {
    asm volatile(PROA_BEGIN "%66, 0" PROA_WGMMA_128("f16.f16") PROA_END : PROA_OPERANDS);
  }
#undef PROA_OPERANDS
#undef PROA_END
}
template <bool kBf16>
__device__ __forceinline__ void warpgroup_multiply(float (&c)[32], uint64_t a, uint64_t b, int add) {
#define PROA_END "%32, %33, p, 1, 1, 0, 0;\n}"
#define PROA_OPERANDS PROA_C16(0), PROA_C16(16) : "l"(a), "l"(b), "r"(add)
  if constexpr (kBf16) {
    asm volatile(PROA_BEGIN "%34, 0" PROA_WGMMA_64("bf16.bf16") PROA_END : PROA_OPERANDS);
  } else {
    asm volatile(PROA_BEGIN "%34, 0" PROA_WGMMA_64("f16.f16") PROA_END : PROA_OPERANDS);
  }
#undef PROA_OPERANDS
#undef PROA_END
}
__device__ __forceinline__ void warpgroup_multiply_bf16(float (&c)[96], uint64_t a, uint64_t b, int add) {
  asm volatile(PROA_BEGIN "%98, 0;\nwgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 " PROA_REGISTERS_96
                          "%96, %97, p, 1, 1, 0, 0;\n}"
               : PROA_C16(0), PROA_C16(16), PROA_C16(32), PROA_C16(48), PROA_C16(64), PROA_C16(80)
               : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void warpgroup_multiply_bf16(float (&c)[64], uint64_t a, uint64_t b, int add) {
  warpgroup_multiply<true>(c, a, b, add);
}
__device__ __forceinline__ void warpgroup_multiply_bf16(float (&c)[32], uint64_t a, uint64_t b, int add) {
  warpgroup_multiply<true>(c, a, b, add);
}
// The same of 32 columns of E4M3. Its sums keep some 14 bits of their largest term, see gemm_same_kind.cu.
__device__ __forceinline__ void warpgroup_multiply_e4m3(float (&c)[32], uint64_t a, uint64_t b, int add) {
  asm volatile(PROA_BEGIN "%34, 0;\nwgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 " PROA_REGISTERS_32
                          "%32, %33, p, 1, 1;\n}"
               : PROA_C16(0), PROA_C16(16)
               : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void warpgroup_multiply_e4m3(float (&c)[64], uint64_t a, uint64_t b, int add) {
  asm volatile(PROA_BEGIN "%66, 0;\nwgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 " PROA_REGISTERS_64
                          "%64, %65, p, 1, 1;\n}"
               : PROA_C16(0), PROA_C16(16), PROA_C16(32), PROA_C16(48)
               : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void warpgroup_multiply_e4m3(float (&c)[96], uint64_t a, uint64_t b, int add) {
  asm volatile(PROA_BEGIN "%98, 0;\nwgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 " PROA_REGISTERS_96
                          "%96, %97, p, 1, 1;\n}"
               : PROA_C16(0), PROA_C16(16), PROA_C16(32), PROA_C16(48), PROA_C16(64), PROA_C16(80)
               : "l"(a), "l"(b), "r"(add));
}
#undef PROA_WGMMA_128
#undef PROA_WGMMA_64
#undef PROA_BEGIN
#undef PROA_REGISTERS_96
#undef PROA_REGISTERS_64
#undef PROA_REGISTERS_32
#undef PROA_C16
#undef PROA_C4
#endif

// `b`: shared address of the 64 columns, a multiple of 1,024; `step`: which 16 of them.
template <int kTokens>
__device__ __forceinline__ void multiply_tile(float (&c)[kTokens / 2], const uint32_t (&a)[4], uint32_t b, int step) {
#ifdef PROA_WGMMA
  warpgroup_multiply(c, a, descriptor_of(b + 32 * step));
#else
  const int row = lane_id() % 8 + lane_id() / 16 * 8, chunk = 2 * step + lane_id() / 8 % 2;
#pragma unroll
  for (int t = 0; t < kTokens / 8; t += 2) {
    const uint4 m = load_matrices(b + swizzled(8 * t + row, chunk));
    multiply<false>(reinterpret_cast<float(&)[4]>(c[4 * t]), a[0], a[1], a[2], a[3], m.x, m.y);
    multiply<false>(reinterpret_cast<float(&)[4]>(c[4 * t + 4]), a[0], a[1], a[2], a[3], m.z, m.w);
  }
#endif
}

}  // namespace proa::cuda
