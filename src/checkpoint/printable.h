// Text from a file made fit for one line of an error message.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace proa {

// Bytes of the UTF-8 character that begins at `at`; 0 when there is none. `at` is within the text.
inline size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const uint8_t first = byte(at);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xc2 && first <= 0xdf   ? 2
                        : (first & 0xf0) == 0xe0         ? 3
                        : first >= 0xf0 && first <= 0xf4 ? 4
                                                         : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  const uint8_t second = byte(at + 1);  // overlong forms, surrogates, beyond U+10FFFF
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) || (first == 0xf0 && second < 0x90) ||
      (first == 0xf4 && second > 0x8f)) {
    return 0;
  }
  return length;
}

// The text in valid UTF-8 without anything that steers a terminal: control characters (also those of U+0080 to U+009F),
// marks that turn the direction of writing, and bytes that are no UTF-8 become \xNN. What is longer than `max` bytes is
// cut and ends in "...".
inline std::string one_line(std::string_view text, size_t max = 120) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (i >= max) return out += "...";
    const size_t length = utf8_length(text, i);
    const std::string_view character = text.substr(i, length == 0 ? 1 : length);
    if (i + character.size() > max) return out += "...";  // a character cut in half is dropped whole
    const auto first = static_cast<uint8_t>(character[0]);
    const bool turns = character >= "\xe2\x80\xaa" && character <= "\xe2\x80\xae";     // U+202A to U+202E
    const bool isolates = character >= "\xe2\x81\xa6" && character <= "\xe2\x81\xa9";  // U+2066 to U+2069
    const bool c1 = length == 2 && first == 0xc2 && static_cast<uint8_t>(character[1]) < 0xa0;
    if (length == 0 || first < 0x20 || first == 0x7f || c1 || turns || isolates) {
      for (const char c : character) out += {'\\', 'x', kHex[static_cast<uint8_t>(c) >> 4], kHex[c & 15]};
    } else {
      out += character;
    }
    i += character.size();
  }
  return out;
}

// The same for a name between quotes: quotes in it become \x22.
inline std::string printable(std::string_view text, size_t max = 120) {
  std::string out = one_line(text, max);
  for (size_t at = 0; (at = out.find('"', at)) != out.npos;) out.replace(at, 1, "\\x22");
  return out;
}

}  // namespace proa
