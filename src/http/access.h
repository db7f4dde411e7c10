// Who may ask: API keys, and the pages of other origins (CORS). Pure functions over a request; the server's owner calls
// them, the server knows neither.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "http/message.h"

namespace proa::http {

// Whether `request` carries one of `keys` as "Authorization: Bearer KEY". Compares in time that depends on the lengths
// alone, with every key.
bool has_api_key(const Request& request, const std::vector<std::string>& keys);

// As vLLM's --allowed-origins, --allowed-methods, --allowed-headers, --allow-credentials; "*" stands for all.
struct CorsConfig {
  std::vector<std::string> allowed_origins = {"*"};
  std::vector<std::string> allowed_methods = {"*"};
  std::vector<std::string> allowed_headers = {"*"};
  bool allow_credentials = false;
};

bool is_preflight(const Request& request);  // OPTIONS that asks which method and headers are allowed
// 200 "OK", or 400 naming what is not allowed; what browsers of all origins may know, so no key is asked for.
Response answer_preflight(const Request& request, const CorsConfig& config);

// Headers for any other response; none where the request names no origin, or one that is not allowed.
std::vector<Header> cors_headers(const Request& request, const CorsConfig& config);

}  // namespace proa::http
