// The body of POST /v1/completions.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "server/api_error.h"
#include "server/request_fields.h"

namespace proa {

// Text, or token ids.
using CompletionPrompt = std::variant<std::string, std::vector<int32_t>>;

constexpr int64_t kDefaultCompletionTokens = 16;  // as OpenAI's
constexpr size_t kMaxPrompts = 1024;

struct CompletionRequest {
  RequestFields fields;
  std::vector<CompletionPrompt> prompts;  // at least one, none of them empty
};

std::optional<ApiError> read_completion_request(const nlohmann::ordered_json& body, const RequestPolicy& policy,
                                                CompletionRequest& request);

}  // namespace proa
