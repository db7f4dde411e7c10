#include "registry/hub.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "checkpoint/checkpoint.h"
#include "checkpoint/printable.h"
#include "registry/hub_cache.h"
#include "registry/model_name.h"

namespace proa {
namespace {

constexpr size_t kMaxListing = 16u << 20;
constexpr size_t kMaxFiles = 20000;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 48;  // times kMaxFiles fits 64 bits
constexpr double kMaxWait = 30;                        // seconds, of our own
constexpr double kMaxRetryAfter = 60;                  // seconds, that a server may ask for

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

Error listing_error(const std::string& where, std::string expected, std::string actual) {
  return {.doing = "list files", .where = where, .expected = std::move(expected), .actual = std::move(actual)};
}

std::optional<uint64_t> parse_size(const std::string& text) {
  uint64_t size = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), size);
  if (code != std::errc() || end != text.data() + text.size() || size > kMaxFileBytes) return std::nullopt;
  return size;
}

Result<HubFile> read_sibling(const nlohmann::ordered_json& sibling, const std::string& where) {
  const auto name = sibling.is_object() ? sibling.find("rfilename") : sibling.end();
  if (!sibling.is_object() || name == sibling.end() || !name->is_string()) {
    return listing_error(where, "a text rfilename for each file", "none");
  }
  HubFile file;
  file.path = name->get<std::string>();
  if (!is_safe_relative_path(file.path)) {
    return listing_error(where, "names of files inside the model's folder", "\"" + printable(file.path) + "\"");
  }
  const auto text = [](const nlohmann::ordered_json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
  };
  const auto read_size = [&](const nlohmann::ordered_json& object) -> Result<void> {
    const auto found = object.find("size");
    if (found == object.end() || found->is_null()) return {};
    if (!found->is_number_unsigned() || found->get<uint64_t>() > kMaxFileBytes) {
      return listing_error(where + ": " + printable(file.path), "a size in bytes", found->dump().substr(0, 40));
    }
    file.size = found->get<uint64_t>();
    return {};
  };
  PROA_TRY(read_size(sibling));
  const auto lfs = sibling.find("lfs");
  if (lfs != sibling.end() && lfs->is_object()) {
    PROA_TRY(read_size(*lfs));
    file.etag = blob_name(text(*lfs, "sha256"));
  } else {
    file.etag = blob_name(text(sibling, "blobId"));
  }
  return file;
}

Result<std::vector<HubFile>> read_siblings(const nlohmann::ordered_json& json, const std::string& where) {
  const auto siblings = json.find("siblings");
  if (siblings == json.end() || !siblings->is_array()) return listing_error(where, "an array siblings", "none");
  if (siblings->size() > kMaxFiles) {
    return listing_error(where, "at most " + std::to_string(kMaxFiles) + " files", std::to_string(siblings->size()));
  }
  std::vector<HubFile> files;
  std::set<std::string> names;
  for (const auto& sibling : *siblings) {
    PROA_ASSIGN(HubFile file, read_sibling(sibling, where));
    if (!names.insert(file.path).second) return listing_error(where, "each file once", printable(file.path) + " twice");
    files.push_back(std::move(file));
  }
  for (const std::string& name : names) {
    for (size_t slash = name.find('/'); slash != name.npos; slash = name.find('/', slash + 1)) {
      if (names.contains(name.substr(0, slash))) {
        return listing_error(where, "files and folders of different names", printable(name.substr(0, slash)));
      }
    }
  }
  std::sort(files.begin(), files.end(), [](const HubFile& a, const HubFile& b) { return a.path < b.path; });
  return files;
}

bool is_header_text(const std::string& text) {
  return text.size() <= 1024 && std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

bool worth_another_try(int status) {
  return status == 408 || status == 425 || status == 429 || (status >= 500 && status <= 599 && status != 501);
}

}  // namespace

std::string blob_name(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
  const bool good = !etag.empty() && etag.size() <= 128 && etag.front() != '.' && !etag.ends_with(".incomplete") &&
                    std::all_of(etag.begin(), etag.end(), [](unsigned char c) {
                      return (c < 0x80 && std::isalnum(c)) || c == '-' || c == '.' || c == '_';
                    });
  return good ? etag : "";
}

