#include "bench/report.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "backends/backends.h"
#include "bench/machine.h"
#include "core/text.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

BenchReport example() {
  BenchReport report{.device = "cpu",
                     .description = "AVX3, 2 threads",
                     .cpu_model = "AMD EPYC",
                     .threads = 2,
                     .clock_mhz = 2596.1,
                     .memory_bytes = int64_t{24} << 30,
                     .date = "2026-09-17T08:15:00Z",
                     .command = "proa bench M --prefill 256, --json",
                     .version = "0.1.0",
                     .commit = "66d680f",
                     .answer = AnswerCheck{32, 1.5e-4, 1e-3, 0, 0.02, true}};
  const BenchRow base{.model = "Nano", .quantization = "q4_0", .weights = "dummy seed 0", .kv_cache_dtype = "bf16"};
  BenchRow load = base, prefill = base, decode = base, memory = base;
  load.what = What::load;
  load.seconds = {1.25};
  prefill.what = What::prefill;
  prefill.num_tokens = 256;
  prefill.seconds = {8.0, 8.4, 8.2};
  prefill.arithmetic = Probe::int8;
  prefill.arithmetic_probe = {2e12, 2e12, 2e12};
  prefill.flops = 1.6e12;
  decode.what = What::decode;
  decode.num_tokens = 16;
  decode.depth = 1024;
  decode.batch = 4;
  decode.seconds = {2.0, 2.2, 2.1};
  decode.read_probe = {50e9, 50e9, 50e9};
  decode.bytes = 84e9;
  decode.weight_bytes = 2e9;
  decode.distinct_experts = 22.1;
  decode.expected_experts = 22.4;
  decode.kl = 2e-5;
  decode.token_ids = {7, 0, 131071};
  memory.what = What::memory;
  memory.part = "weights";
  memory.bytes = 18e9;
  report.rows = {load, prefill, decode, memory};
  return report;
}

TEST(BenchRow, SpeedsFollowFromSamples) {
  const BenchRow row = example().rows[2];
  EXPECT_DOUBLE_EQ(*row.tokens_per_second(), 64 / 2.1);
  EXPECT_DOUBLE_EQ(*row.bytes_per_second(), 40e9);
  EXPECT_FALSE(row.flops_per_second());
  EXPECT_DOUBLE_EQ(*row.limit_seconds(0), 84.0 / 50);
  EXPECT_DOUBLE_EQ(*row.limit_tokens_per_second(), 64 / 1.68);
  EXPECT_DOUBLE_EQ(row.share().median, 0.8);
  EXPECT_DOUBLE_EQ(row.share().max, 0.84);
}

TEST(BenchRow, TheSlowerOfReadingAndComputingIsTheLimit) {
  BenchRow row{.num_tokens = 1, .seconds = {4}, .read_probe = {1e9}, .arithmetic_probe = {1e12}, .bytes = 2e9};
  EXPECT_DOUBLE_EQ(*row.limit_seconds(0), 2);
  row.flops = 3e12;
  EXPECT_DOUBLE_EQ(*row.limit_seconds(0), 3);
  row.bytes = 3.5e9;
  EXPECT_DOUBLE_EQ(row.share().median, 3.5 / 4);
}

TEST(BenchRow, WhatWasNotMeasuredIsEmpty) {
  const BenchRow empty;
  EXPECT_FALSE(empty.tokens_per_second());
  EXPECT_FALSE(empty.bytes_per_second());
  EXPECT_FALSE(empty.flops_per_second());
  EXPECT_FALSE(empty.limit_tokens_per_second());
  EXPECT_TRUE(empty.shares().empty());
  BenchRow load = example().rows[0];  // timed, without tokens or a limit
  EXPECT_FALSE(load.tokens_per_second());
  load.what = What::first_token;  // of a prompt whose tokens are not its speed
  load.num_tokens = 8;
  EXPECT_FALSE(load.tokens_per_second());
  EXPECT_TRUE(load.shares().empty());
}

TEST(BenchRow, KeyNamesWhatWasChosen) {
  const BenchReport report = example();
  EXPECT_EQ(report.rows[0].key(), "load Nano q4_0 kv bf16");
  EXPECT_EQ(report.rows[2].key(), "decode Nano q4_0 kv bf16, 16 tokens at 1024, batch 4");
  EXPECT_EQ(report.rows[3].key(), "memory weights Nano q4_0 kv bf16");
}

TEST(Report, TableIsForPeople) {
  EXPECT_EQ(to_table(example()), R"(AMD EPYC, cpu, AVX3, 2 threads, 2596 MHz, 25.8 GB memory
proa 0.1.0, commit 66d680f, 2026-09-17T08:15:00Z
answer right: KL 1.50e-04 (bound 0.001) over 32 steps, best token differs in 0 beyond the noise of 0.020

Nano, q4_0, weights dummy seed 0, KV bf16
                tokens  at depth  batch  tok/s     time     +-  n  GB/s  GFLOP/s  read GB/s  arithmetic  limit   share     +-       experts        KL
load                                             1.25 s         1
prefill            256         0      1   31.2   8.20 s  3.6 %  3            195              2000 int8    320   9.8 %  3.5 %
decode              16      1024      4   30.5   2.10 s  7.1 %  3  40.0                50.0               38.1  80.0 %  6.7 %  22.1 of 22.4  2.00e-05
memory weights                                  18.0 GB
)");
}

