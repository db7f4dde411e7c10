// Questions about one thing in a long text: where in it a reading stands (needle), how many there are of a kind
// (count).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/result.h"
#include "eval/questions.h"

namespace proa {

enum class LongStyle : uint8_t {
  buoy,  // a window of sensor readings, as proa-buoy knows them, with times that occur once
  text,  // plain sentences, for any model that chats
};

struct LongContext {
  LongStyle style = LongStyle::text;
  int64_t tokens = 8192;  // of a prompt, about
  int needles = 10;       // questions, evenly spread over the text
  int counts = 5;         // counting questions
  uint64_t seed = 1;
  size_t group = 0;  // of the questions: they share the text
};

// `count_tokens` measures a piece of text. Kinds are "needle 8K" and "count 8K"; ids end in the depth in percent.
std::vector<Question> long_context_questions(const LongContext& what,
                                             const std::function<size_t(const std::string&)>& count_tokens);

// "8K", "64k", "1M", "4096": tokens. Errors: something else; fewer than 512, more than 2^24.
Result<int64_t> parse_token_count(const std::string& text);
std::string token_count_text(int64_t tokens);  // "8K"

}  // namespace proa
