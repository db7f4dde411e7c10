// The bench must catch kernels and inputs that would make its numbers lie. Each test breaks one thing on purpose.
#include "bench/measure.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "backends/backends.h"
#include "backends/cpu/cpu_backend.h"
#include "bench/answer.h"
#include "bench/checks.h"
#include "bench/compare.h"
#include "checkpoint/checkpoint.h"
#include "models/step_cost.h"

namespace proa {
namespace {

// The CPU backend with one fault, which begins after `healthy` calls of the op that it is in; calls that only count
// scratch are none.
struct FaultyBackend : CpuBackend {
  enum class Fault { none, slow_lm_head, skip_moe, one_embedding, skewed_route, forgetful_prefill };

  FaultyBackend(Fault which, int healthy_calls)
      : CpuBackend(CpuBackend::default_target(), 1), fault(which), healthy(healthy_calls) {}

  bool broken(Fault here) { return !counting() && fault == here && healthy-- <= 0; }

  void lm_head(const LmHead& op) override {
    if (broken(Fault::slow_lm_head)) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CpuBackend::lm_head(op);
  }
  void moe(const Moe& op) override {
    if (!broken(Fault::skip_moe)) CpuBackend::moe(op);
  }
  void embed(const Embed& op) override {
    CpuBackend::embed(op);
    if (!broken(Fault::one_embedding)) return;
    const auto hidden_size = static_cast<size_t>(op.table.cols);
    for (int t = 1; t < op.num_tokens; ++t) std::memcpy(op.x + t * hidden_size, op.x, hidden_size * sizeof(float));
  }
  void route(const Route& op) override {
    if (!broken(Fault::skewed_route)) return CpuBackend::route(op);
    for (int i = 0; i < op.num_tokens * op.num_experts_per_tok; ++i) {
      op.topk_ids[i] = i % op.num_experts_per_tok;
      op.topk_weights[i] = 1;
      if (op.expert_tokens) ++op.expert_tokens[op.topk_ids[i]];
    }
  }

  void ssd_chunk(const SsdChunk& op) override {
    const std::vector<int32_t> none(static_cast<size_t>(op.num_seqs), -1);
    SsdChunk changed = op;
    if (broken(Fault::forgetful_prefill)) changed.state_slot_in = none.data();
    CpuBackend::ssd_chunk(changed);
  }

