#include "coordinator/constraint/json_schema.h"

#include <string>
#include <vector>

#include "tests/coordinator/constraint/constraint_testing.h"
#include "tests/testing/status_matchers.h"

namespace ferry::constraint {
namespace {

using testing::HasSubstr;

struct Case {
  std::string schema;
  std::vector<std::string> accepted, rejected;
};

void Check(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    SCOPED_TRACE(c.schema);
    for (const std::string& text : c.accepted) EXPECT_TRUE(Accepts(Schema(c.schema), text).value()) << text;
    for (const std::string& text : c.rejected) EXPECT_FALSE(Accepts(Schema(c.schema), text).value()) << text;
  }
}

TEST(JsonSchema, TypesAreKept) {
  Check({
      {R"({"type":"null"})", {"null"}, {"0", "nul", "\"null\"", ""}},
      {R"({"type":"boolean"})", {"true", "false"}, {"True", "1"}},
      {R"({"type":"integer"})", {"0", "-7", "1234567890123456"}, {"01", "1.0", "1e3", "12345678901234567", "-"}},
      {R"({"type":"number"})", {"0", "-7", "1.5", "2e10", "-1.25E-3"}, {"1.", ".5", "1e", "01", "+1"}},
      {R"({"type":"string"})",
       {R"("")", R"("aé日😀")", R"("\u00e9\n\"")", R"("\ud83d\ude00")"},
       {R"("\ud83d")", "\"\n\"", R"("\x")", "\"\xff\"", "\"a"}},
      {R"({"type":["integer","null"]})", {"3", "null"}, {"true", "\"3\""}},
      {R"({"type":"string","nullable":true})", {"null", "\"\""}, {"1"}},
      {"true", {"1", "[1,{\"a\":[]}]", "{}"}, {"", "[1,]"}},
      {"{}", {"null", "\"x\""}, {"nul"}},
  });
}

TEST(JsonSchema, ObjectsHaveTheirProperties) {
  Check({
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},"required":["a","b"],)"
       R"("additionalProperties":false})",
       {R"({"a":1,"b":"x"})", R"({"a": 1, "b": "x"})", "{\n  \"a\": 1,\n  \"b\": \"x\"\n}"},
       {"{}", R"({"a":1})", R"({"b":"x","a":1})", R"({"a":1,"b":"x","c":2})", R"({"a":1,"b":"x",})", "{\n\n}"}},
      {R"({"properties":{"a":{"type":"integer"},"b":{"type":"integer"},"c":{"type":"integer"}}})",
       {"{}", R"({"a":1})", R"({"b":1})", R"({"c":1})", R"({"a":1,"c":2})", R"({"a":1,"b":2,"c":3})"},
       {R"({"a":1"c":2})", R"({,"a":1})", R"({"c":1,"a":2})", R"({"d":1})"}},
      {R"({"properties":{"a":{"type":"integer"},"b":{"type":"integer"},"c":{"type":"integer"}},"required":["b"]})",
       {R"({"b":1})", R"({"a":1,"b":1})", R"({"b":1,"c":1})", R"({"a":1,"b":1,"c":1})"},
       {"{}", R"({"a":1})", R"({"a":1,"c":1})"}},
      {R"({"type":"object","additionalProperties":{"type":"integer"}})", {"{}", R"({"x":1,"y z":2})"}, {R"({"x":"1"})"}},
      {R"({"properties":{"a":{"type":"integer"}},"additionalProperties":{"type":"string"}})",
       {R"({"a":1})", R"({"a":1,"ab":"x"})", R"({"":"x"})", R"({"b":"x","c":"y"})"},
       {R"({"a":"x"})", R"({"b":1})", R"({"a":1,"a":"x"})", R"({"\u0061":"x"})"}},
      {R"({"type":"object","required":["k"]})", {R"({"k":[1]})"}, {"{}"}},
      {R"({"type":"object"})", {"{}", R"({"a":{"b":[true,null]}})"}, {"[]"}},
      {R"({"properties":{"a\"é":{"type":"null"}},"required":["a\"é"]})", {R"({"a\"é":null})"}, {R"({"a":null})"}},
  });
}

