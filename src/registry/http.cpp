#include "registry/http.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "checkpoint/printable.h"

#ifdef PROA_DOWNLOADS
#include <curl/curl.h>
#endif

namespace proa {

std::string HttpAnswer::header(std::string_view name) const {
  const auto found = headers.find(std::string(name));
  return found == headers.end() ? "" : found->second;
}

std::string url_for_message(std::string_view url) { return printable(url.substr(0, url.find_first_of("?#"))); }

std::string url_escape(std::string_view text, bool keep_slash) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (unsigned char c : text) {
    const bool plain = c < 0x80 && (std::isalnum(c) || c == '-' || c == '.' || c == '_' || c == '~');
    if (plain || (keep_slash && c == '/')) {
      out += static_cast<char>(c);
    } else {
      out += {'%', kHex[c >> 4], kHex[c & 15]};
    }
  }
  return out;
}

#ifndef PROA_DOWNLOADS

bool can_download() { return false; }
std::string url_origin(const std::string&) { return ""; }
Result<HttpAnswer> perform(const HttpRequest&) {
  return Error{"download", "", "", "this program was built without libcurl",
               "install libcurl4-openssl-dev, build anew"};
}

#else

namespace {

constexpr size_t kMaxHeaderBytes = 64 << 10;
constexpr size_t kMaxErrorBody = 64 << 10;  // of an answer that says no; not looked at
constexpr size_t kMaxUrl = 16 << 10;
constexpr int kMaxRedirects = 10;
constexpr long kSlowBytesPerSecond = 100;

struct UrlDeleter {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
using Url = std::unique_ptr<CURLU, UrlDeleter>;

std::string url_part(CURLU* url, CURLUPart part, unsigned flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url, part, &text, flags) != CURLUE_OK || text == nullptr) return "";
  std::string result(text);
  curl_free(text);
  return result;
}

// `address` against `base` (empty: it must be whole); an empty Url if it is none.
Url parse_url(const std::string& base, const std::string& address) {
  Url url(curl_url());
  if (!url || address.size() > kMaxUrl) return nullptr;
  if (!base.empty() && curl_url_set(url.get(), CURLUPART_URL, base.c_str(), 0) != CURLUE_OK) return nullptr;
  if (curl_url_set(url.get(), CURLUPART_URL, address.c_str(), 0) != CURLUE_OK) return nullptr;
  return url;
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string origin(CURLU* url) {
  const std::string scheme = lower(url_part(url, CURLUPART_SCHEME));
  if (scheme != "http" && scheme != "https") return "";
  if (!url_part(url, CURLUPART_USER).empty()) return "";
  const std::string host = lower(url_part(url, CURLUPART_HOST));
  return host.empty() ? "" : scheme + "://" + host + ":" + url_part(url, CURLUPART_PORT, CURLU_DEFAULT_PORT);
}

// One request without redirects.
struct Transfer {
  const HttpRequest& request;
  CURL* curl;
  HttpAnswer answer{};
  size_t header_bytes = 0;
  size_t error_bytes = 0;
  bool headers_too_long = false;

  static size_t on_header(char* data, size_t size, size_t count, void* user) {
    auto& self = *static_cast<Transfer*>(user);
    const std::string_view line(data, size * count);
    self.header_bytes += line.size();
    if (self.header_bytes > kMaxHeaderBytes) {
      self.headers_too_long = true;
      return 0;
    }
    if (line.starts_with("HTTP/")) self.answer.headers.clear();  // after a 100, or a proxy's own answer
    const size_t colon = line.find(':');
    if (colon == line.npos) return line.size();
    std::string_view value = line.substr(colon + 1);
    while (!value.empty() && std::isspace(static_cast<unsigned char>(value.front()))) value.remove_prefix(1);
    while (!value.empty() && std::isspace(static_cast<unsigned char>(value.back()))) value.remove_suffix(1);
    self.answer.headers[lower(std::string(line.substr(0, colon)))] = value;
    return line.size();
  }

  static size_t on_body(char* data, size_t size, size_t count, void* user) {
    auto& self = *static_cast<Transfer*>(user);
    const size_t bytes = size * count;
    self.read_status();
    if (self.answer.status != 200 && self.answer.status != 206) {
      self.error_bytes += bytes;
      if (self.error_bytes <= kMaxErrorBody) return bytes;
      return 0;  // enough of an answer that nobody reads
    }
    if (self.request.body && self.request.body(self.answer, std::as_bytes(std::span(data, bytes)))) return bytes;
    return 0;
  }

  static int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    const auto& self = *static_cast<Transfer*>(user);
    return self.request.cancelled && *self.request.cancelled ? 1 : 0;
  }

  void read_status() {
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    answer.status = static_cast<int>(status);
  }
};

