#include "tokenizer/utf8.h"

#include <utf8proc.h>

#include <cstdlib>
#include <cstring>

namespace proa {

Utf8Step utf8_step(std::string_view text) {
  using Kind = Utf8Step::Kind;
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Kind::character, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {Kind::invalid, 1, 0};
  const uint8_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what is beyond U+10FFFF.
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code_point = lead & (0xFF >> (length + 1));
  for (uint8_t i = 1; i < length; ++i, low = 0x80, high = 0xBF) {
    if (i == text.size()) return {Kind::incomplete, i, 0};
    if (byte(i) < low || byte(i) > high) return {Kind::invalid, i, 0};
    code_point = code_point << 6 | (byte(i) & 0x3F);
  }
  return {Kind::character, length, code_point};
}

size_t append_valid_utf8(std::string& out, std::string_view text) {
  size_t done = 0;  // everything before is appended; [done, i) is valid
  size_t i = 0;
  while (i < text.size()) {
    uint64_t eight;
    while (i + 8 <= text.size() && (std::memcpy(&eight, text.data() + i, 8), (eight & 0x8080808080808080u) == 0))
      i += 8;
    if (i == text.size()) break;
    const Utf8Step step = utf8_step(text.substr(i));
    if (step.kind != Utf8Step::Kind::character) {
      out.append(text, done, i - done);
      if (step.kind == Utf8Step::Kind::incomplete) return step.length;
      out += kReplacement;
      done = i + step.length;
    }
    i += step.length;
  }
  out.append(text, done);
  return 0;
}

void append_replacing_invalid(std::string& out, std::string_view text) {
  if (append_valid_utf8(out, text) != 0) out += kReplacement;
}

bool maybe_not_nfc(std::string_view text) {
  // Every code point below U+0300 is a starter that composes with nothing before it. From there on bytes are >= 0xCC.
  for (const char c : text) {
    if (static_cast<uint8_t>(c) >= 0xCC) return true;
  }
  return false;
}

std::string to_nfc(std::string_view text) {
  constexpr int kMaxNonStarters = 256;
  std::string out;
  out.reserve(text.size());
  const auto flush = [&](std::string_view part) {
    utf8proc_uint8_t* mapped = nullptr;
    const auto length =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(part.data()), static_cast<utf8proc_ssize_t>(part.size()),
                     &mapped, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (length < 0) {
      out += part;
    } else {
      out.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
    }
    std::free(mapped);
  };
  size_t start = 0;
  int non_starters = 0;
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    i += step.length;
    const bool starter = step.code_point < 0x300 ||
                         utf8proc_get_property(static_cast<utf8proc_int32_t>(step.code_point))->combining_class == 0;
    non_starters = starter ? 0 : non_starters + 1;
    if (non_starters == kMaxNonStarters) {
      flush(text.substr(start, i - start));
      start = i;
      non_starters = 0;
    }
  }
  if (start < text.size()) flush(text.substr(start));
  return out;
}

void append_replaced(std::string& out, std::string_view text, std::string_view from, std::string_view to) {
  size_t done = 0;
  for (size_t at; (at = text.find(from, done)) != std::string_view::npos; done = at + from.size()) {
    out.append(text, done, at - done).append(to);
  }
  out.append(text, done);
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_word_character(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

}  // namespace proa
