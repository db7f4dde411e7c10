#include <gtest/gtest.h>

#include "ops/mamba2_cases.h"
#include "ops/staged_test.h"

namespace proa {
namespace {

struct Mamba2Result {
  std::vector<float> y, conv, ssm;
};

ConvSsmStep step_op(const Mamba2Case& c, const Mamba2Inputs& in, Mamba2Result& result) {
  const int num_seqs = static_cast<int>(c.lengths.size());
  return {.shape = c.shape,
          .weights = in.weights(c),
          .limit = c.limit,
          .num_seqs = num_seqs,
          .tokens_per_seq = num_seqs ? c.lengths[0] : 1,
          .projected = in.projected.data(),
          .cache = {result.conv.data(), result.ssm.data(), kMamba2Slots},
          .state_slot_in = c.slot_in.data(),
          .state_slot_out = c.slot_out.data(),
          .y = result.y.data()};
}

SsdChunk chunk_op(const Mamba2Case& c, const Mamba2Inputs& in, Mamba2Result& result) {
  return {.shape = c.shape,
          .weights = in.weights(c),
          .limit = c.limit,
          .chunk_size = c.chunk_size,
          .num_seqs = static_cast<int>(c.lengths.size()),
          .num_tokens = in.num_tokens,
          .query_start = in.query_start.data(),
          .projected = in.projected.data(),
          .cache = {result.conv.data(), result.ssm.data(), kMamba2Slots},
          .state_slot_in = c.slot_in.data(),
          .state_slot_out = c.slot_out.data(),
          .y = result.y.data()};
}

// Outputs poisoned, cache as the inputs have it.
Mamba2Result poisoned(const Mamba2Case& c, const Mamba2Inputs& in) {
  return {std::vector<float>(static_cast<size_t>(in.num_tokens) * c.shape.inner(), std::nanf("")), in.conv, in.ssm};
}

// One failure per array, at its worst element. A bound of 0 asks for the same bits (NaN where NaN is).
void expect_within(const float* actual, const float* expected, const double* bound, size_t count, const char* what) {
  size_t failures = 0, first = 0;
  for (size_t i = 0; i < count; ++i) {
    const bool same = float_bits(actual[i]) == float_bits(expected[i]);
    const bool near = bound && std::abs(double{actual[i]} - expected[i]) <= bound[i];
    if (!same && !near && failures++ == 0) first = i;
  }
  EXPECT_EQ(failures, 0u) << what << " of " << count << ", first " << first << ": " << actual[first] << ", expected "
                          << expected[first] << " within " << (bound ? bound[first] : 0);
}

void expect_slots(const Mamba2Case& c, const Mamba2Result& actual, const Mamba2Result& expected,
                  const std::vector<const double*>& ssm_bound) {
  const size_t ssm_size = expected.ssm.size() / kMamba2Slots;
  // The convolution's rows are copies. Slots nobody writes keep their bits.
  expect_within(actual.conv.data(), expected.conv.data(), nullptr, expected.conv.size(), "conv state");
  for (int slot = 0; slot < kMamba2Slots; ++slot) {
    const double* bound = nullptr;
    for (size_t i = 0; i < c.slot_out.size(); ++i) {
      if (c.slot_out[i] == slot) bound = ssm_bound[i];
    }
    expect_within(actual.ssm.data() + slot * ssm_size, expected.ssm.data() + slot * ssm_size, bound, ssm_size,
                  "ssm state");
  }
}

TEST(Mamba2, ConvSsmStepOnEveryBackend) {
  const auto backends = testing::op_backends();
  uint32_t seed = 1;
  for (const Mamba2Case& c : conv_ssm_step_cases()) {
    const Mamba2Inputs in = mamba2_inputs(c, seed++);
    Mamba2Result expected = poisoned(c, in);
    conv_ssm_step_reference(step_op(c, in, expected));

    std::vector<Mamba2Bound> bounds;
    for (size_t s = 0; s < c.lengths.size(); ++s) {
      bounds.push_back(mamba2_bound(c, in, static_cast<int>(s) * c.lengths[0], c.lengths[0], c.slot_in[s], true));
    }
    for (const auto& backend : backends) {
      SCOPED_TRACE(c.name + " on " + std::string(backend->description()));
      Mamba2Result actual = poisoned(c, in);
      backend->conv_ssm_step(step_op(c, in, actual));
      std::vector<const double*> ssm_bounds;
      for (size_t s = 0; s < bounds.size(); ++s) {
        const size_t count = bounds[s].y.size();
        expect_within(actual.y.data() + s * count, expected.y.data() + s * count, bounds[s].y.data(), count, "y");
        for (int t = 0; t < c.lengths[s]; ++t) {
          ssm_bounds.push_back(bounds[s].ssm.data() + t * bounds[s].ssm.size() / c.lengths[s]);
        }
      }
      expect_slots(c, actual, expected, ssm_bounds);
    }
  }
}

TEST(Mamba2, SsdChunkOnEveryBackend) {
  const auto backends = testing::op_backends();
  uint32_t seed = 100;
  for (const Mamba2Case& c : ssd_chunk_cases()) {
    const Mamba2Inputs in = mamba2_inputs(c, seed++);
    Mamba2Result expected = poisoned(c, in);
    ssd_chunk_reference(chunk_op(c, in, expected));

    std::vector<double> y_bound;
    std::vector<Mamba2Bound> bounds;
    std::vector<const double*> ssm_bounds;
    for (size_t s = 0; s < c.lengths.size(); ++s) {
      bounds.push_back(mamba2_bound(c, in, in.query_start[s] - c.first_row, c.lengths[s], c.slot_in[s], false));
      y_bound.insert(y_bound.end(), bounds.back().y.begin(), bounds.back().y.end());
    }
    for (const Mamba2Bound& bound : bounds) ssm_bounds.push_back(bound.ssm.data());
    for (const auto& backend : backends) {
      SCOPED_TRACE(c.name + " on " + std::string(backend->description()));
      Mamba2Result actual = poisoned(c, in);
      backend->ssd_chunk(chunk_op(c, in, actual));
      expect_within(actual.y.data(), expected.y.data(), y_bound.data(), y_bound.size(), "y");
      expect_slots(c, actual, expected, ssm_bounds);
    }
  }
}

// However a sequence is cut into calls, and whichever op takes a token, the same numbers come out.
TEST(Mamba2, AnySplitOfASequenceGivesTheSame) {
  Mamba2Case whole;
  whole.shape = {6, 12, 3, 32, 4};
  whole.lengths = {70};
  whole.chunk_size = 16;
  whole.slot_in = {1};
  const Mamba2Inputs in = mamba2_inputs(whole, 7);
  Mamba2Result expected = poisoned(whole, in);
  ssd_chunk_reference(chunk_op(whole, in, expected));
  const Mamba2Bound bound = mamba2_bound(whole, in, 0, 70, 1, false);

  const std::vector<std::vector<int>> splits = {
      {69, 1}, {1, 69}, {2, 68}, {3, 67}, {16, 54}, {17, 53}, {35, 0, 35}, {30, 1, 1, 1, 37}, std::vector<int>(70, 1)};
  for (const auto& backend : testing::op_backends()) {
    for (const auto& split : splits) {
      for (bool single_tokens_step : {false, true}) {
        SCOPED_TRACE("first " + std::to_string(split[0]) + " of " + std::to_string(split.size()) + " parts on " +
                     std::string(backend->description()));
        Mamba2Result actual = poisoned(whole, in);
        int done = 0;
        for (int length : split) {
          Mamba2Case part = whole;
          part.lengths = {length};
          part.slot_in = {done == 0 ? 1 : 0};
          Mamba2Inputs part_in = in;
          part_in.query_start = {0, length};
          part_in.num_tokens = length;
          part_in.projected.erase(part_in.projected.begin(), part_in.projected.begin() + done * part.shape.projected());
          Mamba2Result out{std::vector<float>(static_cast<size_t>(length) * part.shape.inner()), actual.conv,
                           actual.ssm};
          if (length == 1 && single_tokens_step) {
            backend->conv_ssm_step(step_op(part, part_in, out));
          } else {
            backend->ssd_chunk(chunk_op(part, part_in, out));
          }
          std::ranges::copy(out.y, actual.y.begin() + done * part.shape.inner());
          actual.conv = out.conv;
          actual.ssm = out.ssm;
          done += length;
        }
        expect_within(actual.y.data(), expected.y.data(), bound.y.data(), bound.y.size(), "y");
        expect_slots(whole, actual, expected, {bound.ssm.data()});
      }
    }
  }
}

// The recurrence itself, by hand: one head, one channel, a state of one, no convolution to speak of.
TEST(Mamba2, TwoTokensByHand) {
  const float conv_weight[] = {0, 1, 0, 1, 0, 1};  // x, B, C pass unchanged into SiLU
  const float dt_bias = 1, a = -0.5f, d = 3;
  const float projected[] = {9, 0.5f, 2, -1, 0.25f,  // z, x, B, C, dt
                             9, -1,   1, 2,  30};
  const int32_t slot_in = -1, slot_out = 0, query_start[] = {0, 2};
  float conv[3], ssm[1], y[2];
  ssd_chunk_reference({.shape = {1, 1, 1, 1, 2},
                       .weights = {conv_weight, nullptr, &dt_bias, &a, &d},
                       .limit = {},
                       .chunk_size = 2,
                       .num_seqs = 1,
                       .num_tokens = 2,
                       .query_start = query_start,
                       .projected = projected,
                       .cache = {conv, ssm, 1},
                       .state_slot_in = &slot_in,
                       .state_slot_out = &slot_out,
                       .y = y});
  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  const double delta0 = std::log(1 + std::exp(1.25)), delta1 = 31;
  const double s0 = delta0 * silu(0.5) * silu(2);
  const double s1 = std::exp(-0.5 * delta1) * s0 + delta1 * silu(-1) * silu(1);
  EXPECT_NEAR(y[0], s0 * silu(-1) + 3 * silu(0.5), 1e-6);
  EXPECT_NEAR(y[1], s1 * silu(2) + 3 * silu(-1), 1e-5);
  EXPECT_NEAR(ssm[0], s1, 1e-5);
  EXPECT_EQ(conv[0], -1);
  EXPECT_EQ(conv[1], 1);
  EXPECT_EQ(conv[2], 2);
}

}  // namespace
}  // namespace proa
