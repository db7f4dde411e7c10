#include "chat/jinja_text.h"

#include <algorithm>
#include <iterator>

namespace proa::jinja {

Character decode_character(std::string_view bytes, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(bytes[i])); };
  const uint32_t first = byte(at);
  if (first < 0x80) return {first, 1};
  const size_t length = first >= 0xF0 && first < 0xF5   ? 4
                        : first >= 0xE0 && first < 0xF0 ? 3
                        : first >= 0xC2 && first < 0xE0 ? 2
                                                        : 0;
  if (length == 0 || at + length > bytes.size()) return {kInvalid, 1};
  uint32_t code = first & (0xFF >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return {kInvalid, 1};
    code = code << 6 | (byte(at + i) & 0x3F);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  if (overlong || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return {kInvalid, 1};
  return {code, length};
}

void append_utf8(std::string* out, uint32_t code) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | code >> 6));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | code >> 12));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | code >> 18));
    out->push_back(static_cast<char>(0x80 | (code >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
}

std::vector<size_t> character_offsets(std::string_view bytes) {
  std::vector<size_t> offsets;
  offsets.reserve(bytes.size() + 1);
  size_t at = 0;
  while (at < bytes.size()) {
    offsets.push_back(at);
    at += decode_character(bytes, at).length;
  }
  offsets.push_back(at);
  return offsets;
}

size_t count_characters(std::string_view bytes) {
  size_t count = 0;
  for (size_t at = 0; at < bytes.size(); ++count) at += decode_character(bytes, at).length;
  return count;
}

std::vector<LineRange> line_ranges(std::string_view bytes, bool keep_ends) {
  std::vector<LineRange> lines;
  size_t begin = 0;
  for (size_t at = 0; at < bytes.size();) {
    const Character c = decode_character(bytes, at);
    size_t next = at + c.length;
    const bool ends = (c.code >= 10 && c.code <= 13) || (c.code >= 0x1C && c.code <= 0x1E) || c.code == 0x85 ||
                      c.code == 0x2028 || c.code == 0x2029;
    if (ends) {
      if (c.code == '\r' && next < bytes.size() && bytes[next] == '\n') ++next;
      lines.push_back({begin, keep_ends ? next : at});
      begin = next;
    }
    at = next;
  }
  if (begin < bytes.size()) lines.push_back({begin, bytes.size()});
  return lines;
}

bool is_space(uint32_t code) {
  if (code < 0x80) return code == ' ' || (code >= 9 && code <= 13) || (code >= 0x1C && code <= 0x1F);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_printable(uint32_t code) {
  struct Range {
    uint32_t first, last;
  };
  // Controls, format characters, separators other than the space, surrogates, private use.
  static constexpr Range kHidden[] = {
      {0, 0x1F},          {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},     {0x61C, 0x61C},
      {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},     {0x8E2, 0x8E2},     {0x1680, 0x1680},
      {0x180E, 0x180E},   {0x2000, 0x200F},   {0x2028, 0x202F},   {0x205F, 0x206F},   {0x3000, 0x3000},
      {0xD800, 0xF8FF},   {0xFEFF, 0xFEFF},   {0xFFF0, 0xFFFB},   {0xFFFE, 0xFFFF},   {0x110BD, 0x110BD},
      {0x110CD, 0x110CD}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0000, 0xE00FF}, {0xE01F0, 0x10FFFF}};
  return std::none_of(std::begin(kHidden), std::end(kHidden),
                      [&](const Range& range) { return code >= range.first && code <= range.last; });
}

bool is_ascii(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

uint32_t to_upper(uint32_t c) {
  if (c < 0x80) return c >= 'a' && c <= 'z' ? c - 32 : c;
  if (c == 0xB5) return 0x39C;
  if (c == 0xFF) return 0x178;
  if (c >= 0xE0 && c <= 0xFE && c != 0xF7) return c - 32;
  if (c == 0x131) return 'I';
  if ((c >= 0x100 && c <= 0x137) || (c >= 0x14A && c <= 0x177)) return c & ~1u;
  if ((c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17E)) return c & 1 ? c : c - 1;
  if (c == 0x3AC) return 0x386;
  if (c >= 0x3AD && c <= 0x3AF) return c - 37;
  if (c >= 0x3B1 && c <= 0x3CB) return c == 0x3C2 ? 0x3A3 : c - 32;
  if (c == 0x3CC) return 0x38C;
  if (c == 0x3CD || c == 0x3CE) return c - 63;
  if (c >= 0x430 && c <= 0x44F) return c - 32;
  if (c >= 0x450 && c <= 0x45F) return c - 80;
  if ((c >= 0x460 && c <= 0x481) || (c >= 0x48A && c <= 0x4BF) || (c >= 0x4D0 && c <= 0x52F)) return c & ~1u;
  if (c >= 0x561 && c <= 0x586) return c - 48;
  if ((c >= 0x1E00 && c <= 0x1E95) || (c >= 0x1EA0 && c <= 0x1EFF)) return c & ~1u;
  return c;
}

uint32_t to_lower(uint32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  if (c >= 0xC0 && c <= 0xDE && c != 0xD7) return c + 32;
  if (c == 0x178) return 0xFF;
  if (c == 0x130) return 'i';  // Python adds a combining dot; one code point is kept here
  if ((c >= 0x100 && c <= 0x137) || (c >= 0x14A && c <= 0x177)) return c | 1;
  if ((c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17E)) return c & 1 ? c + 1 : c;
  if (c == 0x386) return 0x3AC;
  if (c >= 0x388 && c <= 0x38A) return c + 37;
  if (c == 0x38C) return 0x3CC;
  if (c == 0x38E || c == 0x38F) return c + 63;
  if (c >= 0x391 && c <= 0x3AB && c != 0x3A2) return c + 32;
  if (c >= 0x410 && c <= 0x42F) return c + 32;
  if (c >= 0x400 && c <= 0x40F) return c + 80;
  if ((c >= 0x460 && c <= 0x481) || (c >= 0x48A && c <= 0x4BF) || (c >= 0x4D0 && c <= 0x52F)) return c | 1;
  if (c >= 0x531 && c <= 0x556) return c + 48;
  if ((c >= 0x1E00 && c <= 0x1E95) || (c >= 0x1EA0 && c <= 0x1EFF)) return c | 1;
  return c;
}

Text strip(const Text& text, const std::string* chars, bool left, bool right) {
  std::vector<uint32_t> set;
  if (chars) {
    for (size_t at = 0; at < chars->size();) {
      const Character c = decode_character(*chars, at);
      set.push_back(c.code);
      at += c.length;
    }
  }
  const auto drop = [&](uint32_t code) {
    return chars ? std::find(set.begin(), set.end(), code) != set.end() : is_space(code);
  };
  size_t begin = 0;
  size_t end = text.size();
  if (left) {
    while (begin < end) {
      const Character c = decode_character(text.bytes, begin);
      if (!drop(c.code)) break;
      begin += c.length;
    }
  }
  if (right) {
    while (end > begin) {
      size_t last = end - 1;
      while (last > begin && (static_cast<unsigned char>(text.bytes[last]) & 0xC0) == 0x80 && end - last < 4) --last;
      Character c = decode_character(text.bytes, last);
      if (last + c.length != end) c = {kInvalid, 1}, last = end - 1;
      if (!drop(c.code)) break;
      end = last;
    }
  }
  return text.slice(begin, end - begin);
}

Text upper(const Text& text) {
  Text out;
  for (size_t at = 0; at < text.size();) {
    const Character c = decode_character(text.bytes, at);
    std::string mapped;
    if (c.code == 0xDF) {
      mapped = "SS";  // the one common character whose upper case is longer
    } else if (c.code == kInvalid) {
      mapped = text.bytes.substr(at, 1);
    } else {
      append_utf8(&mapped, to_upper(c.code));
    }
    out.append(mapped, text.origin(at));
    at += c.length;
  }
  return out;
}

Text lower(const Text& text) {
  return map_characters(text, [](uint32_t code, size_t) { return to_lower(code); });
}

Text capitalize(const Text& text) {
  return map_characters(text, [](uint32_t code, size_t i) { return i == 0 ? to_upper(code) : to_lower(code); });
}

Text title(const Text& text, bool as_filter) {
  bool in_word = false;
  return map_characters(text, [&](uint32_t code, size_t) {
    const uint32_t mapped = in_word ? to_lower(code) : to_upper(code);
    const bool separator = is_space(code) || code == '-' || code == '(' || code == '{' || code == '[' || code == '<';
    in_word = as_filter ? !separator : is_cased(code);
    return mapped;
  });
}

}  // namespace proa::jinja
