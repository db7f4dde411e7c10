// What a stage multiplies its weights with: the input of all its products, in shared memory, as the right side of the
// tensor cores' products. Every block makes it for itself from the few KB that its predecessors have left.
//
// Beside integer codes the input is four digits to the base 256, of x · 2^n as an integer of 31 bits: the product is
// exact, and what is lost of x is 2^-30 of its largest value. Beside short floats it is two halves or three bfloat16,
// which carry all 24 bits.
#pragma once

#include "backends/cuda/codes.cuh"
#include "backends/cuda/matvec.h"
#include "ops/route.h"

namespace proa::cuda {

// Warps of a block that compute. With the one that fetches they are four for each quarter of an SM's registers.
constexpr int kConsumers = 15;
constexpr int kConsumerThreads = kConsumers * kWarp;
constexpr int kStepThreads = kConsumerThreads + kWarp;
constexpr int kMaxOldRows = 256;                        // of a block whose old values it keeps

__device__ __forceinline__ void init_barrier(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier))
               : "memory");
}
__device__ __forceinline__ void wait_barrier(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#endif
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  }
}
// A barrier among the consumers.
__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory"); }

__device__ __forceinline__ uint2 load_two(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}
__device__ __forceinline__ void store_two(uint32_t address, uint32_t x, uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(x), "r"(y) : "memory");
}

// c += a · b of int8, 32 or 16 columns.
__device__ __forceinline__ void multiply_int8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                              uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_int8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

// Digits of a group of 32 columns: for each digit, the highest first, and each lane j eight bytes, its eight columns.
// Neighbouring groups are turned, so that their parts of one digit lie in different banks.
constexpr int kDigitsBytes = 128;
constexpr float kHighDigits = 65536.0f;  // what the upper two weigh against the lower two
__device__ __forceinline__ uint32_t digits_at(int group, int digit, int j) {
  return static_cast<uint32_t>(group * kDigitsBytes + ((digit * 4 + j) ^ (group & 3) << 2) * 8);
}

// What operands of a format are.
struct Form {
  enum class Kind : uint8_t { digits, halves, bfloats } kind;
  CodeOrder order;  // of digits
  bool swapped;     // halves: the middle two of four columns change places (Order::bytes)
  bool minima;      // sums of half groups are wanted
};
template <class F>
__host__ __device__ constexpr Form form_as() {
  if constexpr (kHasCodes<F>) {
    return {Form::Kind::digits, Codes<F>::kOrder, false, Codes<F>::kMin};
  } else {
    return {Fragment<F>::kBf16 ? Form::Kind::bfloats : Form::Kind::halves, CodeOrder::together,
            Fragment<F>::kOrder == Order::bytes, false};
  }
}
template <class F>
__host__ __device__ constexpr float factor_as() {
  if constexpr (kHasCodes<F>) {
    return Codes<F>::kFactor;
  } else {
    return Fragment<F>::kFactor;
  }
}
__host__ __device__ inline Form form_of(Format format) {
  switch (format) {
#define PROA_FORMAT(F) \
  case Format::F:      \
    return form_as<F>();
    PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT
  }
  return {};
}
__device__ inline float factor_of(Format format) {
  switch (format) {
#define PROA_FORMAT(F) \
  case Format::F:      \
    return factor_as<F>();
    PROA_FORMATS(PROA_FORMAT)
#undef PROA_FORMAT
  }
  return 1;
}
__device__ inline bool has_codes(Format format) { return form_of(format).kind == Form::Kind::digits; }
__host__ __device__ constexpr int group_bytes(Form::Kind kind) { return kind == Form::Kind::bfloats ? 192 : 128; }

// Rows of a router that this block multiplies with the normed input on the way. `partial` [count(), kConsumers]: what
// each warp has of them.
struct RouteRows {
  const Route* op;  // or null
  float* partial;

  __device__ int expert(int k) const { return static_cast<int>(blockIdx.x) + k * static_cast<int>(gridDim.x); }
  __device__ int count() const {
    const int first = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    return op && first < op->n_routed_experts ? (op->n_routed_experts - first + blocks - 1) / blocks : 0;
  }
  __device__ const float* row(int k) const {
    return reinterpret_cast<const float*>(op->gate.data + expert(k) * static_cast<int64_t>(op->gate.row_stride));
  }
};

