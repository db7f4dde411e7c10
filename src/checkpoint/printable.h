// Text from a file made fit for one line of an error message.
#pragma once

#include <string>
#include <string_view>

namespace proa {

// Control characters and quotes become \xNN (names from hostile files must not steer a terminal); what is longer than
// `max` bytes is cut and ends in "...".
inline std::string printable(std::string_view text, size_t max = 120) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (unsigned char c : text.substr(0, max)) {
    if (c < 0x20 || c == 0x7f || c == '"') {
      out += {'\\', 'x', kHex[c >> 4], kHex[c & 15]};
    } else {
      out += static_cast<char>(c);
    }
  }
  if (text.size() > max) {
    // A character cut in half is dropped whole.
    while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0) == 0x80) out.pop_back();
    if (!out.empty() && static_cast<unsigned char>(out.back()) >= 0xc0) out.pop_back();
    out += "...";
  }
  return out;
}

}  // namespace proa
