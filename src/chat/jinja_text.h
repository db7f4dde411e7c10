// Strings of the template language: UTF-8 bytes, each marked with where it came from. The marks let the caller
// encode what a user wrote with special tokens off, however the template cut and joined it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace proa::jinja {

enum class Origin : char { kTemplate = 0, kInput = 1 };

// One mark per byte: the simplest form that survives slicing, replacing and case mapping alike. A prompt is a few
// megabytes at most, so the second byte per byte does not matter.
struct Text {
  std::string bytes;
  std::string marks;  // [bytes.size()], values of Origin

  Text() = default;
  Text(std::string_view text, Origin origin) : bytes(text), marks(text.size(), static_cast<char>(origin)) {}

  size_t size() const { return bytes.size(); }
  void append(std::string_view text, Origin origin) {
    bytes += text;
    marks.append(text.size(), static_cast<char>(origin));
  }
  void append(const Text& text) { append(text, 0, text.size()); }
  void append(const Text& text, size_t begin, size_t count) {
    bytes.append(text.bytes, begin, count);
    marks.append(text.marks, begin, count);
  }
  Text slice(size_t begin, size_t count) const {
    Text part;
    part.append(*this, begin, count);
    return part;
  }
  Origin origin(size_t at) const { return static_cast<Origin>(marks[at]); }
  bool any_input() const { return marks.find(static_cast<char>(Origin::kInput)) != std::string::npos; }
};

// The character at `at`: code point and length in bytes. A byte that is not UTF-8 is a character of its own with
// code point kInvalid, so every function here is total.
struct Character {
  uint32_t code;
  size_t length;
};
constexpr uint32_t kInvalid = 0xFFFFFFFF;
Character decode_character(std::string_view bytes, size_t at);
void append_utf8(std::string* out, uint32_t code);

// Byte offset of every character, and the size at the end: offsets.size() - 1 characters.
std::vector<size_t> character_offsets(std::string_view bytes);
size_t count_characters(std::string_view bytes);

// Begin and end of every line, without its end: as Python's splitlines, which knows ten ways to end a line.
struct LineRange {
  size_t begin, end;
};
std::vector<LineRange> line_ranges(std::string_view bytes, bool keep_ends = false);

bool is_space(uint32_t code);      // as Python's str.isspace
bool is_printable(uint32_t code);  // as Python's repr decides, without the table of unassigned code points
bool is_ascii(std::string_view bytes);

// Simple case mapping of Latin, Greek and Cyrillic; other characters stay.
uint32_t to_upper(uint32_t code);
uint32_t to_lower(uint32_t code);
inline bool is_cased(uint32_t code) { return to_upper(code) != code || to_lower(code) != code; }

// Python's strip: whitespace when `chars` is null, else any character of `chars`.
Text strip(const Text& text, const std::string* chars, bool left, bool right);

// Text with every character mapped; `map(code, index)` gives the new code point.
template <typename Map>
Text map_characters(const Text& text, Map map) {
  Text out;
  for (size_t at = 0, index = 0; at < text.size(); ++index) {
    const Character c = decode_character(text.bytes, at);
    if (c.code == kInvalid) {
      out.append(text, at, c.length);
    } else {
      std::string mapped;
      append_utf8(&mapped, map(c.code, index));
      out.append(mapped, text.origin(at));
    }
    at += c.length;
  }
  return out;
}

Text upper(const Text& text);
Text lower(const Text& text);
Text capitalize(const Text& text);
// Python's str.title, or Jinja's filter of that name, which only knows spaces, hyphens and opening brackets.
Text title(const Text& text, bool as_filter);

}  // namespace proa::jinja
