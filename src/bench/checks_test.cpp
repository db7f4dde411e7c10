#include "bench/checks.h"

#include <gtest/gtest.h>

#include <functional>

#include "models/step_cost.h"

namespace proa {
namespace {

BenchRow decode_row() {
  return {.what = What::decode,
          .model = "NVIDIA-Nemotron-3-Nano-30B-A3B",
          .quantization = "q4_0",
          .weights = "dummy seed 0",
          .num_tokens = 1,
          .seconds = {0.050, 0.051, 0.052},
          .read_probe = {50e9, 50e9, 51e9},
          .bytes = 2.1e9,
          .weight_bytes = 2.022e9};
}

TEST(Checks, DistinctExperts) {
  const struct {
    int batch;
    double expected;
  } rows[] = {{1, 6}, {4, 22.4}, {8, 40.8}, {32, 100.5}, {64, 122.1}};
  const auto passes = [](double measured, int batch) {
    BenchRow row = decode_row();
    row.distinct_experts = measured;
    row.expected_experts = expected_distinct_experts(128, 6, batch);
    return check_distinct_experts(row).ok();
  };
  for (const auto& row : rows) {
    EXPECT_NEAR(expected_distinct_experts(128, 6, row.batch), row.expected, 0.05);
    EXPECT_TRUE(passes(row.expected, row.batch));
    EXPECT_TRUE(passes(row.expected * 0.91, row.batch));
    EXPECT_FALSE(passes(row.expected * 0.89, row.batch));
    EXPECT_FALSE(passes(row.expected * 1.11, row.batch));
  }
  EXPECT_FALSE(passes(6, 8));  // a router that always takes the same six
  EXPECT_EQ(expected_distinct_experts(8, 8, 3), 8);
}

TEST(Checks, Share) {
  const struct {
    const char* name;
    std::function<void(BenchRow&)> change;
    bool passes;
  } rows[] = {
      {"at 80 percent", [](BenchRow&) {}, true},
      {"at the limit",
       [](BenchRow& r) {
         r.seconds = {0.0412, 0.0412, 0.0412};
       },
       true},
      {"a kernel that skips a fifth",
       [](BenchRow& r) {
         r.seconds = {0.033, 0.033, 0.034};
       },
       false},
      {"one lucky sample is no lie",
       [](BenchRow& r) {
         r.seconds = {0.050, 0.030, 0.051};
       },
       true},
      {"one slow probe is none either",
       [](BenchRow& r) {
         r.read_probe = {20e9, 50e9, 20e9};
       },
       true},
      {"bytes counted twice", [](BenchRow& r) { r.bytes = 4.2e9; }, false},
      {"faster than arithmetic",
       [](BenchRow& r) {
         r.flops = 1e12, r.arithmetic_probe = {1e12, 1e12, 1e12};
       },
       false},
      {"no limit, no verdict", [](BenchRow& r) { r.read_probe = {}, r.bytes = 1e15; }, true},
      {"nothing timed", [](BenchRow& r) { r.seconds = {}; }, true},
  };
  for (const auto& row : rows) {
    BenchRow bench_row = decode_row();
    row.change(bench_row);
    EXPECT_EQ(check_share(bench_row).ok(), row.passes) << row.name;
  }
}

TEST(Checks, SequencesOfABatchDiffer) {
  using Batch = std::vector<std::vector<int32_t>>;
  EXPECT_TRUE(check_sequences_differ(Batch{{1, 2, 3, 4}, {1, 2, 3, 5}}).ok());
  EXPECT_TRUE(check_sequences_differ(Batch{}).ok());
  EXPECT_TRUE(check_sequences_differ(Batch{{1, 1, 1}, {1, 1, 1}}).ok());  // too short to say
  const auto same = check_sequences_differ(Batch{{1, 2, 3, 4}, {9, 2, 3, 4}, {1, 2, 3, 4}});
  ASSERT_FALSE(same.ok());
  EXPECT_EQ(same.error().actual, "the same 4 tokens in sequences 0 and 2");
}

TEST(Checks, TokensGoOnChanging) {
  const auto repeated = [](std::vector<int32_t> start, std::vector<int32_t> loop, int times) {
    for (int i = 0; i < times; ++i) start.insert(start.end(), loop.begin(), loop.end());
    return start;
  };
  const struct {
    const char* name;
    std::vector<int32_t> tokens;
    bool passes;
  } rows[] = {
      {"none", {}, true},
      {"few", {7, 7, 7}, true},
      {"all different", {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, true},
      {"one token", repeated({}, {7}, 20), false},
      {"one token after a while", repeated({1, 2, 3, 4}, {7}, 20), false},
      {"two tokens in turns", repeated({}, {7, 8}, 20), false},
      {"three", repeated({1, 2}, {7, 8, 9}, 12), false},
      {"a line of four is not judged", repeated({}, {7, 8, 9, 10}, 12), true},
      {"a run in the middle", repeated(repeated({1}, {7}, 12), {1, 2, 3, 4, 5}, 5), true},
      {"a short run at the end of much", repeated(repeated({}, {1, 2, 3, 4, 5}, 8), {7}, 9), true},
  };
  for (const auto& row : rows) EXPECT_EQ(check_tokens_change(row.tokens).ok(), row.passes) << row.name;
}

TEST(Checks, WeightBytes) {
  const struct {
    const char *model, *quantization;
    double megabytes;
    bool passes;
  } rows[] = {
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "bf16", 6473, true},
      {"nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "BF16", 6473, true},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "fp8", 3977, true},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "nvfp4", 2886, true},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q8_0", 3456, true},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "Q4_K_M", 2506, true},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q4-0", 2022, true},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q4_0", 2022 * 1.009, true},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q4_0", 2022 * 1.011, false},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q4_0", 2022 * 0.989, false},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q4_0", 18000, false},  // the file instead of what a token touches
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q5_1", 1, true},       // nothing is published
      {"SmolLM2-135M", "q4_0", 1, true},
  };
  for (const auto& row : rows)
    EXPECT_EQ(check_weight_bytes(row.model, row.quantization, row.megabytes * 1e6).ok(), row.passes)
        << row.model << " " << row.quantization << " " << row.megabytes;
}

