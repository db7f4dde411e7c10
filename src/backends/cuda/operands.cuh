// What a stage multiplies its weights with: the input of all its products, in shared memory, as the right side of the
// tensor cores' products. Every block makes it for itself from the few KB that its predecessors have left.
//
// Beside integer codes the input is four digits to the base 256, of x · 2^n as an integer of 31 bits: the product is
// exact, and what is lost of x is 2^-30 of its largest value. Beside short floats it is two halves or three bfloat16,
// which carry all 24 bits.
#pragma once

#include "backends/cuda/barrier.cuh"
#include "backends/cuda/codes.cuh"
#include "backends/cuda/step.h"

namespace proa::cuda {

// A barrier among the consumers.
__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory"); }

// One lane of a warp, always the same: what it alone does keeps values that are the same in all lanes.
__device__ __forceinline__ bool elected() {
  uint32_t is = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(is));
#endif
  return is;
}

__device__ __forceinline__ uint2 load_two(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}
__device__ __forceinline__ void store_word(uint32_t address, uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
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

template <class F>
constexpr Form form_as() {
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

__device__ __forceinline__ float number_of(int64_t sum) {
  const float value = static_cast<float>(sum) * (1.0f / static_cast<float>(int64_t{1} << kResidualBits));
  return sum > -kNoNumber / 2 && sum < kNoNumber / 2 ? value : NAN;
}
// Where a version and the sums after it lie.
__device__ __forceinline__ float* version_of(const Residual& r, int version) { return version % 2 ? r.spare : r.x; }
__device__ __forceinline__ int64_t* sums_of(const Residual& r, int version) {
  return r.sums + static_cast<int64_t>(version % 3) * r.stride;
}
__device__ __forceinline__ float residual_at(const Residual& r, int version, int k) {
  if (version == 0) return __ldcg(r.x + k);
  return __ldcg(version_of(r, version - 1) + k) +
         number_of(__ldcg(reinterpret_cast<const long long*>(sums_of(r, version - 1)) + k));
}

// Makes the operands of a stage, by all consumers.
struct OperandMaker {
  const MatVec& a;
  const MatVecPlan& plan;
  const Residual& residual;
  int first_col;  // of this crew's part of the input
  float factor;   // of the first part of the input
  uint8_t* operands;
  float* group_sums;  // [plan.total_groups, 2]
  float* rms;         // scratch of a gated norm: a value for each group of 32 columns
  float* room;        // [2 * 32]
  float* unscale;     // out
  const float* expert_scale;
  const float* expert_weight;

  __device__ int matrix_cols() const { return plan.matrix_cols; }
  __device__ int expert_cols() const { return plan.expert_cols; }

  // An item is the eight columns of one lane j of one group of 32. Where all 32 are there and lie at 16 bytes they come
  // as two vectors, and put() gives them their order.
  __device__ void load_whole(const float* group, int j, bool old, float (&v)[8]) const {
    const bool together = plan.form.order == CodeOrder::together;
    const auto* first = reinterpret_cast<const float4*>(group) + (together ? 2 * j : j);
    const auto* second = first + (together ? 1 : 4);
    const float4 p = old ? __ldg(first) : __ldcg(first), q = old ? __ldg(second) : __ldcg(second);
    v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w, v[4] = q.x, v[5] = q.y, v[6] = q.z, v[7] = q.w;
  }
  // Any others one by one, in the order that two vectors would have them.
  __device__ int column(int j, int n) const {
    if (plan.form.order == CodeOrder::eighths) return code_column(CodeOrder::eighths, j, n);
    return plan.form.order == CodeOrder::together ? 8 * j + n : 4 * j + n / 4 * 16 + n % 4;
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
    float power = 1, inverse = 1;
    if (plan.form.kind != Form::Kind::bfloats) {
      const int exponent = static_cast<int>(__float_as_uint(most) >> 23 & 255) - 127;
      const int up = (plan.form.kind == Form::Kind::digits ? 29 : 13) - exponent;
      const int bounded = max(-kLargestExponent, min(kLargestExponent, up));
      power = __uint_as_float(static_cast<uint32_t>(127 + bounded) << 23);
      inverse = __uint_as_float(static_cast<uint32_t>(127 - bounded) << 23);
    }
    // Digits cannot say NaN or infinity: the results do.
    if (threadIdx.x == 0) *unscale = most < INFINITY ? inverse : NAN;
    return power;
  }

  // A function, as it is called in many places.
  struct Put {
    uint32_t operands, group_sums;  // shared memory
    Form form;
    float factor;
  };
  __device__ Put putting(float factor) const {
    return {shared_address(operands), shared_address(group_sums), plan.form, factor};
  }
  static __device__ __noinline__ void put_values(Put to, int group, int j, float4 first, float4 second) {
    const Form form = to.form;
    const float in[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
    float v[8];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      v[n] = in[n];
      if (form.order == CodeOrder::pairs) v[n] = in[n / 2 + n % 2 * 4];
      if (form.swapped) v[n] = in[n / 4 * 4 + n % 4 / 2 + n % 2 * 2];
      v[n] *= to.factor;
    }
    if (form.kind == Form::Kind::digits) {
      uint32_t u[8];
#pragma unroll
      for (int n = 0; n < 8; ++n) u[n] = (static_cast<uint32_t>(__float2int_rn(v[n])) + 0x80808080u) ^ 0x80808080u;
      uint32_t digits[4][2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t low01 = permute<0x5140>(u[4 * h], u[4 * h + 1]);
        const uint32_t low23 = permute<0x5140>(u[4 * h + 2], u[4 * h + 3]);
        const uint32_t high01 = permute<0x7362>(u[4 * h], u[4 * h + 1]);
        const uint32_t high23 = permute<0x7362>(u[4 * h + 2], u[4 * h + 3]);
        digits[3][h] = permute<0x5410>(low01, low23), digits[2][h] = permute<0x7632>(low01, low23);
        digits[1][h] = permute<0x5410>(high01, high23), digits[0][h] = permute<0x7632>(high01, high23);
      }
#pragma unroll
      for (int d = 0; d < 4; ++d) store_two(to.operands + digits_at(group, d, j), digits[d][0], digits[d][1]);
      if (form.minima) {
        const uint32_t mask = __activemask();  // the four lanes of a group are in or out together
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float half = (v[4 * h] + v[4 * h + 1]) + (v[4 * h + 2] + v[4 * h + 3]);
          half += __shfl_xor_sync(mask, half, 1);
          half += __shfl_xor_sync(mask, half, 2);
          if (j == 0) store_word(to.group_sums + 4 * (2 * group + h), __float_as_uint(half));
        }
      }
    } else if (form.kind == Form::Kind::halves) {
      put_short<false>(to.operands, group, j, v);
    } else {
      put_short<true>(to.operands, group, j, v);
    }
  }
  template <bool kBf16>
  static __device__ __forceinline__ void put_short(uint32_t operands, int group, int j, const float (&v)[8]) {
    constexpr int kS = kBf16 ? 3 : 2;
    uint32_t packed[4][kS];
#pragma unroll
    for (int n = 0; n < 4; ++n) split_pair<kBf16>(v[2 * n], v[2 * n + 1], packed[n]);
    const uint32_t to = operands + (group * 4 * kS + j) * 16;
#pragma unroll
    for (int p = 0; p < kS; ++p) {
      store_two(to + 64 * p, packed[0][p], packed[1][p]);
      store_two(to + 64 * p + 8, packed[2][p], packed[3][p]);
    }
  }
  static __device__ __forceinline__ void put(const Put& to, int group, int j, const float (&v)[8]) {
    put_values(to, group, j, {v[0], v[1], v[2], v[3]}, {v[4], v[5], v[6], v[7]});
  }

  // Of item `item`: its part of the input, and its group there.
  struct Place {
    const float* values;
    int group, cols;
    float factor;
  };
  __device__ __forceinline__ Place place(const float* x, int group, uint32_t inverse) const {
    const int cols = matrix_cols(), matrix_groups = (cols + 31) / 32;
    if (group < matrix_groups) return {x, group, cols, factor};
    const int width = expert_cols(), groups = (width + 31) / 32;
    const int e = divided(group - matrix_groups, inverse);
    return {x + cols + static_cast<int64_t>(e) * width, group - matrix_groups - e * groups, width,
            expert_weight[e] * expert_scale[e]};
  }
  // By the divisor of `inverse`, see MatVecPlan.
  __device__ static int divided(int number, uint32_t inverse) {
    return static_cast<int>(static_cast<uint32_t>(number) * inverse >> 20);
  }
  __device__ Place place_any(const float* x, int group) const {
    const int matrix_groups = (matrix_cols() + 31) / 32, groups = (expert_cols() + 31) / 32;
    if (group < matrix_groups) return {x, group, matrix_cols(), factor};
    const int e = (group - matrix_groups) / groups, width = expert_cols();
    return {x + matrix_cols() + static_cast<int64_t>(e) * width, group - matrix_groups - e * groups, width,
            expert_weight[e] * expert_scale[e]};
  }
  // The input as it is multiplied, but for the norm's scale.
  __device__ void load_any(const float* x, int group, int j, float (&v)[8]) const {
    const Place at = place_any(x, group);
    const int width = a.input == Input::gated ? at.cols / plan.n_groups : 0;
#pragma unroll 1
    for (int n = 0; n < 8; ++n) {
      const int k = 32 * at.group + column(j, n);
      float value = 0;
      if (k < at.cols) {
        value = a.version > 0 ? residual_at(residual, a.version, k) : __ldcg(at.values + k) * at.factor;
        if (a.input == Input::gated) value *= silu(__ldcg(a.z + first_col + k)) * rms[k / width];
      }
      v[n] = value;
    }
  }
  __device__ float norm_of(int group, int j, int n) const {
    const int k = 32 * group + column(j, n);
    return a.input != Input::plain && k < matrix_cols() ? a.norm[first_col + k] : 1.0f;
  }

  // Eight columns of a version of the residual, as load_whole() has them; false where one of them is no number.
  __device__ __forceinline__ bool load_residual(int group, int j, float (&v)[8]) const {
    load_whole(version_of(residual, a.version - 1) + 32 * group, j, false, v);
    const bool together = plan.form.order == CodeOrder::together;
    const auto* sums =
        reinterpret_cast<const longlong2*>(sums_of(residual, a.version - 1) + 32 * group) + (together ? 4 : 2) * j;
    const int second = together ? 2 : 8;
    const longlong2 s[4] = {__ldcg(sums), __ldcg(sums + 1), __ldcg(sums + second), __ldcg(sums + second + 1)};
    uint32_t most = 0;  // of the upper halves, moved to where all that are no numbers are large
    constexpr uint32_t kBound = static_cast<uint32_t>(kNoNumber / 2 >> 32);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const long long sum = i % 2 ? s[i / 2].y : s[i / 2].x;
      v[i] += static_cast<float>(sum) * (1.0f / static_cast<float>(int64_t{1} << kResidualBits));
      most = max(most, static_cast<uint32_t>(sum >> 32) + kBound);
    }
    return most < 2 * kBound;
  }
  // Whoever has made a version from its parts leaves some of it to the next; the sums that nobody reads any more become
  // zeros for those after the next.
  __device__ __forceinline__ bool keeps(int item) const { return a.version > 0 && item % gridDim.x == blockIdx.x; }
  __device__ __forceinline__ void keep_whole(int group, int j, const float (&v)[8]) const {
    const bool together = plan.form.order == CodeOrder::together;
    const int first = 32 * group + (together ? 8 : 4) * j, second = first + (together ? 4 : 16);
    float* to = version_of(residual, a.version);
    __stcg(reinterpret_cast<float4*>(to + first), {v[0], v[1], v[2], v[3]});
    __stcg(reinterpret_cast<float4*>(to + second), {v[4], v[5], v[6], v[7]});
    auto* sums = reinterpret_cast<longlong2*>(sums_of(residual, a.version + 1));
    for (int i : {first / 2, first / 2 + 1, second / 2, second / 2 + 1}) __stcg(sums + i, {0, 0});
  }
  __device__ __forceinline__ void keep(int k, float value) const {
    __stcg(version_of(residual, a.version) + k, value);
    __stcg(reinterpret_cast<long long*>(sums_of(residual, a.version + 1)) + k, 0ll);
  }

  __device__ const float* input() const {
    return a.x + first_col + (a.x_row ? static_cast<int64_t>(__ldcg(a.x_row)) * matrix_cols() : 0);
  }
  // Calls f(item number of this thread, group, j) for all of them, kItems at most.
  template <int kItems, typename F>
  __device__ __forceinline__ void for_items(F&& f) const {
    const int tid = static_cast<int>(threadIdx.x), items = plan.total_groups * 4;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = tid + i * kConsumerThreads;
      if (item < items) f(i, item / 4, item % 4);
    }
  }

  // gate.wait() returns when predecessors are done.
  template <class Gate>
  __device__ __forceinline__ void make_plain(const Gate& gate) const {
    float v[kKeptItems][8] = {};  // where it is not set it would end in local memory
    gate.wait();
    const float* x = input();
    Totals sums = {0, 0};
    const uint32_t inverse = plan.inverse;
    for_items<kKeptItems>([&](int i, int group, int j) {
      const Place at = place(x, group, inverse);
      load_whole(at.values + 32 * at.group, j, false, v[i]);
#pragma unroll
      for (int n = 0; n < 8; ++n) v[i][n] *= at.factor;
    });
    for_items<kKeptItems>([&](int i, int, int) {
#pragma unroll
      for (int n = 0; n < 8; ++n) sums.largest = max(sums.largest, magnitude(v[i][n]));
    });
    const Put to = putting(power_of(total(sums).largest, 1));
    for_items<kKeptItems>([&](int i, int group, int j) { put(to, group, j, v[i]); });
  }

  // gate.routed() is called with what the input is scaled by, when the products of `rows` with the rest of it lie in
  // their place.
  template <int kItems, class Gate>
  __device__ __forceinline__ void make_normed(const RouteRows& rows, const Gate& gate) const {
    float v[kItems][8] = {}, norm[kItems][8] = {}, router[kItems][8] = {};
    const int routes = rows.count();
    const auto fetch_router = [&](int k) {
      const float* row = rows.row(k);
      for_items<kItems>([&](int i, int group, int j) { load_whole(row + 32 * group, j, true, router[i]); });
    };
    for_items<kItems>([&](int i, int group, int j) { load_whole(a.norm + 32 * group, j, true, norm[i]); });
    if (routes > 0) fetch_router(0);
    gate.wait();
    const float* x = input();
    Totals sums = {0, 0};
    for_items<kItems>([&](int i, int group, int j) {
      if (a.version > 0) {
        if (!load_residual(group, j, v[i])) sums.squares = NAN;
      } else {
        load_whole(x + 32 * group, j, false, v[i]);
      }
    });
    for_items<kItems>([&](int i, int group, int j) {
      if (keeps(4 * group + j)) keep_whole(group, j, v[i]);
    });
    for_items<kItems>([&](int i, int, int) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        sums.squares += v[i][n] * v[i][n];
        v[i][n] *= norm[i][n];
        sums.largest = max(sums.largest, magnitude(v[i][n]));
      }
    });
