#include "registry/download.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "checkpoint/printable.h"
#include "registry/blob_hash.h"
#include "registry/cache_writer.h"
#include "registry/hub_cache.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kProgress = 1u << 20;  // bytes after which a broken connection counts as the first one again
constexpr uint64_t kSpareRoom = 4u << 20;
constexpr size_t kReadBytes = 1u << 20;

// Size of a regular file; none: there is no such file, or a link.
std::optional<uint64_t> size_of(const fs::path& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
  return static_cast<uint64_t>(status.st_size);
}

// "bytes 100-199/200"
struct ContentRange {
  uint64_t first = 0, total = 0;
};
std::optional<ContentRange> parse_content_range(std::string_view text) {
  if (!text.starts_with("bytes ")) return std::nullopt;
  text.remove_prefix(6);
  const size_t dash = text.find('-'), slash = text.find('/');
  if (dash == text.npos || slash == text.npos) return std::nullopt;
  ContentRange range;
  const auto number = [](std::string_view part, uint64_t& value) {
    const auto [end, code] = std::from_chars(part.data(), part.data() + part.size(), value);
    return code == std::errc() && end == part.data() + part.size();
  };
  if (!number(text.substr(0, dash), range.first) || !number(text.substr(slash + 1), range.total)) return std::nullopt;
  return range;
}

// One blob on its way: the file, how much of it is right so far, and the hash of that.
class Download {
 public:
  Download(const Hub& hub, const PullPlan& plan, const HubFile& file, PullProgress& progress)
      : hub_(hub),
        plan_(plan),
        file_(file),
        progress_(progress),
        size_(*file.size),
        blob_(fs::path(plan.repository) / "blobs" / file.etag),
        partial_(blob_.string() + ".incomplete"),
        hash_(file.etag, size_) {}
  ~Download() {
    if (fd_ >= 0) ::close(fd_);
  }

  Result<void> run() {
    const auto waiting = [&] {
      if (hub_.options().note) hub_.options().note(file_.path + ": another download of it is running; waiting for it");
    };
    PROA_ASSIGN(const BlobLock lock, BlobLock::acquire(plan_.cache, repository_folder_name(plan_.name.id), file_.etag,
                                                       hub_.options().cancelled, waiting));
    if (!lock.held()) return Hub::interrupted();
    if (size_of(blob_) != size_) {
      PROA_TRY(fetch());
    } else {
      progress_.bytes += size_;
    }
    return link_blob(plan_.repository, plan_.commit, file_.path, file_.etag);
  }

 private:
  Error error(std::string expected, std::string actual, std::string hint = "") const {
    return {.doing = "download",
            .where = printable(file_.path) + " from " + hub_.endpoint(),
            .expected = std::move(expected),
            .actual = std::move(actual),
            .hint = std::move(hint)};
  }
  Error system_error(int number) const {
    return {.doing = "write", .where = partial_.string(), .actual = std::generic_category().message(number)};
  }

  Result<void> fetch() {
    PROA_TRY(make_folders(blob_.parent_path().string()));
    fd_ = ::open(partial_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd_ < 0) return system_error(errno);
    PROA_TRY(read_partial());
    for (bool again = false;; again = true) {
      in_pieces_ = have_ > 0;
      if (have_ < size_) PROA_TRY(ask());
      if (hash_.matches()) break;
      const std::string found = hash_.hex();
      if (!in_pieces_ || again) {
        ::unlink(partial_.c_str());
        return error("the content of hash " + file_.etag, found, "what came was deleted");
      }
      // What came before the last answer may be what is wrong.
      if (hub_.options().note) hub_.options().note(file_.path + ": the hash differs; from the beginning");
      PROA_TRY(restart());
    }
    if (::fsync(fd_) != 0) return system_error(errno);
    if (::rename(partial_.c_str(), blob_.c_str()) != 0) return system_error(errno);
    return {};
  }