TEST(Report, TableSaysWhatFailed) {
  BenchReport report = example();
  report.failures = {"the answer is wrong"};
  report.interrupted = true;
  report.answer->passed = false;
  const std::string table = to_table(report);
  EXPECT_NE(table.find("answer WRONG: KL"), std::string::npos);
  EXPECT_NE(table.find("FAILED: the answer is wrong"), std::string::npos);
  EXPECT_NE(table.find("interrupted"), std::string::npos);
  report.memory_plan = MemoryPlan{.num_blocks = 4, .block_size = 16, .weight_bytes = 3'000'000, .kv_bytes = 400'000};
  EXPECT_NE(to_table(report).find("\nmemory: weights 3.00 MB + KV 400 kB (4 blocks, 64 tokens) = 3.40 MB\n"),
            std::string::npos);
}

TEST(Report, JsonIsReadBackWhole) {
  BenchReport report = example();
  report.failures = {"one", "two \xff"};
  report.interrupted = true;
  report.last_level_cache = 32 << 20;
  report.peak_memory_bytes = 1234567;
  report.memory_plan = MemoryPlan{.num_blocks = 4,
                                  .block_size = 16,
                                  .num_slots = 2,
                                  .max_model_len = 65,
                                  .weight_bytes = 18'000'000'000,
                                  .kv_bytes = 393'216,
                                  .state_bytes = 96'500'000,
                                  .workspace_bytes = 7,
                                  .step_bytes = 8,
                                  .scratch_bytes = 9,
                                  .device = "cuda:0",
                                  .memory = {.total = 80'000'000'000, .free = 79'000'000'000},
                                  .utilization = 0.9};
  const std::string json = to_json(report);
  const auto read = read_report(json, "a.json");
  ASSERT_TRUE(read.ok()) << read.error().message();
  EXPECT_EQ(to_json(*read), json);  // every field, since to_json writes every field
  EXPECT_EQ(read->rows[1].arithmetic, Probe::int8);
  EXPECT_EQ(read->rows[2].seconds, report.rows[2].seconds);
  EXPECT_EQ(read->rows[2].token_ids, report.rows[2].token_ids);
  EXPECT_FALSE(read->rows[0].bytes.has_value());
}

TEST(Report, BadJsonIsNamed) {
  const std::string good = to_json(example());
  const auto with = [&](const std::string& before, const std::string& after) {
    std::string text = good;
    const size_t at = text.find(before);
    EXPECT_NE(at, std::string::npos) << before;
    return text.replace(at, before.size(), after);
  };
  const struct {
    std::string json;
    const char* message;
  } rows[] = {
      {"", "no JSON"},
      {"{", "no JSON"},
      {"[]", "expected an object"},
      {"{}", "device: expected a value"},
      {R"({"device": "cpu"})", "rows: expected a list"},
      {R"({"device": "cpu", "rows": 3})", "rows: expected a list"},
      {R"({"device": "cpu", "rows": [3]})", "rows[0]: expected an object"},
      {with(R"("device": "cpu")", R"("device": 7)"), "device: expected a string, found 7"},
      {with(R"("threads": 2)", R"("threads": 1.5)"), "threads: expected a whole number"},
      {with(R"("threads": 2)", R"("threads": -2)"), "threads: expected a whole number"},
      {with(R"("threads": 2)", R"("threads": 99999999999)"), "below 2^31"},
      {with(R"("threads": 2)", R"("threads": 18446744073709551615)"), "threads: expected a whole number"},
      {with(R"("what": "load")", R"("what": "lunch")"), "rows[0]: what: expected load, first_token"},
      {with(R"("batch": 1)", R"("batch": 0)"), "rows[0]: batch: expected at least 1"},
      {with("1.25", "-1.25"), "rows[0]: seconds: expected times above 0"},
      {with("1.25", R"("fast")"), "rows[0]: seconds: expected a number"},
      {with("8.2\n", "8.2, 8.3\n"), "rows[1]: arithmetic_probe: expected one for each of seconds"},
      {with(R"("arithmetic": "int8")", R"("arithmetic": "int4")"), "arithmetic: expected int8, bf16 or f32"},
      {with(R"("kl_bound": 0.001)", R"("kl_bound": null)"), "answer: kl_bound: expected a number"},
      {std::string(100000, '['), "no JSON"},
  };
  for (const auto& row : rows) {
    const auto read = read_report(row.json, "a.json");
    ASSERT_FALSE(read.ok()) << row.json.substr(0, 200);
    EXPECT_NE(read.error().message().find(row.message), std::string::npos) << read.error().message();
    EXPECT_NE(read.error().message().find("a.json"), std::string::npos);
  }
}

TEST(Report, MissingFileIsNamed) {
  const auto read = read_report_file("/nonexistent/a.json");
  ASSERT_FALSE(read.ok());
  EXPECT_NE(read.error().message().find("/nonexistent/a.json"), std::string::npos);
  EXPECT_FALSE(read_report_file("/").ok());
}

class ReportFiles : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
  static std::string content(const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  const fs::path folder_ = fs::temp_directory_path() / ("proa_report_test." + std::to_string(getpid()));
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::string part;
  bool quoted = false;
  for (char c : text) {
    if (c == '"') quoted = !quoted;
    if (c == separator && !quoted) {
      parts.push_back(part);
      part.clear();
    } else if (c != '"' || separator != ',') {
      part += c;
    }
  }
  if (!part.empty() || separator == ',') parts.push_back(part);
  return parts;
}

TEST_F(ReportFiles, CsvGrowsByRowsThatStandForThemselves) {
  const std::string path = (folder_ / "results" / "epyc.csv").string();  // the folder is made
  ASSERT_TRUE(append_csv(example(), path).ok());
  const std::string once = content(path);
  EXPECT_EQ(once, to_csv(example()));
  ASSERT_TRUE(append_csv(example(), path).ok());
  const auto lines = split(content(path), '\n');
  ASSERT_EQ(lines.size(), 1 + 2 * example().rows.size());
  const auto header = split(lines[0], ',');
  for (const std::string& line : lines) EXPECT_EQ(split(line, ',').size(), header.size()) << line;
  const auto column = [&](const char* name, size_t line) {
    const auto at = std::find(header.begin(), header.end(), name) - header.begin();
    return split(lines[line], ',')[static_cast<size_t>(at)];
  };
  EXPECT_EQ(column("command", 3), "proa bench M --prefill 256, --json");
  EXPECT_EQ(column("commit", 3), "66d680f");
  EXPECT_EQ(column("seconds", 3), "2.1");
  EXPECT_EQ(column("read_probe", 3), "5e+10");
  EXPECT_EQ(column("share", 3), "0.8");
  EXPECT_EQ(column("arithmetic", 2), "int8");
  EXPECT_EQ(column("tokens_per_second", 1), "");  // load
  EXPECT_EQ(column("num_tokens", 1), "");
  EXPECT_EQ(column("seconds", 4), "");  // memory
  EXPECT_EQ(column("checks", 4), "passed");
}

TEST_F(ReportFiles, CsvMendsARowThatWasCutAndKeepsForeignFiles) {
  const std::string path = (folder_ / "a.csv").string();
  ASSERT_TRUE(append_csv(example(), path).ok());
  const std::string whole = content(path);
  std::ofstream(path, std::ios::binary) << whole.substr(0, whole.size() - 10);
  ASSERT_TRUE(append_csv(example(), path).ok());
  EXPECT_EQ(split(content(path), '\n').size(), 1 + 2 * example().rows.size());

  std::ofstream(path, std::ios::binary) << "date,speed\n1,2\n";
  const auto foreign = append_csv(example(), path);
  ASSERT_FALSE(foreign.ok());
  EXPECT_NE(foreign.error().message().find(path), std::string::npos);
  EXPECT_EQ(content(path), "date,speed\n1,2\n");
}

TEST_F(ReportFiles, WritingFailsWithTheName) {
  for (const std::string& path : {std::string("/dev/full"), (folder_ / "file" / "a.csv").string()}) {
    std::ofstream(folder_ / "file") << "in the way of a folder";
    const auto written = append_csv(example(), path);
    ASSERT_FALSE(written.ok()) << path;
    EXPECT_NE(written.error().message().find("/"), std::string::npos);
  }
}

TEST(Machine, IsDescribed) {
  auto backend = make_backend("reference");
  ASSERT_TRUE(backend.ok());
  const BenchReport report = describe_machine(**backend, 3, "proa bench");
  EXPECT_EQ(report.device, "reference");
  EXPECT_EQ(report.threads, 3);
  EXPECT_EQ(report.command, "proa bench");
  EXPECT_EQ(report.date.size(), 20u);
  EXPECT_FALSE(report.version.empty());
  EXPECT_GT(report.memory_bytes.value_or(0), 1 << 20);
  EXPECT_GT(peak_memory_bytes().value_or(0), 1 << 10);
}

TEST(Text, Digits) {
  const struct {
    double value;
    const char* text;
  } rows[] = {{0, "0.000"},     {0.0312, "0.031"},     {1.234, "1.23"},   {12.34, "12.3"},
              {1234.5, "1234"}, {0.00012, "1.20e-04"}, {-12.34, "-12.3"}, {2e15, "2.00e+15"}};
  for (const auto& row : rows) EXPECT_EQ(digits(row.value), row.text);
  EXPECT_EQ(seconds_text(0.00025), "250 us");
  EXPECT_EQ(seconds_text(0.0749), "74.9 ms");
  EXPECT_EQ(bytes_text(2022e6), "2.02 GB");
  EXPECT_EQ(columns({{"a", "b", "empty"}, {"x", "123", ""}}, 1), "a    b\nx  123\n");
}

}  // namespace
}  // namespace proa
