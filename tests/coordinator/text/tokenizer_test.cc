#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/gguf/gguf.h"
#include "coordinator/text/utf8.h"
#include "tests/coordinator/cpu_time.h"
#include "tests/coordinator/text/tiny_vocabulary.h"
#include "tests/testing/source_path.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const std::string kSource = SourcePath("");
const std::string kDemoTokenizer = kSource + "/models/demo-moe.gguf";
const std::string kShared = kSource + "/../shared";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
  return Tokenizer::FromGguf(file);
}

std::vector<int32_t> Ids(const Tokenizer& tokenizer, std::string_view text, const EncodeOptions& options = {}) {
  const absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, options);
  EXPECT_OK(ids);
  return ids.value_or(std::vector<int32_t>{});
}

TEST(Tokenizer, FindsNoControlTokenThatAUserWroteAnyPartOf) {
  VocabularyData data = TinyVocabulary({"a b"}, {{"<c>", TokenType::kControl}, {"<u>", TokenType::kUserDefined}});
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Create(data));
  const auto encode = [&](std::vector<TextPiece> pieces) { return *tokenizer->Encode(pieces); };
  EXPECT_THAT(encode({{"<c>", false}, {"<c>", true}}), ElementsAre(257, '<', 'c', '>'));
  EXPECT_THAT(encode({{"<c", true}, {">", false}}), ElementsAre('<', 'c', '>'));
  EXPECT_THAT(encode({{"<", false}, {"c>", true}}), ElementsAre('<', 'c', '>'));
  EXPECT_THAT(encode({{"<u>", true}}), ElementsAre(258));
  // Pieces of one author are one text, and merges go across borders.
  EXPECT_THAT(encode({{"<", false}, {"c>", false}}), ElementsAre(257));
  EXPECT_THAT(encode({{"a", false}, {"b", true}}), ElementsAre(256));
  EXPECT_THAT(encode({}), IsEmpty());
}

TEST(Tokenizer, PrependsBosWhereTheFileAsksForItAndTheCallerDoesNotRefuse) {
  VocabularyData data = TinyVocabulary({}, {{"<bos>", TokenType::kControl}});
  data.bos = 256;
  ASSERT_OK_AND_ASSIGN(const auto without, Tokenizer::Create(data));
  EXPECT_THAT(Ids(*without, "a"), ElementsAre('a'));
  data.add_bos = true;
  ASSERT_OK_AND_ASSIGN(const auto with, Tokenizer::Create(data));
  EXPECT_THAT(Ids(*with, "a"), ElementsAre(256, 'a'));
  EXPECT_THAT(Ids(*with, ""), ElementsAre(256));
  EXPECT_THAT(Ids(*with, "a", {.add_bos = false}), ElementsAre('a'));
}

TEST(Tokenizer, ParsesControlTokensOnlyWhenAskedAndUserDefinedOnesAlways) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer,
                       Tokenizer::Create(TinyVocabulary({}, {{"<c>", TokenType::kControl}, {"<u>", TokenType::kUserDefined}})));
  EXPECT_THAT(Ids(*tokenizer, "a<c><u>b", {.parse_special = true}), ElementsAre('a', 256, 257, 'b'));
  EXPECT_THAT(Ids(*tokenizer, "a<c><u>b"), ElementsAre('a', '<', 'c', '>', 257, 'b'));
}

TEST(Tokenizer, FindsSpecialTokensByTheirWholeText) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Create(TinyVocabulary({}, {{"<c>", TokenType::kControl}})));
  EXPECT_EQ(tokenizer->FindSpecial("<c>"), 256);
  EXPECT_EQ(tokenizer->FindSpecial("<c><c>"), std::nullopt);
  EXPECT_EQ(tokenizer->FindSpecial("a"), std::nullopt);
}

TEST(Tokenizer, MergesOnlyWithinPieces) {
  // "o" + " w" would merge by rank, but lie in two pieces.
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Create(TinyVocabulary({"o Ġ", "Ġ w"})));
  EXPECT_THAT(Ids(*tokenizer, "o w"), ElementsAre('o', 257));
}

