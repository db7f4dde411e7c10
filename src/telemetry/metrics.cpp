#include "telemetry/metrics.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace proa {

std::string python_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 64> buffer{};
  const auto [end, error] =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific);
  const std::string_view text(buffer.data(), static_cast<size_t>(end - buffer.data()));  // "-1.25e-05", shortest
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.data() + e + 1);
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c != '.' && c != '-') digits += c;
  }
  std::string result = text.starts_with('-') ? "-" : "";
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    result += digits.substr(0, 1);
    if (count > 1) result += "." + digits.substr(1);
    const int size = std::abs(exponent);
    return result + "e" + (exponent < 0 ? "-" : "+") + (size < 10 ? "0" : "") + std::to_string(size);
  }
  if (exponent < 0) return result + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1)
    return result + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  return result + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

std::string prometheus_number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  std::string text = python_float(value);
  const size_t dot = text.find('.');
  if (value <= 0 || dot == text.npos || dot <= 6) return text;
  // Python's client writes exponents sooner than Python, and always with "0" in front.
  std::string mantissa = text.substr(0, 1) + "." + text.substr(1, dot - 1) + text.substr(dot + 1);
  mantissa.erase(mantissa.find_last_not_of("0.") + 1);
  return mantissa + "e+0" + std::to_string(dot - 1);
}

void Histogram::observe(double value) {
  const auto bound = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  counts_[static_cast<size_t>(bound - bounds_.begin())].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

std::vector<uint64_t> Histogram::counts() const {
  std::vector<uint64_t> counts;
  counts.reserve(counts_.size());
  for (const auto& count : counts_) counts.push_back(count.load(std::memory_order_relaxed));
  return counts;
}

std::vector<double> buckets_of_125(double most) {
  std::vector<double> bounds;
  for (int64_t power = 1; static_cast<double>(power) <= most && power <= INT64_MAX / 100; power *= 10) {
    for (const int64_t factor : {1, 2, 5}) {
      const auto bound = static_cast<double>(factor * power);
      if (bound <= most) bounds.push_back(bound);
    }
  }
  return bounds;
}

void MetricsText::family(std::string_view name, std::string_view help, std::string_view type) {
  name_ = std::string(name) + (type == "counter" ? "_total" : "");
  text_ += "# HELP " + name_ + " ";
  text_.append(help).append("\n# TYPE " + name_ + " ").append(type).append("\n");
}

void MetricsText::counter(std::string_view name, std::string_view help) { family(name, help, "counter"); }
void MetricsText::gauge(std::string_view name, std::string_view help) { family(name, help, "gauge"); }
void MetricsText::histogram(std::string_view name, std::string_view help) { family(name, help, "histogram"); }

void MetricsText::summary(std::string_view name, std::string_view help) { family(name, help, "summary"); }

void MetricsText::line(std::string_view suffix, Labels labels, double value) {
  std::sort(labels.begin(), labels.end());
  text_.append(name_).append(suffix);
  for (size_t i = 0; i < labels.size(); ++i) {
    text_.append(i == 0 ? "{" : ",").append(labels[i].first).append("=\"");
    for (const char c : labels[i].second) {
      if (c == '\n') {
        text_ += "\\n";
        continue;
      }
      if (c == '\\' || c == '"') text_ += '\\';
      text_ += c;
    }
    text_ += '"';
  }
  if (!labels.empty()) text_ += '}';
  text_ += " " + prometheus_number(value) + "\n";
}

void MetricsText::sample(const Labels& labels, double value) { line("", labels, value); }

void MetricsText::sample(const Labels& labels, const Histogram& histogram) {
  const std::vector<uint64_t> counts = histogram.counts();
  uint64_t below = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    below += counts[i];
    Labels with_bound = labels;
    with_bound.emplace_back("le", i < histogram.bounds().size() ? prometheus_number(histogram.bounds()[i]) : "+Inf");
    line("_bucket", std::move(with_bound), static_cast<double>(below));
  }
  line("_count", labels, static_cast<double>(below));
  line("_sum", labels, histogram.sum());
}

void MetricsText::sample(const Labels& labels, double count, double sum) {
  line("_count", labels, count);
  line("_sum", labels, sum);
}

void MetricsText::counter(std::string_view name, std::string_view help, const Labels& labels, double value) {
  counter(name, help);
  sample(labels, value);
}
void MetricsText::gauge(std::string_view name, std::string_view help, const Labels& labels, double value) {
  gauge(name, help);
  sample(labels, value);
}
void MetricsText::histogram(std::string_view name, std::string_view help, const Labels& labels,
                            const Histogram& histogram_) {
  histogram(name, help);
  sample(labels, histogram_);
}

}  // namespace proa