Result<std::string> stored_token() {
  std::string source = "HF_TOKEN";
  std::string token = environment("HF_TOKEN");
  if (token.empty()) {
    source = "HUGGING_FACE_HUB_TOKEN";
    token = environment(source.c_str());
  }
  if (token.empty()) {
    source = environment("HF_TOKEN_PATH");
    if (source.empty() && !hub_home_folder().empty()) source = hub_home_folder() + "/token";
    std::error_code code;
    if (source.empty() || !std::filesystem::is_regular_file(source, code)) return std::string();
    std::ifstream file(source, std::ios::binary);
    token.resize(2048);
    file.read(token.data(), static_cast<std::streamsize>(token.size()));
    token.resize(static_cast<size_t>(file.gcount()));
  }
  while (!token.empty() && std::isspace(static_cast<unsigned char>(token.back()))) token.pop_back();
  token.erase(0, std::min(token.find_first_not_of(" \t\r\n"), token.size()));
  if (!is_header_text(token)) {
    return Error{"read token", source, "one word of printable characters", "something else", ""};
  }
  return token;
}

Result<Hub> Hub::create(HubOptions options) {
  std::string& endpoint = options.endpoint;
  if (endpoint.empty()) endpoint = environment("HF_ENDPOINT");
  if (endpoint.empty()) endpoint = "https://huggingface.co";
  while (endpoint.ends_with('/')) endpoint.pop_back();
  if (can_download() && (endpoint.size() > 2000 || !is_header_text(endpoint) || url_origin(endpoint).empty() ||
                         endpoint.find_first_of("?#") != endpoint.npos)) {
    return Error{"open hub", "--endpoint or HF_ENDPOINT", "http(s)://HOST without a user name or query", "another text",
                 ""};
  }
  if (!is_header_text(options.token)) return Error{"open hub", "token", "one word", "something else", ""};
  return Hub(std::move(options));
}

Error Hub::interrupted() { return {.doing = "download", .actual = "interrupted; the same command goes on from here"}; }

Error Hub::refused(const HttpAnswer& answer, const std::string& what) const {
  const int status = answer.status;
  std::string said = answer.header("x-error-message");
  std::string actual = "status " + std::to_string(status) + (said.empty() ? "" : ", " + printable(said, 200));
  std::string hint;
  const std::string code = answer.header("x-error-code");
  if (status == 401 || status == 403) {
    hint = options_.token.empty() ? "no such name, or a private or gated model: set HF_TOKEN"
           : status == 401        ? "no such name, or the token was not accepted"
                                  : "the token may not read it; a gated model asks for consent on its page";
  } else if (status == 404) {
    hint = code == "RevisionNotFound" ? "no such revision" : code == "EntryNotFound" ? "no such file" : "no such name";
  } else if (worth_another_try(status)) {
    hint = std::to_string(options_.retries) + " more tries did not help";
  }
  return {.doing = "download",
          .where = what + " from " + options_.endpoint,
          .actual = std::move(actual),
          .hint = std::move(hint)};
}

