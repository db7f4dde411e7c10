#include "registry/cache_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <thread>

namespace proa {
namespace {

namespace fs = std::filesystem;

Error write_error(const fs::path& path, const std::error_code& code) {
  return {.doing = "write cache", .where = path.string(), .actual = code.message()};
}

Error write_error(const fs::path& path, int number) {
  return write_error(path, std::error_code(number, std::generic_category()));
}

// Beside `path`, hidden, and of this process alone.
fs::path temporary(const fs::path& path) {
  static std::atomic<unsigned> counter = 0;
  return path.parent_path() / (".proa-" + std::to_string(::getpid()) + "-" + std::to_string(counter++));
}

Result<void> replace(const fs::path& from, const fs::path& to) {
  std::error_code code;
  fs::rename(from, to, code);
  if (!code) return {};
  std::error_code ignored;
  fs::remove(from, ignored);
  return write_error(to, code);
}

}  // namespace

Result<void> make_folders(const std::string& folder) {
  std::error_code code;
  fs::create_directories(folder, code);
  if (code) return write_error(folder, code);
  return {};
}

Result<BlobLock> BlobLock::acquire(const std::string& cache, const std::string& repository_name,
                                   const std::string& blob, const std::atomic<bool>* cancelled,
                                   const std::function<void()>& waiting) {
  const fs::path folder = fs::path(cache) / ".locks" / repository_name;
  PROA_TRY(make_folders(folder.string()));
  const fs::path path = folder / (blob + ".lock");
  bool said = false;
  for (;;) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0664);
    if (fd < 0) return write_error(path, errno);
    BlobLock lock(fd);
    while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK && errno != EINTR) return write_error(path, errno);
      if (cancelled && *cancelled) return BlobLock(-1);
      if (!said && waiting) waiting();
      said = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    // Whoever held it may have removed the file, and then another one locks a new file of that name.
    struct stat ours {
    }, there{};
    if (::fstat(fd, &ours) == 0 && ::stat(path.c_str(), &there) == 0 && ours.st_ino == there.st_ino) return lock;
  }
}

BlobLock::~BlobLock() {
  if (fd_ >= 0) ::close(fd_);
}

Result<void> link_blob(const std::string& repository, const std::string& commit, const std::string& path,
                       const std::string& blob) {
  fs::path folder = fs::path(repository) / "snapshots" / commit;
  PROA_TRY(make_folders(folder.string()));
  std::string target = "../../blobs/" + blob;
  for (const fs::path& part : fs::path(path).parent_path()) {
    folder /= part;
    target.insert(0, "../");
    std::error_code code;
    fs::create_directory(folder, code);
    if (!fs::is_directory(fs::symlink_status(folder, code))) return write_error(folder, ENOTDIR);
  }
  const fs::path link = folder / fs::path(path).filename();
  std::error_code code;
  if (fs::read_symlink(link, code) == target) return {};
  const fs::path fresh = temporary(link);
  fs::create_symlink(target, fresh, code);
  if (code) return write_error(fresh, code);
  return replace(fresh, link);
}

Result<void> write_ref(const std::string& repository, const std::string& revision, const std::string& commit) {
  if (revision == commit) return {};
  const fs::path path = fs::path(repository) / "refs" / revision;
  std::string before(commit.size() + 1, '\0');
  std::ifstream old(path, std::ios::binary);
  old.read(before.data(), static_cast<std::streamsize>(before.size()));
  before.resize(static_cast<size_t>(old.gcount()));
  if (before == commit) return {};  // a cache that cannot be written, but holds all, is no error
  PROA_TRY(make_folders(path.parent_path().string()));
  const fs::path fresh = temporary(path);
  std::ofstream file(fresh, std::ios::binary);
  file << commit;
  file.close();
  if (!file) return write_error(fresh, errno);
  return replace(fresh, path);
}

}  // namespace proa
