// Tool calls of the families, in tokens of any size.

#include <gtest/gtest.h>

#include "gateway/parsers/json_calls.h"
#include "gateway/parsers/keyed_calls.h"
#include "gateway/parsers/section_calls.h"
#include "tests/chat/parsing.h"

namespace ferry {
namespace {

const Json& Tools() {
  static const auto& tools =
      *new Json(Json::parse(R"([{"type": "function", "function": {"name": "f", "parameters": {"type": "object",
      "properties": {"s": {"type": "string"}, "n": {"type": "integer"}}}}}])"));
  return tools;
}

template <typename Make>
std::string ParseAnyway(std::string_view text, const Make& make) {
  std::string first;
  for (const size_t bytes : {1u, 2u, 3u, 7u, 1000u}) {
    TextParser parser({}, make(), FakeSpecialTokens());
    const std::string shown = ParseText(parser, text, bytes);
    if (bytes == 1) first = shown;
    EXPECT_EQ(shown, first) << bytes << " bytes a token of " << text;
  }
  return first;
}

std::string ParseJson(std::string_view text) {
  return ParseAnyway(text, [] { return std::make_unique<JsonCalls>(); });
}
std::string ParseXml(std::string_view text) {
  return ParseAnyway(text, [] { return std::make_unique<KeyedCalls>(QwenXmlTags(), Tools()); });
}
std::string ParseGlm(std::string_view text) {
  return ParseAnyway(text, [] { return std::make_unique<KeyedCalls>(GlmTags(), Tools()); });
}
std::string ParseDeepSeek(std::string_view text) {
  return ParseAnyway(text, [] { return std::make_unique<SectionCalls>(DeepSeekTags()); });
}
std::string ParseKimi(std::string_view text) {
  return ParseAnyway(text, [] { return std::make_unique<SectionCalls>(KimiTags()); });
}

TEST(JsonCalls, TellsContentAndParallelCalls) {
  EXPECT_EQ(
      ParseJson("I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"a}\\\"\", \"n\": [1, {}]}}\n</tool_call>\n"
                "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>"),
      "C(I look.) call f({\"s\": \"a}\\\"\", \"n\": [1, {}]}) call g({})");
  EXPECT_EQ(ParseJson("<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>"), "call f({\"a\":1})");
  EXPECT_EQ(ParseJson("<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>"), "call f({\"a\": 1})");
  EXPECT_EQ(ParseJson("<tool_call>{\"name\": \"f\"}</tool_call>"), "call f({})");
}

TEST(JsonCalls, KeepsWhatIsNoCallAsContent) {
  EXPECT_EQ(ParseJson("a <tool_ca"), "C(a <tool_ca)");
  EXPECT_EQ(ParseJson("a \n"), "C(a \n)");
  EXPECT_EQ(ParseJson("<tool_call>nonsense</tool_call>"), "C(<tool_call>nonsense</tool_call>)");
  EXPECT_EQ(ParseJson("<tool_call>nonsense"), "C(<tool_call>nonsense)");
  EXPECT_EQ(ParseJson("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": "), "call f({\"a\": )!");
  EXPECT_EQ(ParseJson("<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\nDone."), "call f({}) C(Done.)");
}

TEST(QwenXmlCalls, TellValuesByTheirSchema) {
  EXPECT_EQ(ParseXml("Ok.\n<tool_call>\n<function=f>\n<parameter=s>\n12\n\"q\"\n</parameter>\n<parameter=n>\n12\n</parameter>\n"
                     "<parameter=x>\n{\"a\": [1]}\n</parameter>\n<parameter=y>\nplain\n</parameter>\n</function>\n</tool_call>"),
            "C(Ok.) call f({\"s\": \"12\\n\\\"q\\\"\", \"n\": 12, \"x\": {\"a\":[1]}, \"y\": \"plain\"})");
  EXPECT_EQ(
      ParseXml("<tool_call>\n<function=f>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>"),
      "call f({}) call g({})");
  EXPECT_EQ(ParseXml("<function=f>\n<parameter=n>\n1\n</parameter>\n</function>"), "call f({\"n\": 1})");
  EXPECT_EQ(ParseXml("<tool_call>\n<function=f>\n<parameter=s>\nlost"), "call f({\"s\": \"lost\"})!");
  EXPECT_EQ(ParseXml("a < b <func"), "C(a < b <func)");
}

TEST(GlmCalls, TellArgumentsOneByOne) {
  EXPECT_EQ(
      ParseGlm(
          "\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>a\nb</arg_value>\n<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n"
          "</tool_call>\n<tool_call>g</tool_call>"),
      "call f({\"s\": \"a\\nb\", \"n\": 3}) call g({})");
  EXPECT_EQ(ParseGlm("<tool_call>f<arg_key>n</arg_key><arg_value>[1,\"x\"]</arg_value></tool_call>tail"),
            "call f({\"n\": [1,\"x\"]}) C(tail)");
  EXPECT_EQ(ParseGlm("<tool_call>f<arg_key>n</arg_ke"), "call f({})!");
  EXPECT_EQ(ParseGlm("<tool_call>not a name, is it</tool_call>"), "C(<tool_call>not a name, is it</tool_call>)");
}

TEST(DeepSeekCalls, TellBothForms) {
  EXPECT_EQ(ParseDeepSeek("Look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": \"```\"}<｜tool▁call▁end｜>"
                          "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
            "C(Look.) call f({\"a\": \"```\"}) call g({})");
  EXPECT_EQ(
      ParseDeepSeek(
          "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n"
          "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
      "call f({\"a\": 1}) call g({})");
  EXPECT_EQ(ParseDeepSeek("<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": "), "call f({\"a\":)!");
  EXPECT_EQ(ParseDeepSeek("x <｜tool▁call"), "C(x <｜tool▁call)");
}

TEST(KimiCalls, CarryTheIdsThatTheModelGives) {
  EXPECT_EQ(
      ParseKimi(
          "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|>"
          "<|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"),
      "call f #functions.f:0({\"a\": 1}) call g #functions.g:1({})");
  EXPECT_EQ(ParseKimi("<|tool_call_begin|>f<|tool_call_argument_begin|>{}"), "call f #f({})!");
}

}  // namespace
}  // namespace ferry