#pragma unroll 1
    for (int k = 0; k < routes; ++k) {
      if (k > 0) fetch_router(k);
      float dot = 0;
      for_items<kItems>([&](int i, int, int) {
#pragma unroll
        for (int n = 0; n < 8; ++n) dot += v[i][n] * router[i][n];
      });
      dot = warp_sum(dot);
      if (lane_id() == 0) rows.partial[k * kConsumers + warp_id()] = dot;
    }
    const Totals all = total(sums);
    const float scale = norm_scale(all.squares);
    if (rows.op) gate.routed(scale);
    const Put to = putting(power_of(all.largest, scale) * scale);
    for_items<kItems>([&](int i, int group, int j) { put(to, group, j, v[i]); });
  }
  __device__ float norm_scale(float squares) const { return inverse_rms(squares, matrix_cols(), a.eps); }

  // Groups of the norm are whole groups of 32 columns.
  template <class Gate>
  __device__ __forceinline__ void make_gated(const Gate& gate) const {
    float v[2][8] = {}, norm[2][8] = {};
    const int width = matrix_cols() / plan.n_groups, groups = width / 32;
    const uint32_t inverse = plan.inverse;
    for_items<2>([&](int i, int group, int j) { load_whole(a.norm + first_col + 32 * group, j, true, norm[i]); });
    gate.wait();
    const float* x = input();
    for_items<2>([&](int i, int group, int j) {
      float z[8];
      load_whole(x + 32 * group, j, false, v[i]);
      load_whole(a.z + first_col + 32 * group, j, false, z);
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
    for_items<2>([&](int i, int group, int) {
      const float* of_norm = rms + divided(group, inverse) * groups;
      float sum = 0;
#pragma unroll 4
      for (int g = 0; g < groups; ++g) sum += of_norm[g];
      const float scale = inverse_rms(sum, width, a.eps);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        v[i][n] *= scale * norm[i][n];
        sums.largest = max(sums.largest, magnitude(v[i][n]));
      }
    });
    const Put to = putting(power_of(total(sums).largest, 1));
    for_items<2>([&](int i, int group, int j) { put(to, group, j, v[i]); });
  }

  // Any sizes and places: everything is read twice.
  template <class Gate>
  __device__ __forceinline__ void make_any(const Gate& gate) const {
    gate.wait();
    const float* x = input();
    if (a.input == Input::gated) {
      const int width = matrix_cols() / plan.n_groups;
      for (int group = warp_id(); group < plan.n_groups; group += kConsumers) {
        float sum = 0;
        for (int i = lane_id(); i < width; i += kWarp) {
          const int k = group * width + i;
          const float v = __ldcg(x + k) * silu(__ldcg(a.z + first_col + k));
          sum += v * v;
        }
        sum = warp_sum(sum);
        if (lane_id() == 0) rms[group] = inverse_rms(sum, width, a.eps);
      }
      consumers_sync();
    }
    Totals sums = {0, 0};
    float v[8];
    const int tid = static_cast<int>(threadIdx.x), items = plan.total_groups * 4;
    for (int item = tid; item < items; item += kConsumerThreads) {
      load_any(x, item / 4, item % 4, v);
#pragma unroll 1
      for (int n = 0; n < 8; ++n) {
        const int k = item / 4 * 32 + column(item % 4, n);
        if (keeps(item) && k < matrix_cols()) keep(k, v[n]);
        sums.squares += v[n] * v[n];
        sums.largest = max(sums.largest, magnitude(v[n] * norm_of(item / 4, item % 4, n)));
      }
    }
    const Totals all = total(sums);
    const float scale = a.input == Input::normed ? norm_scale(all.squares) : 1.0f;
    const Put to = putting(power_of(all.largest, scale) * scale);
    for (int item = tid; item < items; item += kConsumerThreads) {
      load_any(x, item / 4, item % 4, v);
#pragma unroll 1
      for (int n = 0; n < 8; ++n) v[n] *= norm_of(item / 4, item % 4, n);
      put(to, item / 4, item % 4, v);
    }
  }
};

}  // namespace proa::cuda
