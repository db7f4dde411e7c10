// Sweeps of a report as SVG files that stand for themselves: axes, limit, spread, device and commit; readable on light
// and dark backgrounds.
#pragma once

#include <string>
#include <vector>

#include "bench/report.h"

namespace proa {

enum class Sweep { prefill_length, decode_depth, decode_batch };
const char* to_string(Sweep sweep);  // "prefill-length" ...

// The plot, a series per quantization and KV dtype; empty where fewer than two points lie on the sweep.
std::string plot_svg(const BenchReport& report, Sweep sweep);

// Writes PREFIX-prefill-length.svg and so on for each sweep that has points. Returns the paths written.
Result<std::vector<std::string>> write_plots(const BenchReport& report, const std::string& prefix);

}  // namespace proa