TEST(Checks, ReportSaysAllThatIsWrong) {
  const struct {
    const char* name;
    std::function<void(BenchReport&)> change;
    const char* failure;  // part of the only failure, or nullptr
  } rows[] = {
      {"right", [](BenchReport&) {}, nullptr},
      {"a wrong answer", [](BenchReport& r) { r.answer = AnswerCheck{.num_steps = 8, .kl = 1, .kl_bound = 0.1}; },
       "the answer is wrong"},
      {"a right answer", [](BenchReport& r) { r.answer = AnswerCheck{.passed = true}; }, nullptr},
      {"nothing timed", [](BenchReport& r) { r.rows[0].seconds = r.rows[0].read_probe = {}; }, "nothing was timed"},
      {"a sample of no time", [](BenchReport& r) { r.rows[0].seconds[2] = 0; }, "a sample took no time"},
      {"a probe without a value", [](BenchReport& r) { r.rows[0].read_probe[1] = 0; }, "a probe measured nothing"},
      {"a sample without its probe", [](BenchReport& r) { r.rows[0].read_probe.pop_back(); },
       "not every sample has its probe"},
      {"too fast",
       [](BenchReport& r) {
         r.rows[0].seconds = {0.01, 0.01, 0.01};
       },
       "work was skipped"},
      {"too fast for memory, but from the cache",
       [](BenchReport& r) {
         r.last_level_cache = 64 << 20;
         r.rows[0].model = "small";
         r.rows[0].weight_bytes = 200e6;
         r.rows[0].seconds = {0.01, 0.01, 0.01};
       },
       nullptr},
      {"a skewed router", [](BenchReport& r) { r.rows[0].distinct_experts = 12, r.rows[0].expected_experts = 40.8; },
       "expected 40.8 a step within 10 %, hit evenly, found 12.0"},
      {"an even one", [](BenchReport& r) { r.rows[0].distinct_experts = 40, r.rows[0].expected_experts = 40.8; },
       nullptr},
      {"weights counted wrong", [](BenchReport& r) { r.rows[0].weight_bytes = 1.9e9; }, "2.02 GB within 1 %"},
      {"a starved H100", [](BenchReport& r) { r.description = "NVIDIA H100 80GB HBM3"; }, "at least 2900"},
      {"memory needs no time", [](BenchReport& r) { r.rows = {{.what = What::memory, .part = "weights"}}; }, nullptr},
  };
  for (const auto& row : rows) {
    BenchReport report{.device = "cpu", .rows = {decode_row()}};
    row.change(report);
    const auto failures = check_report(report);
    if (row.failure == nullptr) {
      EXPECT_TRUE(failures.empty()) << row.name << ": " << failures.front();
    } else {
      ASSERT_EQ(failures.size(), 1u) << row.name;
      EXPECT_NE(failures[0].find(row.failure), std::string::npos) << failures[0];
    }
  }
}

}  // namespace
}  // namespace proa
