// Products of weights with vectors of their own kind (gemm.h), E4M3 or BF16, both as they lie in shared memory: roles
// and results as gemm.cuh has them. What comes from the second-level cache holds these kernels back, so tiles are as
// large as registers have room for sums: 256 rows, 192 vectors.
//
// Of E4M3 tensor cores align what they add to the largest term and keep some 14 bits of it: each 32 columns may lose
// 2^-13 of the sum so far. What comes of 2,688 columns is up to 2^-6.6 smaller, a tenth of that as a rule, where
// rounding vectors to E4M3 leaves 2^-5.4 of the norm.
#include <string_view>

#include "backends/cuda/gemm.cuh"

namespace proa::cuda {
namespace {

using gemm::kFetchThreads;
using gemm::kWarpgroups;
using gemm::Ring;
using gemm::Tile;
using F = F8_E4M3;  // BF16 has the same tiles
using P = gemm::Plan<F>;

constexpr int kTokens = 192;
constexpr int kLineBytes = 128;  // of a row, in a stage
constexpr int kVectorBytes = kTokens * kLineBytes, kWeightBytes = P::kRows * kLineBytes;
constexpr int kStageBytes = kVectorBytes + kWeightBytes;
constexpr int kStages = (gemm::kSharedBytes - 1024) / kStageBytes;
constexpr int kShared = kStages * kStageBytes + 1024;
static_assert(P::kTiles == 2 && P::kLaneRows == 4 && P::kRows == 256 && kStages >= 3);

// A warp's rows in a stage: those of its first 64-row product, then those of its second. put_out() wants the four rows
// of a lane next to each other.
__device__ constexpr int row_of(int warpgroup, int warp, int product) {
  return warpgroup * 128 + warp * 32 + product * 2;
}

template <Vectors kKind>
constexpr int kValueBytes = kKind == Vectors::bf16 ? 2 : 1;

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

template <Vectors kKind>
__device__ __forceinline__ void fetch_all(const Gemm& a, int tiles, const Ring& ring, uint32_t offsets) {
  const Matrix& m = a.matrix;
  const int tid = static_cast<int>(threadIdx.x), stages = (m.cols * kValueBytes<kKind> + kLineBytes - 1) / kLineBytes;
  // Eight threads copy a line, so 16 lines at a time: those of a warp in one product.
  constexpr int kLines = kFetchThreads / 8;
  const int line = tid / 8, chunk = tid % 8;
  const int my_row = line % 8 * 4 + line / 8;
  const uint32_t at = swizzled(line, chunk);
  const auto* vectors_from = reinterpret_cast<const uint8_t*>(a.x.x) + 16 * chunk;
  const auto vector_chunks = static_cast<uint32_t>(a.x.stride * kValueBytes<kKind> / 16);
  const int all = tiles * ((m.rows + P::kRows - 1) / P::kRows);
  int place = 0, turn = 0;
  uint32_t parity = 1;
#pragma unroll 1
  for (int number = static_cast<int>(blockIdx.x);; number += static_cast<int>(gridDim.x)) {
    Tile tile = {};
    if (number < all) {
      tile = gemm::tile_at<F, kTokens>(a, tiles, number);
      if (tile.count == 0) continue;
    }
    const int buffer = turn % 2;
    wait_barrier(ring.tile_barriers + 8 * (2 + buffer), (turn / 2 % 2) ^ 1);
    if (tid == 0) ring.tiles[buffer] = tile;
    const auto row_of_token = [&](int t) { return a.rows ? __ldcg(a.rows + tile.first + t) : tile.first + t; };
    for (int t = tid; t < tile.count; t += kFetchThreads) {
      float scale = a.x.scale;
      if (kKind == Vectors::bf16) scale = 1;
      if (kKind == Vectors::e4m3 && scale == 0) scale = __ldcg(a.x.unscale + row_of_token(t));
      ring.factors[buffer * kTokens + t] = scale * tile.scale;
    }
    arrive(ring.tile_barriers + 8 * buffer);
    if (tile.count == 0) break;
    ++turn;

    // Where this thread's vectors are, in chunks: there are no registers for them.
#pragma unroll
    for (int i = 0; i < kTokens / kLines; ++i) {
      const uint32_t row = static_cast<uint32_t>(row_of_token(min(line + i * kLines, tile.count - 1)));
      store_shared(offsets + 4 * (i * kFetchThreads + tid), row * vector_chunks);
    }
    if (a.output == Output::add || a.output == Output::gate) {
      const float* before = (a.output == Output::add ? a.y : a.gate) + tile.first * a.y_stride + tile.first_row;
      for (int t = tid; t < tile.count; t += kFetchThreads) {
        for (int r = 0; r <= tile.last_row; r += 32) {
          asm volatile("prefetch.global.L2 [%0];" ::"l"(before + t * a.y_stride + r));
        }
      }
    }
    const uint8_t* weights = tile.rows + my_row * m.stride + 16 * chunk;
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage, weights += kLineBytes) {
      const uint32_t to = ring.stages + place * kStageBytes + at;
      wait_barrier(ring.barriers + 8 * (kStages + place), parity);
#pragma unroll
      for (int i = 0; i < kTokens / kLines; ++i) {
        if (i * kLines >= tile.count) break;
        copy_async_to(
            to + i * kLines * kLineBytes,
            vectors_from + uint64_t{load_word(offsets + 4 * (i * kFetchThreads + tid))} * 16 + stage * kLineBytes);
      }
      // Behind the last column vectors are zeros, and a weight there must be no NaN.
      const bool there = stage * kLineBytes + 16 * chunk < m.cols * kValueBytes<kKind>;
#pragma unroll
      for (int i = 0; i < P::kRows / kLines; ++i) {
        const int row = row_of(i / 8, i % 4, i / 4 % 2);
        if (row + my_row > tile.last_row) continue;  // what lies in the place of such a row is not looked at
        copy_async_or_zero(to + kVectorBytes + i * kLines * kLineBytes, weights + row * m.stride, there);
      }
      arrive_after_copies(ring.barriers + 8 * place);
      if (++place == kStages) place = 0, parity ^= 1;
    }
  }
  close_copies();
  wait_for_copies<0>();
}

// A tile's product with its first kCount vectors.
template <Vectors kKind, int kCount>
__device__ __forceinline__ void multiply_all(const Gemm& a, const Tile& tile, const Ring& ring, gemm::Position& at,
                                             float (&sum)[P::kTiles][kTokens / 2]) {
#ifdef PROA_WGMMA
  const int stages = (a.matrix.cols * kValueBytes<kKind> + kLineBytes - 1) / kLineBytes;
  const int warpgroup = warp_id() / 4 - kFetchThreads / 128;
  const auto release = [&](int place) {
    if (lane_id() == 0) arrive(ring.barriers + 8 * (kStages + place));
  };
  if (warpgroup * 128 > tile.last_row) {  // no rows for this warpgroup
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      wait_barrier(ring.barriers + 8 * at.place, at.parity);
      __syncwarp();
      release(at.place);
      if (++at.place == kStages) at.place = 0, at.parity ^= 1;
    }
    return;
  }
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) sum[t][i] = 0;
  }
  const auto before = [](int place) { return (place == 0 ? kStages : place) - 1; };
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    const uint32_t vectors = ring.stages + at.place * kStageBytes;
    const uint32_t weights = vectors + kVectorBytes + warpgroup * 128 * kLineBytes;
    wait_barrier(ring.barriers + 8 * at.place, at.parity);
    see_copies();
    begin_products();
