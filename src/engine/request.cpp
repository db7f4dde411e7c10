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
      {"prompt_logprobs", static_cast<double>(params.prompt_logprobs.value_or(0)),
       params.prompt_logprobs.value_or(0) >= 0 &&
           params.prompt_logprobs.value_or(0) <= std::min(kMaxLogprobs, vocab_size),
       "a number in [0, 20]"},
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
  const auto known = [&](int32_t id) { return id >= 0 && id < vocab_size; };
  const std::string ids = "ids in [0, " + std::to_string(vocab_size) + ")";
  for (const TokenBias& bias : params.logit_bias) {
    if (!known(bias.token_id)) return out_of_range("logit_bias", ids, std::to_string(bias.token_id));
    if (!std::isfinite(bias.bias)) return out_of_range("logit_bias", "finite numbers", text_of(bias.bias));
  }
  for (const int32_t id : params.allowed_token_ids) {
    if (!known(id)) return out_of_range("allowed_token_ids", ids, std::to_string(id));
  }
  if (params.bad_words.size() > kMaxBadWords) {
    return out_of_range("bad_words", "at most " + std::to_string(kMaxBadWords) + " words",
                        std::to_string(params.bad_words.size()));
  }
  for (const std::vector<int32_t>& word : params.bad_words) {
    if (word.empty() || word.size() > kMaxBadWordTokens) {
      return out_of_range("bad_words", "words of 1 to " + std::to_string(kMaxBadWordTokens) + " tokens",
                          std::to_string(word.size()));
    }
    for (const int32_t id : word) {
      if (!known(id)) return out_of_range("bad_words", ids, std::to_string(id));
    }
  }
  if (const auto& budget = params.thinking_budget) {
    if (budget->tokens < 0 || budget->grace < 0) {
      return out_of_range("thinking_budget", "at least 0 tokens",
                          std::to_string(std::min(budget->tokens, budget->grace)));
    }
    if (budget->end_token_ids.empty()) return out_of_range("thinking_budget", "tokens that end thinking", "none");
    for (const int32_t id : budget->end_token_ids) {
      if (!known(id)) return out_of_range("thinking_budget", ids, std::to_string(id));
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
