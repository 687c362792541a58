#include "coordinator/text/vocabulary.h"

#include <functional>
#include <string>

#include "tests/coordinator/text/tiny_vocabulary.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ByteAlphabet, WritesEveryByteAsOneCharacterAndReadsItBack) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  EXPECT_EQ(BytesOfAlphabet(AlphabetOfBytes(bytes)), bytes);
  EXPECT_EQ(AlphabetOfBytes("a b\n"), "aĠbĊ");
  EXPECT_EQ(BytesOfAlphabet("日"), std::nullopt);
  EXPECT_EQ(BytesOfAlphabet(" "), std::nullopt);
  EXPECT_EQ(BytesOfAlphabet("\xff"), std::nullopt);
}

TEST(Vocabulary, KnowsTheBytesOfNormalAndLiteralTokens) {
  ASSERT_OK_AND_ASSIGN(
      const Vocabulary vocabulary,
      Vocabulary::Create(TinyVocabulary(
          {"Ġ t"}, {{"ø", TokenType::kUserDefined}, {"<|é|>", TokenType::kControl}, {"<0x0A>", TokenType::kByte}})));
  EXPECT_EQ(vocabulary.Bytes(256), " t");
  EXPECT_EQ(vocabulary.Bytes(257), "ø");
  EXPECT_EQ(vocabulary.Bytes(258), "<|é|>");
  EXPECT_EQ(vocabulary.Bytes(259), "\n");
}

TEST(Vocabulary, GivesTextTheLowestIdOfEqualTokens) {
  VocabularyData data = TinyVocabulary({"a b"});
  data.tokens.push_back("ab");
  data.token_types.push_back(1);
  ASSERT_OK_AND_ASSIGN(const Vocabulary vocabulary, Vocabulary::Create(data));
  EXPECT_EQ(vocabulary.Find("ab"), 256);
  EXPECT_EQ(vocabulary.Bytes(257), "ab");
}

TEST(Vocabulary, NeverFindsAControlTokenByText) {
  ASSERT_OK_AND_ASSIGN(const Vocabulary vocabulary, Vocabulary::Create(TinyVocabulary({}, {{"<|end|>", TokenType::kControl}})));
  EXPECT_EQ(vocabulary.Find("<|end|>"), std::nullopt);
}

TEST(Vocabulary, EndsGenerationAtTheFilesTokensAndAtKnownNames) {
  VocabularyData data = TinyVocabulary({}, {{"<|endoftext|>", TokenType::kControl},
                                            {"<|return|>", TokenType::kControl},
                                            {"<|end|>", TokenType::kControl},
                                            {"<|call|>", TokenType::kControl},
                                            {"<|start|>", TokenType::kControl}});
  ASSERT_OK_AND_ASSIGN(const Vocabulary by_name, Vocabulary::Create(data));
  EXPECT_THAT(by_name.end_of_generation(), ElementsAre(256, 257, 259));
  data.eot = 258;
  data.eos = 256;
  data.eom = 7;
  ASSERT_OK_AND_ASSIGN(const Vocabulary by_id, Vocabulary::Create(data));
  EXPECT_THAT(by_id.end_of_generation(), ElementsAre(7, 256, 257, 258, 259));
}

TEST(Vocabulary, EndsGenerationAtTheEndOfAMessageWhereThereIsNoReturn) {
  ASSERT_OK_AND_ASSIGN(const Vocabulary vocabulary, Vocabulary::Create(TinyVocabulary({}, {{"<|end|>", TokenType::kControl}})));
  EXPECT_THAT(vocabulary.end_of_generation(), ElementsAre(256));
}

struct Damage {
  const char* name;
  std::function<void(VocabularyData*)> apply;
  const char* message;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};
class DamagedVocabulary : public testing::TestWithParam<Damage> {};

TEST_P(DamagedVocabulary, IsRefusedByName) {
  VocabularyData data = TinyVocabulary({"h e", "he y"});
  GetParam().apply(&data);
  EXPECT_THAT(Vocabulary::Create(data), StatusIs(GetParam().code, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Text, DamagedVocabulary,
    testing::Values(
        Damage{"OfAnotherModel", [](VocabularyData* data) { data->model = "llama"; }, "tokenizer.ggml.model is \"llama\"",
               absl::StatusCode::kUnimplemented},
        Damage{"WithoutTokens", [](VocabularyData* data) { data->tokens.clear(); }, "tokenizer.ggml.tokens is empty"},
        Damage{"WithTooFewTypes", [](VocabularyData* data) { data->token_types.pop_back(); },
               "tokenizer.ggml.token_type has 257 entries, want 258"},
        Damage{"WithAnUnknownType", [](VocabularyData* data) { data->token_types[3] = 7; }, "tokenizer.ggml.token_type[3] is 7"},
        Damage{"WithATypeBeyond32Bits", [](VocabularyData* data) { data->token_types[3] = (int64_t{1} << 32) + 1; },
               "tokenizer.ggml.token_type[3] is 4294967297"},
        Damage{"WithoutByteTokens",
               [](VocabularyData* data) {
                 data->tokens = {"he", "llo"};
                 data->token_types.clear();
                 data->merges.clear();
               },
               "none of the 256 byte tokens"},
        Damage{"WithANegativeByteToken",
               [](VocabularyData* data) {
                 data->tokens.push_back("<0x-1>");
                 data->token_types.push_back(6);
               },
               "tokenizer.ggml.tokens[258] is \"<0x-1>\""},
        Damage{"WithAMergeWithoutSpace", [](VocabularyData* data) { data->merges[1] = "hey"; },
               "tokenizer.ggml.merges[1] is \"hey\""},
        Damage{"WithAMergeOfOneToken", [](VocabularyData* data) { data->merges[1] = "hey "; }, "tokenizer.ggml.merges[1]"},
        Damage{"WithAMergeOfThreeTokens", [](VocabularyData* data) { data->merges[1] = "h e y"; }, "tokenizer.ggml.merges[1]"},
        Damage{"WithAMergeOfUnknownTokens", [](VocabularyData* data) { data->merges[1] = "xx y"; },
               "\"xx\" is not in tokenizer.ggml.tokens"},
        Damage{"WithAMergeIntoAnUnknownToken", [](VocabularyData* data) { data->merges[1] = "x y"; },
               "\"xy\" is not in tokenizer.ggml.tokens"},
        Damage{"WithAMergeOutsideTheAlphabet", [](VocabularyData* data) { data->merges[1] = "日 x"; },
               "outside the byte alphabet"},
        Damage{"WithBosOutOfRange", [](VocabularyData* data) { data->bos = 258; },
               "tokenizer.ggml.bos_token_id is 258, want an id in [0, 258)"},
        Damage{"WithNegativeEos", [](VocabularyData* data) { data->eos = -1; }, "tokenizer.ggml.eos_token_id is -1"},
        Damage{"WithEotOutOfRange", [](VocabularyData* data) { data->eot = 0xFFFFFFFF; }, "tokenizer.ggml.eot_token_id"},
        Damage{"WithEomOutOfRange", [](VocabularyData* data) { data->eom = 999; }, "tokenizer.ggml.eom_token_id"},
        Damage{"WithUnknownOutOfRange", [](VocabularyData* data) { data->unknown = 999; }, "tokenizer.ggml.unknown_token_id"},
        Damage{"ThatAddsABosItLacks", [](VocabularyData* data) { data->add_bos = true; }, "no tokenizer.ggml.bos_token_id"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace ferry
