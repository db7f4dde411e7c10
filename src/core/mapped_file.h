// A file mapped read-only into memory: weights are used where they lie.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "core/result.h"

namespace proa {

// Owns the mapping; views into bytes() live as long as this object (moving it keeps them valid). A file that another
// process truncates while it is mapped ends this one with SIGBUS: replace checkpoints by rename, never in place.
class MappedFile {
 public:
  // What the kernel should expect of a range; a hint, so its failure is not reported.
  enum class Advice {
    sequential,  // read ahead strongly
    random,      // do not read ahead
    will_need,   // start reading now
  };

  // Maps a regular, non-empty file. Errors name the path and what the system said.
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // `offset` and `length` in bytes, within bytes(); length 0 means up to the end.
  void advise(Advice advice, size_t offset = 0, size_t length = 0) const;

 private:
  MappedFile() = default;

  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace proa