const char* ca_file() {
  for (const char* name : {"CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"}) {
    if (const char* file = std::getenv(name); file && *file) return file;
  }
  return nullptr;
}

Result<HttpAnswer> perform_once(const HttpRequest& request, const std::string& url, bool with_token) {
  // A handle of a thread keeps its connections for the next request.
  thread_local const std::unique_ptr<CURL, void (*)(CURL*)> handle(curl_easy_init(), curl_easy_cleanup);
  CURL* curl = handle.get();
  if (curl == nullptr) return Error{"download", url_for_message(url), "", "libcurl does not start", ""};
  curl_easy_reset(curl);
  Transfer transfer{request, curl};

  curl_slist* list = curl_slist_append(nullptr, "Accept-Encoding: identity");
  for (const std::string& header : request.headers) list = curl_slist_append(list, header.c_str());
  if (with_token) list = curl_slist_append(list, ("Authorization: Bearer " + request.token).c_str());
  const std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers(list, curl_slist_free_all);

  char detail[CURL_ERROR_SIZE] = "";
  const long timeout_ms = static_cast<long>(std::clamp(request.timeout_s, 0.1, 3600.0) * 1000);
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_NOBODY, request.head ? 1L : 0L);
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "proa");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, detail);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, timeout_ms);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, kSlowBytesPerSecond);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, std::max(1L, timeout_ms / 1000));
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 256L << 10);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, Transfer::on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, Transfer::on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, Transfer::on_progress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &transfer);
  if (const char* file = ca_file()) curl_easy_setopt(curl, CURLOPT_CAINFO, file);

  const CURLcode code = curl_easy_perform(curl);
  transfer.read_status();
  const std::string failure = printable(*detail ? detail : curl_easy_strerror(code), 200);
  const auto error = [&](std::string actual) {
    return Error{.doing = "download", .where = url_for_message(url), .actual = std::move(actual)};
  };
  if (transfer.headers_too_long) return error("headers of more than 64 KiB");
  HttpAnswer& answer = transfer.answer;
  switch (code) {
    case CURLE_OK:
      break;
    case CURLE_WRITE_ERROR:
    case CURLE_ABORTED_BY_CALLBACK:
      // An answer that says no is one, however long its page is.
      answer.end = transfer.error_bytes > kMaxErrorBody ? HttpAnswer::End::complete : HttpAnswer::End::stopped;
      break;
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
      return error(failure);
    default:
      answer.end = HttpAnswer::End::broken;
      answer.failure = failure;
  }
  return std::move(answer);
}

}  // namespace

bool can_download() { return true; }

std::string url_origin(const std::string& url) {
  const Url parsed = parse_url("", url);
  return parsed ? origin(parsed.get()) : "";
}

Result<HttpAnswer> perform(const HttpRequest& request) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });

  const auto error = [&](std::string expected, std::string actual) {
    return Error{"download", url_for_message(request.url), std::move(expected), std::move(actual), ""};
  };
  const std::string first = url_origin(request.url);
  if (first.empty()) return error("an address of http or https", "another one");
  std::string url = request.url;
  bool with_token = !request.token.empty();
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    PROA_ASSIGN(HttpAnswer answer, perform_once(request, url, with_token));
    const int status = answer.status;
    const bool redirects = status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
    if (answer.end != HttpAnswer::End::complete || !redirects || answer.header("location").empty()) return answer;

    const Url next = parse_url(url, answer.header("location"));
    const std::string to = next ? origin(next.get()) : "";
    if (to.empty() || (url_origin(url).starts_with("https:") && !to.starts_with("https:"))) {
      return error("a redirect to https, or from http to http", "one to " + url_for_message(answer.header("location")));
    }
    if (request.follow && !request.follow(answer, to == url_origin(url))) return answer;
    with_token = with_token && to == first;
    url = url_part(next.get(), CURLUPART_URL);
  }
  return error("at most " + std::to_string(kMaxRedirects) + " redirects", "more");
}

#endif

}  // namespace proa
