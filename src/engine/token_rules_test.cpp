#include "engine/token_rules.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace proa {
namespace {

constexpr int kVocab = 12, kEos = 10, kOtherEos = 11;
const std::vector<int32_t> kEnds = {kEos, kOtherEos};

// "." for an allowed token, "x" for a banned one, "+" and "-" for a bias.
std::string shown(const std::vector<float>& row) {
  std::string text;
  for (const float bias : row) text += std::isinf(bias) ? 'x' : bias > 0 ? '+' : bias < 0 ? '-' : '.';
  return text;
}

std::string after(const SamplingParams& params, const std::vector<int32_t>& output) {
  TokenRules rules(params, kEnds);
  std::vector<float> row(kVocab, 7.0f);
  rules.fill(output, row);
  return shown(row);
}

TEST(TokenRules, RowsOfBiases) {
  const struct {
    SamplingParams params;
    std::vector<int32_t> output;
    const char* row;
  } rows[] = {
      {{}, {}, "............"},
      {{.logit_bias = {{3, 1}, {0, -100}}}, {}, "-..+........"},
      {{.allowed_token_ids = {4, 2, 2}}, {}, "xx.x.xxxxxxx"},
      {{.logit_bias = {{2, 1}, {3, 1}}, .allowed_token_ids = {2, 4}}, {}, "xx+x.xxxxxxx"},
      {{.min_tokens = 2}, {1}, "..........xx"},
      {{.min_tokens = 2}, {1, 1}, "............"},
      {{.min_tokens = 2, .stop_token_ids = {5}}, {1}, ".....x....xx"},
      {{.min_tokens = 2, .stop_token_ids = {5}, .ignore_eos = true}, {1}, ".....x......"},
      {{.bad_words = {{3}}}, {}, "...x........"},
      {{.bad_words = {{1, 2, 3}}}, {1, 2}, "...x........"},
      {{.bad_words = {{1, 2, 3}}}, {2}, "............"},
      {{.bad_words = {{1, 2, 3}}}, {1, 2, 1}, "............"},
      {{.bad_words = {{1, 1}}}, {1, 1}, ".x.........."},
      {{.bad_words = {{1, 2}, {1, 3}, {2}}}, {1}, "..xx........"},
  };
  for (const auto& row : rows) EXPECT_EQ(after(row.params, row.output), row.row) << &row - rows;
  EXPECT_FALSE(TokenRules({}, kEnds).has_biases());
  EXPECT_FALSE(TokenRules({.min_tokens = 1, .ignore_eos = true}, kEnds).has_biases());
}

// A row that is kept up to date is the row that is made anew.
TEST(TokenRules, ChangesAddUp) {
  std::mt19937 random(5);
  const auto id = [&] { return static_cast<int32_t>(random() % kVocab); };
  for (int round = 0; round < 200; ++round) {
    SamplingParams params{.min_tokens = static_cast<int>(random() % 5), .stop_token_ids = {id()}};
    for (int i = 0; i < 3; ++i) {
      params.bad_words.push_back({id()});
      params.bad_words.push_back({id() % 3, id() % 3});
    }
    params.logit_bias = {{1, 2}, {2, -3}};
    if (round % 2 == 0) params.allowed_token_ids = {0, 1, 2, 3};
    TokenRules rules(params, kEnds);
    std::vector<int32_t> output;
    std::vector<float> row(kVocab);
    rules.fill(output, row);
    for (int step = 0; step < 10; ++step) {
      output.push_back(id() % 3);
      for (const TokenBias& change : rules.update(output)) row[static_cast<size_t>(change.token_id)] = change.bias;
      EXPECT_EQ(shown(row), after(params, output)) << round << " " << step;
    }
  }
}

// What the model says, beside what comes out when thinking is ended by 7 8. 9 is a line break, 5 6 say "</think>".
TEST(TokenRules, ThinkingEnds) {
  const struct {
    const char* what;
    int tokens, grace;
    std::vector<int32_t> said, expected;
  } rows[] = {
      {"at once", 0, 0, {1, 2, 3, 4}, {7, 8, 1, 2, 3, 4}},
      {"after two", 2, 0, {1, 2, 3, 4}, {1, 2, 7, 8, 3, 4}},
      {"closed before", 3, 0, {1, 5, 6, 3, 4}, {1, 5, 6, 3, 4}},
      {"closed with the last", 2, 0, {5, 6, 4}, {5, 6, 4}},
      {"half closed", 2, 0, {1, 5, 6, 4}, {1, 5, 7, 8, 6, 4}},
      {"at the next line break", 2, 3, {1, 2, 3, 9, 4, 5}, {1, 2, 3, 9, 7, 8, 4, 5}},
      {"without a line break", 1, 2, {1, 2, 3, 4, 5}, {1, 2, 3, 7, 8, 4, 5}},
      {"a line break before does not count", 2, 2, {9, 1, 2, 3, 4}, {9, 1, 2, 3, 7, 8, 4}},
      {"it stood at a line break", 2, 5, {1, 9, 3}, {1, 9, 7, 8, 3}},
  };
  for (const auto& row : rows) {
    TokenRules rules({.thinking_budget = ThinkingBudget{row.tokens, row.grace, {7, 8}, {"</think>"}}}, kEnds);
    EXPECT_FALSE(rules.has_biases());
    std::vector<int32_t> all;
    for (size_t next = 0; next < row.said.size();) {
      const int32_t forced = rules.forced();
      const int32_t token = forced >= 0 ? forced : row.said[next++];
      rules.accept(token, token == 9 ? ".\n" : token == 5 ? "a</th" : token == 6 ? "ink>b" : "x");
      all.push_back(token);
    }
    EXPECT_EQ(all, row.expected) << row.what;
  }
}

}  // namespace
}  // namespace proa