// Makes the operands of a stage, by all consumers.
struct OperandMaker {
  const MatVec& a;
  const Form form;
  const int total_groups;
  uint8_t* operands;
  float* group_sums;  // [total_groups, 2]
  float* rms;         // scratch of a gated norm: a value for each group of 32 columns
  float* room;        // [2 * 32]
  float* unscale;     // out
  const float* expert_scale;
  const float* expert_weight;

  static constexpr int kKept = 4;  // items of a thread that stay in registers

  __device__ int matrix_cols() const {
    if (a.num_matrices > 0) return a.matrices[0].cols;
    return a.mode == MatVec::Mode::narrow ? 0 : a.experts.shape.cols;
  }
  __device__ int expert_cols() const { return a.mode == MatVec::Mode::narrow ? a.experts.shape.cols : 0; }

  // An item is the eight columns of one lane j of one group of 32.
  __device__ int column(int j, int n) const {
    if (!form.swapped) return code_column(form.order, j, n);
    return 8 * j + n / 4 * 4 + n % 4 / 2 + n % 2 * 2;
  }
  // All of a group at once, where its 32 columns are there and lie at 16 bytes.
  __device__ void load_whole(const float* group, int j, bool old, float (&v)[8]) const {
    const auto four = [&](int k) {
      const auto* p = reinterpret_cast<const float4*>(group + k);
      return old ? __ldg(p) : __ldcg(p);
    };
    const auto two = [&](int k) {
      const auto* p = reinterpret_cast<const float2*>(group + k);
      return old ? __ldg(p) : __ldcg(p);
    };
    if (form.order == CodeOrder::eighths) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 low = two(16 * h + 2 * j), high = two(16 * h + 2 * j + 8);
        v[4 * h] = low.x, v[4 * h + 1] = high.x, v[4 * h + 2] = low.y, v[4 * h + 3] = high.y;
      }
      return;
    }
    const bool together = form.order == CodeOrder::together;
    const float4 p = four(together ? 8 * j : 4 * j), q = four(together ? 8 * j + 4 : 4 * j + 16);
    if (form.order == CodeOrder::pairs) {
      v[0] = p.x, v[1] = q.x, v[2] = p.y, v[3] = q.y, v[4] = p.z, v[5] = q.z, v[6] = p.w, v[7] = q.w;
    } else if (form.swapped) {
      v[0] = p.x, v[1] = p.z, v[2] = p.y, v[3] = p.w, v[4] = q.x, v[5] = q.z, v[6] = q.y, v[7] = q.w;
    } else {
      v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w, v[4] = q.x, v[5] = q.y, v[6] = q.z, v[7] = q.w;
    }
  }
  __device__ void load_some(const float* values, int group, int cols, int j, float (&v)[8]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int k = 32 * group + column(j, n);
      v[n] = k < cols ? __ldcg(values + k) : 0.0f;
    }
  }

  // Sums and the largest magnitude (as bits, so that NaN is the largest) over all consumers.
  struct Totals {
    float squares;
    uint32_t largest;
  };
  __device__ Totals total(Totals mine) const {
    mine.squares = warp_sum(mine.squares);
    mine.largest = __reduce_max_sync(~0u, mine.largest);
    if (lane_id() == 0) {
      room[warp_id()] = mine.squares;
      room[kWarp + warp_id()] = __uint_as_float(mine.largest);
    }
    consumers_sync();
    const bool there = lane_id() < kConsumers;
    return {warp_sum(there ? room[lane_id()] : 0.0f),
            __reduce_max_sync(~0u, there ? __float_as_uint(room[kWarp + lane_id()]) : 0u)};
  }
  __device__ static uint32_t magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }

  // The power of two by which values of this largest magnitude fit; also tells what undoes it.
  __device__ float power_of(uint32_t largest, float factor) const {
    const float most = __uint_as_float(largest) * fabsf(factor);
    float power = 1;
    if (form.kind != Form::Kind::bfloats) {
      const int exponent = static_cast<int>(__float_as_uint(most) >> 23 & 255) - 127;
      const int up = (form.kind == Form::Kind::digits ? 29 : 13) - exponent;
      power = __uint_as_float(static_cast<uint32_t>(max(-100, min(kLargestExponent, up)) + 127) << 23);
    }
    // Digits cannot say NaN or infinity: the results do.
    if (threadIdx.x == 0) *unscale = most < INFINITY ? 1.0f / power : NAN;
    return power;
  }

  __device__ void put(int group, int j, const float (&v)[8], float factor) const {
    if (form.kind == Form::Kind::digits) {
      uint32_t u[8];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        u[n] = (static_cast<uint32_t>(__float2int_rn(v[n] * factor)) + 0x80808080u) ^ 0x80808080u;
      }
      uint32_t digits[4][2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t low01 = permute<0x5140>(u[4 * h], u[4 * h + 1]),
                       low23 = permute<0x5140>(u[4 * h + 2], u[4 * h + 3]);
        const uint32_t high01 = permute<0x7362>(u[4 * h], u[4 * h + 1]);
        const uint32_t high23 = permute<0x7362>(u[4 * h + 2], u[4 * h + 3]);
        digits[3][h] = permute<0x5410>(low01, low23), digits[2][h] = permute<0x7632>(low01, low23);
        digits[1][h] = permute<0x5410>(high01, high23), digits[0][h] = permute<0x7632>(high01, high23);
      }
      const uint32_t base = shared_address(operands);
#pragma unroll
      for (int d = 0; d < 4; ++d) store_two(base + digits_at(group, d, j), digits[d][0], digits[d][1]);
      if (form.minima) {
        const uint32_t mask = __activemask();  // the four lanes of a group are in or out together
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float half = ((v[4 * h] + v[4 * h + 1]) + (v[4 * h + 2] + v[4 * h + 3])) * factor;
          half += __shfl_xor_sync(mask, half, 1);
          half += __shfl_xor_sync(mask, half, 2);
          if (j == 0) group_sums[2 * group + h] = half;
        }
      }
    } else if (form.kind == Form::Kind::halves) {
      put_short<false>(group, j, v, factor);
    } else {
      put_short<true>(group, j, v, factor);
    }
  }
  template <bool kBf16>
  __device__ void put_short(int group, int j, const float (&v)[8], float factor) const {
    constexpr int kS = kBf16 ? 3 : 2;
    uint32_t packed[4][kS];
#pragma unroll
    for (int n = 0; n < 4; ++n) split_pair<kBf16>(v[2 * n] * factor, v[2 * n + 1] * factor, packed[n]);
    auto* out = reinterpret_cast<uint4*>(operands) + group * 4 * kS + j;
#pragma unroll
    for (int p = 0; p < kS; ++p) out[4 * p] = {packed[0][p], packed[1][p], packed[2][p], packed[3][p]};
  }

  // Of item `item`: its part of the input, and its group there.
  struct Place {
    const float* values;
    int group, cols;
    float factor;
  };
  __device__ Place place(const float* x, int group) const {
    const int cols = matrix_cols(), matrix_groups = (cols + 31) / 32;
    const bool sum = a.mode == MatVec::Mode::narrow;
    if (group < matrix_groups) return {x, group, cols, sum && a.num_matrices > 0 ? a.matrices[0].scale : 1.0f};
    const int width = expert_cols(), groups = (width + 31) / 32;
    const int e = (group - matrix_groups) / groups;
    return {x + cols + static_cast<int64_t>(e) * width, group - matrix_groups - e * groups, width,
            expert_weight[e] * expert_scale[e]};
  }
  __device__ bool vectors() const {
    const auto at_16 = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return matrix_cols() % 32 == 0 && expert_cols() % 32 == 0 && at_16(a.x) && at_16(a.z) && at_16(a.norm);
  }
  __device__ void load(const Place& at, int j, bool whole, float (&v)[8]) const {
    if (whole) return load_whole(at.values + 32 * at.group, j, false, v);
    load_some(at.values, at.group, at.cols, j, v);
  }
  __device__ void load_norm(int group, int j, bool whole, float (&v)[8]) const {
    if (whole) return load_whole(a.norm + 32 * group, j, true, v);
    load_some(a.norm, group, matrix_cols(), j, v);
  }

  // `wait` returns when predecessors are done; `routed` is called with what a normed input is scaled by, when the
  // products of `rows` with the rest of it lie in their place.
  template <typename Wait, typename Routed>
  __device__ void make(const RouteRows& rows, Wait&& wait, Routed&& routed) const {
    const bool whole = vectors();
    const int items = total_groups * 4;
    if (a.input == Input::gated) return make_gated(whole, wait);
    if (a.input == Input::normed) {
      if (items <= kConsumerThreads) return make_normed<1>(whole, rows, wait, routed);
      if (items <= 2 * kConsumerThreads) return make_normed<2>(whole, rows, wait, routed);
      return make_normed<0>(whole, rows, wait, routed);
    }
    if (items <= kKept * kConsumerThreads) return make_plain<kKept>(whole, wait);
    make_plain<0>(whole, wait);
  }

 private:
  __device__ const float* input() const {
    return a.x + (a.x_row ? static_cast<int64_t>(__ldcg(a.x_row)) * matrix_cols() : 0);
  }
  // Calls f(item number of this thread, group, j) for all of them. kItems: how many there are at most; 0: any.
  template <int kItems, typename F>
  __device__ void for_items(F&& f) const {
    const int tid = static_cast<int>(threadIdx.x), items = total_groups * 4;
    if constexpr (kItems == 0) {
      for (int item = tid; item < items; item += kConsumerThreads) f(0, item / 4, item % 4);
    } else {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int item = tid + i * kConsumerThreads;
        if (item < items) f(i, item / 4, item % 4);
      }
    }
  }

  template <int kItems, typename Wait>
  __device__ void make_plain(bool whole, Wait&& wait) const {
    float v[kItems == 0 ? 1 : kItems][8];
    wait();
    const float* x = input();
    Totals sums = {0, 0};
    const auto fetch = [&](int i, int group, int j) {
      const Place at = place(x, group);
      load(at, j, whole, v[i]);
#pragma unroll
      for (int n = 0; n < 8; ++n) v[i][n] *= at.factor;
    };
    for_items<kItems>(fetch);
    for_items<kItems>([&](int i, int group, int j) {
      if constexpr (kItems == 0) fetch(i, group, j);
#pragma unroll
      for (int n = 0; n < 8; ++n) sums.largest = max(sums.largest, magnitude(v[i][n]));
    });
    const float power = power_of(total(sums).largest, 1);
    for_items<kItems>([&](int i, int group, int j) {
      if constexpr (kItems == 0) fetch(i, group, j);
      put(group, j, v[i], power);
    });
  }

  template <int kItems, typename Wait, typename Routed>
  __device__ void make_normed(bool whole, const RouteRows& rows, Wait&& wait, Routed&& routed) const {
    constexpr int kRoom = kItems == 0 ? 1 : kItems;
    float v[kRoom][8], norm[kRoom][8], gate[kRoom][8];
    const int routes = kItems == 0 ? 0 : rows.count();
    const auto fetch_norm = [&](int i, int group, int j) { load_norm(group, j, whole, norm[i]); };
    const auto fetch_gate = [&](int k) {
      const float* row = rows.row(k);
      for_items<kItems>([&](int i, int group, int j) { load_whole(row + 32 * group, j, true, gate[i]); });
    };
    if constexpr (kItems > 0) {
      for_items<kItems>(fetch_norm);
      if (routes > 0) fetch_gate(0);
    }
    wait();
    const float* x = input();
    Totals sums = {0, 0};
    const auto fetch = [&](int i, int group, int j) { load(place(x, group), j, whole, v[i]); };
    if constexpr (kItems > 0) for_items<kItems>(fetch);
    for_items<kItems>([&](int i, int group, int j) {
      if constexpr (kItems == 0) fetch_norm(i, group, j), fetch(i, group, j);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        sums.squares += v[i][n] * v[i][n];
        v[i][n] *= norm[i][n];
        sums.largest = max(sums.largest, magnitude(v[i][n]));
      }
    });
    if constexpr (kItems > 0) {
      for (int k = 0; k < routes; ++k) {
        if (k > 0) fetch_gate(k);
        float dot = 0;
        for_items<kItems>([&](int i, int, int) {
#pragma unroll
          for (int n = 0; n < 8; ++n) dot += v[i][n] * gate[i][n];
        });
        dot = warp_sum(dot);
        if (lane_id() == 0) rows.partial[k * kConsumers + warp_id()] = dot;
      }
    }
    const Totals all = total(sums);
    const float scale = 1.0f / sqrtf(all.squares / static_cast<float>(matrix_cols()) + a.eps);
    if (rows.op) routed(scale);
    const float power = power_of(all.largest, scale) * scale;
    for_items<kItems>([&](int i, int group, int j) {
      if constexpr (kItems == 0) {
        fetch_norm(i, group, j), fetch(i, group, j);
#pragma unroll
        for (int n = 0; n < 8; ++n) v[i][n] *= norm[i][n];
      }
      put(group, j, v[i], power);
    });
  }

  // norm · v / rms of its group(v), v = x · silu(z). Groups of the norm are whole groups of 32 columns, or anything.
  template <typename Wait>
  __device__ void make_gated(bool whole, Wait&& wait) const {
    const int cols = matrix_cols(), width = cols / a.n_groups;
    wait();
    const float* x = input();
    const bool regular = whole && width % 32 == 0 && total_groups * 4 <= 2 * kConsumerThreads;
    if (regular) return make_gated_regular(x, width);
    for (int group = warp_id(); group < a.n_groups; group += kConsumers) {
      float sum = 0;
      for (int i = lane_id(); i < width; i += kWarp) {
        const int k = group * width + i;
        const float v = __ldcg(x + k) * silu(__ldcg(a.z + k));
        sum += v * v;
      }
      sum = warp_sum(sum);
      if (lane_id() == 0) rms[group] = 1.0f / sqrtf(sum / static_cast<float>(width) + a.eps);
    }
    consumers_sync();
    const auto fetch = [&](int group, int j, float(&v)[8]) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int k = 32 * group + column(j, n);
        v[n] = k < cols ? __ldcg(x + k) * silu(__ldcg(a.z + k)) * rms[k / width] * a.norm[k] : 0.0f;
      }
    };
    Totals sums = {0, 0};
    float v[8];
    for_items<0>([&](int, int group, int j) {
      fetch(group, j, v);
#pragma unroll
      for (int n = 0; n < 8; ++n) sums.largest = max(sums.largest, magnitude(v[n]));
    });
    const float power = power_of(total(sums).largest, 1);
    for_items<0>([&](int, int group, int j) {
      fetch(group, j, v);
      put(group, j, v, power);
    });
  }
  __device__ void make_gated_regular(const float* x, int width) const {
    float v[2][8];
    for_items<2>([&](int i, int group, int j) {
      float z[8];
      load_whole(x + 32 * group, j, false, v[i]);
      load_whole(a.z + 32 * group, j, false, z);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        v[i][n] *= silu(z[n]);
        sum += v[i][n] * v[i][n];
      }
      const uint32_t mask = __activemask();
      sum += __shfl_xor_sync(mask, sum, 1);
      sum += __shfl_xor_sync(mask, sum, 2);
      if (j == 0) rms[group] = sum;
    });
    consumers_sync();
    Totals sums = {0, 0};
    const int groups = width / 32;
    for_items<2>([&](int i, int group, int j) {
      const float* of_norm = rms + group / groups * groups;
      float sum = 0, norm[8];
      load_norm(group, j, true, norm);
      for (int g = 0; g < groups; ++g) sum += of_norm[g];
      const float scale = 1.0f / sqrtf(sum / static_cast<float>(width) + a.eps);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        v[i][n] *= scale * norm[n];
        sums.largest = max(sums.largest, magnitude(v[i][n]));
      }
    });
    const float power = power_of(total(sums).largest, 1);
    for_items<2>([&](int i, int group, int j) { put(group, j, v[i], power); });
  }
};

}  // namespace proa::cuda
