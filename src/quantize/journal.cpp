#include "quantize/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <system_error>
#include <utility>

#include "checkpoint/printable.h"

namespace proa {
namespace {

Error system_error(const std::string& path, int number) {
  return {"write journal", path, "", std::generic_category().message(number), ""};
}

Result<void> write_all(const std::string& path, int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return system_error(path, errno);
    text.remove_prefix(static_cast<size_t>(written));
  }
  if (::fdatasync(fd) != 0) return system_error(path, errno);
  return {};
}

}  // namespace

Result<Journal> Journal::open(const std::string& path, const std::string& key, size_t items, bool restart) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return system_error(path, errno);
  Journal journal(path, fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return Error{"write journal", path, "nobody else at work on it", "another process", ""};
  }
  if (restart && ::ftruncate(fd, 0) != 0) return system_error(path, errno);
  std::string text;
  char buffer[65536];
  for (ssize_t n; (n = ::read(fd, buffer, sizeof buffer)) != 0;) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(path, errno);
    text.append(buffer, static_cast<size_t>(n));
  }
  journal.done_.resize(items);
  const size_t whole = text.rfind('\n');
  if (whole == text.npos) {  // empty, or cut off in its first line
    journal.is_new_ = true;
    if (::ftruncate(fd, 0) != 0 || ::lseek(fd, 0, SEEK_SET) < 0) return system_error(path, errno);
    PROA_TRY(write_all(path, fd, key + "\n"));
    return journal;
  }
  const std::string found = text.substr(0, text.find('\n'));
  if (found != key) {
    return Error{"take up an earlier run", path, "\"" + key + "\"", "\"" + printable(found) + "\"",
                 "the same source, precision and calibration, or --restart to begin anew"};
  }
  for (size_t at = found.size() + 1; at <= whole;) {
    const size_t end = text.find('\n', at);
    size_t item = 0;
    const auto parsed = std::from_chars(text.data() + at, text.data() + end, item);
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + end || item >= items) {
      return Error{"take up an earlier run", path, "an item below " + std::to_string(items),
                   "\"" + printable(std::string_view(text).substr(at, end - at)) + "\"", "--restart to begin anew"};
    }
    journal.done_[item] = true;
    at = end + 1;
  }
  if (::ftruncate(fd, static_cast<off_t>(whole + 1)) != 0 || ::lseek(fd, 0, SEEK_END) < 0) {
    return system_error(path, errno);
  }
  return journal;
}

Journal::Journal(Journal&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      is_new_(other.is_new_),
      done_(std::move(other.done_)) {}

Journal::~Journal() {
  if (fd_ >= 0) ::close(fd_);
}

Result<void> Journal::add(const std::vector<uint64_t>& items) {
  std::string text;
  for (const uint64_t item : items) text += std::to_string(item) + "\n";
  return write_all(path_, fd_, text);
}

}  // namespace proa
