// From a model's name on a hub to its files in the cache: what is to be fetched, and fetching it.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"
#include "registry/hub.h"
#include "registry/select.h"

namespace proa {

struct PullFile {
  HubFile file;          // size and etag known
  bool present = false;  // a blob of that size is there
  uint64_t partial = 0;  // bytes that an earlier download left
};

struct PullPlan {
  ModelName name;
  std::string revision;    // that was asked for
  std::string commit;      // that it means
  std::string cache;       // the hub's folder
  std::string repository;  // the model's folder in it
  std::string snapshot;    // the commit's folder in that
  std::vector<PullFile> files;
  uint64_t bytes = 0;    // of all files
  uint64_t missing = 0;  // of them, still to come
};

// Asks the hub. `cache`: empty as in ResolveOptions. Nothing is written.
Result<PullPlan> plan_pull(const Hub& hub, const std::string& model, const std::string& revision,
                           const std::string& cache, const Patterns& patterns);

// Read by another thread while pull() runs.
struct PullProgress {
  std::atomic<uint64_t> bytes = 0;  // of plan.missing; falls when a server makes a file begin anew
  std::atomic<size_t> files = 0;    // complete, of plan.files
};

// Fetches what is missing, `jobs` files at a time, into blobs/ETAG.incomplete; a file gets its name when its size and
// hash are right. The revision is written last, so that a broken pull leaves an older complete snapshot in use. What
// came of a file stays for the next pull unless it is wrong. On the first error, `cancelled` (that of the hub) is set
// so that the other files end. Errors: not enough room, a hash or size that differs, all that Hub names.
Result<void> pull(const Hub& hub, const PullPlan& plan, int jobs, std::atomic<bool>& cancelled, PullProgress& progress);

}  // namespace proa
