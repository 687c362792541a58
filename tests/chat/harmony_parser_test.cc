#include "gateway/harmony/harmony_parser.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/chat/harmony_output.h"
#include "tests/chat/parsing.h"

namespace ferry {
namespace {

std::vector<OutputEvent> Events(std::string_view text, size_t bytes = 1) {
  HarmonyParser parser(*HarmonyTokens::Find(FakeSpecialTokens(HarmonyIds())), {"get_weather", "add"});
  std::vector<OutputEvent> events;
  for (const OutputToken& token : HarmonyOutput(text, bytes)) {
    for (OutputEvent& event : parser.Feed({&token, 1})) events.push_back(std::move(event));
  }
  for (OutputEvent& event : parser.Finish()) events.push_back(std::move(event));
  return events;
}

std::string Parse(std::string_view text) {
  const std::string shown = Shown(Events(text));
  for (const size_t bytes : {2u, 7u, 1000u}) EXPECT_EQ(Shown(Events(text, bytes)), shown) << text;
  return shown;
}

TEST(HarmonyParser, TellsReasoningAnswerAndCalls) {
  EXPECT_EQ(Parse("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"),
            "R(Hm.) C(Yes.)");
  EXPECT_EQ(Parse(" to=functions.add<|channel|>commentary <|constrain|>json<|message|>{\"a\":1}<|call|>"), "call add({\"a\":1})");
  EXPECT_EQ(Parse("<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"), "call add({})");
  EXPECT_EQ(
      Parse("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
            "json<|message|>{}<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather<|message|>{}<|call|>"),
      "P(I look.) call add({}) call get_weather({})");
  EXPECT_EQ(Parse("<|channel|>final<|message|>h\u00e9\u20ac\U0001F600"), "C(h\u00e9\u20ac\U0001F600)");
}

TEST(HarmonyParser, TakesWhatAMalformedHeaderTells) {
  EXPECT_EQ(Parse("<|channel|>commentary to=functions.get_weatherjson<|message|>{}<|call|>"), "call get_weather({})");
  EXPECT_EQ(Parse("<|channel|>commentary to=functions.unknown<|message|>{}<|call|>"), "call unknown({})");
  EXPECT_EQ(Parse("<|channel|>commentary to=add<|message|>{}<|call|>"), "call add({})");
  EXPECT_EQ(Parse("<|channel|>commentary to=user<|message|>hello<|end|>"), "P(hello)");
  EXPECT_EQ(Parse("<|channel|>analysis to=python code<|message|>1+1<|call|>"), "R(1+1)");
  EXPECT_EQ(Parse("<|channel|>comment final<|message|>x"), "C(x)");
  EXPECT_EQ(Parse("<|channel|>analysis final<|message|>x"), "C(x)");
  EXPECT_EQ(Parse("<|channel|>thoughts<|message|>x"), "R(x)");
  EXPECT_EQ(Parse("<|message|>x<|return|>"), "R(x)");
  EXPECT_EQ(Parse("<|channel|>final<|message|>a<|message|>b<|return|>"), "C(ab)");
  EXPECT_EQ(Parse("<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>"), "R(a) C(b)");
  EXPECT_EQ(Parse("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>"), "R(a) C(b)");
  EXPECT_EQ(Parse("<|start|>assistant<|channel|>final<|message|>b<|end|><|end|>"), "C(b)");
  EXPECT_EQ(Parse("<|channel|>commentary to=functions.add<|message|>{\"a\": 1<|call|>"), "call add({\"a\": 1)!");
  EXPECT_EQ(Parse("<|channel|>commentary to=functions.add<|message|>{\"a\": 1}"), "call add({\"a\": 1})");
  EXPECT_EQ(Parse("<|channel|>commentary to=functions.add<|message|><|call|>"), "call add()!");
}

TEST(HarmonyParser, LosesNoTextWithoutAMessageToken) {
  EXPECT_EQ(Parse("Just text."), "C(Just text.)");
  EXPECT_EQ(Parse("<|channel|>final The answer.<|return|>"), "C( The answer.)");
  EXPECT_EQ(Parse("<|channel|>analysis<|end|>"), "");
  EXPECT_EQ(Parse("<|channel|>commentary to=functions.add <|constrain|>json{\"a\": 1}<|call|>"), "call add({\"a\": 1})");
  EXPECT_EQ(Parse("<|channel|>commentary to=functions.add {\"a\": 1}<|call|>"), "call add( {\"a\": 1})");
  EXPECT_EQ(Parse(std::string(2000, 'x')), "C(" + std::string(2000, 'x') + ")");
  EXPECT_EQ(Parse("<|channel|>final<|message|>a<|end|>b"), "C(ab)");
}

// Every text that is not part of a header of known words must come out, whatever tokens are around it.
TEST(HarmonyParser, LosesNoTurnOfAThousandMalformedOutputs) {
  std::mt19937 random(20);
  const auto pick = [&](const auto& choices) { return choices[random() % std::size(choices)]; };
  constexpr const char* kParts[] = {"<|start|>", "<|end|>",           "<|message|>", "<|channel|>", "<|constrain|>",
                                    "<|call|>",  "<|return|>",        "assistant",   "analysis",    "commentary",
                                    "final",     " to=functions.add", "json",        " to=user",    " "};
  for (int i = 0; i < 1000; ++i) {
    std::string output, answer = "answer" + std::to_string(i);
    for (size_t n = random() % 12; n > 0; --n) output += pick(kParts);
    output += "<|message|>" + answer;
    for (size_t n = random() % 6; n > 0; --n) output += pick(kParts);
    std::string text;
    int open = -1;
    for (const OutputEvent& event : Events(output, 1 + random() % 9)) {
      text += event.text;
      if (event.kind == OutputEvent::Kind::kToolCallStart) open = event.tool_call;
      if (event.kind != OutputEvent::Kind::kReasoning && event.kind != OutputEvent::Kind::kContent) {
        EXPECT_EQ(event.tool_call, open) << output;
      }
      if (event.kind == OutputEvent::Kind::kToolCallEnd) open = -1;
    }
    EXPECT_EQ(open, -1) << output;
    EXPECT_NE(text.find(answer), std::string::npos) << output;
  }
}

}  // namespace
}  // namespace ferry
