#include "http/access.h"

#include <gtest/gtest.h>

namespace proa::http {
namespace {

Request with(std::vector<Header> headers, std::string method = "GET") {
  Request request;
  request.method = std::move(method);
  request.headers = std::move(headers);
  return request;
}

TEST(Access, ApiKeys) {
  const std::vector<std::string> keys = {"sk-one", "two"};
  const struct {
    const char* value;
    bool good;
  } rows[] = {
      {"Bearer sk-one", true},
      {"Bearer two", true},
      {"bearer two", true},
      {"Bearer", false},
      {"Bearer ", false},
      {"Bearer tw", false},
      {"Bearer twoo", false},
      {"Bearer  two", false},
      {"Basic two", false},
      {"two", false},
      {"", false},
      {"Bearer sk-onetwo", false},
      {"Bearer Two", false},
      {"Bearer two two", false},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(has_api_key(with({{"authorization", row.value}}), keys), row.good) << row.value;
  }
  EXPECT_FALSE(has_api_key(with({}), keys));
  EXPECT_FALSE(has_api_key(with({{"Authorization", "Bearer "}}), {"x"}));
}

std::string text(const std::vector<Header>& headers) {
  std::string all;
  for (const Header& header : headers) all += header.name + "=" + header.value + ";";
  return all;
}

TEST(Access, CorsHeaders) {
  const Request request = with({{"Origin", "https://a.example"}});
  EXPECT_EQ(text(cors_headers(request, {})), "access-control-allow-origin=*;");
  EXPECT_EQ(text(cors_headers(with({}), {})), "");
  EXPECT_EQ(text(cors_headers(request, {.allowed_origins = {"https://b.example"}})), "");
  EXPECT_EQ(text(cors_headers(request, {.allowed_origins = {"https://b.example", "https://a.example"}})),
            "access-control-allow-origin=https://a.example;vary=Origin;");
  EXPECT_EQ(text(cors_headers(request, {.allow_credentials = true})),
            "access-control-allow-origin=https://a.example;access-control-allow-credentials=true;vary=Origin;");
}

TEST(Access, Preflight) {
  const Request request = with({{"Origin", "https://a.example"},
                                {"Access-Control-Request-Method", "POST"},
                                {"Access-Control-Request-Headers", "authorization, content-type"}},
                               "OPTIONS");
  EXPECT_TRUE(is_preflight(request));
  EXPECT_FALSE(is_preflight(with({{"Origin", "x"}}, "OPTIONS")));
  const Response allowed = answer_preflight(request, {});
  EXPECT_EQ(allowed.status, 200);
  EXPECT_EQ(text(allowed.headers),
            "access-control-allow-origin=*;access-control-allow-methods=DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT;"
            "access-control-max-age=600;access-control-allow-headers=authorization, content-type;");
  EXPECT_EQ(answer_preflight(request, {.allowed_origins = {"https://b.example"}}).body, "Disallowed CORS origin");
  EXPECT_EQ(answer_preflight(request, {.allowed_methods = {"GET"}}).body, "Disallowed CORS method");
  EXPECT_EQ(answer_preflight(request, {.allowed_headers = {"X-Other"}}).body, "Disallowed CORS headers");
  EXPECT_EQ(answer_preflight(request, {.allowed_headers = {"Authorization"}}).status, 200);
}

TEST(Access, TargetsAreSplit) {
  const struct {
    const char* target;
    bool good;
    const char *path, *query;
  } rows[] = {
      {"/", true, "/", ""},
      {"/a/b?c=d?e", true, "/a/b", "c=d?e"},
      {"/%41%2f", true, "/A/", ""},
      {"http://h", true, "/", ""},
      {"https://h:1/x?y", true, "/x", "y"},
      {"", false, "", ""},
      {"*", false, "", ""},
      {"a", false, "", ""},
      {"/%", false, "", ""},
      {"/%4", false, "", ""},
      {"/%4g", false, "", ""},
      {"/?%zz", true, "/", "%zz"},
  };
  for (const auto& row : rows) {
    Request request;
    request.target = row.target;
    EXPECT_EQ(split_target(request), row.good) << row.target;
    if (!row.good) continue;
    EXPECT_EQ(request.path, row.path) << row.target;
    EXPECT_EQ(request.query, row.query) << row.target;
  }
}

}  // namespace
}  // namespace proa::http
