#include "tokenizer/utf8.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace proa {
namespace {

// Marks (and one composed letter with its second half) that came with Unicode 10 and later, or whose class changed
// then. Hugging Face `tokenizers`, with which the models were trained, normalises by tables of Unicode 9: these neither
// move nor compose there. Found by giving its NFC every character that has a combining class in Unicode 17.
constexpr char32_t kNewerThanNfc[][2] = {
    {0x5C8, 0x5C9},     {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1AF0},
    {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC},
    {0x10ECB, 0x10ECF}, {0x10EF0, 0x10EFB}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x113CE, 0x113D0}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x1612F, 0x1612F}, {0x16FF0, 0x16FF1}, {0x1D127, 0x1D128},
    {0x1D250, 0x1D252}, {0x1D25B, 0x1D25C}, {0x1D25F, 0x1D25F}, {0x1D280, 0x1D281}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF},
    {0x1E6E3, 0x1E6E3}, {0x1E6E6, 0x1E6E6}, {0x1E6EE, 0x1E6EF}, {0x1E6F5, 0x1E6F5}};

bool is_newer_than_nfc(char32_t c) {
  const auto* range = std::lower_bound(std::begin(kNewerThanNfc), std::end(kNewerThanNfc), c,
                                       [](const char32_t(&r)[2], char32_t value) { return r[1] < value; });
  return range != std::end(kNewerThanNfc) && c >= (*range)[0];
}

}  // namespace

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
    if (part.empty()) return;
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
    if (is_newer_than_nfc(step.code_point)) {
      flush(text.substr(start, i - start));
      out.append(text, i, step.length);
      start = i += step.length;
      non_starters = 0;
      continue;
    }
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
