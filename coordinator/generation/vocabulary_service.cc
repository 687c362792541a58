#include "coordinator/generation/vocabulary_service.h"

#include <memory>
#include <string>
#include <vector>

#include "common/grpc_status.h"
#include "coordinator/generation/ferry_service.h"
#include "coordinator/raw_message.h"
#include "coordinator/text/utf8.h"

namespace ferry {
namespace {

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

v1::GetVocabularyResponse VocabularyOf(const Tokenizer& tokenizer) {
  v1::GetVocabularyResponse vocabulary;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    vocabulary.add_tokens(std::string(tokenizer.TokenBytes(id)));
    if (tokenizer.IsSpecial(id)) vocabulary.add_special_token_ids(static_cast<uint32_t>(id));
  }
  for (const int32_t id : tokenizer.eos_ids()) vocabulary.add_eos_token_ids(static_cast<uint32_t>(id));
  if (tokenizer.bos_id()) vocabulary.set_bos_token_id(static_cast<uint32_t>(*tokenizer.bos_id()));
  std::string chat_template;
  AppendWithReplacements(tokenizer.chat_template(), &chat_template);  // a protobuf string is UTF-8
  vocabulary.set_chat_template(chat_template);
  return vocabulary;
}

}  // namespace

VocabularyService::VocabularyService(const Tokenizer* tokenizer, TaskPool* pool, const ApiKeys* keys)
    : tokenizer_(*tokenizer), pool_(*pool), keys_(keys) {
  Serialize(VocabularyOf(tokenizer_), &vocabulary_).IgnoreError();  // memory alone can be short, which ends the process anyway
}

absl::Status VocabularyService::CheckCaller(const grpc::CallbackServerContext& context) const {
  if (keys_ == nullptr) return absl::OkStatus();
  const auto header = context.client_metadata().find("authorization");
  if (header == context.client_metadata().end()) {
    return absl::UnauthenticatedError("this server wants an API key: metadata 'authorization: Bearer KEY'");
  }
  return keys_->Authenticate(BearerToken(std::string_view(header->second.data(), header->second.size()))).status();
}

grpc::ServerUnaryReactor* VocabularyService::GetVocabulary(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                                           grpc::ByteBuffer* response) {
  const absl::Status allowed = CheckCaller(*context);
  if (allowed.ok()) *response = vocabulary_;  // the request says nothing
  return Finish(context, allowed);
}

grpc::ServerUnaryReactor* VocabularyService::TokenizePieces(grpc::CallbackServerContext* context, const grpc::ByteBuffer* message,
                                                            grpc::ByteBuffer* response) {
  if (const absl::Status allowed = CheckCaller(*context); !allowed.ok()) return Finish(context, allowed);
  const auto request = std::make_shared<v1::TokenizePiecesRequest>();
  if (const absl::Status status = ParseBounded(*message, {.max_fields = kMaxRequestFields}, request.get()); !status.ok()) {
    return Finish(context, status);
  }
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const auto tokenize = [this, context, reactor, request, response] {
    if (context->IsCancelled()) {
      reactor->Finish(grpc::Status::CANCELLED);
      return;
    }
    std::vector<TextPiece> pieces;
    for (const v1::TextPiece& piece : request->pieces()) pieces.push_back({.text = piece.text(), .from_user = piece.from_user()});
    const absl::StatusOr<std::vector<int32_t>> ids = tokenizer_.Encode(pieces);
    absl::Status status = ids.status();
    if (status.ok()) {
      v1::TokenizePiecesResponse answer;
      answer.mutable_ids()->Add(ids->begin(), ids->end());
      status = Serialize(answer, response);
    }
    reactor->Finish(ToGrpcStatus(status));
  };
  if (!pool_.TryPost(tokenize, message->Length())) {
    reactor->Finish(ToGrpcStatus(ResourceExhausted("too many texts wait to be tokenized")));
  }
  return reactor;
}

}  // namespace ferry
