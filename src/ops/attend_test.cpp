#include <algorithm>
#include <cmath>

#include "ops/attend_cases.h"

namespace proa::testing {
namespace {

// A batch with its arrays and caches. Cache memory nobody has written is all ones, which is NaN in every format;
// entries of the block table that nobody may read point far outside.
struct AttendInputs {
  std::vector<int32_t> query_start{0}, seq_lens, positions, slot_mapping, block_table;
  Batch batch;
  Floats q, k, v;
  Array<std::byte> cached_k, cached_v;
  int num_blocks = 0;

  AttendInputs(const AttendCase& c, uint64_t seed, bool reverse_history = false) {
    Random random(seed);
    std::vector<AttendSequence> sequences = c.sequences;
    for (int i = 0; i < c.padded_sequences; ++i) sequences.push_back({0, 1});
    const int real = static_cast<int>(c.sequences.size());
    int stride = 1;
    for (const auto& s : sequences) {
      const int blocks = (s.history + s.num_tokens + c.block_size - 1) / c.block_size;
      stride = std::max(stride, blocks + 1);
      num_blocks += blocks;
    }
    num_blocks += 2;
    std::vector<int32_t> free(num_blocks);
    for (int i = 0; i < num_blocks; ++i) free[i] = i;
    for (int i = num_blocks - 1; i > 0; --i) std::swap(free[i], free[random.below(i + 1)]);
    block_table.assign(sequences.size() * stride, -(1 << 30));

    const int64_t token_bytes = static_cast<int64_t>(row_bytes(c.format, c.head_dim));
    for (auto* cached : {&cached_k, &cached_v}) {
      *cached = Array<std::byte>(num_blocks * c.num_kv_heads * c.block_size * token_bytes);
      std::memset(cached->data(), 0xff, static_cast<size_t>(cached->size()));
    }
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto [history, num_tokens] = sequences[s];
      const int length = history + num_tokens;
      int32_t* table = block_table.data() + s * stride;
      const bool pad = static_cast<int>(s) >= real;
      for (int b = 0; b * c.block_size < length; ++b) {
        // Blocks that the window has left behind are gone.
        const bool seen = c.window == 0 || (b + 1) * c.block_size > history + 1 - c.window;
        if (seen && !pad) table[b] = free.back(), free.pop_back();
      }
      const auto slot = [&](int position) {
        return table[position / c.block_size] * c.block_size + position % c.block_size;
      };
      for (int position = 0; position < length && !pad; ++position) {
        const Floats key = random.normals(int64_t{c.num_kv_heads} * c.head_dim, 1 / c.k_scale);
        const Floats value = random.normals(int64_t{c.num_kv_heads} * c.head_dim, 1 / c.v_scale);
        if (position >= history && position < c.stored_until) continue;
        const int target = reverse_history && position < history ? history - 1 - position : position;
        if (table[target / c.block_size] < 0) continue;
        for (int h = 0; h < c.num_kv_heads; ++h) {
          const int64_t row =
              (int64_t{table[target / c.block_size]} * c.num_kv_heads + h) * c.block_size + target % c.block_size;
          encode_row(c.format, key.data() + h * c.head_dim, c.head_dim, cached_k.data() + row * token_bytes);
          encode_row(c.format, value.data() + h * c.head_dim, c.head_dim, cached_v.data() + row * token_bytes);
        }
      }
      for (int position = history; position < length; ++position) {
        positions.push_back(position);
        slot_mapping.push_back(pad || position >= c.stored_until ? -1 : slot(position));
      }
      query_start.push_back(query_start.back() + num_tokens);
      seq_lens.push_back(pad ? 0 : length);
    }
    batch.num_tokens = query_start.back();
    batch.num_seqs = static_cast<int>(sequences.size());
    batch.positions = positions.data();
    batch.query_start = query_start.data();
    batch.seq_lens = seq_lens.data();
    batch.block_table = block_table.data();
    batch.block_table_stride = stride;
    batch.slot_mapping = slot_mapping.data();
    q = random.normals(int64_t{batch.num_tokens} * c.num_heads * c.head_dim, c.q_scale);
    k = random.normals(int64_t{batch.num_tokens} * c.num_kv_heads * c.head_dim);
    v = random.normals(int64_t{batch.num_tokens} * c.num_kv_heads * c.head_dim);
  }
  AttendInputs(const AttendInputs&) = delete;

