#include "eval/questions.h"

#include <algorithm>
#include <cmath>

#include "checkpoint/checkpoint.h"
#include "checkpoint/printable.h"
#include "core/mapped_file.h"

namespace proa {
namespace {

using nlohmann::ordered_json;
constexpr const char* kDoing = "read questions";
constexpr std::string_view kPlaceholder = "{question}";

struct Line {
  std::string where;  // "held_out.jsonl:12"

  Error bad(const std::string& field, std::string expected, const std::string& actual) const {
    return {kDoing, where + ": " + field, std::move(expected), printable(actual), ""};
  }
  Result<std::string> text(const ordered_json& object, const char* field) const {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_string()) {
      return bad(field, "a string", found == object.end() ? "none" : found->type_name());
    }
    return found->get<std::string>();
  }
};

Result<void> read_match(const Line& line, const ordered_json& object, Question& q) {
  const auto found = object.find("match");
  if (found == object.end()) return {};
  for (const Match match : {Match::exact, Match::contains, Match::json}) {
    if (found->is_string() && found->get<std::string>() == to_string(match)) {
      q.match = match;
      return {};
    }
  }
  return line.bad("match", "exact, contains or json", found->dump());
}

Result<void> read_choices(const Line& line, const ordered_json& object, Question& q) {
  const ordered_json& choices = object["choices"];
  if (!choices.is_array() || choices.size() < 2 || choices.size() > 26) {
    return line.bad("choices", "2 to 26 strings",
                    choices.is_array() ? std::to_string(choices.size()) : choices.type_name());
  }
  for (const auto& choice : choices) {
    if (!choice.is_string() || choice.get<std::string>().empty()) {
      return line.bad("choices", "strings that are not empty", choice.dump());
    }
    q.choices.push_back(choice.get<std::string>());
  }
  q.match = Match::choice;
  const auto answer = object.find("answer");
  const auto count = static_cast<int64_t>(q.choices.size());
  if (answer != object.end() && answer->is_number_integer()) {
    const auto index = answer->get<int64_t>();
    if (index >= 0 && index < count) q.right_choice = static_cast<int>(index);
  } else if (answer != object.end() && answer->is_string()) {
    const auto text = answer->get<std::string>();
    const auto found = std::find(q.choices.begin(), q.choices.end(), text);
    if (found != q.choices.end()) {
      q.right_choice = static_cast<int>(found - q.choices.begin());
    } else if (text.size() == 1 && text[0] >= 'A' && text[0] < 'A' + count) {
      q.right_choice = text[0] - 'A';
    }
  }
  if (q.right_choice < 0) {
    return line.bad("answer", "one of the " + std::to_string(count) + " choices, or its index or letter",
                    answer == object.end() ? "none" : answer->dump());
  }
  q.answers = {q.choices[static_cast<size_t>(q.right_choice)]};
  return {};
}

// Everything but the prompt.
Result<void> read_answer(const Line& line, const ordered_json& object, Question& q) {
  for (const auto& [field, target] : {std::pair("kind", &q.kind), std::pair("language", &q.language)}) {
    if (!object.contains(field)) continue;
    PROA_ASSIGN(*target, line.text(object, field));
  }
  if (const auto unseen = object.find("unseen_phrasing"); unseen != object.end()) {
    q.unseen_phrasing = unseen->is_boolean() && unseen->get<bool>();
  }
  PROA_TRY(read_match(line, object, q));
  if (object.contains("choices")) return read_choices(line, object, q);
  if (object.contains("answers")) {
    const ordered_json& answers = object["answers"];
    if (!answers.is_array() || answers.empty()) return line.bad("answers", "strings", answers.dump());
    for (const auto& answer : answers) {
      if (!answer.is_string()) return line.bad("answers", "strings", answer.dump());
      q.answers.push_back(answer.get<std::string>());
    }
  } else {
    const auto answer = object.find("answer");
    if (answer != object.end() && (answer->is_object() || answer->is_array()) && q.match == Match::json) {
      q.answers = {answer->dump()};
    } else {
      PROA_ASSIGN(std::string text, line.text(object, "answer"));
      q.answers = {std::move(text)};
    }
  }
  if (q.match != Match::json) return {};
  for (const std::string& answer : q.answers) {
    if (!ordered_json::accept(answer)) return line.bad("answer", "JSON, since \"match\" is json", answer);
  }
  return {};
}

Result<void> check_messages(const Line& line, const ordered_json& messages) {
  if (!messages.is_array() || messages.empty()) return line.bad("messages", "an array of messages", messages.dump());
  for (const auto& message : messages) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
        !message.contains("content") || !message["content"].is_string()) {
      return line.bad("messages", "objects with role and content", message.dump());
    }
  }
  return {};
}

