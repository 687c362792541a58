#include "coordinator/constraint/gbnf.h"

#include <string>
#include <vector>

#include "tests/coordinator/constraint/constraint_testing.h"
#include "tests/testing/status_matchers.h"

namespace ferry::constraint {
namespace {

using testing::HasSubstr;

TEST(Gbnf, AcceptsTheTextsOfItsRoot) {
  struct Case {
    std::string grammar;
    std::vector<std::string> accepted, rejected;
  };
  const std::vector<Case> cases = {
      {"root ::= \"a\" | \"b\" [0-9]+ # digits\n", {"a", "b07"}, {"b", "ab1"}},
      {"root ::= item (\",\" item)*\nitem ::= [a-z]{2,3}", {"ab", "ab,cde"}, {"a", "ab,", "abcd"}},
      {"root ::=\n  \"x\" |\n  \"y\"\n\nws ::= [ \\t\\n]*\n", {"x", "y"}, {"z", ""}},
      {"root ::= (\n  \"x\"\n  \"y\"\n)?", {"", "xy"}, {"x"}},
      {"expr ::= term ([-+*/] term)*\nterm ::= [0-9]+ | \"(\" expr \")\"\nroot ::= expr", {"1+(2*3)", "((4))"}, {"1+", "(1"}},
      {"root ::= \"a\" root \"b\" | \"\"", {"", "ab", "aaabbb"}, {"aab", "ba"}},
      {"root ::= [^\\n\"] . \"\\x41\\u00e9\\U0001F600\\\\\"", {"xyAé😀\\"}, {"\nyAé😀\\"}},
      {"root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"c\" | \"d\"", {"aaadbcb", "d"}, {"aadb"}},
      {"root ::= ws \"x\" ws\nws ::= ([ ] ws)?", {"x", "  x ", " x"}, {" "}},
      {"root ::= a a \"x\"\na ::= \"y\"?", {"x", "yx", "yyx"}, {"yyyx"}},
      {"root ::= [a\\]\\-]+ \"b\"{2}", {"a]-bb"}, {"abbb"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.grammar);
    for (const std::string& text : c.accepted) EXPECT_TRUE(Accepts(Gbnf(c.grammar), text).value()) << text;
    for (const std::string& text : c.rejected) EXPECT_FALSE(Accepts(Gbnf(c.grammar), text).value()) << text;
  }
}

TEST(Gbnf, WhatIsWrongIsNamedWithItsLine) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "no rule root"},
      {"a ::= \"b\"", "no rule root"},
      {"root ::= b", "the rule b is used but not defined"},
      {"root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule root is defined twice"},
      {"root ::= \"a\n", "line"},
      {"root ::= \"x\"\nb : \"y\"", "line 2: want ::= behind b"},
      {"root ::= (\"a\"", "a group has no end"},
      {"root ::= [a", "a class has no end"},
      {"root ::= [z-a]", "before it begins"},
      {"root ::= <[42]>", "token references"},
      {"root ::= \"a\"{3,1}", "n below m"},
      {"root ::= \"\\q\"", "unknown escape"},
      {"root ::= root \"a\" | \"b\"", "left recursion"},
      {"root ::= e root \"a\" | \"b\"\ne ::= \"c\"?", "left recursion"},
      {"root ::= \"a\" root", "no text satisfies it"},
      {"root ::= \"a\"*********", "more than 8 quantifiers"},
  };
  for (const auto& [grammar, message] : cases) {
    EXPECT_THAT(CompileAutomaton(Gbnf(grammar)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message))) << grammar;
  }
}

TEST(Gbnf, AGrammarThatExplodesIsRefused) {
  std::string nothing = "\"\"", rules = "root ::= r0\n";
  for (int i = 0; i < 20; ++i) nothing = "(" + nothing + "){9999}";
  for (int i = 0; i < 9000; ++i) rules += absl::StrFormat("r%d ::= r%d\n", i, i + 1);
  for (const std::string& grammar : {"root ::= \"a\" " + nothing, rules + "r9000 ::= \"a\""}) {
    EXPECT_THAT(CompileAutomaton(Gbnf(grammar)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("too large")));
  }
}

}  // namespace
}  // namespace ferry::constraint
