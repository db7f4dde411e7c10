// A Hugging Face-compatible hub: which files a revision of a model has, and where they are. Source: the hub's HTTP
// interface, /api/models/ID/revision/REV and /ID/resolve/REV/FILE.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "registry/http.h"

namespace proa {

struct HubOptions {
  std::string endpoint;     // empty: HF_ENDPOINT, else https://huggingface.co
  std::string token;        // empty: none; see stored_token()
  double timeout_s = 30;    // without an answer, or with hardly any bytes
  int retries = 5;          // in a row; what a server asks for by Retry-After is waited for, up to a minute
  double retry_wait_s = 1;  // before the first, doubled each time, at most 30
  const std::atomic<bool>* cancelled = nullptr;
  std::function<void(const std::string&)> note{};  // one line on what is tried again; any thread
};

struct HubFile {
  std::string path;              // is_safe_relative_path
  std::optional<uint64_t> size;  // bytes
  std::string etag;  // name of its blob: SHA-256 of a large file, Git's SHA-1 of a small one; empty: unknown
};

struct HubListing {
  std::string commit;
  std::vector<HubFile> files;  // sorted by path, each once, none inside another
};

// HF_TOKEN, HUGGING_FACE_HUB_TOKEN, else the file HF_TOKEN_PATH or hub_home_folder()/token. Empty: none. An error if it
// holds what no header may; it is never part of a message.
Result<std::string> stored_token();

// What a request with a body wants to say about its tries.
struct AskHooks {
  std::function<void(HttpRequest&)> before{};  // each of them
  // After one that came to its end: what it lacks, as if it had broken; empty: nothing.
  std::function<std::string(const HttpAnswer&)> shortfall{};
  std::function<bool()> progressed{};  // after a broken one: true begins the count of tries anew
};

class Hub {
 public:
  static Result<Hub> create(HubOptions options);

  const std::string& endpoint() const { return options_.endpoint; }
  const HubOptions& options() const { return options_; }

  // Errors: no such model or revision, no permission, names or sizes that cannot be true, an answer beyond 16 MiB.
  Result<HubListing> list(const std::string& id, const std::string& revision) const;

  // Fills in size and etag of a file, by a HEAD request.
  Result<void> describe(const std::string& id, const std::string& commit, HubFile& file) const;

  std::string file_url(const std::string& id, const std::string& commit, const std::string& path) const;

  // Asks until an answer came or the tries are used up. Errors also for every status but 200, 206 and 416 (and a
  // redirect that a HEAD request does not follow), and when cancelled. `what` is for messages.
  Result<HttpAnswer> ask(HttpRequest request, const std::string& what, const AskHooks& hooks = {}) const;

  bool cancelled() const { return options_.cancelled && *options_.cancelled; }
  static Error interrupted();

 private:
  explicit Hub(HubOptions options) : options_(std::move(options)) {}
  Error refused(const HttpAnswer& answer, const std::string& what) const;

  HubOptions options_;
};

// The name under which a blob with this ETag is kept: quotes and W/ taken off. Empty if that is no plain name.
std::string blob_name(std::string etag);

}  // namespace proa