#pragma unroll
    for (int k = 0; k < kLineBytes / 32; ++k) {
#pragma unroll
      for (int t = 0; t < P::kTiles; ++t) {
        const uint64_t left = descriptor_of(weights + t * 64 * kLineBytes + 32 * k);
        const uint64_t right = descriptor_of(vectors + 32 * k);
        auto& c = reinterpret_cast<float(&)[kCount / 2]>(sum[t]);
        if constexpr (kKind == Vectors::bf16) warpgroup_multiply_bf16(c, left, right, 1);
        if constexpr (kKind == Vectors::e4m3) warpgroup_multiply_e4m3(c, left, right, 1);
      }
    }
    close_products();
    wait_for_products<1>();
    if (stage > 0) release(before(at.place));
    if (++at.place == kStages) at.place = 0, at.parity ^= 1;
  }
  wait_for_products<0>();
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t) keep_in_registers(sum[t]);
  release(before(at.place));
#endif
}

template <Vectors kKind>
__global__ void __launch_bounds__(gemm::kThreads, 1) kernel(const __grid_constant__ Gemm a, int tiles) {
  extern __shared__ uint8_t memory[];
  __shared__ Tile shared_tiles[2];
  __shared__ float factors[2 * kTokens];
  __shared__ uint32_t offsets[kTokens / 16 * kFetchThreads];
  __shared__ uint64_t barriers[2 * kStages + 4];  // of stages: full, empty; of tiles: full, empty
  const int tid = static_cast<int>(threadIdx.x);
  Ring ring;
  ring.stages = (shared_address(memory) + 1023) & ~1023u;
  ring.barriers = shared_address(barriers);
  ring.tile_barriers = ring.barriers + 8 * 2 * kStages;
  ring.tiles = shared_tiles;
  ring.factors = factors;
  if (tid < kStages) {
    init_barrier(ring.barriers + 8 * tid, kFetchThreads);
    init_barrier(ring.barriers + 8 * (kStages + tid), kWarpgroups * 4);
  }
  if (tid < 2) {
    init_barrier(ring.tile_barriers + 8 * tid, kFetchThreads);
    init_barrier(ring.tile_barriers + 8 * (2 + tid), kWarpgroups * 4);
  }
  __syncthreads();
  wait_for_predecessor();
  start_successor();

  if (warp_id() < kFetchThreads / kWarp) {
    set_registers<40, false>();
    fetch_all<kKind>(a, tiles, ring, shared_address(offsets));
  } else {
    set_registers<232, true>();
    float sum[P::kTiles][kTokens / 2];
    gemm::Position at;
#pragma unroll 1
    for (int turn = 0;; ++turn) {
      wait_barrier(ring.tile_barriers + 8 * (turn % 2), turn / 2 % 2);
      const Tile tile = ring.tiles[turn % 2];
      if (tile.count == 0) break;
      const float* mine = factors + turn % 2 * kTokens;
      const auto run = [&](auto count) {
        constexpr int kCount = decltype(count)::value;
        multiply_all<kKind, kCount>(a, tile, ring, at, sum);
        gemm::put_out<F, kCount, kKind>(a, tile, mine, sum);
      };
      if (tile.count <= 64) {
        run(gemm::Constant<64>());
      } else if (tile.count <= 128) {
        run(gemm::Constant<128>());
      } else {
        run(gemm::Constant<192>());
      }
      __syncwarp();
      if (lane_id() == 0) arrive(ring.tile_barriers + 8 * (2 + turn % 2));
    }
  }
}

}  // namespace

