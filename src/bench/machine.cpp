#include "bench/machine.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string>

#include "bench/commit.h"

namespace proa {
namespace {

// What follows "key:" in a file of lines like "model name : AMD EPYC"; empty if there is none.
std::string value_of(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line, '\0');  // device trees end their strings with a zero
  while (!line.empty() && static_cast<unsigned char>(line.back()) <= ' ') line.pop_back();
  return line;
}

std::optional<double> number(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || !(value > 0)) return {};
  return value;
}

std::string cpu_model() {
  for (const char* key : {"model name", "Model", "Hardware"}) {
    if (std::string value = value_of("/proc/cpuinfo", key); !value.empty()) return value;
  }
  return first_line("/sys/firmware/devicetree/base/model");
}

std::optional<double> clock_mhz() {
  if (const auto khz = number(first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"))) return *khz / 1e3;
  return number(value_of("/proc/cpuinfo", "cpu MHz"));
}

// Of the highest level that the system names.
std::optional<int64_t> last_level_cache() {
  for (int index = 4; index >= 0; --index) {
    const std::string text =
        first_line("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");  // "32768K"
    if (const auto size = number(text)) {
      const double unit = text.back() == 'K' ? 1024 : text.back() == 'M' ? 1024 * 1024 : 1;
      return static_cast<int64_t>(*size * unit);
    }
  }
  return {};
}

std::optional<int64_t> memory_bytes() {
  const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  if (pages <= 0 || size <= 0) return {};
  return int64_t{pages} * size;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace

std::optional<int64_t> peak_memory_bytes() {
  if (const auto kib = number(value_of("/proc/self/status", "VmHWM"))) return static_cast<int64_t>(*kib * 1024);
  return {};
}

BenchReport describe_machine(const Backend& backend, int threads, std::string command) {
  BenchReport report;
  report.device = backend.name();
  report.description = backend.description();
  report.cpu_model = cpu_model();
  report.threads = threads;
  report.clock_mhz = clock_mhz();
  report.memory_bytes = memory_bytes();
  report.last_level_cache = last_level_cache();
  report.date = utc_now();
  report.command = std::move(command);
  report.version = PROA_VERSION;
  report.commit = PROA_COMMIT;
  return report;
}

}  // namespace proa
