#include <algorithm>
#include <cmath>

#include "ops/sample_cases.h"

namespace proa::testing {
namespace {

// Random123's known answers for philox4x32 with 10 rounds.
TEST(Philox, KnownAnswers) {
  struct Row {
    uint64_t key;
    uint32_t counter[4], expected[4];
  };
  const Row rows[] = {
      {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {~uint64_t{0},
       {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      // Digits of pi; key words a4093822 299f31d0.
      {0x299f31d0a4093822,
       {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Row& row : rows) {
    const PhiloxWords words = philox4x32(row.key, row.counter);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(words.word[i], row.expected[i]);
  }
}

struct SampleInputs {
  Floats logits;
  std::vector<SamplingRow> rows;
  std::vector<TokenCount> counts;
  std::vector<float> biases;

  explicit SampleInputs(const SampleCase& c) {
    Random random(c.row.seed);
    logits = random.normals(int64_t{c.num_rows} * c.vocab_size, c.scale);
    for (int r = 0; r < c.num_rows; ++r) {
      if (c.logits) c.logits(logits.data() + int64_t{r} * c.vocab_size, c.vocab_size);
      rows.push_back(c.row);
      rows.back().position = static_cast<uint32_t>(100 + r);
      if (c.counts) rows.back().counts_slot = c.num_rows - 1 - r;
    }
    if (c.bias) {
      biases.resize(logits.size());
      for (int r = 0; r < c.num_rows; ++r) {
        rows[r].bias_slot = c.num_rows - 1 - r;
        c.bias(biases.data() + int64_t{r} * c.vocab_size, c.vocab_size);
      }
    }
    if (!c.counts) return;
    counts.resize(logits.size());
    for (TokenCount& count : counts) {
      if (random.below(10) == 0) count = static_cast<TokenCount>(random.below(4)) | (random.below(2) ? kInPrompt : 0);
    }
  }
};

struct SampleResult {
  std::vector<int32_t> tokens, top_ids, ranks;
  Floats logprobs, top_logprobs;
  std::vector<TokenCount> counts;

  SampleResult(const SampleCase& c, const SampleInputs& in)
      : tokens(c.num_rows, -7),
        top_ids(static_cast<size_t>(c.num_rows) * c.num_top_logprobs, -7),
        ranks(c.ranks ? static_cast<size_t>(c.num_rows) : 0, -7),
        logprobs(poisoned(c.num_rows)),
        top_logprobs(poisoned(int64_t{c.num_rows} * c.num_top_logprobs)),
        counts(in.counts) {}

  Sample op(const SampleCase& c, const SampleInputs& in) {
    return {.num_rows = c.num_rows,
            .vocab_size = c.vocab_size,
            .num_top_logprobs = c.num_top_logprobs,
            .logits = in.logits.data(),
            .rows = in.rows.data(),
            .counts = counts.empty() ? nullptr : counts.data(),
            .tokens = tokens.data(),
            .logprobs = logprobs.data(),
            .top_ids = c.num_top_logprobs ? top_ids.data() : nullptr,
            .top_logprobs = c.num_top_logprobs ? top_logprobs.data() : nullptr,
            .biases = in.biases.empty() ? nullptr : in.biases.data(),
            .ranks = c.ranks ? ranks.data() : nullptr};
  }
};

void expect_logprobs(const Floats& actual, const Floats& expected) {
  for (int64_t i = 0; i < expected.size(); ++i) {
    ASSERT_FALSE(std::isnan(actual[i])) << i;
    if (actual[i] == expected[i]) continue;  // infinities
    ASSERT_NEAR(actual[i], expected[i], logprob_bound(expected[i])) << i;
  }
}

TEST(Sample, EveryBackend) {
  for (const SampleCase& c : sample_cases()) {
    const SampleInputs in(c);
    SampleResult expected(c, in);
    sample_reference(expected.op(c, in));
    on_all_backends(c.name, [&](Backend& backend) {
      SampleResult actual(c, in);
      backend.sample(actual.op(c, in));
      EXPECT_EQ(actual.tokens, expected.tokens);
      EXPECT_EQ(actual.top_ids, expected.top_ids);
      EXPECT_EQ(actual.counts, expected.counts);
      EXPECT_EQ(actual.ranks, expected.ranks);
      expect_logprobs(actual.logprobs, expected.logprobs);
      expect_logprobs(actual.top_logprobs, expected.top_logprobs);
    });
  }
}

// The share of each token among many positions against the probabilities that the filters leave. With 9 degrees of
// freedom chi-square passes 33.7 once in 10,000 runs; the seed is fixed.
TEST(Sample, DrawsFollowTheDistribution) {
  const float logits[] = {0.5f, -1, 2, 1.5f, 0, -0.5f, 1, -2, 2.25f, -4};
  const int vocab_size = 10, num_rows = 20000;
  struct Row {
    const char* name;
    SamplingRow row;
    std::vector<int> kept;
  };
  const Row cases[] = {
      {"plain", {}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
      {"temperature", {.temperature = 2}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
      {"top_k", {.top_k = 4}, {2, 3, 6, 8}},
      {"top_p: 0.35 + 0.27 + 0.17 reach 0.7", {.top_p = 0.7f}, {2, 3, 8}},
      {"min_p: within ln 5 of the best", {.min_p = 0.2f}, {2, 3, 6, 8}},
      {"banned", {.bias_slot = 0}, {0, 1, 2, 3, 4, 5, 6, 7, 9}},
  };
  std::vector<float> ban_8(vocab_size, 0.0f);
  ban_8[8] = -INFINITY;
  for (const Row& c : cases) {
    Floats repeated(int64_t{num_rows} * vocab_size);
    std::vector<SamplingRow> rows(num_rows, c.row);
    for (int r = 0; r < num_rows; ++r) {
      std::copy(std::begin(logits), std::end(logits), repeated.data() + r * vocab_size);
      rows[r].seed = 42;
      rows[r].position = static_cast<uint32_t>(r);
    }
    double total = 0;
    for (int id : c.kept) total += std::exp(logits[id] / c.row.temperature);
    on_all_backends(c.name, [&](Backend& backend) {
      std::vector<int32_t> tokens(num_rows);
      Floats logprobs(num_rows);
      backend.sample({.num_rows = num_rows,
                      .vocab_size = vocab_size,
                      .num_top_logprobs = 0,
                      .logits = repeated.data(),
                      .rows = rows.data(),
                      .counts = nullptr,
                      .tokens = tokens.data(),
                      .logprobs = logprobs.data(),
                      .top_ids = nullptr,
                      .top_logprobs = nullptr,
                      .biases = ban_8.data()});
      std::vector<int> seen(vocab_size);
      for (int32_t token : tokens) ++seen.at(token);
      double chi_square = 0;
      int others = num_rows;
      for (int id : c.kept) {
        const double expected = num_rows * std::exp(logits[id] / c.row.temperature) / total;
        chi_square += std::pow(seen[id] - expected, 2) / expected;
        others -= seen[id];
      }
      EXPECT_EQ(others, 0);
      EXPECT_LT(chi_square, 33.7);
    });
  }
}

// A row's draw depends on its own values alone: alone, or anywhere in a batch, it is the same. Other seeds, sequences
// and positions draw otherwise.
TEST(Sample, DrawDoesNotDependOnTheBatch) {
  SampleCase c;
  c.num_rows = 30;
  c.row.seed = 3;
  SampleInputs in(c);
  for (int r = 0; r < c.num_rows; ++r) {
    std::copy_n(in.logits.data(), c.vocab_size, in.logits.data() + int64_t{r} * c.vocab_size);
    in.rows[r] = in.rows[0];
    if (r >= 10) in.rows[r].seed = 1000 + r, in.rows[r].position = r % 2, in.rows[r].sequence = r % 3;
  }
  std::reverse(in.rows.begin(), in.rows.end());
  on_all_backends("one row thirty times", [&](Backend& backend) {
    SampleResult batch(c, in);
    backend.sample(batch.op(c, in));
    SampleCase single = c;
    single.num_rows = 1;
    for (int r = 0; r < c.num_rows; ++r) {
      SampleResult alone(single, in);
      Sample op = alone.op(single, in);
      op.rows = &in.rows[r];
      backend.sample(op);
      EXPECT_EQ(alone.tokens[0], batch.tokens[r]) << r;
    }
    EXPECT_EQ(std::count(batch.tokens.begin() + 20, batch.tokens.end(), batch.tokens[20]), 10);
    EXPECT_LT(std::count(batch.tokens.begin(), batch.tokens.begin() + 20, batch.tokens[20]), 10);
  });
  SamplingRow row{.seed = 1, .sequence = 2, .position = 3};
  const double base = uniform_draw(row);
  for (auto change : {+[](SamplingRow& r) { ++r.seed; }, +[](SamplingRow& r) { r.seed += uint64_t{1} << 32; },
                      +[](SamplingRow& r) { ++r.sequence; }, +[](SamplingRow& r) { ++r.position; },
                      +[](SamplingRow& r) { std::swap(r.sequence, r.position); }}) {
    SamplingRow other = row;
    change(other);
    EXPECT_NE(uniform_draw(other), base);
  }
}

TEST(Sample, PenaltiesByHand) {
  const float logits[] = {2, -1, 3, 2.9f};
  TokenCount counts[] = {kInPrompt, kInPrompt | 2, 3, 0};
  const SamplingRow row{.temperature = 0,
                        .repetition_penalty = 2,
                        .presence_penalty = 0.5f,
                        .frequency_penalty = 0.25f,
                        .counts_slot = 0};
  int32_t token;
  float logprob;
  // 2 / 2 = 1; -1 · 2 - 0.5 - 2 · 0.25 = -3; 3 / 2 - 0.5 - 3 · 0.25 = 0.25; 2.9 untouched and now the best.
  sample_reference({1, 4, 0, logits, &row, counts, &token, &logprob, nullptr, nullptr});
  EXPECT_EQ(token, 3);
  EXPECT_NEAR(logprob, 2.9 - std::log(std::exp(2.0) + std::exp(-1.0) + std::exp(3.0) + std::exp(2.9)), 1e-6);
  EXPECT_EQ(counts[3], 1u);
  sample_reference({1, 4, 0, logits, &row, counts, &token, &logprob, nullptr, nullptr});
  EXPECT_EQ(token, 0);  // 2.9 / 2 - 0.5 - 0.25 = 0.7
  EXPECT_EQ(counts[0], kInPrompt | 1);
}

}  // namespace
}  // namespace proa::testing
