#pragma once

// vocabulary.proto over gRPC: translates and decides nothing. Messages are bounded as those of FerryService. All answers of
// GetVocabulary share one copy of its bytes.

#include "common/access/api_keys.h"
#include "coordinator/bounded_service.h"
#include "coordinator/generation/text_calls.h"
#include "coordinator/text/tokenizer.h"
#include "ferry/v1/vocabulary.pb.h"

namespace ferry {

class VocabularyService final : public BoundedService {
 public:
  // All outlive this. `keys` is null where everybody may call.
  VocabularyService(const Tokenizer* tokenizer, MessageReads* reads, TextCalls* texts, const ApiKeys* keys);

  grpc::ServerUnaryReactor* GetVocabulary(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                          grpc::ByteBuffer* response);
  grpc::ServerUnaryReactor* TokenizePieces(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                           grpc::ByteBuffer* response);

 private:
  absl::Status CheckCaller(const grpc::CallbackServerContext& context) const;
  absl::Status TokenizeTo(const grpc::ByteBuffer& message, grpc::ByteBuffer* response) const;

  const Tokenizer& tokenizer_;
  TextCalls& texts_;
  const ApiKeys* const keys_;
  grpc::ByteBuffer vocabulary_;  // a GetVocabularyResponse
};

}  // namespace ferry
