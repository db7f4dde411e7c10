// UTF-8 from outside: finding characters, and replacing what is none. Source: Unicode 15, table 3-7 and "U+FFFD
// substitution of maximal subparts", which is also what Python's errors="replace" does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace proa {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Step {
  enum class Kind : uint8_t { character, invalid, incomplete };
  Kind kind;
  uint8_t length;       // bytes of the character, of the maximal subpart, or of the unfinished rest (1 to 4)
  char32_t code_point;  // of a character
};

// What `text` (not empty) begins with. `incomplete` means that `text` ends inside what may become a character.
Utf8Step utf8_step(std::string_view text);

// Appends `text` to `out` with every maximal invalid subpart as U+FFFD. Returns how many bytes at the end of `text` are
// the unfinished start of a character (0 to 3); these are not appended.
size_t append_valid_utf8(std::string& out, std::string_view text);

// The same, with an unfinished end replaced too.
void append_replacing_invalid(std::string& out, std::string_view text);

// Normal form C of valid UTF-8, with the tables of Unicode 9 as Hugging Face `tokenizers` has them. Runs of more than
// 256 non-starters, which no script has, are normalised in parts, so that reordering stays linear.
bool maybe_not_nfc(std::string_view text);  // false: `text` is NFC for certain, by a cheap look
std::string to_nfc(std::string_view text);

// Appends `text` with every `from` (not empty; leftmost first, without overlaps) as `to`.
void append_replaced(std::string& out, std::string_view text, std::string_view from, std::string_view to);

bool is_white_space(char32_t c);     // Unicode White_Space
bool is_word_character(char32_t c);  // letter, mark, number or connector punctuation

}  // namespace proa
