#include "coordinator/generation/vocabulary_service.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/generation/ferry_service.h"
#include "coordinator/raw_message.h"
#include "coordinator/text/utf8.h"

namespace ferry {
namespace {

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

VocabularyService::VocabularyService(const Tokenizer* tokenizer, MessageReads* reads, TextCalls* texts, const ApiKeys* keys)
    : BoundedService(reads), tokenizer_(*tokenizer), texts_(*texts), keys_(keys) {
  AddUnary("/ferry.v1.Vocabulary/GetVocabulary", std::bind_front(&VocabularyService::GetVocabulary, this));
  AddUnary("/ferry.v1.Vocabulary/TokenizePieces", std::bind_front(&VocabularyService::TokenizePieces, this));
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
  return texts_.Answer(context, message, response, [this, message, response] { return TokenizeTo(*message, response); });
}

absl::Status VocabularyService::TokenizeTo(const grpc::ByteBuffer& message, grpc::ByteBuffer* response) const {
  v1::TokenizePiecesResponse answer;
  {
    v1::TokenizePiecesRequest request;
    RETURN_IF_ERROR(ParseBounded(message, {.max_fields = kMaxRequestFields}, &request));
    std::vector<TextPiece> pieces;
    for (const v1::TextPiece& piece : request.pieces()) pieces.push_back({.text = piece.text(), .from_user = piece.from_user()});
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer_.Encode(pieces));
    answer.mutable_ids()->Add(ids.begin(), ids.end());
  }
  return Serialize(answer, response);
}

}  // namespace ferry
