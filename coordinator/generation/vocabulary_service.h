#pragma once

// vocabulary.proto over gRPC: translates and decides nothing. Messages are bounded as those of FerryService. All answers of
// GetVocabulary share one copy of its bytes.

#include "common/access/api_keys.h"
#include "coordinator/generation/text_calls.h"
#include "coordinator/text/tokenizer.h"
#include "ferry/v1/vocabulary.grpc.pb.h"

namespace ferry {

using RawVocabularyService = v1::Vocabulary::WithRawCallbackMethod_GetVocabulary<
    v1::Vocabulary::WithRawCallbackMethod_TokenizePieces<v1::Vocabulary::Service>>;

class VocabularyService final : public RawVocabularyService {
 public:
  // All outlive this. `keys` is null where everybody may call.
  VocabularyService(const Tokenizer* tokenizer, TextCalls* texts, const ApiKeys* keys);

  grpc::ServerUnaryReactor* GetVocabulary(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* TokenizePieces(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                           grpc::ByteBuffer* response) override;

 private:
  absl::Status CheckCaller(const grpc::CallbackServerContext& context) const;
  absl::Status TokenizeTo(const grpc::ByteBuffer& message, grpc::ByteBuffer* response) const;

  const Tokenizer& tokenizer_;
  TextCalls& texts_;
  const ApiKeys* const keys_;
  grpc::ByteBuffer vocabulary_;  // a GetVocabularyResponse
};

}  // namespace ferry