Result<HttpAnswer> Hub::ask(HttpRequest request, const std::string& what, const AskHooks& hooks) const {
  request.token = options_.token;
  request.timeout_s = options_.timeout_s;
  request.cancelled = options_.cancelled;
  for (int failures = 0;;) {
    if (hooks.before) hooks.before(request);
    PROA_ASSIGN(HttpAnswer answer, perform(request));
    if (cancelled()) return interrupted();
    const int status = answer.status;
    const bool is_good =
        status == 200 || status == 206 || status == 416 || (request.head && status >= 300 && status < 400);
    bool broken = answer.end == HttpAnswer::End::broken;
    if (!broken && is_good) {
      if (hooks.shortfall) answer.failure = hooks.shortfall(answer);
      if (answer.failure.empty()) return answer;
      broken = true;
    }
    if (!broken && !worth_another_try(status)) return refused(answer, what);
    if (broken && hooks.progressed && hooks.progressed()) failures = 0;
    if (failures >= options_.retries) {
      if (!broken) return refused(answer, what);
      return Error{"download", what + " from " + options_.endpoint, "", answer.failure,
                   std::to_string(options_.retries) + " more tries did not help"};
    }
    double wait = std::min(options_.retry_wait_s * std::pow(2.0, failures), kMaxWait);
    thread_local std::minstd_rand random{std::random_device{}()};
    wait *= std::uniform_real_distribution(0.75, 1.25)(random);
    if (!broken) {
      if (const auto asked = parse_size(answer.header("retry-after"))) {
        wait = std::clamp(static_cast<double>(*asked), wait, kMaxRetryAfter);
      }
    }
    ++failures;
    if (options_.note) {
      options_.note(what + ": " + (broken ? answer.failure : "status " + std::to_string(status)) + "; try " +
                    std::to_string(failures + 1) + " of " + std::to_string(options_.retries + 1));
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(wait);
    while (std::chrono::steady_clock::now() < until) {
      if (cancelled()) return interrupted();
      std::this_thread::sleep_for(std::min<std::chrono::duration<double>>(std::chrono::milliseconds(100),
                                                                          until - std::chrono::steady_clock::now()));
    }
  }
}

std::string Hub::file_url(const std::string& id, const std::string& commit, const std::string& path) const {
  return options_.endpoint + "/" + url_escape(id, true) + "/resolve/" + url_escape(commit, false) + "/" +
         url_escape(path, true);
}

Result<HubListing> Hub::list(const std::string& id, const std::string& revision) const {
  const std::string what = id + "@" + revision;
  HttpRequest request{.url = options_.endpoint + "/api/models/" + url_escape(id, true) + "/revision/" +
                             url_escape(revision, false) + "?blobs=true"};
  std::string text;
  bool too_long = false;
  request.body = [&](const HttpAnswer&, std::span<const std::byte> bytes) {
    too_long = text.size() + bytes.size() > kMaxListing;
    if (!too_long) text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return !too_long;
  };
  PROA_TRY(ask(request, what, {.before = [&](HttpRequest&) { text.clear(); }}));
  const std::string where = what + " from " + options_.endpoint;
  if (too_long) return listing_error(where, "an answer of at most " + std::to_string(kMaxListing) + " bytes", "more");
  PROA_ASSIGN(const auto json, parse_json(text, where));
  if (!json.is_object()) return listing_error(where, "an object", json.type_name());
  const auto sha = json.find("sha");
  const std::string commit = sha != json.end() && sha->is_string() ? sha->get<std::string>() : "";
  if (!is_safe_revision(commit) || commit.find('/') != commit.npos || commit.size() > 64) {
    return listing_error(where, "a commit named by sha", "\"" + printable(commit, 80) + "\"");
  }
  PROA_ASSIGN(auto files, read_siblings(json, where));
  return HubListing{commit, std::move(files)};
}

Result<void> Hub::describe(const std::string& id, const std::string& commit, HubFile& file) const {
  HttpRequest request{.url = file_url(id, commit, file.path), .head = true};
  // What the file is stands in the hub's own answer; the host it is stored at may name it otherwise.
  request.follow = [](const HttpAnswer& redirect, bool same_origin) {
    return same_origin && redirect.header("x-linked-etag").empty();
  };
  PROA_ASSIGN(const HttpAnswer answer, ask(request, printable(file.path)));
  const auto error = [&](std::string expected, std::string actual) {
    return listing_error(printable(file.path) + " from " + options_.endpoint, std::move(expected), std::move(actual));
  };
  const std::string answered = answer.header("x-repo-commit");
  if (!answered.empty() && answered != commit) return error("the commit " + commit, printable(answered, 80));
  const std::string linked = answer.header("x-linked-etag");
  const std::string etag = linked.empty() ? answer.header("etag") : linked;
  if (file.etag.empty()) file.etag = blob_name(etag);
  if (file.etag.empty()) {
    return error("an ETag that is a plain name", etag.empty() ? "none" : "\"" + printable(etag, 80) + "\"");
  }
  const std::string linked_size = answer.header("x-linked-size");
  const bool is_redirect = answer.status >= 300 && answer.status < 400;
  const auto size = parse_size(!linked_size.empty() ? linked_size : is_redirect ? "" : answer.header("content-length"));
  if (!file.size) file.size = size;
  if (!file.size) return error("a size", "none");
  return {};
}

}  // namespace proa
