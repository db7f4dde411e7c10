// Files and folders that appear whole or not at all: written under another name beside the final one, then renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/result.h"

namespace proa {

// PATH.partial-PID until commit(), of this object alone. It is removed when the object goes without one; what a killed
// run left stays.
class OutputPath {
 public:
  // Errors: `path` is there already (unless `replace`), its folder is missing or takes no files. A folder is replaced
  // only where nothing but a checkpoint can be lost: it is empty, or holds config.json and no folder.
  static Result<OutputPath> create(const std::string& path, bool folder, bool replace);
  // PATH.partial, which a run that ended early leaves and the next one finds again. Errors: those of create().
  static Result<OutputPath> resume(const std::string& path, bool folder, bool replace);
  OutputPath(OutputPath&& other) noexcept;
  OutputPath& operator=(OutputPath&&) = delete;
  ~OutputPath();

  const std::string& partial() const { return partial_; }
  Result<void> commit();

 private:
  OutputPath(std::string path, std::string partial, bool replace, bool keep = false)
      : path_(std::move(path)), partial_(std::move(partial)), replace_(replace), keep_(keep) {}
  std::string path_, partial_;
  bool replace_, keep_;
};

class OutputFile {
 public:
  static Result<OutputFile> create(const std::string& path);  // cuts what is there
  static Result<OutputFile> open(const std::string& path);    // keeps what is there; a new file where nothing is
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  Result<void> write(std::span<const std::byte> bytes);
  // At this place of the file; what is beyond the end is zeros.
  Result<void> write_at(uint64_t offset, std::span<const std::byte> bytes);
  // Makes the file this long, with room on the disk for all of it where the disk can promise that.
  Result<void> reserve(uint64_t bytes);
  Result<void> sync();  // what was written survives a loss of power
  // Only after this is the file known to be whole: a network disk may say here that it was full.
  Result<void> close();

 private:
  OutputFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
};

// Writes a file so that `path` holds either all of it or what it held before; its folder is made.
Result<void> write_file(const std::string& path, std::string_view bytes);

// Bytes free for this user on the disk that holds the folder of `path`. Error: there is no such folder.
Result<uint64_t> free_disk_space(const std::string& path);

}  // namespace proa
