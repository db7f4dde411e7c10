// A file of questions with answers, a JSON object a line. One of
//
//   {"messages": [...], "questions": [{"question": "...", "answer": "..."}, ...]}     {question} stands in a message
//   {"messages": [...], "answer": "..."}
//   {"question": "...", "answer": "..."}        a user's message, or plain text to continue; also as "prompt"
//
// with, in place of "answer" or beside it: "answers" (several that are right), "choices" with the index, the letter or
// the text of the right one as "answer", "match" (exact, contains, json), "kind" and "language" (for tables), "id".
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

enum class Match : uint8_t {
  exact,     // every character, but for white space around it
  contains,  // the answer stands somewhere in it
  json,      // the same value, whatever its spelling; text around the value does not count
  choice,    // the likeliest of the choices
};
const char* to_string(Match match);

struct Question {
  std::string id;
  std::string kind, language;       // may be empty
  nlohmann::ordered_json messages;  // an array; empty: `text` is the prompt
  std::string text;
  Match match = Match::exact;
  std::vector<std::string> answers;  // at least one; of `choice` the right one alone
  std::vector<std::string> choices;  // at least two, or empty
  int right_choice = -1;
  bool unseen_phrasing = false;  // in training, where the file says so
  size_t group = 0;              // questions of one line, which begin alike
};

// Errors name file, line and field. `match` is what counts where a line says nothing.
Result<std::vector<Question>> read_questions(const std::string& path, Match match = Match::exact);
Result<std::vector<Question>> parse_questions(std::string_view text, const std::string& path,
                                              Match match = Match::exact);

// Whether a group is among a share of all that is spread evenly, whatever comes round in the file (languages, kinds).
bool in_sample(size_t group, double share);

// Whether an answer is right. What a model thought before </think> does not count. Not for choices.
bool is_right(const Question& question, std::string_view answer);

}  // namespace proa