TEST(Tokenizer, TakesAPieceThatIsATokenAsItIsForLlama3) {
  VocabularyData data = TinyVocabulary({"a b", "b c"});
  data.tokens.push_back("abc");  // no merge leads to it
  data.token_types.push_back(1);
  ASSERT_OK_AND_ASSIGN(const auto gpt2, Tokenizer::Create(data));
  EXPECT_THAT(Ids(*gpt2, "abc"), ElementsAre(256, 'c'));
  data.pre = "llama-bpe";
  ASSERT_OK_AND_ASSIGN(const auto llama, Tokenizer::Create(data));
  EXPECT_THAT(Ids(*llama, "abc"), ElementsAre(258));
}

TEST(Tokenizer, ReplacesIllFormedBytesByTheReplacementCharacter) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Create(TinyVocabulary({})));
  EXPECT_EQ(Ids(*tokenizer, "a\xFF\xE6\x97z"), Ids(*tokenizer, "a\uFFFD\uFFFDz"));
}

TEST(Tokenizer, RefusesAMissingPreTokenizerWithAdvice) {
  VocabularyData data = TinyVocabulary({});
  data.pre.reset();
  EXPECT_THAT(Tokenizer::Create(data), StatusIs(absl::StatusCode::kInvalidArgument,
                                                AllOf(HasSubstr("tokenizer.ggml.pre is missing"), HasSubstr("gpt-4o"))));
}

TEST(Tokenizer, RefusesAnUnknownPreTokenizerByName) {
  VocabularyData data = TinyVocabulary({});
  data.pre = "mpt";
  EXPECT_THAT(Tokenizer::Create(data),
              StatusIs(absl::StatusCode::kUnimplemented, AllOf(HasSubstr("\"mpt\""), HasSubstr("llama-bpe"))));
}

TEST(Tokenizer, RefusesATextBeyondTheLimit) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Create(TinyVocabulary({})));
  EXPECT_THAT(tokenizer->Encode(std::string(kMaxTextBytes + 1, 'a')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("67108865 bytes")));
}

TEST(Tokenizer, DecodesNoIdOutsideTheVocabulary) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Create(TinyVocabulary({})));
  EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{'a', 256}, true),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ids[1] is 256")));
  EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{-1}, true), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(tokenizer->TokenBytes(256), IsEmpty());
}

class DemoTokenizer : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Load(kDemoTokenizer);
    ASSERT_OK(tokenizer);
    tokenizer_ = *std::move(tokenizer);
  }
  static void TearDownTestSuite() { tokenizer_.reset(); }
  static std::unique_ptr<Tokenizer> tokenizer_;
};
std::unique_ptr<Tokenizer> DemoTokenizer::tokenizer_;

TEST_F(DemoTokenizer, GivesThePublishedIds) {
  const nlohmann::json cases = nlohmann::json::parse(ReadFile(kSource + "/tests/coordinator/testdata/tokenizer_cases.json"));
  ASSERT_FALSE(cases.empty());
  for (const nlohmann::json& one : cases) {
    const std::string text = one["text"];
    const std::vector<int32_t> want = one["ids"];
    EXPECT_EQ(Ids(*tokenizer_, text, {.add_bos = false, .parse_special = true}), want) << text;
    ASSERT_OK_AND_ASSIGN(const std::string decoded, tokenizer_->Decode(want, /*render_special=*/true));
    EXPECT_EQ(decoded, text);
  }
}

TEST_F(DemoTokenizer, KnowsItsSpecialTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 4096);
  EXPECT_EQ(tokenizer_->bos_id(), 4088);
  EXPECT_TRUE(tokenizer_->adds_bos());
  EXPECT_EQ(tokenizer_->FindSpecial("<|start|>"), 4093);
  EXPECT_THAT(std::vector<int32_t>(tokenizer_->eos_ids().begin(), tokenizer_->eos_ids().end()), ElementsAre(4089, 4090, 4094));
  EXPECT_TRUE(tokenizer_->EndsGeneration(4090));
  EXPECT_FALSE(tokenizer_->EndsGeneration(4093));
}

TEST_F(DemoTokenizer, GivesBackEveryValidText) {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int n = random() % 60; n > 0; --n) {
      char32_t c = random() % 4 == 0 ? random() % 0x110000 : random() % 0x250;
      if (c >= 0xD800 && c < 0xE000) c = ' ';
      AppendUtf8(c, &text);
    }
    ASSERT_OK_AND_ASSIGN(const std::string decoded,
                         tokenizer_->Decode(Ids(*tokenizer_, text, {.add_bos = false}), /*render_special=*/true));
    EXPECT_EQ(decoded, text);
  }
}