bool has_same_kind() {
#ifndef PROA_NO_WGMMA
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major == 9 && std::string_view(PROA_CUDA_ARCHITECTURES).find("90a") != std::string_view::npos;
#else
  return false;
#endif
}

Vectors same_kind(const Matrix& matrix, Format format) {
  if (matrix.stride % 16 != 0 || reinterpret_cast<uintptr_t>(matrix.data) % 16 != 0) return Vectors::halves;
  if (format == Format::F8_E4M3 && matrix.cols % 16 == 0) return Vectors::e4m3;
  return format == Format::BF16 && matrix.cols % 8 == 0 ? Vectors::bf16 : Vectors::halves;
}

int same_kind_tokens() { return kTokens; }

void multiply_same_kind(const Gemm& op, int tiles, const Launch& launch) {
  if (op.matrix.rows == 0 || op.slots == 0) return;
  if (!op.tile_expert) tiles = (op.slots + kTokens - 1) / kTokens;
  const int all = tiles * ((op.matrix.rows + P::kRows - 1) / P::kRows);
  launch(op.x.kind == Vectors::bf16 ? kernel<Vectors::bf16> : kernel<Vectors::e4m3>,
         dim3(std::min(all, launch.num_sms())), dim3(gemm::kThreads), kShared, op, tiles);
}

}  // namespace proa::cuda
