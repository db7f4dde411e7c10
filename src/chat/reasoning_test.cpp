#include "chat/reasoning.h"

#include <gtest/gtest.h>

namespace proa {
namespace {

struct Row {
  ReasoningStart start;
  const char* text;
  const char* reasoning;
  const char* content;
  const char* parser = "nemotron_v3";
};

constexpr Row kRows[] = {
    {ReasoningStart::kOpen, "a</think>b", "a", "b"},
    // whitespace around the boundary belongs to neither side, inside and at the end of content it stays
    {ReasoningStart::kOpen, "\n a \n b \n\n</think>\n\n c \n d \n", "a \n b", "c \n d \n"},
    // the model repeats <think>
    {ReasoningStart::kOpen, "<think>\na</think>b", "a", "b"},
    {ReasoningStart::kOpen, "\n<think>\na</think>b", "a", "b"},
    // only one <think> is dropped
    {ReasoningStart::kOpen, "<think><think>a</think>b", "<think>a", "b"},
    // never closed
    {ReasoningStart::kOpen, "only thoughts \n", "only thoughts", ""},
    {ReasoningStart::kOpen, "", "", ""},
    {ReasoningStart::kOpen, "a</think", "a</think", ""},
    {ReasoningStart::kOpen, "a <", "a <", ""},
    {ReasoningStart::kOpen, "<thi", "<thi", ""},
    // near misses of tags
    {ReasoningStart::kOpen, "a</thinner><tool_calls <</think>b", "a</thinner><tool_calls <", "b"},
    {ReasoningStart::kOpen, "a </ think> b </think>c", "a </ think> b", "c"},
    {ReasoningStart::kOpen, "<</think>c", "<", "c"},
    {ReasoningStart::kOpen, "</thi</think>c", "</thi", "c"},
    // empty thinking
    {ReasoningStart::kOpen, "</think>b", "", "b"},
    {ReasoningStart::kOpen, "\n\n</think>\n\nb", "", "b"},
    // a tool call ends thinking
    {ReasoningStart::kOpen, "need it\n<tool_call>\n<function=f>", "need it", "<tool_call>\n<function=f>"},
    {ReasoningStart::kOpen, "x</think>\n<tool_call>y</tool_call>", "x", "<tool_call>y</tool_call>"},
    {ReasoningStart::kOpen, "x<tool_call>y</think>z", "x", "<tool_call>y</think>z"},
    // a second </think> is content
    {ReasoningStart::kOpen, "a</think>b</think>c", "a", "b</think>c"},
    {ReasoningStart::kClosed, "b", "", "b"},
    {ReasoningStart::kClosed, "\n\nb</think> <think>", "", "b</think> <think>"},
    {ReasoningStart::kNone, "b \n", "", "b \n"},
    {ReasoningStart::kNone, "  b", "", "  b"},
    {ReasoningStart::kNone, "<think>\na\n</think>\n\nb", "a", "b"},
    {ReasoningStart::kNone, "\n<think>a</think>b", "a", "b"},
    {ReasoningStart::kNone, "<thinker>b", "", "<thinker>b"},
    {ReasoningStart::kNone, "b<think>a</think>", "", "b<think>a</think>"},
    {ReasoningStart::kNone, "<thin", "", "<thin"},
    {ReasoningStart::kNone, " ", "", " "},
    {ReasoningStart::kOpen, "é漢</think>字", "é漢", "字"},
    {ReasoningStart::kOpen, "a \n</think> b", "a", "b", "nano_v3"},
    // DeepSeek's rule knows neither whitespace nor tool calls
    {ReasoningStart::kOpen, "\na \n</think>\n b", "\na \n", "\n b", "deepseek_r1"},
    {ReasoningStart::kOpen, "<think>\na</think>b", "\na", "b", "deepseek_r1"},
    {ReasoningStart::kOpen, " <think>a</think>b", " <think>a", "b", "deepseek_r1"},
    {ReasoningStart::kOpen, "a\n<tool_call>b</think>c", "a\n<tool_call>b", "c", "deepseek_r1"},
    {ReasoningStart::kOpen, "a <tool_ca", "a <tool_ca", "", "deepseek_r1"},
    {ReasoningStart::kOpen, " a ", " a ", "", "deepseek_r1"},
    {ReasoningStart::kClosed, "\n\nb", "", "\n\nb", "deepseek_r1"},
};

TEST(Reasoning, WholeText) {
  for (const Row& row : kRows) {
    const ReasoningDelta all = split_reasoning(row.text, row.start, *reasoning_rules(row.parser));
    EXPECT_EQ(all.reasoning, row.reasoning) << row.text;
    EXPECT_EQ(all.content, row.content) << row.text;
  }
}

TEST(Reasoning, AnyCutGivesTheSame) {
  for (const Row& row : kRows) {
    const std::string text = row.text;
    for (size_t first = 0; first <= text.size(); ++first) {
      for (size_t second = first; second <= text.size(); ++second) {
        ReasoningParser parser(row.start, *reasoning_rules(row.parser));
        std::string reasoning, content;
        bool content_began = false;
        const auto collect = [&](const ReasoningDelta& delta) {
          EXPECT_FALSE(content_began && !delta.reasoning.empty()) << text;
          reasoning += delta.reasoning;
          content += delta.content;
          content_began = content_began || !delta.content.empty();
        };
        collect(parser.feed(text.substr(0, first)));
        collect(parser.feed(text.substr(first, second - first)));
        collect(parser.feed(text.substr(second)));
        collect(parser.finish());
        EXPECT_EQ(reasoning, row.reasoning) << text << " cut at " << first << ", " << second;
        EXPECT_EQ(content, row.content) << text << " cut at " << first << ", " << second;
      }
    }
    ReasoningParser parser(row.start, *reasoning_rules(row.parser));
    std::string reasoning;
    for (const char c : text) reasoning += parser.feed(std::string_view(&c, 1)).reasoning;
    EXPECT_EQ(reasoning + parser.finish().reasoning, row.reasoning) << text;
  }
}

TEST(Reasoning, HoldsBackNoMoreThanNeeded) {
  ReasoningParser parser(ReasoningStart::kOpen);
  EXPECT_EQ(parser.feed("abc").reasoning, "abc");
  EXPECT_EQ(parser.feed(" \n").reasoning, "");
  EXPECT_EQ(parser.feed("d </th").reasoning, " \nd");
  EXPECT_TRUE(parser.in_reasoning());
  EXPECT_EQ(parser.feed("ink>\n").reasoning, "");
  EXPECT_FALSE(parser.in_reasoning());
  EXPECT_EQ(parser.feed("x ").content, "x ");
}

TEST(Reasoning, OtherParsersAreUnknown) {
  for (const char* name : {"", "Nano_v3", "qwen3"}) EXPECT_FALSE(reasoning_rules(name)) << name;
}

TEST(Reasoning, StartFollowsThePrompt) {
  EXPECT_EQ(reasoning_start("<|im_start|>assistant\n<think>\n"), ReasoningStart::kOpen);
  EXPECT_EQ(reasoning_start("<|im_start|>assistant\n<think></think>"), ReasoningStart::kClosed);
  EXPECT_EQ(reasoning_start("<think>\n\n</think>\n\n"), ReasoningStart::kClosed);
  EXPECT_EQ(reasoning_start("<|im_start|>assistant\n"), ReasoningStart::kNone);
  EXPECT_EQ(reasoning_start(""), ReasoningStart::kNone);
}

}  // namespace
}  // namespace proa
