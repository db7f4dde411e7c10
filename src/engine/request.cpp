#include "engine/request.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace proa {
namespace {

Error out_of_range(const char* field, std::string expected, std::string actual) {
  return {.doing = "check sampling parameters",
          .where = field,
          .expected = std::move(expected),
          .actual = std::move(actual),
          .hint = ""};
}

std::string text_of(double value) {
  std::string text = std::to_string(value);
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

}  // namespace

Result<void> validate(const SamplingParams& params, int vocab_size) {
  // Written so that NaN fails every range.
  const struct {
    const char* field;
    double value;
    bool good;
    const char* expected;
  } numbers[] = {
      {"temperature", params.temperature, params.temperature >= 0 && std::isfinite(params.temperature),
       "a finite number >= 0"},
      {"top_p", params.top_p, params.top_p > 0 && params.top_p <= 1, "a number in (0, 1]"},
      {"top_k", static_cast<double>(params.top_k), params.top_k >= -1, "at least 1, or 0 or -1 for all"},
      {"min_p", params.min_p, params.min_p >= 0 && params.min_p <= 1, "a number in [0, 1]"},
      {"repetition_penalty", params.repetition_penalty,
       params.repetition_penalty > 0 && std::isfinite(params.repetition_penalty), "a finite number > 0"},
      {"presence_penalty", params.presence_penalty, params.presence_penalty >= -2 && params.presence_penalty <= 2,
       "a number in [-2, 2]"},
      {"frequency_penalty", params.frequency_penalty, params.frequency_penalty >= -2 && params.frequency_penalty <= 2,
       "a number in [-2, 2]"},
      {"max_tokens", static_cast<double>(params.max_tokens.value_or(1)), params.max_tokens.value_or(1) >= 1,
       "at least 1"},
      {"min_tokens", static_cast<double>(params.min_tokens), params.min_tokens >= 0, "at least 0"},
      {"logprobs", static_cast<double>(params.logprobs.value_or(0)),
       params.logprobs.value_or(0) >= 0 && params.logprobs.value_or(0) <= std::min(kMaxLogprobs, vocab_size),
       "a number in [0, 20]"},
  };
  for (const auto& number : numbers) {
    if (!number.good) return out_of_range(number.field, number.expected, text_of(number.value));
  }
  if (params.max_tokens && params.min_tokens > *params.max_tokens) {
    return out_of_range("min_tokens", "at most max_tokens, " + std::to_string(*params.max_tokens),
                        std::to_string(params.min_tokens));
  }
  if (params.stop.size() > kMaxStopStrings) {
    return out_of_range("stop", "at most " + std::to_string(kMaxStopStrings) + " strings",
                        std::to_string(params.stop.size()));
  }
  for (const std::string& stop : params.stop) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return out_of_range("stop", "strings of 1 to " + std::to_string(kMaxStopBytes) + " bytes",
                          std::to_string(stop.size()));
    }
  }
  if (params.stop_token_ids.size() > kMaxStopTokenIds) {
    return out_of_range("stop_token_ids", "at most " + std::to_string(kMaxStopTokenIds) + " ids",
                        std::to_string(params.stop_token_ids.size()));
  }
  for (int32_t id : params.stop_token_ids) {
    if (id < 0 || id >= vocab_size) {
      return out_of_range("stop_token_ids", "ids in [0, " + std::to_string(vocab_size) + ")", std::to_string(id));
    }
  }
  return {};
}

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return "?";
}

}  // namespace proa
