#include "coordinator/generation/vocabulary_service.h"

#include <vector>

#include "common/grpc_status.h"
#include "coordinator/text/utf8.h"

namespace ferry {
namespace {

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

absl::Status VocabularyService::CheckCaller(const grpc::CallbackServerContext& context) const {
  if (keys_ == nullptr) return absl::OkStatus();
  const auto header = context.client_metadata().find("authorization");
  if (header == context.client_metadata().end()) {
    return absl::UnauthenticatedError("this server wants an API key: metadata 'authorization: Bearer KEY'");
  }
  return keys_->Authenticate(BearerToken(std::string_view(header->second.data(), header->second.size()))).status();
}

grpc::ServerUnaryReactor* VocabularyService::GetVocabulary(grpc::CallbackServerContext* context, const v1::GetVocabularyRequest*,
                                                           v1::GetVocabularyResponse* response) {
  if (const absl::Status allowed = CheckCaller(*context); !allowed.ok()) return Finish(context, allowed);
  for (int32_t id = 0; id < tokenizer_.vocab_size(); ++id) {
    response->add_tokens(std::string(tokenizer_.TokenBytes(id)));
    if (tokenizer_.IsSpecial(id)) response->add_special_token_ids(static_cast<uint32_t>(id));
  }
  for (const int32_t id : tokenizer_.eos_ids()) response->add_eos_token_ids(static_cast<uint32_t>(id));
  if (tokenizer_.bos_id()) response->set_bos_token_id(static_cast<uint32_t>(*tokenizer_.bos_id()));
  std::string chat_template;
  AppendWithReplacements(tokenizer_.chat_template(), &chat_template);  // a protobuf string is UTF-8
  response->set_chat_template(chat_template);
  return Finish(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* VocabularyService::TokenizePieces(grpc::CallbackServerContext* context,
                                                            const v1::TokenizePiecesRequest* request,
                                                            v1::TokenizePiecesResponse* response) {
  if (const absl::Status allowed = CheckCaller(*context); !allowed.ok()) return Finish(context, allowed);
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const bool posted = pool_.TryPost([this, reactor, request, response] {
    std::vector<TextPiece> pieces;
    for (const v1::TextPiece& piece : request->pieces()) pieces.push_back({.text = piece.text(), .from_user = piece.from_user()});
    const absl::StatusOr<std::vector<int32_t>> ids = tokenizer_.Encode(pieces);
    if (ids.ok()) response->mutable_ids()->Add(ids->begin(), ids->end());
    reactor->Finish(ToGrpcStatus(ids.status()));
  });
  if (!posted) reactor->Finish(ToGrpcStatus(ResourceExhausted("too many texts wait to be tokenized")));
  return reactor;
}

}  // namespace ferry
