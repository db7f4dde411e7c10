#include "tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "checkpoint/printable.h"
#include "tokenizer/utf8.h"

namespace proa {
namespace {

// An expression from outside may take quadratic or exponential time. Compiled code does not count its steps in simple
// repeats, so only expressions of our own list are compiled; the others are interpreted, with limits on the steps from
// one start and on the time of one encoding, many times what an honest expression needs.
constexpr uint32_t kHeapLimitKiB = 256 * 1024;  // backtracking memory of the interpreter
constexpr size_t kStartsPerClock = 16;  // how many starts an interpreted search tries without a look at the clock

uint32_t match_limit(size_t text_size) {
  return static_cast<uint32_t>(std::min<size_t>(1'000'000 + 16 * text_size, UINT32_MAX));
}
std::chrono::nanoseconds time_limit(size_t text_size) {
  return std::chrono::seconds(1) + std::chrono::nanoseconds(2000) * text_size;
}

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

// PCRE2's \s has U+180E, which has not been white space since Unicode 6.3 and is none for the engines the expressions
// were written for. So \s and \S are spelt out.
std::string with_unicode_white_space(std::string_view expression) {
  constexpr std::string_view kWhiteSpace = R"(\p{Z}\t-\r\x{85})";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (c == '\\' && i + 1 < expression.size()) {
      const char escaped = expression[++i];
      if (escaped == 's' && in_class) {
        out += kWhiteSpace;
      } else if (escaped == 's' || (escaped == 'S' && !in_class)) {
        out.append(escaped == 's' ? "[" : "[^").append(kWhiteSpace).append("]");
      } else {
        out.append({c, escaped});
      }
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      // A bracket right after the opening one, or after its ^, is a member.
      if (expression.substr(i + 1, 1) == "^") out += expression[++i];
      if (expression.substr(i + 1, 1) == "]") out += expression[++i];
      continue;
    }
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

// Where one step cuts a text.
struct Piece {
  size_t begin, end;
  bool is_match;
};

void join_pieces(PreTokenizerStep::Behavior behavior, std::vector<Piece>& pieces) {
  using Behavior = PreTokenizerStep::Behavior;
  std::vector<Piece> joined;
  for (const Piece& piece : pieces) {
    const bool before_is_match = !joined.empty() && joined.back().is_match;
    switch (behavior) {
      case Behavior::isolated:
        joined.push_back(piece);
        break;
      case Behavior::removed:
        if (!piece.is_match) joined.push_back(piece);
        break;
      case Behavior::contiguous:
        if (!joined.empty() && before_is_match == piece.is_match) {
          joined.back().end = piece.end;
        } else {
          joined.push_back(piece);
        }
        break;
      case Behavior::merged_with_previous:
        if (piece.is_match && !joined.empty() && !before_is_match) {
          joined.back().end = piece.end;
          joined.back().is_match = true;
        } else {
          joined.push_back(piece);
        }
        break;
      case Behavior::merged_with_next:
        if (!piece.is_match && before_is_match) {
          joined.back().end = piece.end;
          joined.back().is_match = false;
        } else {
          joined.push_back(piece);
        }
        break;
    }
  }
  pieces = std::move(joined);
}

}  // namespace

struct PreTokenizer::Step {
  PreTokenizerStep description;
  std::unique_ptr<pcre2_code, CodeDeleter> code;  // null for what is no split
  bool trusted = false;                           // linear time is known
};

struct PreTokenizer::Scratch::State {
  std::vector<std::unique_ptr<pcre2_match_data, MatchDataDeleter>> data;  // [steps]
  std::vector<std::string> changed;                                       // [steps] the text after the step
  std::chrono::steady_clock::time_point deadline;
  std::unique_ptr<pcre2_match_context, MatchContextDeleter> context;
};

PreTokenizer::Scratch::Scratch() : state_(std::make_unique<State>()) {}
PreTokenizer::Scratch::Scratch(Scratch&&) noexcept = default;
PreTokenizer::Scratch::~Scratch() = default;

Result<PreTokenizer> PreTokenizer::create(std::span<const PreTokenizerStep> steps) {
  const std::string doing = "compile pre-tokenizer";
  if (steps.size() > kMaxSteps) {
    return Error{.doing = doing,
                 .expected = "at most " + std::to_string(kMaxSteps) + " steps",
                 .actual = std::to_string(steps.size())};
  }
  PreTokenizer result;
  for (const PreTokenizerStep& description : steps) {
    auto step = std::make_shared<Step>();
    step->description = description;
    if (description.kind == PreTokenizerStep::Kind::split) {
      if (description.expression.size() > kMaxExpressionBytes) {
        return Error{.doing = doing,
                     .expected = "an expression of at most 65536 bytes",
                     .actual = std::to_string(description.expression.size())};
      }
      const bool literal = description.literal;
      const std::string expression =
          literal ? description.expression : with_unicode_white_space(description.expression);
      int code = 0;
      PCRE2_SIZE offset = 0;
      // MULTILINE because ^ and $ of the Oniguruma syntax in tokenizer.json match at line breaks.
      step->code.reset(pcre2_compile(
          reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
          literal ? PCRE2_UTF | PCRE2_LITERAL | PCRE2_USE_OFFSET_LIMIT
                  : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT,
          &code, &offset, nullptr));
      if (!step->code) {
        PCRE2_UCHAR text[256] = "unknown";
        pcre2_get_error_message(code, text, sizeof text);
        return Error{.doing = doing,
                     .where = "character " + std::to_string(offset) + " of " + printable(expression, 300),
                     .expected = "a regular expression that PCRE2 takes",
                     .actual = reinterpret_cast<char*>(text)};
      }
      // Where there is no JIT the interpreter answers.
      step->trusted = literal || is_known_expression(description.expression);
      if (step->trusted) pcre2_jit_compile(step->code.get(), PCRE2_JIT_COMPLETE);
    }
    result.steps_.push_back(std::move(step));
  }
  return result;
}

PreTokenizer::Scratch PreTokenizer::make_scratch(size_t text_size) const {
  Scratch scratch;
  for (const auto& step : steps_) {
    (void)step;
    scratch.state_->data.emplace_back(pcre2_match_data_create(1, nullptr));
  }
  scratch.state_->changed.resize(steps_.size());
  scratch.state_->context.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(scratch.state_->context.get(), match_limit(text_size));
  pcre2_set_heap_limit(scratch.state_->context.get(), kHeapLimitKiB);
  scratch.state_->deadline = std::chrono::steady_clock::now() + time_limit(text_size);
  return scratch;
}

void PreTokenizer::cut(std::string_view text, bool at_start, Scratch& scratch,
                       const std::function<void(std::string_view)>& word) const {
  if (!text.empty()) cut_from(0, text, at_start, scratch, word);
}

void PreTokenizer::cut_from(size_t index, std::string_view text, bool at_start, Scratch& scratch,
                            const std::function<void(std::string_view)>& word) const {
  if (index == steps_.size()) return word(text);
  const Step& step = *steps_[index];
  using Kind = PreTokenizerStep::Kind;
  if (const Kind kind = step.description.kind; kind != Kind::split) {
    std::string& changed = scratch.state_->changed[index];
    if (kind == Kind::prefix_space) {
      if (text.front() == ' ') return cut_from(index + 1, text, at_start, scratch, word);
      changed.assign(1, ' ').append(text);
    } else {
      const bool prefix = kind == Kind::metaspace_always || (kind == Kind::metaspace_first && at_start);
      changed.clear();
      if (prefix && text.front() != ' ' && !text.starts_with(kMetaspace)) changed = kMetaspace;
      append_replaced(changed, text, " ", kMetaspace);
    }
    return cut_from(index + 1, changed, at_start, scratch, word);
  }

  pcre2_match_data* data = scratch.state_->data[index].get();
  pcre2_match_context* context = scratch.state_->context.get();
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data);
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  constexpr uint32_t kOptions = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;  // empty matches cut nothing
  const auto search_compiled = [&](size_t from) {
    pcre2_set_offset_limit(context, PCRE2_UNSET);
    const int found = pcre2_match(step.code.get(), subject, text.size(), from, kOptions, data, context);
    if (found != PCRE2_ERROR_JIT_STACKLIMIT) return found;
    return pcre2_match(step.code.get(), subject, text.size(), from, kOptions | PCRE2_NO_JIT, data, context);
  };
  const auto search_interpreted = [&](size_t from) {
    int found = PCRE2_ERROR_NOMATCH;
    while (found == PCRE2_ERROR_NOMATCH && from < text.size()) {
      if (std::chrono::steady_clock::now() > scratch.state_->deadline) break;
      pcre2_set_offset_limit(context, from + kStartsPerClock - 1);
      found = pcre2_match(step.code.get(), subject, text.size(), from, kOptions, data, context);
      from += kStartsPerClock;
      while (from < text.size() && (static_cast<uint8_t>(text[from]) & 0xC0) == 0x80) ++from;
    }
    return found;
  };
  // The next match from `from` on, or none.
  const auto next_match = [&](size_t from) -> std::optional<std::pair<size_t, size_t>> {
    const int found = step.trusted ? search_compiled(from) : search_interpreted(from);
    // \K can report ranges that are empty or go backwards.
    if (found < 0 || range[0] < from || range[1] <= range[0]) return std::nullopt;
    return std::pair<size_t, size_t>(range[0], range[1]);
  };

  const bool isolated = step.description.behavior == PreTokenizerStep::Behavior::isolated;
  const bool last = index + 1 == steps_.size();
  std::vector<Piece> pieces;
  const auto piece = [&](size_t begin, size_t end, bool is_match) {
    if (begin == end) return;
    if (!isolated) {
      pieces.push_back({begin, end, is_match != step.description.invert});
    } else if (last) {
      word(text.substr(begin, end - begin));
    } else {
      cut_from(index + 1, text.substr(begin, end - begin), at_start && begin == 0, scratch, word);
    }
  };
  size_t done = 0;
  while (done < text.size()) {
    const auto match = next_match(done);
    piece(done, match ? match->first : text.size(), false);
    if (!match) break;
    piece(match->first, match->second, true);
    done = match->second;
  }
  if (isolated) return;
  join_pieces(step.description.behavior, pieces);
  for (const Piece& p : pieces) {
    cut_from(index + 1, text.substr(p.begin, p.end - p.begin), at_start && p.begin == 0, scratch, word);
  }
}

}  // namespace proa
