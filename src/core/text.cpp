#include "core/text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace proa {
namespace {

std::string print(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace

std::string digits(double value) {
  const double size = std::abs(value);
  if (size != 0 && (size < 0.001 || size >= 1e15)) return print("%.2e", value);
  return print(size >= 100 ? "%.0f" : size >= 10 ? "%.1f" : size >= 1 ? "%.2f" : "%.3f", value);
}

std::string digits(const std::optional<double>& value) { return value ? digits(*value) : ""; }

std::string seconds_text(double seconds) {
  if (seconds >= 1) return digits(seconds) + " s";
  if (seconds >= 1e-3) return digits(seconds * 1e3) + " ms";
  return digits(seconds * 1e6) + " us";
}

std::string bytes_text(double bytes) {
  if (bytes >= 1e12) return digits(bytes * 1e-12) + " TB";
  if (bytes >= 1e9) return digits(bytes * 1e-9) + " GB";
  if (bytes >= 1e6) return digits(bytes * 1e-6) + " MB";
  if (bytes >= 1e3) return digits(bytes * 1e-3) + " kB";
  return print("%.0f B", bytes);
}

std::string percent_text(double part) { return print("%.1f %%", part * 100); }

std::string columns(const std::vector<std::vector<std::string>>& rows, size_t left) {
  if (rows.empty()) return "";
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size() && c < widths.size(); ++c) {
      if (&row != &rows.front() || rows.size() == 1) widths[c] = std::max(widths[c], row[c].size());
    }
  }
  for (size_t c = 0; c < widths.size(); ++c) {
    if (widths[c] > 0) widths[c] = std::max(widths[c], rows.front()[c].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size() && c < widths.size(); ++c) {
      if (widths[c] == 0) continue;
      if (!line.empty()) line += "  ";
      const std::string pad(widths[c] - std::min(widths[c], row[c].size()), ' ');
      line += c < left ? row[c] + pad : pad + row[c];
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    text += line + "\n";
  }
  return text;
}

}  // namespace proa
