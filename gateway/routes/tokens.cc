// /tokenize and /detokenize, in llama-server's form ("content") and vLLM's ("prompt").

#include "coordinator/text/utf8.h"
#include "gateway/errors.h"
#include "gateway/json/token_ids.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

// llama-server's with_pieces: each token's text, or its bytes where they are no whole characters.
Json PiecesOf(const std::vector<uint32_t>& ids, const TokenBytes& tokens) {
  Json pieces = Json::array();
  for (const uint32_t id : ids) {
    const std::string_view piece = tokens.Of(id);
    Json shown = piece;
    if (!IsValidUtf8(piece)) {
      shown = Json::array();
      for (const char byte : piece) shown.push_back(static_cast<unsigned char>(byte));
    }
    pieces.push_back({{"id", id}, {"piece", std::move(shown)}});
  }
  return pieces;
}

// Text goes in as it is: control tokens in it are text unless the client asks otherwise.
absl::StatusOr<v1::TokenizeRequest> TokenizeRequestOf(const JsonFields& fields) {
  if (fields.Has("messages")) return FieldError("messages", "messages is not supported here: /apply-template gives tokens, too");
  const char* const name = fields.Has("content") ? "content" : "prompt";
  ASSIGN_OR_RETURN(const std::optional<std::string> text, fields.String(name));
  if (!text) return FieldError("content", "content is missing: want the text to tokenize");
  v1::TokenizeRequest request;
  request.set_text(*text);
  // llama-server adds nothing unless told, vLLM what the model wants.
  ASSIGN_OR_RETURN(const std::optional<bool> llama, fields.Bool("add_special"));
  ASSIGN_OR_RETURN(const std::optional<bool> vllm, fields.Bool("add_special_tokens"));
  if (llama || vllm) {
    request.set_add_bos(llama ? *llama : *vllm);
  } else if (fields.Has("content")) {
    request.set_add_bos(false);
  }
  ASSIGN_OR_RETURN(const std::optional<bool> parse_special, fields.Bool("parse_special"));
  request.set_parse_special(parse_special.value_or(true));
  return request;
}

absl::StatusOr<v1::DetokenizeRequest> DetokenizeRequestOf(const std::string& body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body));
  const JsonFields fields(json);
  const Json* const tokens = fields.Find("tokens");
  if (tokens == nullptr) return FieldError("tokens", "tokens is missing: want an array of token ids");
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, TokenIdsOf(*tokens, "tokens"));
  v1::DetokenizeRequest request;
  request.mutable_ids()->Add(ids.begin(), ids.end());
  request.set_render_special(true);
  return request;
}

}  // namespace

void AddTokenRoutes(const RouteParts& parts, Router& router) {
  router.Add("POST", "/tokenize", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
    ASSIGN_OR_RETURN(const Json json, ParseJsonObject(request.body));
    const JsonFields fields(json);
    ASSIGN_OR_RETURN(v1::TokenizeRequest tokenize, TokenizeRequestOf(fields));
    ASSIGN_OR_RETURN(const std::optional<bool> pieces, fields.Bool("with_pieces"));
    const RouteCall call = CallOf(parts, request, exchange);
    call.engine->Tokenize(
        std::move(tokenize), [call, pieces = pieces.value_or(false)](const absl::StatusOr<v1::TokenizeResponse>& answer) {
          if (!answer.ok()) return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, answer.status()));
          const std::vector<uint32_t> ids(answer->ids().begin(), answer->ids().end());
          if (!pieces) return call.exchange->Respond({.body = Dump({{"tokens", ids}, {"count", ids.size()}})});
          call.parts.models->Get(call.engine, [call, ids](const absl::StatusOr<Model>& model) {
            if (!model.ok()) return call.exchange->Respond(ErrorResponse(ApiForm::kOpenAi, model.status()));
            call.exchange->Respond({.body = Dump({{"tokens", PiecesOf(ids, (*model)->tokens)}, {"count", ids.size()}})});
          });
        });
    return absl::OkStatus();
  });
  router.Add("POST", "/detokenize", [parts](HttpRequest request, const std::shared_ptr<Exchange>& exchange) -> absl::Status {
    ASSIGN_OR_RETURN(v1::DetokenizeRequest detokenize, DetokenizeRequestOf(request.body));
    CallOf(parts, request, exchange)
        .engine->Detokenize(std::move(detokenize), [exchange](const absl::StatusOr<v1::DetokenizeResponse>& answer) {
          if (!answer.ok()) return exchange->Respond(ErrorResponse(ApiForm::kOpenAi, answer.status()));
          exchange->Respond({.body = Dump({{"content", answer->text()}, {"prompt", answer->text()}})});
        });
    return absl::OkStatus();
  });
}

}  // namespace ferry
