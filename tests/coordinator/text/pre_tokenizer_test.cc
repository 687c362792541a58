#include "coordinator/text/pre_tokenizer.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "tests/coordinator/cpu_time.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kNames[] = {"deepseek-coder", "deepseek-llm", "deepseek-v3", "falcon", "glm4",
                                  "gpt-2",          "gpt-4o",       "llama-bpe",   "qwen2",  "starcoder"};

std::vector<std::string> Pieces(std::string_view name, std::string_view text) {
  const absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::Create(name);
  EXPECT_OK(pre_tokenizer);
  const absl::StatusOr<std::vector<std::string_view>> pieces = pre_tokenizer->Split(text);
  EXPECT_OK(pieces);
  return std::vector<std::string>(pieces->begin(), pieces->end());
}

TEST(PreTokenizer, Gpt2KeepsOneSpaceBeforeAWord) {
  EXPECT_THAT(Pieces("gpt-2", "Hello  world's 42nd"), ElementsAre("Hello", " ", " world", "'s", " 42", "nd"));
}

TEST(PreTokenizer, Gpt2LeavesTrailingSpaceTogether) { EXPECT_THAT(Pieces("gpt-2", "a \n \t"), ElementsAre("a", " \n \t")); }

TEST(PreTokenizer, Gpt2KnowsContractionsInLowerCaseOnly) {
  EXPECT_THAT(Pieces("gpt-2", "I'll I'LL"), ElementsAre("I", "'ll", " I", "'", "LL"));
}

TEST(PreTokenizer, Gpt4oCutsBeforeACapitalAfterSmallLetters) {
  EXPECT_THAT(Pieces("gpt-4o", "CamelCaseWords ALLCAPS"), ElementsAre("Camel", "Case", "Words", " ALLCAPS"));
}

TEST(PreTokenizer, Gpt4oKeepsContractionsWithTheirWord) {
  EXPECT_THAT(Pieces("gpt-4o", "we'll DON'T x's"), ElementsAre("we'll", " DON'T", " x's"));
}

TEST(PreTokenizer, Gpt4oGroupsThreeDigitsAndPunctuationWithNewlines) {
  EXPECT_THAT(Pieces("gpt-4o", "1234567 ?!/\n/x"), ElementsAre("123", "456", "7", " ?!/\n/", "x"));
}

TEST(PreTokenizer, Gpt4oKeepsCombiningMarksWithTheirLetters) {
  EXPECT_THAT(Pieces("gpt-4o", "cafe\u0301s \u092e\u0941\u091d\u0947"), ElementsAre("cafe\u0301s", " \u092e\u0941\u091d\u0947"));
}

TEST(PreTokenizer, LlamaCutsAtCombiningMarks) { EXPECT_THAT(Pieces("llama-bpe", "cafe\u0301s"), ElementsAre("cafe", "\u0301s")); }

TEST(PreTokenizer, LlamaKnowsContractionsInEitherCaseAndThreeDigits) {
  EXPECT_THAT(Pieces("llama-bpe", "I'LL say 12345\n\n  (x)"),
              ElementsAre("I", "'LL", " say", " ", "123", "45", "\n\n", " ", " (", "x", ")"));
}

TEST(PreTokenizer, Qwen2TakesEachDigitAlone) {
  EXPECT_THAT(Pieces("qwen2", "in 2024."), ElementsAre("in", " ", "2", "0", "2", "4", "."));
}

TEST(PreTokenizer, Glm4CutsAsLlamaDoes) {
  const std::string text = "Don'T 12345 naïve(x)\r\n\r\n  end";
  EXPECT_THAT(Pieces("glm4", text), ElementsAreArray(Pieces("llama-bpe", text)));
}

TEST(PreTokenizer, DeepseekLlmTakesEachNewlineAloneAndOneSpaceBeforeAWord) {
  EXPECT_THAT(Pieces("deepseek-llm", "a  bc\n\n!? 我们 12  "),
              ElementsAre("a", " ", " bc", "\n", "\n", "!?", " ", "我们", " ", "12", "  "));
}

TEST(PreTokenizer, DeepseekCoderTakesEachDigitAlone) {
  EXPECT_THAT(Pieces("deepseek-coder", "x1 = 23;"), ElementsAre("x", "1", " = ", "2", "3", ";"));
}

TEST(PreTokenizer, DeepseekV3KeepsOnePunctuationBeforeLatinLetters) {
  EXPECT_THAT(Pieces("deepseek-v3", "f(x)=1234ですね_foo"), ElementsAre("f", "(x", ")=", "123", "4", "ですね", "_foo"));
}

TEST(PreTokenizer, FalconTakesPunctuationAloneAndThreeDigits) {
  EXPECT_THAT(Pieces("falcon", "a+=b 12345 it's"), ElementsAre("a", "+=", "b", " ", "123", "45", " it", "'", "s"));
}

TEST(PreTokenizer, StarcoderTakesEachDigitAlone) {
  EXPECT_THAT(Pieces("starcoder", "v12 it's"), ElementsAre("v", "1", "2", " it", "'s"));
}

TEST(PreTokenizer, TakesNoBreakSpaceAsSpaceAndMongolianVowelSeparatorAsNone) {
  EXPECT_THAT(Pieces("gpt-2", "a\u00a0\u00a0b"), ElementsAre("a", "\u00a0", "\u00a0", "b"));
  EXPECT_THAT(Pieces("gpt-2", "a \u180e!"), ElementsAre("a", " \u180e!"));
}

TEST(PreTokenizer, CutsAnEmptyTextIntoNothing) { EXPECT_THAT(Pieces("gpt-4o", ""), IsEmpty()); }

TEST(PreTokenizer, RefusesAnUnknownNameAndListsTheKnownOnes) {
  EXPECT_THAT(PreTokenizer::Create("tekken"),
              StatusIs(absl::StatusCode::kUnimplemented,
                       testing::AllOf(HasSubstr("tekken"), HasSubstr("deepseek-v3"), HasSubstr("qwen2"), HasSubstr("gpt-4o"))));
}

class EveryPreTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(EveryPreTokenizer, GivesPiecesThatAreTheText) {
  const std::vector<std::string> parts = {"a", "B",    " ", "  ", "\n",   "\r\n", "\t",     "7", "'s",   "'LL",    "!",
                                          "_", "\x01", "é", "ß",  "日本", "が",   "\u0301", "½", "🙂", "\u00a0", "/"};
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int n = random() % 20; n > 0; --n) text += parts[random() % parts.size()];
    std::string joined;
    for (const std::string& piece : Pieces(GetParam(), text)) {
      EXPECT_FALSE(piece.empty());
      joined += piece;
    }
    EXPECT_EQ(joined, text);
  }
}

// A quadratic pattern would take minutes here: 10^12 steps at a megabyte.
TEST_P(EveryPreTokenizer, TakesLinearTimeForAMegabyteOfOneKind) {
  const absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::Create(GetParam());
  ASSERT_OK(pre_tokenizer);
  for (const std::string unit : {"a", "A", "aA", " ", "\n", " \n", "7", "!", "'", "\x01", "日", "\u0301", "\u00a0", "🙂"}) {
    for (const std::string end : {"", "5x"}) {
      std::string text;
      while (text.size() < (1 << 20)) text += unit;
      const double start = ThreadCpuSeconds();
      ASSERT_OK(pre_tokenizer->Split(text + end));
      EXPECT_LT(ThreadCpuSeconds() - start, 8) << unit << " then " << end;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Text, EveryPreTokenizer, testing::ValuesIn(kNames), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace ferry
