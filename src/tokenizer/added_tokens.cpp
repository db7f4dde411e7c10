#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/utf8.h"

namespace proa {
namespace {

// The character that ends at `end` of valid UTF-8; `begin` of the text is never passed.
char32_t character_before(std::string_view text, size_t end, size_t& begin) {
  begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return utf8_step(text.substr(begin)).code_point;
}

bool beside_word(std::string_view text, size_t begin, size_t end) {
  size_t start;
  if (begin > 0 && is_word_character(character_before(text, begin, start))) return true;
  return end < text.size() && is_word_character(utf8_step(text.substr(end)).code_point);
}

}  // namespace

Result<AddedTokenMatcher> AddedTokenMatcher::create(std::span<const AddedToken> tokens) {
  AddedTokenMatcher matcher;
  for (const AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    if (token.content.size() > kMaxContentBytes) {
      return Error{.doing = "build tokenizer",
                   .where = "added token " + std::to_string(token.id),
                   .expected = "at most " + std::to_string(kMaxContentBytes) + " bytes",
                   .actual = std::to_string(token.content.size())};
    }
    matcher.entries_.push_back(
        {std::string(token.content), token.id, token.special, token.lstrip, token.rstrip, token.single_word});
  }
  const auto less = [](const Entry& a, const Entry& b) { return a.content < b.content; };
  const auto same = [](const Entry& a, const Entry& b) { return a.content == b.content; };
  std::stable_sort(matcher.entries_.begin(), matcher.entries_.end(), less);
  matcher.entries_.erase(std::unique(matcher.entries_.begin(), matcher.entries_.end(), same), matcher.entries_.end());
  for (const Entry& entry : matcher.entries_) ++matcher.first_[static_cast<uint8_t>(entry.content[0]) + 1];
  for (size_t b = 0; b < 256; ++b) matcher.first_[b + 1] += matcher.first_[b];
  return matcher;
}

std::optional<int32_t> AddedTokenMatcher::find(std::string_view content) const {
  const auto at = std::lower_bound(entries_.begin(), entries_.end(), content,
                                   [](const Entry& entry, std::string_view text) { return entry.content < text; });
  if (at == entries_.end() || at->content != content) return std::nullopt;
  return at->id;
}

const AddedTokenMatcher::Entry* AddedTokenMatcher::longest_at(std::string_view text, size_t at,
                                                              size_t special_end) const {
  const uint8_t byte = static_cast<uint8_t>(text[at]);
  // [low, high) are the entries that begin with the first `depth` bytes from `at`; those of exactly that length first.
  auto low = entries_.begin() + first_[byte];
  auto high = entries_.begin() + first_[byte + 1];
  const Entry* longest = nullptr;
  for (size_t depth = 1; low != high; ++depth) {
    if (low->content.size() == depth) {
      const bool allowed = !low->special || at + depth <= special_end;
      if (allowed && !(low->single_word && beside_word(text, at, at + depth))) longest = &*low;
      if (++low == high) break;
    }
    if (at + depth == text.size()) break;
    const auto next = static_cast<uint8_t>(text[at + depth]);
    const auto byte_of = [&](const Entry& entry) { return static_cast<uint8_t>(entry.content[depth]); };
    low = std::lower_bound(low, high, next, [&](const Entry& entry, uint8_t b) { return byte_of(entry) < b; });
    high = std::upper_bound(low, high, next, [&](uint8_t b, const Entry& entry) { return b < byte_of(entry); });
  }
  return longest;
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::next(std::string_view text, size_t from,
                                                                std::span<const Run> runs) const {
  if (entries_.empty()) return std::nullopt;
  size_t run = static_cast<size_t>(
      std::upper_bound(runs.begin(), runs.end(), from, [](size_t at, const Run& r) { return at < r.end; }) -
      runs.begin());
  for (size_t at = from; at < text.size(); ++at) {
    const uint8_t byte = static_cast<uint8_t>(text[at]);
    if (first_[byte] == first_[byte + 1]) continue;
    while (run < runs.size() && at >= runs[run].end) ++run;
    const bool parse_special = run < runs.size() && runs[run].parse_special;
    const Entry* entry = longest_at(text, at, parse_special ? runs[run].end : 0);
    if (!entry) continue;
    Match match{entry->id, at, at + entry->content.size()};
    if (entry->lstrip) {
      size_t begin;
      while (match.begin > from && is_white_space(character_before(text, match.begin, begin))) match.begin = begin;
    }
    if (entry->rstrip) {
      while (match.end < text.size()) {
        const Utf8Step step = utf8_step(text.substr(match.end));
        if (!is_white_space(step.code_point)) break;
        match.end += step.length;
      }
    }
    return match;
  }
  return std::nullopt;
}

}  // namespace proa
