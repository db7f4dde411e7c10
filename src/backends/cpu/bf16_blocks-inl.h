// Blocks of 32 columns as bfloat16, and sums on their way to y: for linear_bf16.cpp and linear_amx.cpp, each of which
// includes this behind the instruction set that it has pushed, and everything that this file needs before that.
namespace proa {
namespace {

struct Row {
  const std::byte* data;
  const std::byte* scales;
};

template <class F>
constexpr int64_t kBlockBytes = 32 * static_cast<int64_t>(sizeof(typename F::Block)) / F::block_elements;

// Where the nibbles of 32 columns are in 16 bytes. Of byte j: j and j + 16; within each eight bytes, which are 16
// columns, j and j + 8; or 2 j and 2 j + 1. `eight` is the half of the bytes that four columns are in, `bit` where they
// begin in it.
struct NibbleOrder {
  alignas(64) int64_t eight[8];
  alignas(64) int64_t bit[8];
};
constexpr NibbleOrder kHalves = {{0, 0, 1, 1, 0, 0, 1, 1},
                                 {0x0018001000080000, 0x0038003000280020, 0x0018001000080000, 0x0038003000280020,
                                  0x001c0014000c0004, 0x003c0034002c0024, 0x001c0014000c0004, 0x003c0034002c0024}};
constexpr NibbleOrder kEights = {{0, 0, 0, 0, 1, 1, 1, 1},
                                 {0x0018001000080000, 0x0038003000280020, 0x001c0014000c0004, 0x003c0034002c0024,
                                  0x0018001000080000, 0x0038003000280020, 0x001c0014000c0004, 0x003c0034002c0024}};
constexpr NibbleOrder kPairs = {{0, 0, 0, 0, 1, 1, 1, 1},
                                {0x000c000800040000, 0x001c001800140010, 0x002c002800240020, 0x003c003800340030,
                                 0x000c000800040000, 0x001c001800140010, 0x002c002800240020, 0x003c003800340030}};

// The nibble of each column in the low bits of a word; what stands above it is of its neighbours.
HWY_INLINE __m512i nibbles(const std::byte* p, const NibbleOrder& order) {
  const __m512i bytes = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_multishift_epi64_epi8(_mm512_load_si512(order.bit),
                                      _mm512_permutexvar_epi64(_mm512_load_si512(order.eight), bytes));
}

// E2M1 in two groups of 16 columns, by the tables of their scales.
HWY_INLINE __m512i look_up(__m512i nibbles, const uint16_t* first, const uint16_t* second) {
  const __m512i values =
      _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_load_si256(reinterpret_cast<const __m256i*>(first))),
                         _mm256_load_si256(reinterpret_cast<const __m256i*>(second)), 1);
  const __m512i group =
      _mm512_setr_epi64(0, 0, 0, 0, 0x0010001000100010, 0x0010001000100010, 0x0010001000100010, 0x0010001000100010);
  const __m512i code = _mm512_ternarylogic_epi64(nibbles, _mm512_set1_epi16(15), group, 0xea);  // (a & b) | c
  return _mm512_permutexvar_epi16(code, values);
}

// unpack(format, row, i): block `i` of a row.

HWY_INLINE __m512i unpack(BF16, const Row& row, int64_t i) { return _mm512_loadu_si512(row.data + 64 * i); }

HWY_INLINE __m512i unpack(F8_E4M3, const Row& row, int64_t i) {
  const __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.data + 32 * i)));
  const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
  const __m512i sign = _mm512_slli_epi16(_mm512_andnot_si512(_mm512_set1_epi16(0x7f), code), 8);
  __m512i v = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  // Below 8 the value is the code times 2^-9.
  const __m512i small =
      _mm512_setr_epi32(0x3b000000, 0x3bc03b80, 0x3c203c00, 0x3c603c40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  v = _mm512_mask_permutexvar_epi16(v, _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8)), magnitude, small);
  v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f)), _mm512_set1_epi16(0x7fc0));
  return _mm512_or_si512(v, sign);
}

HWY_INLINE __m512i unpack(E2M1, const Row& row, int64_t i) {
  const auto* scales = reinterpret_cast<const uint8_t*>(row.scales) + 2 * i;
  return look_up(nibbles(row.data + 16 * i, kPairs), kE4M3Products.at[scales[0]], kE4M3Products.at[scales[1]]);
}

HWY_INLINE __m512i unpack(NVFP4, const Row& row, int64_t i) {
  const std::byte* block = row.data + i / 2 * 36;
  const auto* scales = reinterpret_cast<const uint8_t*>(block) + i % 2 * 2;
  return look_up(nibbles(block + 4 + i % 2 * 16, kEights), kUE4M3Products.at[scales[0]], kUE4M3Products.at[scales[1]]);
}

HWY_INLINE void transpose_quads(__m512i* v) {  // 4 x 4 words of 32 bits in each lane
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

// 16 x 16 words of 32 bits: w[p][l] holds word 4 l + p of each.
HWY_INLINE void transpose(__m512i (&v)[16], __m512i (&w)[4][4]) {
#pragma GCC unroll 4
  for (int quad = 0; quad < 4; ++quad) transpose_quads(v + 4 * quad);
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    const __m512i ab_low = _mm512_shuffle_i32x4(v[p], v[4 + p], 0x44),
                  ab_high = _mm512_shuffle_i32x4(v[p], v[4 + p], 0xee);
    const __m512i cd_low = _mm512_shuffle_i32x4(v[8 + p], v[12 + p], 0x44);
    const __m512i cd_high = _mm512_shuffle_i32x4(v[8 + p], v[12 + p], 0xee);
    w[p][0] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
    w[p][1] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
    w[p][2] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
    w[p][3] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
  }
}

// kRows rows from `row` on; those from `end` on repeat the one before.
template <int kRows>
void rows_from(const Weight& weight, int64_t row, int64_t end, Row* rows) {
  for (int r = 0; r < kRows; ++r) {
    const int64_t at = std::min(row + r, end - 1);
    rows[r] = {weight.row(at), weight.scales ? weight.scales.row(at) : nullptr};
  }
}

HWY_INLINE const uint16_t* input(const Linear& op, int token, bool low) {
  const int64_t row = op.x_rows ? op.x_rows[token] : token;
  return (low ? op.halves.low : op.halves.high) + row * op.halves.stride;
}

// What the sums of 16 rows are multiplied with.
HWY_INLINE __m512 factors_of(const Weight& weight, int64_t row, int64_t end) {
  if (!weight.scales || weight.format != Format::F8_E4M3) return _mm512_set1_ps(weight.scale);
  alignas(64) float scales[16] = {};  // one F32 per row
  for (int64_t r = row; r < std::min(end, row + 16); ++r) {
    std::memcpy(&scales[r - row], weight.scales.row(r), sizeof(float));
  }
  return _mm512_mul_ps(_mm512_load_ps(scales), _mm512_set1_ps(weight.scale));
}

// 16 sums of one token to y.
HWY_INLINE void put(const Linear& op, int token, int64_t row, int64_t end, __m512 factors, __m512 sum) {
  if (row >= end) return;
  const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(16, end - row)) - 1);
  sum = _mm512_mul_ps(sum, factors);
  if (op.scale) sum = _mm512_mul_ps(sum, _mm512_set1_ps(op.scale[token]));
  float* y = op.y + (op.y_rows ? op.y_rows[token] : token) * op.y_stride + row;
  if (op.add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum);
  _mm512_mask_storeu_ps(y, mask, sum);
}

}  // namespace
}  // namespace proa
