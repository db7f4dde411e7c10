#include "bench/compare.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "core/output_path.h"

namespace proa {
namespace {

BenchReport example() {
  BenchReport report{.device = "cpu", .description = "AVX3, 2 threads", .cpu_model = "AMD EPYC", .threads = 2};
  report.rows = {{.what = What::decode,
                  .model = "Nano",
                  .quantization = "q4_0",
                  .weights = "dummy seed 0",
                  .num_tokens = 1,
                  .seconds = {0.100, 0.101, 0.099, 0.100},
                  .read_probe = {40e9, 40e9, 40e9, 40e9},
                  .bytes = 2e9}};
  return report;
}

BenchReport scaled(BenchReport report, double time, double probe = 1) {
  for (BenchRow& row : report.rows) {
    for (double& s : row.seconds) s *= time;
    for (double& p : row.read_probe) p *= probe;
  }
  return report;
}

TEST(Compare, VerdictIsBeyondTheNoiseOfBoth) {
  const struct {
    const char* name;
    std::function<BenchReport(BenchReport)> change;  // of the second report
    Verdict verdict;
  } rows[] = {
      {"the same run", [](BenchReport r) { return r; }, Verdict::same},
      {"4 percent are noise on a shared CPU", [](BenchReport r) { return scaled(r, 1.04); }, Verdict::same},
      {"a slowed kernel", [](BenchReport r) { return scaled(r, 1.25); }, Verdict::slower},
      {"a faster one", [](BenchReport r) { return scaled(r, 0.8); }, Verdict::faster},
      {"slower, but so was the memory", [](BenchReport r) { return scaled(r, 2, 0.5); }, Verdict::same},
      {"as fast on a faster memory is slower", [](BenchReport r) { return scaled(r, 1, 1.5); }, Verdict::slower},
      {"fewer bytes counted do not make it slower",
       [](BenchReport r) {
         r.rows[0].bytes = 1e9;
         return scaled(r, 0.8);
       },
       Verdict::faster},
      {"a noisy run proves nothing",
       [](BenchReport r) {
         r.rows[0].seconds = {0.08, 0.16, 0.12, 0.10};
         return r;
       },
       Verdict::same},
      {"without probes the time counts, with care",
       [](BenchReport r) {
         r.rows[0].read_probe = {};
         return scaled(r, 1.2);
       },
       Verdict::same},
      {"more than care",
       [](BenchReport r) {
         r.rows[0].read_probe = {};
         return scaled(r, 1.4);
       },
       Verdict::slower},
  };
  for (const auto& row : rows) {
    const auto result = compare_reports(example(), row.change(example()), {});
    ASSERT_TRUE(result.ok()) << row.name << ": " << result.error().message();
    ASSERT_EQ(result->changes.size(), 1u);
    EXPECT_EQ(result->changes[0].verdict, row.verdict) << row.name << " " << result->changes[0].speed_ratio;
  }
}

TEST(Compare, GpuNoiseIsSmaller) {
  BenchReport before = example();
  before.device = "cuda:0";
  const auto result = compare_reports(before, scaled(before, 1.05), {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->changes[0].verdict, Verdict::slower);
  EXPECT_NEAR(result->worst_loss_percent(), 100 - 100 / 1.05, 1e-9);
  const auto tolerant = compare_reports(before, scaled(before, 1.05), {.noise_floor = 0.1});
  EXPECT_EQ(tolerant->changes[0].verdict, Verdict::same);
  EXPECT_EQ(tolerant->worst_loss_percent(), 0);
}

TEST(Compare, MemoryIsCompared) {
  BenchReport before = example();
  before.rows = {{.what = What::memory, .part = "weights", .model = "Nano", .bytes = 18e9}};
  BenchReport after = before;
  after.rows[0].bytes = 19e9;
  const auto result = compare_reports(before, after, {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->changes[0].verdict, Verdict::slower);
  EXPECT_NE(to_table(*result).find("LARGER"), std::string::npos);
}

TEST(Compare, RowsAreMetByTheirKey) {
  BenchReport before = example(), after = example();
  before.rows.push_back(before.rows[0]);
  before.rows[1].batch = 8;
  after.rows.insert(after.rows.begin(), after.rows[0]);
  after.rows[0].depth = 4096;
  const auto result = compare_reports(before, after, {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->changes.size(), 1u);
  EXPECT_EQ(result->only_before, std::vector<std::string>{"decode Nano q4_0, 1 tokens at 0, batch 8"});
  EXPECT_EQ(result->only_after, std::vector<std::string>{"decode Nano q4_0, 1 tokens at 4096, batch 1"});
}

TEST(Compare, OtherThingsAreRefusedUnlessForced) {
  const struct {
    const char* where;
    std::function<void(BenchReport&)> change;
    bool forcible;
  } rows[] = {
      {"device", [](BenchReport& r) { r.device = "cuda:0"; }, true},
      {"description", [](BenchReport& r) { r.description = "AVX2, 2 threads"; }, true},
      {"cpu_model", [](BenchReport& r) { r.cpu_model = "Xeon"; }, true},
      {"threads", [](BenchReport& r) { r.threads = 1; }, true},
      {"weights", [](BenchReport& r) { r.rows[0].weights = "dummy seed 1"; }, true},
      {"rows", [](BenchReport& r) { r.rows[0].model = "Super"; }, false},
      {"rows", [](BenchReport& r) { r.rows.clear(); }, false},
      {"the second", [](BenchReport& r) { r.failures = {"work was skipped"}; }, false},
  };
  for (const auto& row : rows) {
    BenchReport after = example();
    row.change(after);
    const auto refused = compare_reports(example(), after, {});
    ASSERT_FALSE(refused.ok()) << row.where;
    EXPECT_EQ(refused.error().where, row.where);
    const auto forced = compare_reports(example(), after, {.force = true});
    EXPECT_EQ(forced.ok(), row.forcible) << row.where;
    if (forced.ok()) {
      EXPECT_EQ(forced->notes.size(), 1u) << row.where;
    }
  }
}

TEST(Compare, ExitCodeFollowsTheWorstLoss) {
  const std::string folder = std::filesystem::temp_directory_path() / ("proa_compare_test." + std::to_string(getpid()));
  const std::string a = folder + "/a.json", b = folder + "/b.json";
  ASSERT_TRUE(write_file(a, to_json(example())).ok());
  ASSERT_TRUE(write_file(b, to_json(scaled(example(), 1.25))).ok());  // a fifth of the speed is gone
  const struct {
    const std::string &before, &after;
    std::optional<double> fail_above;
    int exit_code;
  } rows[] = {{a, b, {}, 0}, {a, b, 25, 0}, {a, b, 15, 1}, {b, a, 15, 0}, {a, a, 0, 0}};
  for (const auto& row : rows) {
    for (bool json : {false, true}) {
      const auto outcome = compare_files(row.before, row.after, {}, row.fail_above, json);
      ASSERT_TRUE(outcome.ok()) << outcome.error().message();
      EXPECT_EQ(outcome->exit_code, row.exit_code);
      EXPECT_EQ(outcome->text.starts_with("{"), json);
    }
  }
  EXPECT_FALSE(compare_files(a, folder + "/c.json", {}, {}, false).ok());
  std::filesystem::remove_all(folder);
}

TEST(Compare, TableIsForPeople) {
  const auto result = compare_reports(example(), scaled(example(), 1.25), {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(to_table(*result), R"(before  AMD EPYC, cpu, AVX3, 2 threads
after   AMD EPYC, cpu, AVX3, 2 threads

                                          before tok/s  after tok/s  before   after             speed  noise  verdict
decode Nano q4_0, 1 tokens at 0, batch 1          10.0         8.00  100 ms  125 ms  -20.0 % of limit  8.0 %   SLOWER
)");
}

}  // namespace
}  // namespace proa