  Attend op(const AttendCase& c, Array<std::byte>& kc, Array<std::byte>& vc, Floats& out) const {
    return {.batch = &batch,
            .num_heads = c.num_heads,
            .num_kv_heads = c.num_kv_heads,
            .head_dim = c.head_dim,
            .window = c.window,
            .scale = c.scale,
            .q = q.data(),
            .k = k.data(),
            .v = v.data(),
            .cache = {kc.data(), vc.data(), c.format, num_blocks, c.block_size},
            .out = out.data(),
            .k_scale = c.k_scale,
            .v_scale = c.v_scale};
  }
  int64_t out_size(const AttendCase& c) const { return int64_t{batch.num_tokens} * c.num_heads * c.head_dim; }
};

// The bound of attend_cases.h for every output, of a device that rounds to `r`; `op` has run, so that its cache is
// filled.
std::vector<double> attend_bound(const Attend& op, double r) {
  const Batch& batch = *op.batch;
  std::vector<double> bound(static_cast<size_t>(batch.num_tokens) * op.num_heads * op.head_dim, 0);
  std::vector<float> key(op.head_dim), value(op.head_dim);
  for (int s = 0; s < batch.num_seqs; ++s) {
    for (int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t) {
      const int end = std::min(batch.positions[t] + 1, batch.seq_lens[s]);
      const int begin = op.window > 0 ? std::max(0, end - op.window) : 0;
      for (int h = 0; h < op.num_heads; ++h) {
        const float* q = op.q + (t * op.num_heads + h) * op.head_dim;
        std::vector<double> mass(op.head_dim, 0), sizes(op.head_dim, 1);
        double largest = 0, most_rounded = 0, best = -1e300, total = 0;
        for (int pass = 0; pass < 2; ++pass) {
          for (int p = begin; p < end; ++p) {
            const int64_t block = batch.block_table[int64_t{s} * batch.block_table_stride + p / op.cache.block_size];
            const int64_t row = (block * op.num_kv_heads + h / (op.num_heads / op.num_kv_heads)) * op.cache.block_size +
                                p % op.cache.block_size;
            const size_t offset = static_cast<size_t>(row) * row_bytes(op.cache.format, op.head_dim);
            decode_row(op.cache.format, op.cache.k + offset, op.head_dim, key.data());
            double dot = 0, absolute = 0, keys = 0;
            for (int i = 0; i < op.head_dim; ++i) {
              dot += double{q[i]} * key[i] * op.scale * op.k_scale;
              absolute += std::abs(double{q[i]} * key[i] * op.scale * op.k_scale);
              keys += std::abs(double{key[i]} * op.k_scale);
            }
            best = std::max(best, dot);
            largest = std::max(largest, absolute);
            if (r > 0) most_rounded = std::max(most_rounded, r * absolute + 0x1p-25 * keys);
            if (pass == 0) continue;
            decode_row(op.cache.format, op.cache.v + offset, op.head_dim, value.data());
            const double weight = std::exp(dot - best);
            total += weight;
            for (int i = 0; i < op.head_dim; ++i) {
              mass[i] += weight * std::abs(value[i] * op.v_scale);
              sizes[i] += std::abs(value[i] * op.v_scale);
            }
          }
        }
        for (int i = 0; i < op.head_dim && end > begin; ++i) {
          bound[(t * op.num_heads + h) * op.head_dim + i] =
              ((2 * (op.head_dim + 4) * largest + end - begin + 16) * 0x1p-24 + 2 * most_rounded + r) * mass[i] /
                  total +
              (r > 0 ? 0x1p-40 : 0x1p-126) * sizes[i];
        }
      }
    }
  }
  return bound;
}

void expect_within(const Floats& actual, const Floats& expected, const std::vector<double>& bound) {
  for (int64_t i = 0; i < expected.size(); ++i) {
    ASSERT_LE(std::abs(double{actual[i]} - expected[i]), bound[i]) << "element " << i << " of " << expected.size();
    ASSERT_FALSE(std::isnan(actual[i])) << "element " << i << " of " << expected.size();
  }
}

TEST(Attend, EveryBackend) {
  uint64_t seed = 1;
  for (const AttendCase& c : attend_cases()) {
    const AttendInputs in(c, seed++);
    Floats expected = poisoned(in.out_size(c));
    Array<std::byte> expected_k = in.cached_k, expected_v = in.cached_v;
    const Attend reference = in.op(c, expected_k, expected_v, expected);
    attend_reference(reference);
    const std::vector<double> exact = attend_bound(reference, 0);
    on_all_backends(c.name, [&](Backend& backend) {
      Floats actual = poisoned(in.out_size(c));
      Array<std::byte> k = in.cached_k, v = in.cached_v;
      backend.attend(in.op(c, k, v, actual));
      const double r = backend.attend_rounding(c.format, in.batch.num_tokens);
      expect_within(actual, expected, r > 0 ? attend_bound(reference, r) : exact);
      EXPECT_EQ(std::memcmp(k.data(), expected_k.data(), k.size()), 0) << "keys in the cache";
      EXPECT_EQ(std::memcmp(v.data(), expected_v.data(), v.size()), 0) << "values in the cache";
    });
  }
}

// There are no positions: a history in reverse order gives later tokens the same output.
TEST(Attend, OrderOfHistoryDoesNotMatter) {
  AttendCase c;
  c.sequences = {{50, 1}, {40, 3}};
  const AttendInputs in(c, 5), reversed(c, 5, true);
  Floats expected = poisoned(in.out_size(c));
  Array<std::byte> k = in.cached_k, v = in.cached_v;
  const Attend reference = in.op(c, k, v, expected);
  attend_reference(reference);
  ASSERT_NE(std::memcmp(in.cached_k.data(), reversed.cached_k.data(), in.cached_k.size()), 0);
  on_all_backends("history reversed", [&](Backend& backend) {
    Floats actual = poisoned(in.out_size(c));
    Array<std::byte> reversed_k = reversed.cached_k, reversed_v = reversed.cached_v;
    backend.attend(reversed.op(c, reversed_k, reversed_v, actual));
    expect_within(actual, expected, attend_bound(reference, 0));
  });
}

// Values at the edges of formats are stored as the formats say.
TEST(Attend, StoresAsTheFormatRounds) {
  for (Format format : {Format::F32, Format::F16, Format::BF16, Format::F8_E4M3}) {
    AttendCase c;
    c.format = format;
    c.num_heads = c.num_kv_heads = 1;
    c.head_dim = 47;
    c.sequences = {{0, 1}};
    AttendInputs in(c, 8);
    const float edges[] = {0.f,   -0.f,    1.f,      1.0004883f, 1.00390625f, 1.01171875f, 65504.f, 65519.f,  65520.f,
                           1e30f, 3.4e38f, -3.4e38f, 1e-40f,     6e-8f,       2.9e-8f,     6.1e-5f, INFINITY, -INFINITY,
                           NAN,   0.1f,    447.9f,   464.f,      9.7e-4f,     9.8e-4f,     0.0146f};
    std::copy(std::begin(edges), std::end(edges), in.v.data());
    std::copy(std::begin(edges), std::end(edges), in.v.data() + 22);
    Floats expected = poisoned(in.out_size(c));
    Array<std::byte> expected_k = in.cached_k, expected_v = in.cached_v;
    attend_reference(in.op(c, expected_k, expected_v, expected));
    on_all_backends(std::string(info(format).name), [&](Backend& backend) {
      Floats actual = poisoned(in.out_size(c));
      Array<std::byte> k = in.cached_k, v = in.cached_v;
      backend.attend(in.op(c, k, v, actual));
      EXPECT_EQ(std::memcmp(v.data(), expected_v.data(), v.size()), 0);
    });
  }
}

TEST(Attend, TwoKeysByHand) {
  AttendCase c;
  c.num_heads = c.num_kv_heads = 1;
  c.head_dim = 2;
  c.scale = 0.5f;
  c.format = Format::F32;
  c.sequences = {{0, 2}};
  AttendInputs in(c, 9);
  const float q[] = {1, 1, 2, 0}, k[] = {1, 3, -1, 5}, v[] = {10, 20, 30, -40};
  std::copy_n(q, 4, in.q.data());
  std::copy_n(k, 4, in.k.data());
  std::copy_n(v, 4, in.v.data());
  on_all_backends("by hand", [&](Backend& backend) {
    Floats out = poisoned(4);
    Array<std::byte> kc = in.cached_k, vc = in.cached_v;
    backend.attend(in.op(c, kc, vc, out));
    EXPECT_FLOAT_EQ(out[0], 10);
    EXPECT_FLOAT_EQ(out[1], 20);
    const double w = 1 / (1 + std::exp(-2.0));  // scores 1 and -1
    EXPECT_NEAR(out[2], w * 10 + (1 - w) * 30, 1e-5);
    EXPECT_NEAR(out[3], w * 20 - (1 - w) * 40, 1e-5);
  });
}

}  // namespace
}  // namespace proa::testing
