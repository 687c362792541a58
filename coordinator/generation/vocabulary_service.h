#pragma once

// vocabulary.proto over gRPC: translates and decides nothing.

#include "common/access/api_keys.h"
#include "coordinator/generation/task_pool.h"
#include "coordinator/text/tokenizer.h"
#include "ferry/v1/vocabulary.grpc.pb.h"

namespace ferry {

class VocabularyService final : public v1::Vocabulary::CallbackService {
 public:
  // All outlive this. `pool` tokenizes. `keys` is null where everybody may call.
  VocabularyService(const Tokenizer* tokenizer, TaskPool* pool, const ApiKeys* keys)
      : tokenizer_(*tokenizer), pool_(*pool), keys_(keys) {}

  grpc::ServerUnaryReactor* GetVocabulary(grpc::CallbackServerContext* context, const v1::GetVocabularyRequest* request,
                                          v1::GetVocabularyResponse* response) override;
  grpc::ServerUnaryReactor* TokenizePieces(grpc::CallbackServerContext* context, const v1::TokenizePiecesRequest* request,
                                           v1::TokenizePiecesResponse* response) override;

 private:
  absl::Status CheckCaller(const grpc::CallbackServerContext& context) const;

  const Tokenizer& tokenizer_;
  TaskPool& pool_;
  const ApiKeys* const keys_;
};

}  // namespace ferry
