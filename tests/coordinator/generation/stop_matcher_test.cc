#include "coordinator/generation/stop_matcher.h"

#include <random>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::HasSubstr;

StopMatcher Matcher(const std::vector<std::string>& stops) {
  absl::StatusOr<StopMatcher> matcher = StopMatcher::Create(stops);
  EXPECT_OK(matcher);
  return *std::move(matcher);
}

TEST(StopMatcher, PassesEverythingWithoutStopStrings) {
  StopMatcher matcher = Matcher({});
  EXPECT_EQ(matcher.Push("abc").text, "abc");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBeginAStopString) {
  StopMatcher matcher = Matcher({"\n\nUser:"});
  EXPECT_EQ(matcher.Push("one\n").text, "one");
  EXPECT_EQ(matcher.Push("two\n").text, "\ntwo");
  EXPECT_EQ(matcher.Push("\n").text, "");
  EXPECT_EQ(matcher.Push("\n").text, "\n");
  EXPECT_EQ(matcher.Push("Use").text, "");
  EXPECT_EQ(matcher.Flush(), "\n\nUse");
}

TEST(StopMatcher, FindsAStopStringAcrossPiecesAndDropsWhatFollows) {
  StopMatcher matcher = Matcher({"END", "STOP"});
  EXPECT_EQ(matcher.Push("go S").text, "go ");
  EXPECT_EQ(matcher.Push("T").text, "");
  const StopMatcher::Result result = matcher.Push("OP and more");
  EXPECT_EQ(result.text, "");
  EXPECT_EQ(result.stop, 1);
  EXPECT_EQ(matcher.Push("more").text, "");
  EXPECT_EQ(matcher.Push("more").stop, 1);
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, FindsAStopStringInsideTheBeginningOfAnother) {
  StopMatcher matcher = Matcher({"abcd", "bc"});
  const StopMatcher::Result result = matcher.Push("xabce");
  EXPECT_EQ(result.text, "xa");
  EXPECT_EQ(result.stop, 1);
}

TEST(StopMatcher, TakesTheLongestOfThoseThatEndAtOnePlace) {
  StopMatcher matcher = Matcher({"c", "bc"});
  const StopMatcher::Result result = matcher.Push("abc");
  EXPECT_EQ(result.text, "a");
  EXPECT_EQ(result.stop, 1);
}

TEST(StopMatcher, DoesNotSplitACharacter) {
  StopMatcher matcher = Matcher({"é!"});
  EXPECT_EQ(matcher.Push("è").text, "è");  // shares its first byte with é
  EXPECT_EQ(matcher.Push("é").text, "");
  EXPECT_EQ(matcher.Push("?").text, "é?");
}

TEST(StopMatcher, RefusesAnEmptyOrIllFormedStopStringByIndex) {
  EXPECT_THAT(StopMatcher::Create({"a", ""}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("stop[1] is empty")));
  EXPECT_THAT(StopMatcher::Create({"\xFF"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("stop[0] is not UTF-8")));
}

TEST(StopMatcher, RefusesMoreThanItsLimits) {
  EXPECT_THAT(StopMatcher::Create(std::vector<std::string>(257, "a")), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(StopMatcher::Create({std::string(kMaxStopBytes + 1, 'a')}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(StopMatcher, FindsTheSameWhereverTheTextIsCut) {
  std::mt19937 random(2);
  for (int round = 0; round < 2000; ++round) {
    const auto random_text = [&](int length) {
      std::string text;
      for (; length > 0; --length) text.push_back("ab"[random() % 2]);
      return text;
    };
    std::vector<std::string> stops;
    for (int n = 1 + random() % 4; n > 0; --n) stops.push_back(random_text(2 + random() % 6));
    const std::string text = random_text(25);
    // The definition: the smallest end, then the longest.
    std::string want = text;
    for (size_t end = 1; end <= text.size() && want == text; ++end) {
      size_t longest = 0;
      for (const std::string& stop : stops) {
        if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
          longest = std::max(longest, stop.size());
        }
      }
      if (longest > 0) {
        want = text.substr(0, end - longest);
        break;
      }
    }
    StopMatcher matcher = Matcher(stops);
    std::string got;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random() % 5;
      got += matcher.Push(text.substr(at, length)).text;
      at += length;
    }
    got += matcher.Flush();
    ASSERT_EQ(got, want) << text;
  }
}

TEST(StopMatcher, IsLinearInATextThatAlmostMatchesEverywhere) {
  StopMatcher matcher = Matcher({std::string(60'000, 'a') + "b"});
  std::string got = matcher.Push(std::string(1 << 20, 'a')).text;  // 6 * 10^10 steps if tried from each place
  for (int i = 0; i < 1000; ++i) got += matcher.Push("a").text;
  EXPECT_EQ(got.size() + 60'000, (1u << 20) + 1000);
}

}  // namespace
}  // namespace ferry