  Fault fault;
  int healthy;
};

using Fault = FaultyBackend::Fault;

struct Fixture {
  std::shared_ptr<Backend> backend;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<const Model> model;
  Tokenizer tokenizer;
};

Fixture open_with(Fault fault, int healthy = 0) {
  const std::shared_ptr<Backend> backend = std::make_shared<FaultyBackend>(fault, healthy);
  auto opened = Checkpoint::open(PROA_SOURCE_DIR "/models/proa-buoy");
  EXPECT_TRUE(opened.ok()) << opened.error().message();
  const auto checkpoint = std::make_shared<const Checkpoint>(std::move(*opened));
  auto model = open_model(checkpoint, *backend);
  EXPECT_TRUE(model.ok()) << model.error().message();
  auto tokenizer = Tokenizer::open(*checkpoint);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  return {backend, checkpoint, std::move(*model), std::move(*tokenizer)};
}

constexpr int kTokens = 12;

Result<BenchRow> decode(const Fixture& f, int batch = 1, int64_t depth = 0) {
  MeasureConfig config;
  config.num_iters = 3;
  config.probe_seconds = 0;
  return measure_decode(f.model, f.backend, f.tokenizer, config, batch, depth, kTokens);
}

TEST(Measure, DecodeFillsARow) {
  const Fixture f = open_with(Fault::none);
  for (const int64_t depth : {0, 300}) {
    const auto row = decode(f, 3, depth);
    ASSERT_TRUE(row.ok()) << row.error().message();
    EXPECT_EQ(row->seconds.size(), 3u);
    for (const double seconds : row->seconds) EXPECT_GT(seconds, 0);
    EXPECT_EQ(row->batch, 3);
    EXPECT_EQ(row->depth, depth);
    ASSERT_TRUE(row->distinct_experts);
    EXPECT_GE(*row->distinct_experts, f.model->info().num_experts_per_tok);
    EXPECT_LE(*row->distinct_experts, 3 * f.model->info().num_experts_per_tok);
    EXPECT_DOUBLE_EQ(*row->bytes, kTokens * decode_bytes(*f.model, 3, *row->distinct_experts, Format::BF16,
                                                         depth + 8 + kTokens / 2));
  }
}

TEST(Measure, PrefillFillsARow) {
  const Fixture f = open_with(Fault::none);
  MeasureConfig config;
  config.probe_seconds = 0;
  config.max_num_batched_tokens = 16;
  const auto row = measure_prefill(f.model, f.backend, f.tokenizer, config, 0, 40);
  ASSERT_TRUE(row.ok()) << row.error().message();
  EXPECT_EQ(row->seconds.size(), 3u);
  EXPECT_DOUBLE_EQ(*row->flops, prefill_flops(*f.model, 40));
}

TEST(Measure, AHistoryThatIsKnownIsNotComputedAgain) {
  const Fixture f = open_with(Fault::none);
  const auto rows = measure_history(f.model, f.backend, f.tokenizer, {.num_iters = 2}, 150);
  ASSERT_TRUE(rows.ok()) << rows.error().message();
  ASSERT_EQ(rows->size(), 3u);
  for (const BenchRow& row : *rows) {
    EXPECT_EQ(row.what, What::first_token);
    EXPECT_EQ(row.depth + row.num_tokens, row.depth > 0 ? 150 + 122 : 150) << row.key();
    EXPECT_EQ(row.seconds.size(), 2u);
  }
  EXPECT_EQ(rows->back().part, "third turn");
  const auto swapped =
      measure_history(f.model, f.backend, f.tokenizer, {.num_iters = 1, .kv_offloading_bytes = 64 << 20}, 150);
  ASSERT_TRUE(swapped.ok()) << swapped.error().message();
  ASSERT_EQ(swapped->size(), 4u);
  EXPECT_EQ(swapped->back().part, "swapped out");
}

TEST(Measure, ADeviceWithoutProbesHasNoLimits) {
  Fixture f = open_with(Fault::none);
  auto reference = make_backend("reference", {});
  ASSERT_TRUE(reference.ok());
  f.backend = std::move(*reference);
  auto model = open_model(f.checkpoint, *f.backend);
  ASSERT_TRUE(model.ok());
  f.model = std::move(*model);
  const auto row = measure_prefill(f.model, f.backend, f.tokenizer, {.num_iters = 1}, 0, 4);
  ASSERT_TRUE(row.ok()) << row.error().message();
  EXPECT_FALSE(row->arithmetic);
  EXPECT_FALSE(row->limit_tokens_per_second());
  BenchReport report;
  report.rows.push_back(*row);
  EXPECT_TRUE(check_report(report).empty());
}

TEST(Measure, SizesThatDoNotFitAreRefused) {
  const Fixture f = open_with(Fault::none);
  EXPECT_FALSE(decode(f, 1, int64_t{1} << 40).ok());
  EXPECT_FALSE(decode(f, 1 << 20, 0).ok());
}

TEST(Measure, InterruptedIsAnError) {
  const Fixture f = open_with(Fault::none);
  const std::atomic<bool> interrupted{true};
  MeasureConfig config;
  config.interrupted = &interrupted;
  const auto row = measure_decode(f.model, f.backend, f.tokenizer, config, 1, 0, 4);
  ASSERT_FALSE(row.ok());
  EXPECT_EQ(row.error().where, "interrupted");
}

TEST(Lies, ASlowedKernelIsSlowerBeyondTheNoise) {
  BenchReport before, after;
  for (auto [fault, report] : {std::pair{Fault::none, &before}, {Fault::slow_lm_head, &after}}) {
    auto row = decode(open_with(fault));
    ASSERT_TRUE(row.ok()) << row.error().message();
    report->device = "cpu";
    report->rows.push_back(*row);
  }
  const auto compared = compare_reports(before, after, {});
  ASSERT_TRUE(compared.ok()) << compared.error().message();
  ASSERT_EQ(compared->changes.size(), 1u);
  EXPECT_EQ(compared->changes.front().verdict, Verdict::slower);
}

TEST(Lies, AKernelThatSkipsWhenTimedDrawsOtherTokens) {
  const Fixture healthy = open_with(Fault::none);
  const int per_step = healthy.model->info().num_moe_layers;
  const auto row = decode(open_with(Fault::skip_moe, per_step * (kTokens + 4)));  // the first pass is whole
  ASSERT_FALSE(row.ok());
  EXPECT_NE(row.error().expected.find("the same"), std::string::npos) << row.error().message();
}

TEST(Lies, AKernelThatAlwaysSkipsGivesAnotherAnswer) {
  for (const Fault fault : {Fault::none, Fault::skip_moe, Fault::skewed_route, Fault::one_embedding}) {
    const Fixture f = open_with(fault);
    auto reference = make_backend("reference", {});
    ASSERT_TRUE(reference.ok());
    auto reference_model = open_model(f.checkpoint, **reference);
    ASSERT_TRUE(reference_model.ok());
    const auto check = check_answer(*f.model, *f.backend, **reference_model, **reference, {});
    ASSERT_TRUE(check.ok()) << check.error().message();
    EXPECT_EQ(check->passed, fault == Fault::none)
        << "KL " << check->kl << " of " << check->kl_bound << ", noise " << check->logit_noise;
  }
}

TEST(Lies, AStateThatIsNotReadGivesAnotherFirstToken) {
  const Fixture f = open_with(Fault::forgetful_prefill);
  const auto rows = measure_history(f.model, f.backend, f.tokenizer, {.num_iters = 1}, 300);
  ASSERT_FALSE(rows.ok());
  EXPECT_NE(rows.error().expected.find("first token"), std::string::npos) << rows.error().message();
}

TEST(Lies, IdenticalSequencesAreFound) {
  const auto row = decode(open_with(Fault::one_embedding), 3);
  ASSERT_FALSE(row.ok());
  EXPECT_TRUE(decode(open_with(Fault::none), 3).ok());
}

TEST(Lies, ASkewedRouterIsFound) {
  const Fixture f = open_with(Fault::skewed_route);
  const auto row = decode(f, 8);
  ASSERT_TRUE(row.ok()) << row.error().message();
  BenchRow judged = *row;  // expected is only filled in for random weights
  judged.expected_experts = expected_distinct_experts(*f.model, 8);
  EXPECT_FALSE(check_distinct_experts(judged).ok());
}

TEST(Lies, AWrongByteCountIsFound) {
  EXPECT_TRUE(check_weight_bytes("NVIDIA-Nemotron-3-Nano-30B-A3B", "q4_0", 2022e6).ok());
  EXPECT_FALSE(check_weight_bytes("NVIDIA-Nemotron-3-Nano-30B-A3B", "q4_0", 2022e6 * 1.05).ok());
}

}  // namespace
}  // namespace proa
