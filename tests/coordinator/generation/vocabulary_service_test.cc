#include "coordinator/generation/vocabulary_service.h"

#include <grpcpp/grpcpp.h>

#include "ferry/v1/vocabulary.grpc.pb.h"
#include "tests/coordinator/text/tiny_vocabulary.h"
#include "tests/testing/status_matchers.h"

namespace ferry {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kHeId = 256, kBosId = 257, kEndId = 258;

class VocabularyServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    VocabularyData data = TinyVocabulary({"h e"}, {{"<|bos|>", TokenType::kControl}, {"<|end|>", TokenType::kControl}});
    data.bos = kBosId;
    data.eos = kEndId;
    data.add_bos = true;
    ASSERT_OK_AND_ASSIGN(tokenizer_, Tokenizer::Create(data));
    service_ = std::make_unique<VocabularyService>(tokenizer_.get(), reads_.get(), texts_.get(), /*keys=*/nullptr);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::Vocabulary::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  }
  void TearDown() override { server_->Shutdown(); }

  std::unique_ptr<Tokenizer> tokenizer_;
  const std::unique_ptr<MessageReads> reads_ = MessageReads::Create(Clock::Real(), {}).value();
  const std::unique_ptr<TextCalls> texts_ = TextCalls::Create(Clock::Real(), {}).value();
  std::unique_ptr<VocabularyService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Vocabulary::Stub> stub_;
};

TEST_F(VocabularyServiceTest, GivesTheBytesOfEveryTokenAndWhichAreSpecial) {
  grpc::ClientContext context;
  v1::GetVocabularyResponse vocabulary;
  ASSERT_TRUE(stub_->GetVocabulary(&context, {}, &vocabulary).ok());
  ASSERT_EQ(vocabulary.tokens_size(), tokenizer_->vocab_size());
  EXPECT_EQ(vocabulary.tokens('a'), "a");
  EXPECT_EQ(vocabulary.tokens(0xE2), "\xE2");
  EXPECT_EQ(vocabulary.tokens(kHeId), "he");
  EXPECT_EQ(vocabulary.tokens(kEndId), "<|end|>");
  EXPECT_THAT(vocabulary.special_token_ids(), ElementsAre(kBosId, kEndId));
  EXPECT_THAT(vocabulary.eos_token_ids(), ElementsAre(kEndId));
  EXPECT_EQ(vocabulary.bos_token_id(), static_cast<uint32_t>(kBosId));
}

TEST_F(VocabularyServiceTest, TokenizesPiecesOfDifferentHands) {
  v1::TokenizePiecesRequest request;
  for (const bool from_user : {false, true}) {
    v1::TextPiece* const piece = request.add_pieces();
    piece->set_text("<|end|>");
    piece->set_from_user(from_user);
  }
  grpc::ClientContext context;
  v1::TokenizePiecesResponse response;
  ASSERT_TRUE(stub_->TokenizePieces(&context, request, &response).ok());
  EXPECT_THAT(response.ids(), ElementsAre(kEndId, '<', '|', 'e', 'n', 'd', '|', '>'));
}

}  // namespace
}  // namespace ferry
