// Counters, gauges and histograms, and their text in Prometheus' format (version 0.0.4) as Python's client writes it.
// Writing and reading take no lock, so that a scrape costs nobody anything.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace proa {

std::string python_float(double value);       // repr(): "1.0", "0.25", "1e-05", "1e+16", "inf", "nan"
std::string prometheus_number(double value);  // what Python's client makes of it: "1e+06", "+Inf", "NaN"

class Counter {
 public:
  void add(double amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Gauge {
 public:
  void set(double value) { value_.store(value, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Histogram {
 public:
  // Upper bounds in ascending order; what is above the last one goes into +Inf.
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void observe(double value);

  const std::vector<double>& bounds() const { return bounds_; }
  std::vector<uint64_t> counts() const;  // [bounds + 1] of each bucket alone
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::vector<std::atomic<uint64_t>> counts_;
  std::atomic<double> sum_{0};
};

// 1, 2, 5, 10, 20, 50 ... up to the largest that is not above `most`: vLLM's bounds for numbers of tokens.
std::vector<double> buckets_of_125(double most);

using Labels = std::vector<std::pair<std::string, std::string>>;

// Puts families together. Names are those of the family, without suffixes: a counter's samples get `_total`, a
// histogram's `_bucket`, `_count` and `_sum`. Labels come out in order of their names.
class MetricsText {
 public:
  void counter(std::string_view name, std::string_view help);
  void gauge(std::string_view name, std::string_view help);
  void histogram(std::string_view name, std::string_view help);
  void summary(std::string_view name, std::string_view help);
  // Of the family begun last.
  void sample(const Labels& labels, double value);
  void sample(const Labels& labels, const Histogram& histogram);
  void sample(const Labels& labels, double count, double sum);  // of a summary

  // A gauge or counter with one sample.
  void counter(std::string_view name, std::string_view help, const Labels& labels, double value);
  void gauge(std::string_view name, std::string_view help, const Labels& labels, double value);
  void histogram(std::string_view name, std::string_view help, const Labels& labels, const Histogram& histogram);

  const std::string& text() const { return text_; }

 private:
  void family(std::string_view name, std::string_view help, std::string_view type);
  void line(std::string_view suffix, Labels labels, double value);

  std::string name_;
  std::string text_;
};

}  // namespace proa