TEST(JsonSchema, ArraysHaveTheirItems) {
  Check({
      {R"({"type":"array","items":{"type":"integer"}})", {"[]", "[1]", "[1, 2,3]"}, {"[1,]", "[\"a\"]", "[,1]"}},
      {R"({"items":{"type":"integer"},"minItems":2,"maxItems":3})", {"[1,2]", "[1,2,3]"}, {"[]", "[1]", "[1,2,3,4]"}},
      {R"({"items":{"type":"integer"},"minItems":1})", {"[1]", "[1,2,3,4,5]"}, {"[]"}},
      {R"({"items":{"type":"integer"},"maxItems":0})", {"[]"}, {"[1]"}},
      {R"({"prefixItems":[{"type":"integer"},{"type":"string"}],"items":false})",
       {"[]", "[1]", R"([1,"a"])"},
       {R"(["a"])", R"([1,"a",2])", "[1,2]"}},
      {R"({"prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"null"},"minItems":2,"maxItems":3})",
       {R"([1,"a"])", R"([1,"a",null])"},
       {"[1]", R"([1,"a",null,null])", R"([1,"a",1])"}},
      {R"({"prefixItems":[{"type":"integer"}],"minItems":2})", {"[1,true]", "[1,2]"}, {"[1]", "[1,2,3,]"}},
      {R"({"type":"array","maxItems":1})", {"[]", "[{}]"}, {"[1,2]"}},
  });
}

TEST(JsonSchema, EnumAndConstAreLiterals) {
  Check({
      {R"({"enum":["red","green",3,null,{"a":[1]}]})", {R"("red")", "3", "null", R"({"a":[1]})"}, {R"("blue")", "4", "red"}},
      {R"({"const":"x"})", {R"("x")"}, {R"("y")"}},
      {R"({"type":"string","enum":["a",1]})", {R"("a")"}, {"1"}},
      {R"({"enum":["a","b"],"const":"b"})", {R"("b")"}, {R"("a")"}},
  });
}

TEST(JsonSchema, CombinationsAreKept) {
  Check({
      {R"({"anyOf":[{"type":"integer"},{"type":"string"}]})", {"1", "\"a\""}, {"null"}},
      {R"({"oneOf":[{"const":1},{"const":12}]})", {"1", "12"}, {"2"}},
      {R"({"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"null"}},)"
       R"("required":["b"]}]})",
       {R"({"a":1,"b":null})"},
       {R"({"a":1})", R"({"b":null})"}},
      {R"({"allOf":[{"type":"integer","minimum":3},{"type":"number","maximum":5}]})", {"3", "5"}, {"2", "6", "3.5"}},
      {R"({"type":"object","properties":{"k":{"type":"integer"}},"required":["k"],)"
       R"("anyOf":[{"properties":{"x":{"const":1}},"required":["x"]},{"properties":{"y":{"const":2}},"required":["y"]}]})",
       {R"({"x":1,"k":5})", R"({"y":2,"k":5})"},
       {R"({"k":5})", R"({"x":2,"k":5})"}},
      {R"({"anyOf":[{"type":"object","properties":{"t":{"const":"a"},"v":{"type":"integer"}},"required":["t","v"]},)"
       R"({"type":"object","properties":{"t":{"const":"ab"},"w":{"type":"null"}},"required":["t","w"]}]})",
       {R"({"t":"a","v":1})", R"({"t":"ab","w":null})"},
       {R"({"t":"a","w":null})", R"({"t":"ab","v":1})"}},
  });
}

