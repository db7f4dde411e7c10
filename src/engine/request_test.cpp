#include "engine/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace proa {
namespace {

struct Case {
  const char* field;  // "" for good parameters
  std::function<void(SamplingParams&)> change;
};

const Case kCases[] = {
    {"", [](SamplingParams&) {}},
    {"", [](SamplingParams& p) { p.temperature = 0; }},
    {"temperature", [](SamplingParams& p) { p.temperature = -0.1f; }},
    {"temperature", [](SamplingParams& p) { p.temperature = NAN; }},
    {"temperature", [](SamplingParams& p) { p.temperature = INFINITY; }},
    {"top_p", [](SamplingParams& p) { p.top_p = 0; }},
    {"top_p", [](SamplingParams& p) { p.top_p = 1.5f; }},
    {"top_p", [](SamplingParams& p) { p.top_p = NAN; }},
    {"", [](SamplingParams& p) { p.top_k = -1; }},
    {"top_k", [](SamplingParams& p) { p.top_k = -2; }},
    {"", [](SamplingParams& p) { p.min_p = 1; }},
    {"min_p", [](SamplingParams& p) { p.min_p = -0.5f; }},
    {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 0; }},
    {"presence_penalty", [](SamplingParams& p) { p.presence_penalty = 2.5f; }},
    {"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = NAN; }},
    {"max_tokens", [](SamplingParams& p) { p.max_tokens = 0; }},
    {"min_tokens", [](SamplingParams& p) { p.min_tokens = -1; }},
    {"min_tokens", [](SamplingParams& p) { p.min_tokens = 3, p.max_tokens = 2; }},
    {"", [](SamplingParams& p) { p.min_tokens = 2, p.max_tokens = 2; }},
    {"stop",
     [](SamplingParams& p) {
       p.stop = {"x", ""};
     }},
    {"stop", [](SamplingParams& p) { p.stop = {std::string(kMaxStopBytes + 1, 'x')}; }},
    {"stop", [](SamplingParams& p) { p.stop.assign(kMaxStopStrings + 1, "x"); }},
    {"stop_token_ids",
     [](SamplingParams& p) {
       p.stop_token_ids = {0, 100};
     }},
    {"stop_token_ids", [](SamplingParams& p) { p.stop_token_ids = {-1}; }},
    {"stop_token_ids", [](SamplingParams& p) { p.stop_token_ids.assign(kMaxStopTokenIds + 1, 1); }},
    {"", [](SamplingParams& p) { p.logprobs = 0; }},
    {"logprobs", [](SamplingParams& p) { p.logprobs = kMaxLogprobs + 1; }},
    {"logprobs", [](SamplingParams& p) { p.logprobs = -1; }},
    {"", [](SamplingParams& p) { p.prompt_logprobs = kMaxLogprobs; }},
    {"prompt_logprobs", [](SamplingParams& p) { p.prompt_logprobs = -1; }},
    {"",
     [](SamplingParams& p) {
       p.logit_bias = {{99, -100}};
     }},
    {"logit_bias",
     [](SamplingParams& p) {
       p.logit_bias = {{100, 1}};
     }},
    {"logit_bias",
     [](SamplingParams& p) {
       p.logit_bias = {{1, NAN}};
     }},
    {"logit_bias",
     [](SamplingParams& p) {
       p.logit_bias = {{1, -INFINITY}};
     }},
    {"allowed_token_ids",
     [](SamplingParams& p) {
       p.allowed_token_ids = {5, -1};
     }},
    {"",
     [](SamplingParams& p) {
       p.bad_words = {{1}, {2, 3}};
     }},
    {"bad_words", [](SamplingParams& p) { p.bad_words = {{}}; }},
    {"bad_words",
     [](SamplingParams& p) {
       p.bad_words = {{1, 100}};
     }},
    {"bad_words", [](SamplingParams& p) { p.bad_words.assign(kMaxBadWords + 1, {1}); }},
    {"bad_words", [](SamplingParams& p) { p.bad_words = {std::vector<int32_t>(kMaxBadWordTokens + 1, 1)}; }},
    {"", [](SamplingParams& p) { p.thinking_budget = ThinkingBudget{.end_token_ids = {1}}; }},
    {"thinking_budget", [](SamplingParams& p) { p.thinking_budget = ThinkingBudget{}; }},
    {"thinking_budget",
     [](SamplingParams& p) { p.thinking_budget = ThinkingBudget{.tokens = -1, .end_token_ids = {1}}; }},
    {"thinking_budget", [](SamplingParams& p) { p.thinking_budget = ThinkingBudget{.end_token_ids = {100}}; }},
};

TEST(SamplingParams, ErrorsNameTheField) {
  for (size_t i = 0; i < std::size(kCases); ++i) {
    SamplingParams params;
    kCases[i].change(params);
    const Result<void> result = validate(params, 100);
    EXPECT_EQ(result.ok() ? "" : result.error().where, kCases[i].field) << "row " << i;
    if (!result.ok()) {
      EXPECT_FALSE(result.error().expected.empty() || result.error().actual.empty()) << "row " << i;
    }
  }
}

}  // namespace
}  // namespace proa
