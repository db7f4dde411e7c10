#include "engine/stop.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace proa {
namespace {

struct Case {
  const char* what;
  std::vector<std::string> stop;
  std::string text;
  std::string expected;       // text before the stop string, or all of it
  std::string expected_stop;  // "" if none
};

const Case kCases[] = {
    {"no stop strings", {}, "hello", "hello", ""},
    {"base", {"END"}, "one two END three", "one two ", "END"},
    {"at the beginning", {"END"}, "END three", "", "END"},
    {"at the end", {"END"}, "one END", "one ", "END"},
    {"one byte", {"\n"}, "line\nline", "line", "\n"},
    {"not there", {"END"}, "one two EN D", "one two EN D", ""},
    {"open at the end", {"END"}, "one EN", "one EN", ""},
    {"begins twice", {"aab"}, "aaaab!", "aa", "aab"},
    {"begins inside itself", {"ababac"}, "abababac", "ab", "ababac"},
    {"complete first wins over begins first", {"abcde", "cd"}, "abcdef", "ab", "cd"},
    {"longest of those complete at once", {"cd", "bcd"}, "abcde", "a", "bcd"},
    {"the same in the other order", {"bcd", "cd"}, "abcde", "a", "bcd"},
    {"one is a prefix of another", {"ab", "abc"}, "xabc", "x", "ab"},
    {"a long one fails, a short one inside holds", {"aaaab", "aac"}, "aaac", "a", "aac"},
    {"not ASCII", {"größe"}, "die größer", "die ", "größe"},
    {"shares a first byte", {"é"}, "aèbéc", "aèb", "é"},
    {"twice the same", {"x", "x"}, "axb", "a", "x"},
};

// Pushes `text` cut where a bit of `cuts` is set.
struct Outcome {
  std::string text;
  std::string stop;
};
Outcome run(const std::vector<std::string>& stop, const std::string& text, uint64_t cuts, bool include) {
  StopMatcher matcher(stop, include);
  Outcome outcome;
  size_t begin = 0;
  for (size_t end = 1; end <= text.size() && !matcher.stopped(); ++end) {
    if (end < text.size() && (cuts >> (end - 1) & 1) == 0) continue;
    outcome.text += matcher.push(std::string_view(text).substr(begin, end - begin));
    begin = end;
  }
  if (!matcher.stopped()) outcome.text += matcher.finish();
  outcome.stop = matcher.stopped().value_or("");
  return outcome;
}

TEST(StopMatcher, SameTextHoweverItIsCut) {
  for (const Case& c : kCases) {
    const uint64_t splits = uint64_t{1} << (c.text.size() - 1);
    const uint64_t stride = splits <= 4096 ? 1 : splits / 4093;  // odd, so that both ends of the word vary
    for (uint64_t cuts = 0; cuts < splits; cuts += stride) {
      const Outcome outcome = run(c.stop, c.text, cuts, false);
      ASSERT_EQ(outcome.text, c.expected) << c.what << ", cuts " << cuts;
      ASSERT_EQ(outcome.stop, c.expected_stop) << c.what << ", cuts " << cuts;
      ASSERT_EQ(run(c.stop, c.text, cuts, true).text, c.expected + c.expected_stop) << c.what << ", cuts " << cuts;
    }
  }
}

TEST(StopMatcher, AgreesWithASearchForEveryString) {
  std::mt19937 random(1);
  const auto letters = [&](size_t most) {
    std::string text(1 + random() % most, 'a');
    for (char& c : text) c = random() % 3 == 0 ? 'b' : 'a';
    return text;
  };
  int stops = 0;
  for (int i = 0; i < 5000; ++i) {
    const std::vector<std::string> stop = {letters(12), letters(12)};
    const std::string text = letters(60);
    size_t end = std::string::npos;  // the first byte that completes a stop string
    std::string first;
    for (const std::string& s : stop) {
      const size_t found = text.find(s);
      if (found == std::string::npos || found + s.size() > end) continue;
      if (found + s.size() == end && s.size() < first.size()) continue;
      end = found + s.size(), first = s;
    }
    const Outcome outcome = run(stop, text, random(), false);
    ASSERT_EQ(outcome.stop, first) << stop[0] << " or " << stop[1] << " in " << text;
    ASSERT_EQ(outcome.text, first.empty() ? text : text.substr(0, end - first.size()));
    stops += !first.empty();
  }
  EXPECT_GT(stops, 500);
  EXPECT_LT(stops, 4900);
}

TEST(StopMatcher, HoldsBackOnlyWhatCouldBeAStop) {
  StopMatcher matcher({"END", "\n\n"});
  EXPECT_EQ(matcher.push("one E"), "one ");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("E"), "EN");
  EXPECT_EQ(matcher.push("x\n"), "Ex");
  EXPECT_EQ(matcher.push("y"), "\ny");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, DoesNotStopBeforeItMay) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.push("END", false), "END");
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.push("EN", false), "");
  EXPECT_EQ(matcher.push("D!", true), "");  // begun before, complete now: counts
  EXPECT_EQ(matcher.stopped(), "END");
}

TEST(StopMatcher, AStopThatDidNotCountCanBeginAnother) {
  StopMatcher matcher({"aa"});
  EXPECT_EQ(matcher.push("aa", false), "a");
  EXPECT_EQ(matcher.push("a", true), "");
  EXPECT_EQ(matcher.stopped(), "aa");
}

}  // namespace
}  // namespace proa
