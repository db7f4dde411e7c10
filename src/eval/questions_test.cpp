#include "eval/questions.h"

#include <gtest/gtest.h>

namespace proa {
namespace {

std::string error_of(const std::string& line) {
  const auto parsed = parse_questions(line, "q.jsonl");
  return parsed.ok() ? "" : parsed.error().message();
}

TEST(Questions, EveryForm) {
  const std::string text =
      R"({"question": "2 + 2?", "answer": "4", "kind": "sum", "language": "en", "id": "a"})"
      "\n\n"  // empty lines do not count
      R"({"prompt": "The sky is", "choices": ["green", "blue"], "answer": "B"})"
      "\r\n"
      R"({"messages": [{"role": "user", "content": "W\n\n{question}"}], "questions": [{"question": "max?", "answer": "9"},
 {"question": "min?", "answers": ["1", "one"], "unseen_phrasing": true}]})";
  std::string one_line = text;
  one_line.replace(one_line.find(",\n {"), 3, ",");
  const auto parsed = parse_questions(one_line, "q.jsonl");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message();
  ASSERT_EQ(parsed->size(), 4u);
  const auto& q = *parsed;
  EXPECT_EQ(q[0].id, "a");
  EXPECT_EQ(q[0].text, "2 + 2?");
  EXPECT_EQ(q[0].kind, "sum");
  EXPECT_EQ(q[1].match, Match::choice);
  EXPECT_EQ(q[1].right_choice, 1);
  EXPECT_EQ(q[2].messages[0]["content"], "W\n\nmax?");
  EXPECT_EQ(q[2].group, q[3].group);
  EXPECT_NE(q[1].group, q[2].group);
  EXPECT_EQ(q[3].answers, (std::vector<std::string>{"1", "one"}));
  EXPECT_TRUE(q[3].unseen_phrasing);
  EXPECT_EQ(q[3].id, "2/1");
}

TEST(Questions, WhatIsWrongIsNamedWithItsLine) {
  const std::pair<std::string, std::string> rows[] = {
      {"", "at least one question"},
      {"[1]", "q.jsonl:1"},
      {"{\"question\": \"a\"", "q.jsonl:1"},
      {"\n\n{\"question\": 3, \"answer\": \"b\"}", "q.jsonl:3: question: expected a string, found number"},
      {R"({"question": "", "answer": "b"})", "a text that is not empty"},
      {R"({"question": "a"})", "answer: expected a string, found none"},
      {R"({"question": "a", "answer": 4})", "answer: expected a string, found number"},
      {R"({"question": "a", "answers": []})", "answers: expected strings"},
      {R"({"question": "a", "answer": "b", "match": "fuzzy"})", "exact, contains or json"},
      {R"({"question": "a", "answer": "{", "match": "json"})", "expected JSON"},
      {R"({"question": "a", "choices": ["x"], "answer": "x"})", "2 to 26 strings"},
      {R"({"question": "a", "choices": ["x", ""], "answer": "x"})", "not empty"},
      {R"({"question": "a", "choices": ["x", "y"], "answer": "z"})", "one of the 2 choices"},
      {R"({"question": "a", "choices": ["x", "y"], "answer": 2})", "one of the 2 choices"},
      {R"({"question": "a", "choices": ["x", "y"], "answer": "C"})", "one of the 2 choices"},
      {R"({"messages": [], "answer": "b"})", "an array of messages"},
      {R"({"messages": [{"role": "user"}], "answer": "b"})", "objects with role and content"},
      {R"({"messages": [{"role": "user", "content": "x"}], "questions": [{"question": "a", "answer": "b"}]})",
       "a message with {question}"},
      {R"({"messages": [{"role": "user", "content": "{question}"}], "questions": [{"question": "a"}]})",
       "question 0: answer"},
  };
  for (const auto& [line, expected] : rows) {
    EXPECT_NE(error_of(line).find(expected), std::string::npos) << line << "\n  " << error_of(line);
  }
}

TEST(Questions, RightAndWrong) {
  const struct {
    Match match;
    const char *wanted, *answer;
    bool right;
  } rows[] = {
      {Match::exact, "Wind: 3.1 m/s.", "Wind: 3.1 m/s.", true},
      {Match::exact, "Wind: 3.1 m/s.", " Wind: 3.1 m/s.\n", true},
      {Match::exact, "Wind: 3.1 m/s.", "Wind: 3.1 m/s", false},
      {Match::exact, "4", "<think>maybe 5</think>\n4", true},
      {Match::exact, "4", "5 4", false},
      {Match::contains, "4", "It is 4.", true},
      {Match::contains, "4", "4 was in my mind</think> It is 5.", false},
      {Match::json, R"({"a": 1, "b": [2]})", R"({"b":[2.0],"a":1})", true},
      {Match::json, R"({"a": 1})", "Here: {\"a\": 1} - done", true},
      {Match::json, R"({"a": 1})", R"({"a": 2})", false},
      {Match::json, R"([1, 2])", "[2, 1]", false},
      {Match::json, R"({"a": 1})", "no json", false},
  };
  for (const auto& row : rows) {
    Question q{.match = row.match, .answers = {row.wanted}};
    EXPECT_EQ(is_right(q, row.answer), row.right) << row.wanted << " | " << row.answer;
  }
  EXPECT_TRUE(is_right({.answers = {"no", "4"}}, "4"));
}

TEST(Questions, SamplesAreEven) {
  for (const double share : {0.1, 0.25, 0.5}) {
    int of_three[3] = {}, all = 0;
    for (size_t group = 0; group < 600; ++group) {
      if (!in_sample(group, share)) continue;
      ++of_three[group % 3];
      ++all;
    }
    EXPECT_NEAR(all, 600 * share, 3);
    for (const int part : of_three) EXPECT_NEAR(part, 200 * share, 4) << share;
  }
}

}  // namespace
}  // namespace proa
