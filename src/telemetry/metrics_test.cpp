#include "telemetry/metrics.h"

#include <gtest/gtest.h>

#include <cmath>

namespace proa {
namespace {

TEST(Metrics, NumbersAsPythonAndItsClientWriteThem) {
  const struct {
    double value;
    const char *python, *prometheus;
  } rows[] = {
      {0, "0.0", "0.0"},
      {-0., "-0.0", "-0.0"},
      {1, "1.0", "1.0"},
      {12, "12.0", "12.0"},
      {0.25, "0.25", "0.25"},
      {0.1, "0.1", "0.1"},
      {1. / 3, "0.3333333333333333", "0.3333333333333333"},
      {-2.5, "-2.5", "-2.5"},
      {0.0001, "0.0001", "0.0001"},
      {0.00001, "1e-05", "1e-05"},
      {1.5e-7, "1.5e-07", "1.5e-07"},
      {16384, "16384.0", "16384.0"},
      {999999, "999999.0", "999999.0"},
      {1000000, "1000000.0", "1e+06"},
      {1234567, "1234567.0", "1.234567e+06"},
      {1234567.5, "1234567.5", "1.2345675e+06"},
      {-1234567, "-1234567.0", "-1234567.0"},
      {12345678901, "12345678901.0", "1.2345678901e+010"},
      {1e15, "1000000000000000.0", "1e+015"},
      {1e16, "1e+16", "1e+16"},
      {1.5e300, "1.5e+300", "1.5e+300"},
      {INFINITY, "inf", "+Inf"},
      {-INFINITY, "-inf", "-Inf"},
      {NAN, "nan", "NaN"},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(python_float(row.value), row.python);
    EXPECT_EQ(prometheus_number(row.value), row.prometheus);
  }
}

TEST(Metrics, Text) {
  Histogram histogram({0.5, 1, 1e6});
  for (const double value : {0.1, 0.5, 0.6, 2e6}) histogram.observe(value);
  MetricsText text;
  text.counter("vllm:x", "Help.", {{"model_name", "a\"b\\c\nd"}, {"engine", "0"}}, 3);
  text.gauge("y", "Other.", {}, 0.5);
  text.histogram("z", "Times.", {{"model_name", "m"}, {"engine", "0"}}, histogram);
  text.summary("s", "Sizes.");
  text.sample({}, 2, 300);
  EXPECT_EQ(text.text(),
            "# HELP vllm:x_total Help.\n"
            "# TYPE vllm:x_total counter\n"
            "vllm:x_total{engine=\"0\",model_name=\"a\\\"b\\\\c\\nd\"} 3.0\n"
            "# HELP y Other.\n"
            "# TYPE y gauge\n"
            "y 0.5\n"
            "# HELP z Times.\n"
            "# TYPE z histogram\n"
            "z_bucket{engine=\"0\",le=\"0.5\",model_name=\"m\"} 2.0\n"
            "z_bucket{engine=\"0\",le=\"1.0\",model_name=\"m\"} 3.0\n"
            "z_bucket{engine=\"0\",le=\"1e+06\",model_name=\"m\"} 3.0\n"
            "z_bucket{engine=\"0\",le=\"+Inf\",model_name=\"m\"} 4.0\n"
            "z_count{engine=\"0\",model_name=\"m\"} 4.0\n"
            "z_sum{engine=\"0\",model_name=\"m\"} 2.0000012e+06\n"
            "# HELP s Sizes.\n"
            "# TYPE s summary\n"
            "s_count 2.0\n"
            "s_sum 300.0\n");
}

TEST(Metrics, Buckets) {
  EXPECT_EQ(buckets_of_125(100), (std::vector<double>{1, 2, 5, 10, 20, 50, 100}));
  EXPECT_EQ(buckets_of_125(49), (std::vector<double>{1, 2, 5, 10, 20}));
}

}  // namespace
}  // namespace proa
