#include "tokenizer/utf8.h"

#include <gtest/gtest.h>

namespace proa {
namespace {

#define FFFD "\xEF\xBF\xBD"

TEST(Utf8, NfcLeavesMarksNewerThanUnicode9WhereTheyStand) {
  const std::pair<std::string, std::string> rows[] = {
      {"a\u0301\u0323", "\u1EA1\u0301"},                 // old marks are put in order, and compose
      {"a\u1DF6\u0334", "a\u1DF6\u0334"},                // of Unicode 10
      {"a\u0301\u1DF6\u0323", "\u00E1\u1DF6\u0323"},     // nothing passes it
      {"e\u1ABF\u0301e\u0301", "e\u1ABF\u0301\u00E9"},   // of Unicode 13
      {"\U00011935\U00011930", "\U00011935\U00011930"},  // U+11938 is of Unicode 13
      {"\U00010F4B\U00010F4A\U00010F46", "\U00010F4B\U00010F4A\U00010F46"},
  };
  for (const auto& [text, expected] : rows) EXPECT_EQ(to_nfc(text), expected);
}

TEST(Utf8, InvalidBytesBecomeOneReplacementPerMaximalSubpart) {
  struct Row {
    std::string_view bytes, text;
  };
  // The texts are what bytes.decode("utf-8", errors="replace") of Python 3.11 gives.
  const Row rows[] = {
      {"", ""},
      {"plain ASCII longer than eight bytes", "plain ASCII longer than eight bytes"},
      {"h\xC3\xA9llo \xE2\x82\xAC \xF0\x9F\xA6\x99", "h\xC3\xA9llo \xE2\x82\xAC \xF0\x9F\xA6\x99"},
      {"\x80", FFFD},                                        // a continuation alone
      {"\xC0\x80", FFFD FFFD},                               // overlong
      {"\xC1\xBF", FFFD FFFD},                               // overlong
      {"\xE0\x80\x80", FFFD FFFD FFFD},                      // overlong: the second byte already does not fit
      {"\xE0\xA0", FFFD},                                    // cut off
      {"\xE0\xA0x", FFFD "x"},                               // cut off by another character
      {"\xED\xA0\x80", FFFD FFFD FFFD},                      // surrogate
      {"\xED\x9F\xBF", "\xED\x9F\xBF"},                      // last before the surrogates
      {"\xF0\x8F\xBF\xBF", FFFD FFFD FFFD FFFD},             // overlong
      {"\xF0\x90\x80", FFFD},                                // cut off after three of four
      {"\xF0\x90\x80\xF0\x90", FFFD FFFD},                   // twice
      {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},              // U+10FFFF
      {"\xF4\x90\x80\x80", FFFD FFFD FFFD FFFD},             // beyond
      {"\xF5\x80\x80\x80", FFFD FFFD FFFD FFFD},             // no such lead
      {"\xFF\xFE", FFFD FFFD},                               // never in UTF-8
      {"12345678\xE2\x82", "12345678" FFFD},                 // after a whole fast step
      {"a\xE2\x82z\xE2\x82\xAC", "a" FFFD "z\xE2\x82\xAC"},  // resumes right after the subpart
      {std::string_view("\0\xC3\0", 3), std::string_view("\0" FFFD "\0", 5)},  // NUL is a character
  };
  for (const Row& row : rows) {
    std::string text;
    append_replacing_invalid(text, row.bytes);
    EXPECT_EQ(text, row.text) << testing::PrintToString(row.bytes);
  }
}

TEST(Utf8, AnUnfinishedEndIsCountedNotReplaced) {
  struct Row {
    std::string_view bytes;
    size_t unfinished;
  };
  for (const Row& row : {Row{"abc", 0},
                         {"\xC3", 1},
                         {"a\xE2\x82", 2},
                         {"\xF0\x9F\xA6", 3},
                         {"\xF0\x8F", 0},
                         {"\x80", 0},
                         {"\xC3\xA9", 0}}) {
    std::string text;
    EXPECT_EQ(append_valid_utf8(text, row.bytes), row.unfinished) << testing::PrintToString(row.bytes);
  }
}

TEST(Utf8, NormalFormC) {
  struct Row {
    std::string text, nfc;
  };
  const Row rows[] = {{"plain", "plain"},
                      {"e\u0301", "\u00e9"},
                      {"o\u0302\u0323", "\u1ed9"},       // reordered, then composed twice
                      {"\u1100\u1161\u11a8", "\uac01"},  // Hangul
                      {"\u212b", "\u00c5"},              // singleton
                      {"\u0958", "\u0915\u093c"},        // excluded from composition
                      {"\u0301x", "\u0301x"},            // nothing to compose with
                      {std::string("a\0\u0308", 4), std::string("a\0\u0308", 4)}};
  for (const Row& row : rows) {
    EXPECT_EQ(to_nfc(row.text), row.nfc);
    EXPECT_TRUE(row.text == row.nfc || maybe_not_nfc(row.text));
  }
  EXPECT_FALSE(maybe_not_nfc("caf\u00e9"));
  // Marks that want to change places all the way: quadratic if they were sorted as one run.
  std::string marks = "a";
  for (int i = 0; i < 100'000; ++i) marks += i % 2 ? "\u0323" : "\u0301";
  EXPECT_GT(to_nfc(marks).size(), marks.size() / 2);
}

TEST(Utf8, WhiteSpaceAndWordCharacters) {
  for (const char32_t c : U"\t\n\v\f\r \u0085\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000") {
    EXPECT_EQ(is_white_space(c), c != 0) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : U"\u180e\u200b\ufeff\x1fx") EXPECT_FALSE(is_white_space(c)) << static_cast<uint32_t>(c);
  for (const char32_t c : {U'a', U'Ж', U'7', U'_', U'\u0301', U'漢'}) EXPECT_TRUE(is_word_character(c));
  for (const char32_t c : {U' ', U'-', U'.', U'€', U'<'}) EXPECT_FALSE(is_word_character(c));
}

}  // namespace
}  // namespace proa