TEST(JsonSchema, ReferencesAreFollowedAlsoToThemselves) {
  const std::string tree = R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"v":{"type":"integer"},)"
                           R"("next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},"required":["v","next"]}}})";
  Check({
      {tree, {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":null}})"}, {R"({"v":1})", R"({"v":1,"next":{}})"}},
      {R"({"type":"array","items":{"$ref":"#"}})", {"[]", "[[],[[]]]"}, {"[1]", "[[]"}},
      {R"({"properties":{"a":{"$ref":"#/definitions/x~1y"}},"definitions":{"x/y":{"type":"null"}},"required":["a"]})",
       {R"({"a":null})"},
       {R"({"a":1})"}},
      {R"({"properties":{"c":{"description":"d","allOf":[{"$ref":"#"}]}}})", {"{}", R"({"c":{"c":{}}})"}, {R"({"c":1})"}},
  });
}

TEST(JsonSchema, StringsKeepLengthPatternAndFormat) {
  Check({
      {R"({"type":"string","minLength":2,"maxLength":3})", {R"("ab")", R"("日本語")", R"("a\"b")"}, {R"("a")", R"("abcd")"}},
      {R"({"minLength":1})", {R"("x")"}, {R"("")"}},
      {R"({"pattern":"^[a-z]+$"})", {R"("abc")"}, {R"("")", R"("aB")"}},
      {R"({"pattern":"b"})", {R"("abc")", R"("b")", R"("b\n")"}, {R"("ac")", R"("")"}},
      {R"({"pattern":"^a|c$"})", {R"("ab")", R"("bc")"}, {R"("bcb")"}},
      {R"({"pattern":"^\"\\\\\n$"})", {R"("\"\\\n")"}, {R"("x")"}},
      {R"({"pattern":"^[ab]*$","minLength":2,"maxLength":2})", {R"("ab")"}, {R"("a")", R"("aba")", R"("ac")"}},
      {R"({"format":"date"})", {R"("2024-02-29")", R"("2023-12-31")"}, {R"("2023-02-29")", R"("2023-04-31")", R"("0000-01-01")"}},
      {R"({"format":"time"})", {R"("23:59:59Z")", R"("00:00:00.5+02:00")"}, {R"("24:00:00Z")", R"("12:00")"}},
      {R"({"format":"date-time"})", {R"("2024-02-29T10:00:00Z")"}, {R"("2024-02-29 10:00:00Z")"}},
      {R"({"format":"email"})", {R"("a.b@c.org")"}, {R"("a@b")", R"("@b.org")"}},
      {R"({"format":"uuid"})", {R"("123e4567-e89b-12d3-a456-426614174000")"}, {R"("123e4567e89b12d3a456426614174000")"}},
      {R"({"format":"ipv4"})", {R"("192.168.0.255")"}, {R"("1.2.3")", R"("1.2.3.256")", R"("01.2.3.4")"}},
      {R"({"format":"ipv6"})", {R"("::1")", R"("1:2:3:4:5:6:7:8")"}, {R"("1:2:3")"}},
      {R"({"format":"uri"})", {R"("https://a.org/x?y=1#z")"}, {R"("a.org")"}},
      {R"({"format":"hostname"})", {R"("a-b.c")"}, {R"("-a")", R"("a..b")"}},
  });
  const std::string schema = R"({"type":"string","maxLength":32768})";
  EXPECT_TRUE(Accepts(Schema(schema), '"' + std::string(32000, 'x') + '"').value());
  EXPECT_FALSE(Accepts(Schema(schema), '"' + std::string(32769, 'x') + '"').value());
}

TEST(JsonSchema, NumbersKeepTheirBounds) {
  Check({
      {R"({"type":"integer","minimum":-5,"maximum":120})", {"-5", "0", "99", "120"}, {"-6", "121", "-0", "007"}},
      {R"({"type":"integer","exclusiveMinimum":0})", {"1", "1000000"}, {"0", "-1"}},
      {R"({"type":"integer","minimum":1.5,"exclusiveMaximum":3.5})", {"2", "3"}, {"1", "4"}},
      {R"({"type":"integer","maximum":-10})", {"-10", "-999"}, {"-9", "0", "10"}},
      {R"({"type":"number","minimum":0,"maximum":1})", {"0", "1", "0.5", "1.0", "0.9999"}, {"1.0001", "-0.1", "2"}},
      {R"({"type":"number","exclusiveMinimum":0,"exclusiveMaximum":2.5})", {"0.1", "2.4999", "1"}, {"0", "0.0", "2.5", "2.50"}},
      {R"({"minimum":-1.25,"maximum":-0.5})", {"-1.25", "-0.5", "-1"}, {"-1.26", "-0.49", "1"}},
  });
}

TEST(JsonSchema, EveryIntegerRangeHasItsIntegersAlone) {
  for (const auto& [min, max] : std::vector<std::pair<int, int>>{{-13, 27}, {0, 0}, {7, 9}, {95, 1010}, {-120, -98}, {-1, 1}}) {
    const std::string schema = absl::StrFormat(R"({"type":"integer","minimum":%d,"maximum":%d})", min, max);
    const absl::StatusOr<Automaton> automaton = CompileAutomaton(Schema(schema));
    ASSERT_OK(automaton);
    Pushdown pushdown(&*automaton);
    for (int i = min - 130; i <= max + 130; ++i) {
      Position position = pushdown.start();
      for (const char c : std::to_string(i)) {
        if (position != kNowhere) position = pushdown.Advance(position, static_cast<uint8_t>(c));
      }
      EXPECT_EQ(position != kNowhere && pushdown.CanEnd(position), min <= i && i <= max) << i << " in " << schema;
    }
  }
}

TEST(JsonSchema, WhatIsNotSupportedIsRefusedByNameAndPlace) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"properties":{"a":{"not":{}}}})", "#/properties/a/not: the keyword not is not supported"},
      {R"({"items":{"uniqueItems":true}})", "#/items/uniqueItems"},
      {R"({"patternProperties":{}})", "patternProperties"},
      {R"({"multipleOf":3})", "multipleOf"},
      {R"({"if":{}})", "if"},
      {R"({"minLenght":3})", "minLenght"},
      {R"({"type":"strin"})", "#/type"},
      {R"({"format":"colour"})", "the format colour is not supported; supported: date"},
      {R"x({"pattern":"(?=a)"})x", "look-around"},
      {R"({"$ref":"http://x"})", "is not a pointer within the schema"},
      {R"({"$ref":"#/$defs/a"})", "there is no #/$defs/a"},
      {R"({"$ref":"#"})", "no text satisfies it"},
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", "refers to itself"},
      {R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})", "no text satisfies it"},
      {R"({"enum":["a"],"minLength":1})", "minLength beside enum"},
      {R"({"minItems":-1})", "#/minItems"},
      {R"({"anyOf":[]})", "#/anyOf"},
      {R"({"items":[{}]})", "prefixItems"},
      {R"({"type":"integer","minimum":3,"maximum":2})", "no text satisfies it"},
      {R"({"allOf":[{"properties":{"a":{}},"additionalProperties":false},{"properties":{"b":{}}}]})", "additionalProperties"},
      {"[", "it is not JSON"},
      {"3", "want a schema"},
  };
  for (const auto& [schema, message] : cases) {
    EXPECT_THAT(CompileAutomaton(Schema(schema)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message))) << schema;
  }
}

TEST(JsonSchema, ASchemaThatExplodesIsRefused) {
  std::string doubling = R"({"$ref":"#/$defs/a0","$defs":{"a20":{"type":"object"})";
  for (int i = 0; i < 20; ++i) {
    doubling += absl::StrFormat(R"(,"a%d":{"allOf":[{"$ref":"#/$defs/a%d"},{"$ref":"#/$defs/a%d"}]})", i, i + 1, i + 1);
  }
  EXPECT_THAT(CompileAutomaton(Schema(doubling + "}}")), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("subschemas")));
  EXPECT_THAT(CompileAutomaton(Schema(R"x({"pattern":"(a|b)*a(a|b){40}"})x")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("too large")));
  EXPECT_THAT(CompileAutomaton(Schema(R"x({"pattern":"((((a{999}){999}){999}){999})"})x")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("too large")));
  EXPECT_THAT(CompileAutomaton(Schema(std::string(100'000, '['))), StatusIs(absl::StatusCode::kInvalidArgument));
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "{\"items\":";
  deep += "{}" + std::string(100, '}');
  EXPECT_THAT(CompileAutomaton(Schema(deep)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nested deeper")));
}

}  // namespace
}  // namespace ferry::constraint
