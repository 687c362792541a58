#include "coordinator/text/special_matcher.h"

#include <random>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// Matches as "begin:id".
std::vector<std::string> Found(const SpecialMatcher& matcher, std::string_view text, bool parse_special = true) {
  std::vector<std::string> found;
  for (const SpecialMatcher::Match& match : matcher.FindAll(text, parse_special)) {
    found.push_back(absl::StrFormat("%d:%d", match.begin, match.id));
  }
  return found;
}

TEST(SpecialMatcher, TakesTheLongestTokenAtTheLeftmostPlace) {
  const SpecialMatcher matcher({{"ab", 1, false}, {"abc", 2, false}, {"bcd", 3, false}, {"d", 4, false}});
  EXPECT_THAT(Found(matcher, "xabcd"), ElementsAre("1:2", "4:4"));
  EXPECT_THAT(Found(matcher, "bcdab"), ElementsAre("0:3", "3:1"));
}

TEST(SpecialMatcher, FindsOnlyUserDefinedTokensUnlessAsked) {
  const SpecialMatcher matcher({{"<a>", 1, false}, {"<b>", 2, true}, {"<b>!", 3, false}});
  EXPECT_THAT(Found(matcher, "<a><b>!", true), ElementsAre("0:1", "3:3"));
  EXPECT_THAT(Found(matcher, "<a><b>!", false), ElementsAre("3:2"));
}

TEST(SpecialMatcher, TakesTheLowestIdOfEqualTokensAndNoEmptyOne) {
  const SpecialMatcher matcher({{"x", 5, false}, {"x", 3, false}, {"", 1, true}});
  EXPECT_THAT(Found(matcher, "xx"), ElementsAre("0:3", "1:3"));
  EXPECT_THAT(Found(matcher, "", false), IsEmpty());
}

TEST(SpecialMatcher, FindsWhatAScanFromEveryPlaceFinds) {
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    const auto random_text = [&](int length) {
      std::string text;
      for (; length > 0; --length) text.push_back("ab"[random() % 2]);
      return text;
    };
    std::vector<std::string> texts;
    for (int n = 1 + random() % 6; n > 0; --n) texts.push_back(random_text(1 + random() % 5));
    std::vector<SpecialMatcher::Pattern> patterns;
    for (size_t i = 0; i < texts.size(); ++i) patterns.push_back({texts[i], static_cast<int32_t>(i), false});
    const std::string text = random_text(30);
    std::vector<std::string> want;
    for (size_t at = 0; at < text.size();) {
      size_t best = texts.size();
      for (size_t i = 0; i < texts.size(); ++i) {
        if (text.compare(at, texts[i].size(), texts[i]) == 0 && (best == texts.size() || texts[i].size() > texts[best].size())) {
          best = i;
        }
      }
      if (best == texts.size()) {
        ++at;
        continue;
      }
      want.push_back(absl::StrFormat("%d:%d", at, best));
      at += texts[best].size();
    }
    EXPECT_EQ(Found(SpecialMatcher(patterns), text), want) << text;
  }
}

TEST(SpecialMatcher, IsNotSlowedByTokensThatAlmostMatchEverywhere) {
  // A trie tried from each place would take 10^5 * 10^6 steps.
  const std::string almost = std::string(100'000, 'a') + "b";
  const SpecialMatcher matcher({{"a", 1, false}, {almost, 2, false}, {"b" + almost, 3, false}});
  EXPECT_EQ(matcher.FindAll(std::string(1 << 20, 'a'), true).size(), 1u << 20);
}

}  // namespace
}  // namespace ferry
