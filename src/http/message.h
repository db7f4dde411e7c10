// What an HTTP request and a response are, free of any library.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace proa::http {

struct Header {
  std::string name;
  std::string value;
};

struct Request {
  std::string method;  // "GET"
  std::string target;  // as the client wrote it: "/v1/models?x=1"
  std::string path;    // decoded and without the query: "/v1/models"
  std::string query;   // as written: "x=1"
  int version = 11;    // 10 or 11
  std::vector<Header> headers;
  std::string body;
  std::string peer;  // "127.0.0.1:51234"; empty on a unix socket

  // Value of the first header of that name, in any case; empty if there is none.
  std::string_view header(std::string_view name) const;
};

struct Response {
  int status = 200;
  std::string content_type = "application/json";  // empty: no such header
  std::string body = {};
  std::vector<Header> headers = {};
};

const char* reason_phrase(int status);  // "Not Found"; "Unknown" for what no standard names

bool equal_ignoring_case(std::string_view a, std::string_view b);  // of ASCII letters

// Sets path and query from target. False: no path, or a '%' that is not followed by two hexadecimal digits.
bool split_target(Request& request);

}  // namespace proa::http
