#include "bench/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "core/output_path.h"
#include "core/text.h"

namespace proa {
namespace {

constexpr double kWidth = 760, kHeight = 440;
constexpr double kLeft = 76, kRight = 150, kTop = 84, kBottom = 60;

// Distinct for the colour-blind, and readable on white and on near-black.
constexpr const char* kColors[] = {"#2a78d6", "#d9730d", "#1b9e77", "#b5489a", "#8a6d00", "#c0392b"};
constexpr int kNumColors = static_cast<int>(std::size(kColors));

constexpr const char* kStyle =
    "<style>\n"
    "svg{background:#fff;font-family:system-ui,-apple-system,'Segoe UI',sans-serif}\n"
    "text{fill:#24292f;font-size:12px}.title{font-size:16px;font-weight:600}.note{fill:#656d76;font-size:11px}\n"
    ".grid{stroke:#d8dee4;stroke-width:1}.axis{stroke:#8c959f;stroke-width:1}\n"
    "@media (prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.note{fill:#9198a1}"
    ".grid{stroke:#2b313a}.axis{stroke:#656d76}}\n"
    "</style>\n";

struct Point {
  int64_t x;
  double value, low, high;
  std::optional<double> limit, share;
};

struct Series {
  std::string name;
  std::vector<Point> points;  // by x
};

std::string escape(const std::string& text) {
  std::string result;
  for (char c : text) {
    switch (c) {
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '&':
        result += "&amp;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
  }
  return result;
}

std::string n(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string tick(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.10g", value);
  return text;
}

// "8,192" would need a locale; "8K" is what people say.
std::string tokens_text(int64_t tokens) {
  if (tokens >= 1024 && tokens % 1024 == 0) return std::to_string(tokens / 1024) + "K";
  return std::to_string(tokens);
}

bool on_sweep(const BenchRow& row, Sweep sweep) {
  if (!row.tokens_per_second()) return false;
  return row.what == (sweep == Sweep::prefill_length ? What::prefill : What::decode);
}

int64_t position(const BenchRow& row, Sweep sweep) {
  return sweep == Sweep::prefill_length ? row.num_tokens : sweep == Sweep::decode_depth ? row.depth : row.batch;
}

// What stays fixed along a sweep: of the other two of length, depth and batch the smallest that the series has.
std::vector<Series> collect(const BenchReport& report, Sweep sweep) {
  std::vector<Series> result;
  const auto fixed = [&](const BenchRow& row) { return sweep == Sweep::decode_batch ? row.depth : int64_t{row.batch}; };
  bool many_models = false;
  for (const BenchRow& row : report.rows) many_models |= row.model != report.rows.front().model;
  std::map<std::string, int64_t> smallest;
  const auto name = [&](const BenchRow& row) {
    std::string text = many_models ? row.model + " " : "";
    text += row.quantization.empty() ? "tok/s" : row.quantization;
    if (!row.kv_cache_dtype.empty()) text += ", KV " + row.kv_cache_dtype;
    return text;
  };
  for (const BenchRow& row : report.rows) {
    if (!on_sweep(row, sweep)) continue;
    const auto [entry, is_new] = smallest.try_emplace(name(row), fixed(row));
    if (!is_new) entry->second = std::min(entry->second, fixed(row));
  }
  for (const BenchRow& row : report.rows) {
    if (!on_sweep(row, sweep) || fixed(row) != smallest[name(row)]) continue;
    auto series = std::find_if(result.begin(), result.end(), [&](const Series& s) { return s.name == name(row); });
    if (series == result.end()) series = result.insert(result.end(), {name(row), {}});
    const Summary time = row.time();
    const double tokens = static_cast<double>(row.num_tokens) * row.batch;
    const Summary share = row.share();
    series->points.push_back({position(row, sweep), tokens / time.median, tokens / time.max, tokens / time.min,
                              row.limit_tokens_per_second(),
                              share.count > 0 ? std::optional(share.median) : std::nullopt});
  }
  for (Series& series : result) {
    std::stable_sort(series.points.begin(), series.points.end(), [](auto& a, auto& b) { return a.x < b.x; });
    const auto same = [](auto& a, auto& b) { return a.x == b.x; };  // measured twice: the first stands
    series.points.erase(std::unique(series.points.begin(), series.points.end(), same), series.points.end());
  }
  std::erase_if(result, [](const Series& series) { return series.points.size() < 2; });
  return result;
}

// 1, 2 or 5 times a power of ten, about a fifth of the range.
double nice_step(double range) {
  const double power = std::pow(10, std::floor(std::log10(range / 5)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (range / (factor * power) <= 6) return factor * power;
  }
  return 10 * power;
}

struct Scale {
  std::vector<int64_t> xs;  // each has its place: lengths double, and depth 0 is one of them
  double top = 1;

  double x(int64_t value) const {
    const auto index = std::lower_bound(xs.begin(), xs.end(), value) - xs.begin();
    const double width = kWidth - kLeft - kRight - 40;
    return kLeft + 20 + (xs.size() > 1 ? width * static_cast<double>(index) / static_cast<double>(xs.size() - 1) : 0);
  }
  double y(double value) const { return kHeight - kBottom - (kHeight - kTop - kBottom) * std::min(1.0, value / top); }
};

std::string text_at(double x, double y, const char* attributes, const std::string& text) {
  return "<text x=\"" + n(x) + "\" y=\"" + n(y) + "\" " + attributes + ">" + escape(text) + "</text>\n";
}

std::string line(double x1, double y1, double x2, double y2, const std::string& attributes) {
  return "<line x1=\"" + n(x1) + "\" y1=\"" + n(y1) + "\" x2=\"" + n(x2) + "\" y2=\"" + n(y2) + "\" " + attributes +
         "/>\n";
}

std::string polyline(const std::vector<std::pair<double, double>>& points, const std::string& attributes) {
  std::string text = "<polyline fill=\"none\" points=\"";
  for (const auto& [x, y] : points) text += n(x) + "," + n(y) + " ";
  if (!points.empty()) text.pop_back();
  return text + "\" " + attributes + "/>\n";
}

const char* title(Sweep sweep) {
  switch (sweep) {
    case Sweep::prefill_length:
      return "Prefill over prompt length";
    case Sweep::decode_depth:
      return "Decode over depth of context";
    case Sweep::decode_batch:
      break;
  }
  return "Decode over sequences at once";
}

const char* x_title(Sweep sweep) {
  return sweep == Sweep::prefill_length ? "tokens of the prompt"
         : sweep == Sweep::decode_depth ? "tokens in the context"
                                        : "sequences";
}

}  // namespace

const char* to_string(Sweep sweep) {
  return sweep == Sweep::prefill_length ? "prefill-length"
         : sweep == Sweep::decode_depth ? "decode-depth"
                                        : "decode-batch";
}

std::string plot_svg(const BenchReport& report, Sweep sweep) {
  const std::vector<Series> all = collect(report, sweep);
  if (all.empty()) return "";

  Scale scale;
  double top_value = 0, top_limit = 0;
  for (const Series& series : all) {
    for (const Point& point : series.points) {
      scale.xs.push_back(point.x);
      top_value = std::max(top_value, point.high);
      if (point.limit) top_limit = std::max(top_limit, *point.limit);
    }
  }
  std::sort(scale.xs.begin(), scale.xs.end());
  scale.xs.erase(std::unique(scale.xs.begin(), scale.xs.end()), scale.xs.end());
  // A limit far above would press the measured lines to the floor: it is then named in words.
  const bool limit_fits = top_limit <= 4 * top_value;
  const double range = 1.08 * (limit_fits ? std::max(top_value, top_limit) : top_value);
  const double step = nice_step(range);
  scale.top = step * std::ceil(range / step);

  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + n(kWidth) + " " + n(kHeight) +
                    "\" width=\"" + n(kWidth) + "\" height=\"" + n(kHeight) + "\" role=\"img\">\n";
  const BenchRow& first = report.rows.front();
  svg += "<title>" + escape(std::string(title(sweep)) + ", " + first.model) + "</title>\n" + kStyle;
  svg += text_at(20, 30, "class=\"title\"", std::string(title(sweep)) + " - " + first.model);
  std::string where = report.device == "cpu" ? report.cpu_model + ", " + report.description : report.description;
  where += first.weights.empty() ? "" : ", weights " + first.weights;
  svg += text_at(20, 49, "class=\"note\"", where);
  svg += text_at(20, 64, "class=\"note\"",
                 "proa " + report.version + (report.commit.empty() ? "" : " " + report.commit) + ", " +
                     report.date.substr(0, 10) + "; bars: slowest to fastest sample; percent: share of the limit");

  for (int i = 0; i * step <= scale.top * 1.0001; ++i) {
    const double y = scale.y(i * step);
    svg += line(kLeft, y, kWidth - kRight, y, i == 0 ? "class=\"axis\"" : "class=\"grid\"");
    svg += text_at(kLeft - 8, y + 4, "text-anchor=\"end\"", tick(i * step));
  }
  for (int64_t x : scale.xs) {
    svg += line(scale.x(x), kHeight - kBottom, scale.x(x), kHeight - kBottom + 5, "class=\"axis\"");
    svg += text_at(scale.x(x), kHeight - kBottom + 19, "text-anchor=\"middle\"",
                   sweep == Sweep::decode_batch ? std::to_string(x) : tokens_text(x));
  }
  svg += text_at((kLeft + kWidth - kRight) / 2, kHeight - 16, "text-anchor=\"middle\"", x_title(sweep));
  svg += "<text transform=\"translate(18 " + n((kTop + kHeight - kBottom) / 2) +
         ") rotate(-90)\" text-anchor=\"middle\">tokens / s</text>\n";

  std::vector<std::pair<double, std::string>> labels;  // y and element after its y, at the right end of the lines
  for (size_t s = 0; s < all.size(); ++s) {
    const std::string color = kColors[s % kNumColors];
    std::vector<std::pair<double, double>> values, limits;
    for (const Point& p : all[s].points) {
      values.emplace_back(scale.x(p.x), scale.y(p.value));
      if (p.limit && limit_fits) limits.emplace_back(scale.x(p.x), scale.y(*p.limit));
    }
    if (limits.size() > 1) {
      svg += polyline(limits, "stroke=\"" + color + "\" stroke-width=\"1.5\" stroke-dasharray=\"5 4\" opacity=\"0.8\"");
      labels.emplace_back(limits.back().second, "style=\"fill:" + color + "\" class=\"note\">limit");
    }
    svg += polyline(values, "stroke=\"" + color + "\" stroke-width=\"2.2\" stroke-linejoin=\"round\"");
    for (const Point& p : all[s].points) {
      const double x = scale.x(p.x);
      svg += line(x, scale.y(p.low), x, scale.y(p.high), "stroke=\"" + color + "\" stroke-width=\"1.5\"");
      for (double end : {p.low, p.high}) {
        svg += line(x - 4, scale.y(end), x + 4, scale.y(end), "stroke=\"" + color + "\" stroke-width=\"1.5\"");
      }
      svg += "<circle cx=\"" + n(x) + "\" cy=\"" + n(scale.y(p.value)) + "\" r=\"4\" fill=\"" + color + "\"><title>" +
             escape(digits(p.value) + " tok/s at " + std::to_string(p.x)) + "</title></circle>\n";
      std::string label = digits(p.value);
      if (p.share) {
        char percent[16];
        std::snprintf(percent, sizeof percent, " (%.0f%%)", *p.share * 100);
        label += percent;
      }
      // Above the bar of the first series and below that of the second, so that they seldom meet; a limit is above.
      const bool above = s % 2 == 0 && (all.size() > 1 || limits.empty());
      const double y = above ? scale.y(p.high) - 7 : scale.y(p.low) + 15;
      svg += text_at(x, y, "text-anchor=\"middle\" class=\"note\"", label);
    }
    const double end = values.back().second;
    labels.emplace_back(end, "style=\"fill:" + color + ";font-weight:600\">" + escape(all[s].name));
    if (!limit_fits && all[s].points.back().limit) {
      labels.emplace_back(end + 1, "class=\"note\">limit at the end: " + digits(*all[s].points.back().limit));
    }
  }
  std::sort(labels.begin(), labels.end());
  for (size_t i = 1; i < labels.size(); ++i) labels[i].first = std::max(labels[i].first, labels[i - 1].first + 15);
  for (const auto& [y, label] : labels) {
    svg += "<text x=\"" + n(kWidth - kRight + 10) + "\" y=\"" + n(y + 4) + "\" " + label + "</text>\n";
  }
  return svg + "</svg>\n";
}

Result<std::vector<std::string>> write_plots(const BenchReport& report, const std::string& prefix) {
  std::vector<std::string> paths;
  for (Sweep sweep : {Sweep::prefill_length, Sweep::decode_depth, Sweep::decode_batch}) {
    const std::string svg = plot_svg(report, sweep);
    if (svg.empty()) continue;
    const std::string path = prefix + "-" + to_string(sweep) + ".svg";
    PROA_TRY(write_file(path, svg));
    paths.push_back(path);
  }
  return paths;
}

}  // namespace proa