  // What is there already goes through the hash.
  Result<void> read_partial() {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) return system_error(errno);
    if (!S_ISREG(status.st_mode)) return error("a regular file " + partial_.string(), "another kind");
    if (static_cast<uint64_t>(status.st_size) > size_) return restart();
    std::vector<std::byte> buffer(kReadBytes);
    for (;;) {
      if (hub_.cancelled()) return Hub::interrupted();
      const ssize_t count = ::pread(fd_, buffer.data(), buffer.size(), static_cast<off_t>(have_));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return system_error(errno);
      if (count == 0) return {};
      take(std::span(buffer).first(static_cast<size_t>(count)));
    }
  }

  void take(std::span<const std::byte> bytes) {
    hash_.update(bytes);
    have_ += bytes.size();
    progress_.bytes += bytes.size();
  }

  Result<void> restart() {
    if (::ftruncate(fd_, 0) != 0) return system_error(errno);
    progress_.bytes -= have_;
    have_ = 0;
    hash_ = BlobHash(file_.etag, size_);
    return {};
  }

  Result<void> ask() {
    HttpRequest request{.url = hub_.file_url(plan_.name.id, plan_.commit, file_.path)};
    std::optional<Error> failed;
    bool is_first = true;  // piece of an answer
    bool wrong_range = false;
    bool may_resume = true;
    uint64_t most = have_;  // at any time: a server that lets us begin anew again and again gets no more tries

    request.body = [&](const HttpAnswer& answer, std::span<const std::byte> bytes) {
      const auto fail = [&](Result<void> result) {
        if (!result.ok()) failed = std::move(result).error();
        return !failed;
      };
      if (is_first) {
        is_first = false;
        if (answer.status == 206) {
          const auto range = parse_content_range(answer.header("content-range"));
          wrong_range = !range || range->first != have_ || range->total != size_;
          if (wrong_range) return false;
        } else if (have_ > 0 && !fail(restart())) {
          return false;
        }
      }
      if (bytes.size() > size_ - have_) {
        failed = error(std::to_string(size_) + " bytes", "more", "what came was deleted");
        ::unlink(partial_.c_str());
        return false;
      }
      for (std::span<const std::byte> left = bytes; !left.empty();) {
        const ssize_t count = ::pwrite(fd_, left.data(), left.size(), static_cast<off_t>(have_));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return fail(system_error(errno));
        take(left.first(static_cast<size_t>(count)));
        left = left.subspan(static_cast<size_t>(count));
      }
      return true;
    };

    AskHooks hooks;
    hooks.before = [&](HttpRequest& next) {
      is_first = true;
      wrong_range = false;
      next.headers.clear();
      if (!may_resume || have_ == 0) return;
      in_pieces_ = true;
      next.headers.push_back("Range: bytes=" + std::to_string(have_) + "-");
      // A hash finds out a file that changed in between; where there is none the server has to.
      if (!BlobHash::can_check(file_.etag)) next.headers.push_back("If-Range: \"" + file_.etag + "\"");
    };
    hooks.shortfall = [&](const HttpAnswer& answer) -> std::string {
      if (failed || have_ == size_) return "";
      if (wrong_range || answer.status == 416) {
        may_resume = false;
        return "the server answers another range than was asked for";
      }
      return "it ended after " + std::to_string(have_) + " of " + std::to_string(size_) + " bytes";
    };
    hooks.progressed = [&] {
      if (have_ < most + kProgress) return false;
      most = have_;
      return true;
    };
    auto answer = hub_.ask(request, printable(file_.path), hooks);
    if (failed) return *failed;
    if (!answer.ok()) return std::move(answer).error();
    return {};
  }

  const Hub& hub_;
  const PullPlan& plan_;
  const HubFile& file_;
  PullProgress& progress_;
  uint64_t size_;
  fs::path blob_, partial_;
  BlobHash hash_;
  int fd_ = -1;
  uint64_t have_ = 0;
  bool in_pieces_ = false;  // it came by more than one answer
};

Result<void> check_room(const PullPlan& plan) {
  fs::path folder(plan.cache);
  std::error_code code;
  while (!fs::exists(folder, code) && folder.has_relative_path()) folder = folder.parent_path();
  if (folder.empty()) folder = ".";
  uint64_t needed = kSpareRoom;
  for (const PullFile& file : plan.files) {
    if (!file.present) needed += *file.file.size - std::min(file.partial, *file.file.size);
  }
  const auto space = fs::space(folder, code);
  if (code || space.available >= needed) return {};
  return Error{"download", plan.cache, std::to_string(needed) + " bytes of room",
               std::to_string(space.available) + " bytes",
               "name a cache elsewhere with --download-dir or HF_HUB_CACHE"};
}

}  // namespace

Result<PullPlan> plan_pull(const Hub& hub, const std::string& model, const std::string& revision,
                           const std::string& cache, const Patterns& patterns) {
  PullPlan plan;
  PROA_ASSIGN(plan.name, parse_model_name(model));
  plan.revision = !plan.name.revision.empty() ? plan.name.revision : !revision.empty() ? revision : "main";
  if (!is_safe_revision(plan.revision)) {
    return Error{"find model", "--revision " + printable(plan.revision), "a branch, tag or commit", "another name", ""};
  }
  plan.cache = cache.empty() ? hub_cache_folder() : expand_home(cache);
  if (plan.cache.empty()) {
    return Error{"find model", printable(model), "a cache of models", "neither HF_HOME nor HOME is set", ""};
  }
  PROA_ASSIGN(const HubListing listing, hub.list(plan.name.id, plan.revision));
  plan.commit = listing.commit;
  plan.repository = (fs::path(plan.cache) / repository_folder_name(plan.name.id)).string();
  plan.snapshot = (fs::path(plan.repository) / "snapshots" / plan.commit).string();
  PROA_ASSIGN(auto files, select_files(listing.files, plan.name, patterns));
  for (HubFile& file : files) {
    if (!file.size || file.etag.empty()) PROA_TRY(hub.describe(plan.name.id, plan.commit, file));
    PullFile entry{.file = std::move(file)};
    const fs::path blob = fs::path(plan.repository) / "blobs" / entry.file.etag;
    entry.present = size_of(blob) == *entry.file.size;
    entry.partial = size_of(blob.string() + ".incomplete").value_or(0);
    plan.bytes += *entry.file.size;
    if (!entry.present) plan.missing += *entry.file.size;
    plan.files.push_back(std::move(entry));
  }
  return plan;
}

Result<void> pull(const Hub& hub, const PullPlan& plan, int jobs, std::atomic<bool>& cancelled,
                  PullProgress& progress) {
  PROA_TRY(check_room(plan));
  std::vector<const PullFile*> waiting;
  for (const PullFile& file : plan.files) {
    if (!file.present) {
      waiting.push_back(&file);
      continue;
    }
    PROA_TRY(link_blob(plan.repository, plan.commit, file.file.path, file.file.etag));
    ++progress.files;
  }
  std::mutex mutex;
  std::optional<Error> first;
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < waiting.size() && !cancelled; i = next++) {
      const auto done = Download(hub, plan, waiting[i]->file, progress).run();
      if (done.ok()) {
        ++progress.files;
        continue;
      }
      const std::lock_guard lock(mutex);
      if (!first) first = done.error();
      cancelled = true;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < std::min<int>(jobs, static_cast<int>(waiting.size())); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (first) return *first;
  if (cancelled) return Hub::interrupted();
  return write_ref(plan.repository, plan.revision, plan.commit);
}

}  // namespace proa
