#include "coordinator/constraint/regex.h"

#include <string>
#include <vector>

#include "tests/coordinator/constraint/constraint_testing.h"
#include "tests/testing/status_matchers.h"

namespace ferry::constraint {
namespace {

using testing::HasSubstr;

TEST(Regex, MatchesTheWholeText) {
  struct Case {
    std::string pattern;
    std::vector<std::string> accepted, rejected;
  };
  const std::vector<Case> cases = {
      {"abc", {"abc"}, {"ab", "abcd", ""}},
      {"a|bc|", {"a", "bc", ""}, {"abc"}},
      {"a*b+c?", {"b", "aabbc"}, {"a", "bcc"}},
      {"a{2}b{1,}c{0,2}", {"aab", "aabbcc"}, {"ab", "aabccc"}},
      {"(?:ab)+?(c|d)(?<n>e)", {"abce", "ababde"}, {"abe"}},
      {"[a-cx]", {"a", "c", "x"}, {"d", "-"}},
      {"[^a-c]", {"d", "é", "😀"}, {"a", "\xff"}},
      {"[a\\]-]", {"a", "]", "-"}, {"\\"}},
      {".", {"x", "日"}, {"\n", "", "xx"}},
      {"\\d\\w\\s\\D\\W\\S", {"1a x!y"}, {"aa x!y"}},
      {"\\x41\\u00e9\\u{1F600}\\n\\.", {"Aé😀\n."}, {"A"}},
      {"^ab$", {"ab"}, {"^ab$"}},
      {"^a$|^b$", {"a", "b"}, {"ab"}},
      {"日+", {"日日"}, {"日本"}},
      {"(a*)*b", {"b", "aaab"}, {"aaa"}},
      {"[]", {}, {"", "a"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.pattern);
    if (c.accepted.empty()) {
      EXPECT_THAT(CompileAutomaton(Regex(c.pattern)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no text")));
      continue;
    }
    for (const std::string& text : c.accepted) EXPECT_TRUE(Accepts(Regex(c.pattern), text).value()) << text;
    for (const std::string& text : c.rejected) EXPECT_FALSE(Accepts(Regex(c.pattern), text).value()) << text;
  }
}

TEST(Regex, WhatHasNoAutomatonIsRefusedByName) {
  const std::vector<std::pair<std::string, std::string>> cases = {{"(?=a)", "look-around"},
                                                                  {"(?<!a)b", "look-around"},
                                                                  {"(a)\\1", "back-references"},
                                                                  {"\\bx", "\\b (word boundary)"},
                                                                  {"\\p{L}", "\\p"},
                                                                  {"(?i)a", "flags"},
                                                                  {"a++", "possessive"},
                                                                  {"a**", "nothing to repeat"},
                                                                  {"*", "nothing to repeat"},
                                                                  {"(a", "no end"},
                                                                  {"a)", "closes no group"},
                                                                  {"[a", "no end"},
                                                                  {"[b-a]", "before it begins"},
                                                                  {"a{3,2}", "n below m"},
                                                                  {"a{99999}", "more than"},
                                                                  {"(^a)", "^ and $"},
                                                                  {"a$b", "$ is supported"},
                                                                  {"\\", "backslash"},
                                                                  {"\\q", "\\q"},
                                                                  {"\xff", "not UTF-8"},
                                                                  {"a{x}", "begins no {m,n}"},
                                                                  {"\\x4", "hexadecimal"}};
  for (const auto& [pattern, message] : cases) {
    EXPECT_THAT(CompileAutomaton(Regex(pattern)), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message))) << pattern;
  }
  EXPECT_THAT(CompileAutomaton(Regex(std::string(500, '(') + "a" + std::string(500, ')'))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nested deeper")));
}

TEST(Choice, AllowsItsTextsAlone) {
  const ConstraintSpec choice = Choice({"yes", "no", "yesterday"});
  for (const char* text : {"yes", "no", "yesterday"}) EXPECT_TRUE(Accepts(choice, text).value()) << text;
  for (const char* text : {"", "ye", "yesno", "yester"}) EXPECT_FALSE(Accepts(choice, text).value()) << text;
  EXPECT_THAT(CompileAutomaton(Choice({})), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("choice")));
  EXPECT_THAT(CompileAutomaton(Choice({"yes", "\xFF\xFF"})), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("UTF-8")));
}

TEST(JsonObject, IsAnyJsonObject) {
  for (const char* text : {"{}", R"({"a":[1,-2.5e3,null,{"b":"c"}]})", "{\n \"a\": true }"}) {
    EXPECT_TRUE(Accepts(JsonObject(), text).value()) << text;
  }
  for (const char* text : {"[]", "", R"({"a":})", R"({a:1})", R"({"a":1}x)"})
    EXPECT_FALSE(Accepts(JsonObject(), text).value()) << text;
}

}  // namespace
}  // namespace ferry::constraint