// The messages with the question in its place; none: no message has one.
Result<ordered_json> fill(const Line& line, ordered_json messages, const std::string& question) {
  bool found = false;
  for (auto& message : messages) {
    std::string content = message["content"];
    if (const size_t at = content.find(kPlaceholder); at != content.npos) {
      message["content"] = content.replace(at, kPlaceholder.size(), question);
      found = true;
    }
  }
  if (!found) return line.bad("messages", "a message with " + std::string(kPlaceholder), "none");
  return messages;
}

Result<void> read_line(const Line& line, const ordered_json& object, Match match, size_t group,
                       std::vector<Question>& out) {
  if (!object.is_object()) return line.bad("", "an object", object.type_name());
  std::string id = std::to_string(group);
  if (const auto found = object.find("id"); found != object.end()) {
    id = found->is_string() ? found->get<std::string>() : found->dump();
  }
  Question base{.id = id, .messages = ordered_json::array(), .match = match, .group = group};
  if (!object.contains("messages")) {
    const char* field = object.contains("prompt") ? "prompt" : "question";
    PROA_ASSIGN(base.text, line.text(object, field));
    if (base.text.empty()) return line.bad(field, "a text that is not empty", "\"\"");
    PROA_TRY(read_answer(line, object, base));
    out.push_back(std::move(base));
    return {};
  }
  PROA_TRY(check_messages(line, object["messages"]));
  if (!object.contains("questions")) {
    base.messages = object["messages"];
    PROA_TRY(read_answer(line, object, base));
    out.push_back(std::move(base));
    return {};
  }
  const ordered_json& questions = object["questions"];
  if (!questions.is_array()) return line.bad("questions", "an array", questions.type_name());
  for (const auto& each : questions) {
    Question q = base;
    q.id += "/" + std::to_string(&each - &questions[0]);
    const Line inner{line.where + ": question " + std::to_string(&each - &questions[0])};
    if (!each.is_object()) return inner.bad("", "an object", each.type_name());
    PROA_ASSIGN(const std::string question, inner.text(each, "question"));
    PROA_ASSIGN(q.messages, fill(line, object["messages"], question));
    PROA_TRY(read_answer(inner, each, q));
    out.push_back(std::move(q));
  }
  return {};
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == text.npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") + 1 - begin);
}

// The first JSON value of a text: whole, or from the first bracket to the last.
ordered_json json_in(std::string_view text) {
  auto json = ordered_json::parse(text, nullptr, false);
  if (!json.is_discarded()) return json;
  const size_t begin = text.find_first_of("[{");
  const size_t end = text.find_last_of("]}");
  if (begin == text.npos || end == text.npos || end < begin) return json;
  return ordered_json::parse(text.substr(begin, end + 1 - begin), nullptr, false);
}

}  // namespace

const char* to_string(Match match) {
  switch (match) {
    case Match::exact:
      return "exact";
    case Match::contains:
      return "contains";
    case Match::json:
      return "json";
    case Match::choice:
      return "choice";
  }
  return "";
}

Result<std::vector<Question>> parse_questions(std::string_view text, const std::string& path, Match match) {
  std::vector<Question> questions;
  size_t number = 0, group = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.empty()) continue;
    const Line at{path + ":" + std::to_string(number)};
    PROA_ASSIGN(const auto json, parse_json(line, at.where, size_t{64} << 20));
    PROA_TRY(read_line(at, json, match, group++, questions));
  }
  if (questions.empty()) return Error{kDoing, path, "at least one question", "none", ""};
  return questions;
}

Result<std::vector<Question>> read_questions(const std::string& path, Match match) {
  PROA_ASSIGN(const MappedFile file, MappedFile::open(path));
  return parse_questions({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path, match);
}

bool in_sample(size_t group, double share) {
  const double at = static_cast<double>(group) * 0.6180339887498949;  // the golden ratio: no period
  return at - std::floor(at) < share;
}

bool is_right(const Question& question, std::string_view answer) {
  if (const size_t thought = answer.rfind("</think>"); thought != answer.npos) answer.remove_prefix(thought + 8);
  answer = trimmed(answer);
  return std::any_of(question.answers.begin(), question.answers.end(), [&](const std::string& right) {
    if (question.match == Match::contains) return answer.find(trimmed(right)) != answer.npos;
    if (question.match == Match::exact) return answer == trimmed(right);
    // As values without an order of members.
    const auto found = json_in(answer), wanted = json_in(right);
    return !found.is_discarded() && nlohmann::json::parse(found.dump()) == nlohmann::json::parse(wanted.dump());
  });
}

}  // namespace proa
