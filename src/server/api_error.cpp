#include "server/api_error.h"

#include <utility>

#include "server/json_text.h"

namespace proa {

ApiError bad_request(std::string message, std::string param) {
  return {400, "BadRequestError", std::move(message), std::move(param)};
}

ApiError not_supported(std::string message, std::string param) {
  return {400, "BadRequestError", std::move(message), std::move(param)};
}

ApiError unknown_tokens(const char* field, const std::string& ids) {
  return bad_request("token_id(s) [" + ids + "] in " + field + " contain out-of-vocab token ids.", field);
}

ApiError model_not_found(std::string_view model) {
  return {404, "NotFoundError", "The model `" + std::string(model) + "` does not exist."};
}

ApiError http_error(int status, std::string message) {
  return {status, http::reason_phrase(status), std::move(message)};
}

ApiError not_an_object() {
  ApiError error = http_error(400,
                              "1 validation error:\n  {'type': 'model_attributes_type', 'loc': ('body',), 'msg': "
                              "'Input should be a valid dictionary or object to extract fields from'}");
  error.param = "body";
  return error;
}

ApiError submit_error(const Error& error) {
  if (error.where == "max_queue")
    return http_error(429, "The queue of waiting requests is full, please try again later.");
  return bad_request(without_paths(error.message()), error.where);
}

ApiError internal_error(const Error& error) { return {500, "InternalServerError", without_paths(error.message())}; }

std::string error_json(const ApiError& error) {
  // What a client sent may be in either; it need not all come back.
  const auto bounded = [](const std::string& text, size_t most) {
    return text.size() <= most ? text : text.substr(0, most) + "...";
  };
  JsonText json;
  json.begin_object().key("error").begin_object();
  json.member("message", bounded(error.message, 8192)).member("type", error.type).key("param");
  error.param.empty() ? json.null() : json.string(bounded(error.param, 256));
  json.member("code", error.status).end_object().end_object();
  return json.take();
}

http::Response error_response(const ApiError& error) {
  http::Response response{.status = error.status, .body = error_json(error)};
  if (error.status == 429 || error.status == 503) response.headers.push_back({"retry-after", "1"});
  return response;
}

std::string without_paths(std::string_view message) {
  std::string text;
  for (size_t i = 0; i < message.size();) {
    const bool at_start = i == 0 || std::string_view(" \t\n'\"(:=").find(message[i - 1]) != std::string_view::npos;
    const std::string_view rest = message.substr(i);
    const bool is_path = rest.size() > 1 && rest[0] == '/' && rest[1] != ' ' && rest[1] != '/';
    const bool is_address = rest.starts_with("0x") && rest.size() > 10;
    if (!at_start || !(is_path || is_address)) {
      text += message[i++];
      continue;
    }
    const size_t end = std::min(rest.find_first_of(" \t\n'\"),:;"), rest.size());
    text += is_path ? "<path>" : "<address>";
    i += end;
  }
  return text;
}

}  // namespace proa
