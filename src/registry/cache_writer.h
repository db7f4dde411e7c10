// Writing into the cache that hub_cache.h describes, so that another program never sees half of anything.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <utility>

#include "core/result.h"

namespace proa {

// Held while a blob is downloaded: .locks/models--ORG--NAME/BLOB.lock by flock, as huggingface_hub does it, so that its
// downloads and ours wait for each other.
class BlobLock {
 public:
  // Waits; `waiting` is called once if it has to. The error when `cancelled` says so is the caller's to make: then the
  // lock is not held.
  static Result<BlobLock> acquire(const std::string& cache, const std::string& repository_name, const std::string& blob,
                                  const std::atomic<bool>* cancelled, const std::function<void()>& waiting);

  BlobLock(BlobLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  BlobLock& operator=(BlobLock&&) = delete;
  ~BlobLock();
  bool held() const { return fd_ >= 0; }

 private:
  explicit BlobLock(int fd) : fd_(fd) {}
  int fd_;
};

// snapshots/COMMIT/PATH of the repository's folder as a relative link to blobs/BLOB; replaces another link or file.
// Folders on the way must be folders, not links.
Result<void> link_blob(const std::string& repository, const std::string& commit, const std::string& path,
                       const std::string& blob);

// refs/REVISION says COMMIT from now on; nothing when they are the same text.
Result<void> write_ref(const std::string& repository, const std::string& revision, const std::string& commit);

// A folder and those above it.
Result<void> make_folders(const std::string& folder);

}  // namespace proa
