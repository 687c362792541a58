#include "coordinator/text/byte_pair_encoder.h"

#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/coordinator/text/tiny_vocabulary.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Tokens(const VocabularyData& data, std::string_view piece) {
  const absl::StatusOr<Vocabulary> vocabulary = Vocabulary::Create(data);
  EXPECT_OK(vocabulary);
  const BytePairEncoder encoder(&*vocabulary);
  BytePairEncoder::Scratch scratch;
  std::vector<int32_t> ids;
  EXPECT_OK(encoder.Encode(piece, &scratch, &ids));
  std::vector<std::string> tokens;
  for (const int32_t id : ids) tokens.emplace_back(vocabulary->Bytes(id));
  return tokens;
}

// The definition, in plain steps: find the pair of lowest rank, the leftmost of them, merge it, begin again.
std::vector<std::string> PlainMerges(const VocabularyData& data, std::string_view piece) {
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (size_t i = 0; i < data.merges.size(); ++i) {
    const size_t space = data.merges[i].find(' ');
    ranks.emplace(
        std::pair(*BytesOfAlphabet(data.merges[i].substr(0, space)), *BytesOfAlphabet(data.merges[i].substr(space + 1))), i);
  }
  std::vector<std::string> symbols;
  for (const char c : piece) symbols.emplace_back(1, c);
  while (true) {
    size_t best_rank = SIZE_MAX, best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto it = ranks.find({symbols[i], symbols[i + 1]});
      if (it != ranks.end() && it->second < best_rank) {
        best_rank = it->second;
        best = i;
      }
    }
    if (best_rank == SIZE_MAX) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + best + 1);
  }
}

TEST(BytePairEncoder, AppliesTheMergeOfLowestRankFirst) {
  EXPECT_THAT(Tokens(TinyVocabulary({"b c", "a b"}), "abc"), ElementsAre("a", "bc"));
  EXPECT_THAT(Tokens(TinyVocabulary({"a b", "b c"}), "abc"), ElementsAre("ab", "c"));
}

TEST(BytePairEncoder, AppliesTheLeftmostOfEqualMerges) {
  EXPECT_THAT(Tokens(TinyVocabulary({"a a"}), "aaaaa"), ElementsAre("aa", "aa", "a"));
}

TEST(BytePairEncoder, BuildsOnEarlierMerges) {
  EXPECT_THAT(Tokens(TinyVocabulary({"l l", "h e", "he ll", "hell o"}), "hellohell"), ElementsAre("hello", "hell"));
}

TEST(BytePairEncoder, TakesTheFirstOfEqualMerges) {
  VocabularyData data = TinyVocabulary({"a b", "b c"});
  data.merges.push_back("a b");
  EXPECT_THAT(Tokens(data, "abc"), ElementsAre("ab", "c"));
}

TEST(BytePairEncoder, MergesPartsOfACharacter) {
  // U+00E9 is C3 A9, in the byte alphabet "Ã" and "©".
  EXPECT_THAT(Tokens(TinyVocabulary({"Ã ©"}), "\u00e9"), ElementsAre("\u00e9"));
  EXPECT_THAT(Tokens(TinyVocabulary({}), "\u00e9"), ElementsAre("\xC3", "\xA9"));
}

TEST(BytePairEncoder, NamesAByteThatHasNoToken) {
  VocabularyData data = TinyVocabulary({});
  data.tokens['q'] = "qq";
  const absl::StatusOr<Vocabulary> vocabulary = Vocabulary::Create(data);
  ASSERT_OK(vocabulary);
  const BytePairEncoder encoder(&*vocabulary);
  BytePairEncoder::Scratch scratch;
  std::vector<int32_t> ids;
  EXPECT_THAT(encoder.Encode("aq", &scratch, &ids), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("0x71")));
}

TEST(BytePairEncoder, WritesTheUnknownTokenForAByteThatHasNone) {
  VocabularyData data = TinyVocabulary({}, {{"<unk>", TokenType::kUnknown}});
  data.tokens['q'] = "qq";
  data.unknown = 256;
  EXPECT_THAT(Tokens(data, "aq"), ElementsAre("a", "<unk>"));
}

TEST(BytePairEncoder, GivesWhatThePlainDefinitionGives) {
  const VocabularyData data = TinyVocabulary(
      {"a b", "b a", "a a", "ab a", "b b", "ab ab", "aa b", "c a", "ca b", "bb bb", "aba ba", "c c", "cc cc", "aa aa", "aaaa b"});
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string piece;
    for (int n = random() % 40; n > 0; --n) piece.push_back("abc"[random() % 3]);
    ASSERT_EQ(Tokens(data, piece), PlainMerges(data, piece)) << piece;
  }
}

TEST(BytePairEncoder, HandlesAMegabytePieceInStepsLinearInItsLength) {
  const absl::StatusOr<Vocabulary> vocabulary =
      Vocabulary::Create(TinyVocabulary({"a a", "aa aa", "aaaa aaaa", "a b", "aa b", "b a"}));
  ASSERT_OK(vocabulary);
  const BytePairEncoder encoder(&*vocabulary);
  for (const char* unit : {"a", "ab", "aab", "aaaaaaab"}) {
    std::string piece;
    while (piece.size() < (1 << 20)) piece += unit;
    BytePairEncoder::Scratch scratch;
    std::vector<int32_t> ids;
    ASSERT_OK(encoder.Encode(piece, &scratch, &ids));
    // One entry for each first pair, and two new ones at most for each of fewer than n merges.
    EXPECT_LE(scratch.steps, 3 * static_cast<int64_t>(piece.size()));
  }
}

}  // namespace
}  // namespace ferry
