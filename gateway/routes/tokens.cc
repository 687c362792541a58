// /tokenize and /detokenize, in llama-server's form ("content") and vLLM's ("prompt").

#include "gateway/errors.h"
#include "gateway/json/token_ids.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

// Text goes in as it is: control tokens in it are text unless the client asks otherwise.
absl::StatusOr<v1::TokenizeRequest> TokenizeRequestOf(const std::string& body) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(body));
  const JsonFields fields(json);
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
    ASSIGN_OR_RETURN(v1::TokenizeRequest tokenize, TokenizeRequestOf(request.body));
    CallOf(parts, request, exchange)
        .engine->Tokenize(std::move(tokenize), [exchange](const absl::StatusOr<v1::TokenizeResponse>& answer) {
          if (!answer.ok()) return exchange->Respond(ErrorResponse(ApiForm::kOpenAi, answer.status()));
          const std::vector<uint32_t> ids(answer->ids().begin(), answer->ids().end());
          exchange->Respond({.body = Dump({{"tokens", ids}, {"count", ids.size()}})});
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
