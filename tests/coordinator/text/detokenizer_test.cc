#include "coordinator/text/detokenizer.h"

#include <random>
#include <string>
#include <vector>

#include "coordinator/text/utf8.h"
#include "tests/coordinator/text/tiny_vocabulary.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

class DetokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(tokenizer_, Tokenizer::Create(TinyVocabulary(
                                         {"h i"}, {{"<|end|>", TokenType::kControl}, {"<tool>", TokenType::kUserDefined}})));
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(DetokenizerTest, HoldsACharacterBackUntilItsLastByte) {
  Detokenizer detokenizer(tokenizer_.get(), false);
  EXPECT_EQ(detokenizer.Push(0xF0), "");
  EXPECT_EQ(detokenizer.Push(0x9F), "");
  EXPECT_EQ(detokenizer.Push(0x99), "");
  EXPECT_EQ(detokenizer.Push(0x82), "🙂");
  EXPECT_EQ(detokenizer.Push(256), "hi");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST_F(DetokenizerTest, ReplacesAnUnfinishedCharacterAtTheEnd) {
  Detokenizer detokenizer(tokenizer_.get(), false);
  EXPECT_EQ(detokenizer.Push(0xE6), "");
  EXPECT_EQ(detokenizer.Push(0x97), "");
  EXPECT_EQ(detokenizer.Flush(), "\uFFFD");
  EXPECT_EQ(detokenizer.Push('a'), "a");
}

TEST_F(DetokenizerTest, ReplacesWhatCannotBecomeUtf8AsSoonAsThatIsKnown) {
  Detokenizer detokenizer(tokenizer_.get(), false);
  EXPECT_EQ(detokenizer.Push(0x80), "\uFFFD");
  EXPECT_EQ(detokenizer.Push(0xE6), "");
  EXPECT_EQ(detokenizer.Push('a'), "\uFFFDa");
}

TEST_F(DetokenizerTest, ShowsSpecialTokensOnlyWhenAsked) {
  Detokenizer plain(tokenizer_.get(), false), special(tokenizer_.get(), true);
  EXPECT_EQ(plain.Push(257), "");
  EXPECT_EQ(special.Push(257), "<|end|>");
  EXPECT_EQ(plain.Push(258), "<tool>");
}

TEST_F(DetokenizerTest, AddsNothingForAnIdOutsideTheVocabulary) {
  Detokenizer detokenizer(tokenizer_.get(), true);
  EXPECT_EQ(detokenizer.Push(259), "");
  EXPECT_EQ(detokenizer.Push(-1), "");
}

TEST_F(DetokenizerTest, StreamsValidUtf8ThatJoinsToTheWholeText) {
  std::mt19937 random(5);
  for (int round = 0; round < 500; ++round) {
    std::vector<int32_t> ids;
    // Lead and continuation bytes are likelier than chance has them, so that characters form.
    for (int n = random() % 30; n > 0; --n) {
      ids.push_back(random() % 3 == 0 ? random() % tokenizer_->vocab_size() : 0x80 + random() % 0x80);
    }
    Detokenizer detokenizer(tokenizer_.get(), true);
    std::string bytes, text;
    for (const int32_t id : ids) {
      bytes += tokenizer_->TokenBytes(id);
      const std::string piece = detokenizer.Push(id);
      EXPECT_TRUE(IsValidUtf8(piece));
      text += piece;
    }
    text += detokenizer.Flush();
    std::string want;
    AppendWithReplacements(bytes, &want);
    EXPECT_EQ(text, want);
    ASSERT_OK_AND_ASSIGN(const std::string decoded, tokenizer_->Decode(ids, true));
    EXPECT_EQ(text, decoded);
  }
}

TEST(Utf8, RefusesOverlongFormsSurrogatesAndTooLargeCodePoints) {
  EXPECT_TRUE(IsValidUtf8("a\u00e9\u65e5\U0001F642\U0010FFFF"));
  for (const char* text : {"\xC0\xAF", "\xE0\x80\xAF", "\xF0\x80\x80\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF5\x80", "\x80",
                           "\xC3", "\xE6\x97"}) {
    EXPECT_FALSE(IsValidUtf8(text));
  }
}

TEST(Utf8, ReplacesOneMaximalSubpartByOneCharacter) {
  std::string text;
  AppendWithReplacements("a\xF0\x9F\x99z\xE0\x80\xFF", &text);
  EXPECT_EQ(text, "a\uFFFDz\uFFFD\uFFFD\uFFFD");
}

}  // namespace
}  // namespace ferry
