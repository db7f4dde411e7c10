// Errors in the shape of the OpenAI API as vLLM fills it: {"error": {"message", "type", "param", "code"}}.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/result.h"
#include "http/message.h"

namespace proa {

struct ApiError {
  int status = 400;
  std::string type = "BadRequestError";
  std::string message;
  std::string param = {};  // empty: null
};

ApiError bad_request(std::string message, std::string param = "");
ApiError not_supported(std::string message, std::string param = "");  // what this server does not do (yet)
ApiError unknown_tokens(const char* field, const std::string& ids);   // ids that the vocabulary does not have
ApiError model_not_found(std::string_view model);
// What the library of vLLM's routes says: the type is the reason phrase.
ApiError http_error(int status, std::string message);
ApiError not_an_object();  // a body that is no JSON object
// Of the engine, when it refuses a request: 429 with a full queue, else 400.
ApiError submit_error(const Error& error);
// Of a request that failed while it ran.
ApiError internal_error(const Error& error);

std::string error_json(const ApiError& error);
http::Response error_response(const ApiError& error);  // 429 and 503 say when to come again

// The text without what looks like a path of this machine or an address in memory.
std::string without_paths(std::string_view message);

}  // namespace proa
