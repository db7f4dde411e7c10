#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "bench/report.h"

namespace proa {
namespace {

// Files grow over months: a column is added at the end or not at all.
constexpr const char* kHeader =
    "date,commit,version,device,description,cpu_model,threads,clock_mhz,command,model,quantization,weights,"
    "kv_cache_dtype,what,part,num_tokens,depth,batch,repeats,seconds,seconds_min,seconds_max,tokens_per_second,bytes,"
    "flops,bytes_per_second,flops_per_second,read_probe,arithmetic,arithmetic_probe,limit_tokens_per_second,share,"
    "share_min,share_max,distinct_experts,expected_experts,kl,checks\n";

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}
std::string number(const std::optional<double>& value) { return value ? number(*value) : ""; }
std::string number_of(const std::vector<double>& values) { return values.empty() ? "" : number(median(values)); }

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string result = "\"";
  for (char c : text) {
    if (c == '"') result += '"';
    result += c == '\n' || c == '\r' ? ' ' : c;
  }
  return result + "\"";
}

std::string lines(const BenchReport& report) {
  std::string text;
  for (const BenchRow& row : report.rows) {
    const Summary time = row.time(), share = row.share();
    const auto measured = [](const Summary& s, double value) { return s.count > 0 ? number(value) : ""; };
    const bool has_tokens = row.num_tokens > 0;
    const std::string cells[] = {
        report.date,
        report.commit,
        report.version,
        report.device,
        report.description,
        report.cpu_model,
        report.threads > 0 ? std::to_string(report.threads) : "",
        number(report.clock_mhz),
        report.command,
        row.model,
        row.quantization,
        row.weights,
        row.kv_cache_dtype,
        to_string(row.what),
        row.part,
        has_tokens ? std::to_string(row.num_tokens) : "",
        has_tokens ? std::to_string(row.depth) : "",
        has_tokens ? std::to_string(row.batch) : "",
        time.count > 0 ? std::to_string(time.count) : "",
        measured(time, time.median),
        measured(time, time.min),
        measured(time, time.max),
        number(row.tokens_per_second()),
        number(row.bytes),
        number(row.flops),
        number(row.bytes_per_second()),
        number(row.flops_per_second()),
        number_of(row.read_probe),
        row.arithmetic ? to_string(*row.arithmetic) : "",
        number_of(row.arithmetic_probe),
        number(row.limit_tokens_per_second()),
        measured(share, share.median),
        measured(share, share.min),
        measured(share, share.max),
        number(row.distinct_experts),
        number(row.expected_experts),
        number(row.kl),
        report.failures.empty() ? "passed" : "failed",
    };
    for (const std::string& cell : cells) text += (&cell == cells ? "" : ",") + quoted(cell);
    text += "\n";
  }
  return text;
}

Error write_error(const std::string& path, const std::string& actual) {
  return {.doing = "write", .where = path, .expected = "a place that takes it", .actual = actual};
}

Result<void> make_folder_of(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code failure;
  if (!folder.empty()) std::filesystem::create_directories(folder, failure);
  if (failure) return write_error(folder.string(), failure.message());
  return {};
}

// All of it, or an error.
Result<void> write_all(int file, std::string_view text, const std::string& path) {
  while (!text.empty()) {
    const ssize_t n = write(file, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return write_error(path, std::strerror(errno));
    text.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

}  // namespace

std::string to_csv(const BenchReport& report) { return kHeader + lines(report); }

Result<void> append_csv(const BenchReport& report, const std::string& path) {
  PROA_TRY(make_folder_of(path));
  std::string text = lines(report);
  std::error_code failure;
  const auto size = std::filesystem::file_size(path, failure);
  if (failure || size == 0) {
    text = kHeader + text;
  } else {
    std::ifstream before(path, std::ios::binary);
    std::string header(std::strlen(kHeader), '\0');
    before.read(header.data(), static_cast<std::streamsize>(header.size()));
    if (before.gcount() != static_cast<std::streamsize>(header.size()) || header != kHeader) {
      return Error{.doing = "append rows",
                   .where = path,
                   .expected = "a file with the columns of this program",
                   .actual = "one that begins otherwise",
                   .hint = "name a new file"};
    }
    before.seekg(-1, std::ios::end);
    if (before.get() != '\n') text = "\n" + text;  // a disk that was full cut the last row
  }
  const int file = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0) return write_error(path, std::strerror(errno));
  auto written = write_all(file, text, path);
  if (close(file) != 0 && written.ok()) written = write_error(path, std::strerror(errno));
  return written;
}

}  // namespace proa
