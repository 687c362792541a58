#include "gateway/parsers/text_parser.h"

#include <gtest/gtest.h>

#include "tests/chat/parsing.h"

namespace ferry {
namespace {

std::string Parse(std::string_view text, const TextParserOptions& options, size_t bytes) {
  TextParser parser(options, std::make_unique<NoToolCalls>(), FakeSpecialTokens());
  return ParseText(parser, text, bytes);
}

class TextParserTest : public testing::TestWithParam<size_t> {};  // bytes a token

TEST_P(TextParserTest, SeparatesReasoningFromContent) {
  const TextParserOptions reasons = {.has_reasoning = true}, opened = {.has_reasoning = true, .starts_in_reasoning = true};
  EXPECT_EQ(Parse("<think>\na b\n</think>\n\nc d\n", reasons, GetParam()), "R(a b) C(c d\n)");
  EXPECT_EQ(Parse("a\n\nb\n</think>c", opened, GetParam()), "R(a\n\nb) C(c)");
  EXPECT_EQ(Parse("no tags", reasons, GetParam()), "C(no tags)");
  EXPECT_EQ(Parse("\n<think>x</think>y</think>", reasons, GetParam()), "R(x) C(y</think>)");
  EXPECT_EQ(Parse("see <think>x</think>", reasons, GetParam()), "C(see <think>x</think>)");
  EXPECT_EQ(Parse("<think>x</think>y", {}, GetParam()), "C(<think>x</think>y)");
}

TEST_P(TextParserTest, LosesNothingThatLookedLikeATag) {
  const TextParserOptions reasons = {.has_reasoning = true}, opened = {.has_reasoning = true, .starts_in_reasoning = true};
  EXPECT_EQ(Parse("<thi", reasons, GetParam()), "C(<thi)");
  EXPECT_EQ(Parse("<thin air", reasons, GetParam()), "C(<thin air)");
  EXPECT_EQ(Parse("a </thi", opened, GetParam()), "R(a </thi)");
  EXPECT_EQ(Parse("  ", reasons, GetParam()), "C(  )");
  EXPECT_EQ(Parse("a<</think>b", opened, GetParam()), "R(a<) C(b)");
}

TEST_P(TextParserTest, GivesWholeCharacters) {
  EXPECT_EQ(Parse("h\u00e9\u20ac\U0001F600", {}, GetParam()), "C(h\u00e9\u20ac\U0001F600)");
  EXPECT_EQ(Parse("a\xE2\x82", {}, GetParam()), "C(a\xEF\xBF\xBD)");
  EXPECT_EQ(Parse("\xFF"
                  "b",
                  {}, GetParam()),
            "C(\xEF\xBF\xBD"
            "b)");
}

INSTANTIATE_TEST_SUITE_P(Bytes, TextParserTest, testing::Values(1, 2, 3, 5, 1000), testing::PrintToStringParamName());

TEST(TextParser, KnowsTagsByTheirIdsWhereTheyHaveNoText) {
  TextParser parser({.has_reasoning = true}, std::make_unique<NoToolCalls>(),
                    FakeSpecialTokens(std::map<std::string, int32_t>{{"<think>", 7}, {"</think>", 8}}));
  std::vector<OutputEvent> events;
  const OutputToken tokens[] = {{7, ""}, {1, "a"}, {9, ""}, {8, ""}, {2, "b"}};
  for (OutputEvent& event : parser.Feed(tokens)) events.push_back(std::move(event));
  for (OutputEvent& event : parser.Finish()) events.push_back(std::move(event));
  EXPECT_EQ(Shown(events), "R(a) C(b)");
}

}  // namespace
}  // namespace ferry