double SecondsToEncode(const Tokenizer& tokenizer, const std::string& text) {
  const double start = ThreadCpuSeconds();
  EXPECT_OK(tokenizer.Encode(text));
  return ThreadCpuSeconds() - start;
}

// Twice the text may take 2.1 times as long; a quadratic step anywhere would make it 4. The bound leaves room for
// caches shared with others: the best of three runs each, in CPU time.
TEST_F(DemoTokenizer, TakesTimeInProportionToTheTextForAMegabyteOfOneCharacter) {
  for (const std::string unit : {"a", "A", " ", "\n", "\xff", "7", "!", "日", "\u0301", "<", "<|start|"}) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    double half = 1e9, whole = 1e9;
    for (int run = 0; run < 3; ++run) {
      half = std::min(half, SecondsToEncode(*tokenizer_, text.substr(0, text.size() / 2)));
      whole = std::min(whole, SecondsToEncode(*tokenizer_, text));
    }
    EXPECT_LT(whole, 3.3 * half + 0.02) << unit;
  }
}

TEST_F(DemoTokenizer, EncodesInSeveralThreadsAtOnce) {
  const std::string text = "It was the best of times; naïve café — “quoted” 1984.\n\n";
  const std::vector<int32_t> want = Ids(*tokenizer_, text);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 200; ++round) ASSERT_EQ(Ids(*tokenizer_, text), want);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// The published vocabularies with llama.cpp-style cases beside them, which are not part of the project.
class PublishedVocabulary : public testing::TestWithParam<const char*> {};

TEST_P(PublishedVocabulary, GivesThePublishedIds) {
  const std::string base = kShared + "/vocab/" + GetParam();
  if (!std::filesystem::exists(base + ".gguf")) GTEST_SKIP() << base << ".gguf is absent";
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Load(base + ".gguf"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string input = ReadFile(base + ".inp");
  std::istringstream output(ReadFile(base + ".out"));
  int cases = 0;
  for (size_t begin = 0; begin <= input.size(); ++cases) {
    const size_t end = std::min(input.find(separator, begin), input.size());
    const std::string text = input.substr(begin, end - begin);
    begin = end == input.size() ? input.size() + 1 : end + separator.size();
    std::string line;
    if (!std::getline(output, line)) break;
    std::istringstream numbers(line);
    const std::vector<int32_t> want{std::istream_iterator<int32_t>(numbers), std::istream_iterator<int32_t>()};
    EXPECT_EQ(Ids(*tokenizer, text, {.add_bos = false}), want) << text;
    ASSERT_OK_AND_ASSIGN(const std::string decoded, tokenizer->Decode(want, /*render_special=*/true));
    EXPECT_EQ(decoded, text);
  }
  EXPECT_GT(cases, 40);
}

// The small vocabularies of tests/worker/testdata, with the ids that llama.cpp gives. Names of pre-tokenizers as the files have
// them.
TEST(Tokenizer, GivesTheIdsOfEveryArchitecturesFile) {
  const std::string path = kShared + "/golden/tokenize.json";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
  int cases = 0;
  for (const nlohmann::json& entry : nlohmann::json::parse(ReadFile(path))) {
    const std::string model = kShared + "/golden/" + entry.at("model").get<std::string>();
    ASSERT_OK_AND_ASSIGN(const auto tokenizer, Load(model));
    for (const nlohmann::json& one : entry.at("cases")) {
      const std::string text = one.at("text");
      EXPECT_EQ(Ids(*tokenizer, text, {.add_bos = false, .parse_special = true}), one.at("ids").get<std::vector<int32_t>>())
          << text;
      EXPECT_EQ(Ids(*tokenizer, text, {.parse_special = true}), one.at("ids_add_special").get<std::vector<int32_t>>()) << text;
      ++cases;
    }
  }
  EXPECT_GT(cases, 10);
}

INSTANTIATE_TEST_SUITE_P(Shared, PublishedVocabulary, testing::Values("gpt-2", "deepseek-llm"), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace ferry
