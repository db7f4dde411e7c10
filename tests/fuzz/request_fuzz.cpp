// libFuzzer target: any bytes as the body of a chat completion or of a completion. Either an error that is JSON and has
// a message, or a request whose sampling parameters the engine takes as they are. The first byte chooses the route.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "checkpoint/checkpoint.h"
#include "server/chat_request.h"
#include "server/completion_request.h"

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxBytes = 4096;
constexpr int kVocabSize = 1 << 20;

void expect(bool holds) {
  if (!holds) std::abort();
}

void check_error(const proa::ApiError& error) {
  const Json json = Json::parse(proa::error_json(error), nullptr, false);
  expect(json.is_object() && !json["error"]["message"].get<std::string>().empty() &&
         json["error"]["code"] == error.status);
  expect(error.status == 400 || error.status == 404);
}

void check_fields(const proa::RequestFields& fields) {
  proa::SamplingParams params = fields.params;
  params.temperature = proa::effective_temperature(params.temperature);
  params.logprobs = fields.logprobs;
  params.prompt_logprobs = fields.prompt_logprobs;
  for (const proa::TokenBias& bias : params.logit_bias) expect(bias.bias >= -100 && bias.bias <= 100);
  params.stop.clear();  // their numbers and sizes, and ids beyond the vocabulary, are refused later
  params.stop_token_ids.clear();
  params.logit_bias.clear();
  params.allowed_token_ids.clear();
  expect(fields.n >= 1 && (!fields.max_tokens || *fields.max_tokens >= 0));
  expect(proa::validate(params, kVocabSize).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > kMaxBytes) return 0;
  static const proa::RequestPolicy policy = [] {
    proa::RequestPolicy made;
    made.tool_parser = "qwen3_coder";
    made.reasoning_parser = "nemotron_v3";
    made.enable_auto_tool_choice = made.trust_request_chat_template = true;
    made.default_chat_template_kwargs = {{"x", 1}};
    return made;
  }();
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto body = proa::parse_json(text, "body", text.size());
  if (!body.ok()) {
    expect(!body.error().message().empty());
    return 0;
  }
  if (data[0] % 2 == 0) {
    proa::ChatRequest request;
    if (const auto error = proa::read_chat_request(*body, policy, request)) {
      check_error(*error);
    } else {
      check_fields(request.fields);
      expect(request.prompt.messages.is_array() && !request.prompt.messages.empty());
    }
  } else {
    proa::CompletionRequest request;
    if (const auto error = proa::read_completion_request(*body, policy, request)) {
      check_error(*error);
    } else {
      check_fields(request.fields);
      expect(!request.prompts.empty() && request.fields.max_tokens.has_value());
    }
  }
  return 0;
}
