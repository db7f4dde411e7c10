#include "http/access.h"

#include <algorithm>

namespace proa::http {
namespace {

constexpr std::string_view kAllMethods = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT";
constexpr std::string_view kSimpleHeaders = "Accept, Accept-Language, Content-Language, Content-Type";

// No early end: how long it takes says nothing about where two texts differ.
bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned different = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    different |= static_cast<unsigned>(static_cast<unsigned char>(a[i]) ^
                                       static_cast<unsigned char>(b.empty() ? '\0' : b[i % b.size()]));
  }
  return different == 0;
}

bool allows_all(const std::vector<std::string>& list) { return std::find(list.begin(), list.end(), "*") != list.end(); }

bool allows(const std::vector<std::string>& list, std::string_view value) {
  return allows_all(list) ||
         std::any_of(list.begin(), list.end(), [&](const auto& entry) { return equal_ignoring_case(entry, value); });
}

std::string joined(const std::vector<std::string>& list) {
  std::string text;
  for (const std::string& entry : list) text += (text.empty() ? "" : ", ") + entry;
  return text;
}

std::vector<std::string_view> split_list(std::string_view list) {
  std::vector<std::string_view> parts;
  while (!list.empty()) {
    const size_t comma = list.find(',');
    std::string_view part = list.substr(0, comma);
    list = comma == list.npos ? "" : list.substr(comma + 1);
    while (part.starts_with(' ')) part.remove_prefix(1);
    while (part.ends_with(' ')) part.remove_suffix(1);
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

}  // namespace

bool has_api_key(const Request& request, const std::vector<std::string>& keys) {
  const std::string_view value = request.header("Authorization");
  const size_t space = value.find(' ');
  if (space == value.npos || !equal_ignoring_case(value.substr(0, space), "bearer")) return false;
  const std::string_view given = value.substr(space + 1);
  bool known = false;
  for (const std::string& key : keys) known |= equal_in_constant_time(given, key);
  return known;
}

bool is_preflight(const Request& request) {
  return request.method == "OPTIONS" && !request.header("Origin").empty() &&
         !request.header("Access-Control-Request-Method").empty();
}

std::vector<Header> cors_headers(const Request& request, const CorsConfig& config) {
  const std::string_view origin = request.header("Origin");
  if (origin.empty() || !allows(config.allowed_origins, origin)) return {};
  std::vector<Header> headers;
  const bool any = allows_all(config.allowed_origins) && !config.allow_credentials;
  headers.push_back({"access-control-allow-origin", any ? "*" : std::string(origin)});
  if (config.allow_credentials) headers.push_back({"access-control-allow-credentials", "true"});
  if (!any) headers.push_back({"vary", "Origin"});
  return headers;
}

Response answer_preflight(const Request& request, const CorsConfig& config) {
  Response response{.content_type = "text/plain; charset=utf-8", .body = "OK"};
  std::string refused;
  if (!allows(config.allowed_origins, request.header("Origin"))) refused = "origin";
  if (!allows(config.allowed_methods, request.header("Access-Control-Request-Method"))) {
    refused += refused.empty() ? "method" : ", method";
  }
  const std::string_view wanted = request.header("Access-Control-Request-Headers");
  for (const std::string_view name : split_list(wanted)) {
    const auto simple = split_list(kSimpleHeaders);
    const bool known = std::any_of(simple.begin(), simple.end(),
                                   [&](std::string_view header) { return equal_ignoring_case(header, name); });
    if (known || allows(config.allowed_headers, name)) continue;
    refused += refused.empty() ? "headers" : ", headers";
    break;
  }
  if (!refused.empty()) {
    response.status = 400;
    response.body = "Disallowed CORS " + refused;
  }
  response.headers = cors_headers(request, config);
  response.headers.push_back({"access-control-allow-methods", allows_all(config.allowed_methods)
                                                                  ? std::string(kAllMethods)
                                                                  : joined(config.allowed_methods)});
  response.headers.push_back({"access-control-max-age", "600"});
  if (allows_all(config.allowed_headers)) {
    if (!wanted.empty()) response.headers.push_back({"access-control-allow-headers", std::string(wanted)});
  } else {
    response.headers.push_back(
        {"access-control-allow-headers", std::string(kSimpleHeaders) + ", " + joined(config.allowed_headers)});
  }
  return response;
}

}  // namespace proa::http
