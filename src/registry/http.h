// HTTP requests for downloads, over libcurl. Every answer is bounded, redirects are followed here and not by the
// library, so that a token never reaches another host.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

struct HttpAnswer;

struct HttpRequest {
  std::string url;  // http or https
  bool head = false;
  std::vector<std::string> headers{};  // "Name: value"
  std::string token{};                 // sent as a bearer to the origin of `url` alone; empty: none
  double timeout_s = 30;               // to connect, and at most so long with less than 100 bytes a second

  // Redirects are followed while this holds; empty: always. `status` and headers are of the redirect.
  std::function<bool(const HttpAnswer& redirect, bool same_origin)> follow{};
  // Takes the body of an answer with status 200 or 206, piece by piece; false ends the request (End::stopped).
  std::function<bool(const HttpAnswer&, std::span<const std::byte>)> body{};
  const std::atomic<bool>* cancelled = nullptr;  // ends the request within about a second
};

struct HttpAnswer {
  enum class End {
    complete,  // all of it came
    broken,    // no connection, or it ended or stalled before all was there; worth another try
    stopped,   // the body function or `cancelled` said so
  };
  End end = End::complete;
  int status = 0;                                // 0: none came
  std::map<std::string, std::string> headers{};  // names in lower case
  std::string failure{};                         // what broke

  std::string header(std::string_view name) const;  // empty: not there
};

// Blocking; any thread, in a program that ignores SIGPIPE. Errors are those that another try would not mend: an address
// that is none, a redirect to something that is not http(s) or from https to http, more than ten redirects, a
// certificate that does not hold, headers beyond 64 KiB, a program built without libcurl.
Result<HttpAnswer> perform(const HttpRequest& request);

// "scheme://host:port" of an address, lower case; empty if it is none of http or https, or carries a user name.
std::string url_origin(const std::string& url);

// An address as messages show it: without its query, which may hold what grants access.
std::string url_for_message(std::string_view url);

// Everything but A-Z a-z 0-9 - . _ ~ becomes %XX; '/' stays when `keep_slash`.
std::string url_escape(std::string_view text, bool keep_slash);

// Whether this program was built with libcurl and OpenSSL.
bool can_download();

}  // namespace proa
