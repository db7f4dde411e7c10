#include "bench/plot.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace proa {
namespace {

BenchRow point(What what, int64_t num_tokens, int64_t depth, int batch, double tokens_per_second, double limit) {
  const double seconds = static_cast<double>(num_tokens) * batch / tokens_per_second;
  BenchRow row{.what = what, .model = "Nano <30B> & co", .quantization = "q4_0", .kv_cache_dtype = "bf16"};
  row.num_tokens = num_tokens;
  row.depth = depth;
  row.batch = batch;
  row.seconds = {seconds, seconds * 0.95, seconds * 1.06};
  row.bytes = 1e9;
  const double probe = *row.bytes * limit / (static_cast<double>(num_tokens) * batch);
  row.read_probe = {probe, probe, probe};
  return row;
}

BenchReport example() {
  BenchReport report{.device = "cpu", .description = "AVX3, 2 threads", .cpu_model = "AMD EPYC", .version = "0.1.0"};
  for (int64_t n : {64, 256, 1024}) report.rows.push_back(point(What::prefill, n, 0, 1, 30 + 0.01 * n, 100));
  for (int64_t depth : {0, 1024, 8192}) report.rows.push_back(point(What::decode, 16, depth, 1, 13 - 1e-4 * depth, 15));
  for (int batch : {4, 8}) report.rows.push_back(point(What::decode, 16, 0, batch, 13 + batch, 500));
  return report;
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Plot, ASweepHasItsPointsAndItsLimit) {
  const struct {
    Sweep sweep;
    int points;
    bool limit_is_drawn;
  } rows[] = {{Sweep::prefill_length, 3, true}, {Sweep::decode_depth, 3, true}, {Sweep::decode_batch, 3, false}};
  for (const auto& row : rows) {
    const std::string svg = plot_svg(example(), row.sweep);
    EXPECT_EQ(count(svg, "<circle"), row.points) << to_string(row.sweep);
    EXPECT_EQ(count(svg, "<polyline"), row.limit_is_drawn ? 2 : 1);
    EXPECT_EQ(count(svg, "limit at the end"), row.limit_is_drawn ? 0 : 1);  // far above: named in words
    EXPECT_EQ(count(svg, "<30B>"), 0);
    EXPECT_GT(count(svg, "Nano &lt;30B&gt; &amp; co"), 0);
    EXPECT_EQ(count(svg, "nan"), 0);
    EXPECT_EQ(count(svg, "inf"), 0);
  }
}

TEST(Plot, OneSeriesForEachPrecision) {
  BenchReport report = example();
  for (const BenchRow& row : example().rows) {
    report.rows.push_back(row);
    report.rows.back().quantization = "q8_0";
  }
  const std::string svg = plot_svg(report, Sweep::decode_depth);
  EXPECT_EQ(count(svg, "<circle"), 6);
  EXPECT_EQ(count(svg, ">q8_0, KV bf16<"), 1);
}

TEST(Plot, ASinglePointIsNoSweep) {
  BenchReport report = example();
  report.rows.resize(4);  // prefill, and decode at depth 0
  EXPECT_NE(plot_svg(report, Sweep::prefill_length), "");
  EXPECT_EQ(plot_svg(report, Sweep::decode_depth), "");
  EXPECT_EQ(plot_svg(report, Sweep::decode_batch), "");
  EXPECT_EQ(plot_svg({}, Sweep::prefill_length), "");
}

TEST(Plot, FilesAreNamedByTheirSweep) {
  const std::string folder = std::filesystem::temp_directory_path() / ("proa_plot_test." + std::to_string(getpid()));
  const auto paths = write_plots(example(), folder + "/nano");
  ASSERT_TRUE(paths.ok()) << paths.error().message();
  const std::vector<std::string> expected = {folder + "/nano-prefill-length.svg", folder + "/nano-decode-depth.svg",
                                             folder + "/nano-decode-batch.svg"};
  EXPECT_EQ(*paths, expected);
  for (const std::string& path : expected) EXPECT_TRUE(std::filesystem::exists(path));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace proa
