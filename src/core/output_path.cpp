#include "core/output_path.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

namespace proa {
namespace {

namespace fs = std::filesystem;

Error write_error(const std::string& path, int number) {
  return {"write file", path, "", std::generic_category().message(number), ""};
}

fs::path folder_of(const std::string& path) {
  fs::path whole(path);
  if (!whole.has_filename()) whole = whole.parent_path();  // "folder/"
  return whole.has_parent_path() ? whole.parent_path() : fs::path(".");
}

// PATH + what + PID, then with another number behind it.
std::string unique(const std::string& path, const char* what, int attempt) {
  return path + what + std::to_string(::getpid()) + (attempt == 0 ? "" : "-" + std::to_string(attempt));
}

// That a folder may be deleted for another one.
Result<void> check_replaceable(const std::string& folder) {
  std::error_code code;
  if (fs::is_empty(folder, code)) return {};
  bool only_files = true;
  fs::directory_iterator at(folder, code);
  for (const fs::directory_iterator last; !code && at != last; at.increment(code)) {
    std::error_code ignored;
    only_files = only_files && at->is_regular_file(ignored);
  }
  if (!code && only_files && fs::is_regular_file(fs::path(folder) / "config.json", code)) return {};
  return Error{"replace", folder, "an empty folder, or a config.json and no folders in it", "another folder",
               "remove it, or choose another name"};
}

// `path` without slashes behind it, once it is known that something may be written there.
Result<std::string> free_name(const std::string& path, bool folder, bool replace) {
  std::string whole = path;
  while (whole.size() > 1 && whole.ends_with('/')) whole.pop_back();
  std::error_code code;
  if (!fs::is_directory(folder_of(whole), code)) {
    return Error{"write", whole, "a folder " + folder_of(whole).string(), "none", ""};
  }
  if (fs::exists(fs::symlink_status(whole, code)) && (!replace || fs::is_directory(whole, code) != folder)) {
    return Error{"write", whole, "a name that is free", "a file or folder of that name",
                 "remove it, or choose another name"};
  }
  if (folder && fs::exists(whole, code)) PROA_TRY(check_replaceable(whole));
  return whole;
}

}  // namespace

Result<OutputPath> OutputPath::create(const std::string& path, bool folder, bool replace) {
  PROA_ASSIGN(const std::string whole, free_name(path, folder, replace));
  std::error_code code;
  for (int i = 0; i < 1000; ++i) {
    std::string partial = unique(whole, ".partial-", i);
    if (folder && fs::create_directory(partial, code)) return OutputPath(whole, std::move(partial), replace);
    if (folder && code) return Error{"create folder", partial, "", code.message(), ""};
    if (folder) continue;  // it is there
    const int fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) {
      ::close(fd);
      return OutputPath(whole, std::move(partial), replace);
    }
    if (errno != EEXIST) return write_error(partial, errno);
  }
  return Error{"write", whole, "a name beside it that is free", "none in 1000", "remove what is left of other runs"};
}

Result<OutputPath> OutputPath::resume(const std::string& path, bool folder, bool replace) {
  PROA_ASSIGN(const std::string whole, free_name(path, folder, replace));
  std::string partial = whole + ".partial";
  std::error_code code;
  if (folder) {
    fs::create_directory(partial, code);
    if (code || !fs::is_directory(partial, code)) {
      return Error{"create folder", partial, "", code ? code.message() : "a file of that name", ""};
    }
  }
  return OutputPath(whole, std::move(partial), replace, true);
}

OutputPath::OutputPath(OutputPath&& other) noexcept
    : path_(std::move(other.path_)),
      partial_(std::exchange(other.partial_, "")),
      replace_(other.replace_),
      keep_(other.keep_) {}

OutputPath::~OutputPath() {
  std::error_code code;
  if (!partial_.empty() && !keep_) fs::remove_all(partial_, code);
}

Result<void> OutputPath::commit() {
  std::error_code code;
  std::string old;
  if (replace_ && fs::is_directory(path_, code)) {  // rename replaces files, not folders with content
    PROA_TRY(check_replaceable(path_));
    for (int i = 0; old.empty() || fs::exists(fs::symlink_status(old, code)); ++i) old = unique(path_, ".old-", i);
    fs::rename(path_, old, code);
    if (code) return Error{"rename", path_ + " to " + old, "", code.message(), ""};
  }
  fs::rename(partial_, path_, code);
  if (code) {
    std::error_code ignored;
    if (!old.empty()) fs::rename(old, path_, ignored);
    return Error{"rename", partial_ + " to " + path_, "", code.message(), ""};
  }
  partial_.clear();
  if (!old.empty()) fs::remove_all(old, code);
  return {};
}

Result<OutputFile> OutputFile::create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return write_error(path, errno);
  return OutputFile(path, fd);
}

Result<OutputFile> OutputFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return write_error(path, errno);
  return OutputFile(path, fd);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

Result<void> OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), std::min<size_t>(bytes.size(), 1u << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return write_error(path_, errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

Result<void> OutputFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  if (::lseek(fd_, static_cast<off_t>(offset), SEEK_SET) < 0) return write_error(path_, errno);
  return write(bytes);
}

Result<void> OutputFile::reserve(uint64_t bytes) {
  const auto size = static_cast<off_t>(bytes);
  if (size > 0 && ::fallocate(fd_, 0, 0, size) == 0) return {};
  if (size > 0 && errno != EOPNOTSUPP && errno != ENOSYS) return write_error(path_, errno);
  if (::ftruncate(fd_, size) != 0) return write_error(path_, errno);
  return {};
}

Result<void> OutputFile::sync() {
  if (::fdatasync(fd_) != 0) return write_error(path_, errno);
  return {};
}

Result<void> OutputFile::close() {
  if (::close(std::exchange(fd_, -1)) != 0) return write_error(path_, errno);
  return {};
}

Result<void> write_file(const std::string& path, std::string_view bytes) {
  std::error_code code;
  const fs::path folder = folder_of(path);
  fs::create_directories(folder, code);
  if (code) return Error{"create folder", folder.string(), "", code.message(), ""};
  PROA_ASSIGN(OutputPath whole, OutputPath::create(path, false, true));
  PROA_ASSIGN(OutputFile file, OutputFile::create(whole.partial()));
  PROA_TRY(file.write(std::as_bytes(std::span(bytes))));
  PROA_TRY(file.close());
  return whole.commit();
}

Result<uint64_t> free_disk_space(const std::string& path) {
  std::error_code code;
  const fs::space_info space = fs::space(folder_of(path), code);
  if (code) return Error{"look at the disk of", path, "", code.message(), ""};
  return static_cast<uint64_t>(space.available);
}

}  // namespace proa
