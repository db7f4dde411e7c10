// Finds the tokens that are matched as a whole, before text is cut into words.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "tokenizer/vocabulary.h"

namespace proa {

class AddedTokenMatcher {
 public:
  // A search looks at no more bytes than this from each position.
  static constexpr size_t kMaxContentBytes = 1024;

  // Copies what it needs of `tokens`. Of tokens with the same content the first counts; empty ones are left out.
  static Result<AddedTokenMatcher> create(std::span<const AddedToken> tokens);

  struct Match {
    int32_t id;
    size_t begin, end;  // with the white space that the token takes along
  };
  // A stretch of the text, from the end of the one before: may control tokens be matched in it?
  struct Run {
    size_t end;
    bool parse_special;
  };

  bool empty() const { return entries_.empty(); }
  std::optional<int32_t> find(std::string_view content) const;

  // The leftmost match that begins at or after `from`, the longest of those beginning there. A control token must lie
  // within one run that has parse_special. `runs` ascend, neighbours differ and the last ends with `text`.
  std::optional<Match> next(std::string_view text, size_t from, std::span<const Run> runs) const;

 private:
  struct Entry {
    std::string content;
    int32_t id;
    bool special, lstrip, rstrip, single_word;
  };
  const Entry* longest_at(std::string_view text, size_t at, size_t special_end) const;

  std::vector<Entry> entries_;             // by content
  std::array<uint32_t, 257> first_ = {0};  // entries_ that begin with byte b: first_[b] to first_[b + 1]
};

}  // namespace proa
