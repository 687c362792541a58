#include "gateway/routes/chat_job.h"

#include <utility>

namespace ferry {
namespace {

v1::TokenizePiecesRequest TokenizeRequestOf(const ChatPrompt& prompt) {
  v1::TokenizePiecesRequest request;
  for (const TextPiece& piece : prompt.pieces) {
    v1::TextPiece* const added = request.add_pieces();
    added->set_text(piece.text);
    added->set_from_user(piece.from_user);
  }
  return request;
}

absl::Status StartGenerations(const RouteCall& call, ChatPlan plan, const PreparedChat& prepared, const ChatRequest& chat,
                              const MakeChatWriter& make_writer) {
  v1::GenerateRequest request = std::move(plan.generation);
  request.mutable_tokens()->mutable_ids()->Add(prepared.ids.begin(), prepared.ids.end());
  request.set_request_id(call.request_id);
  for (const int32_t id : prepared.model->format->stop_token_ids()) request.add_stop_token_ids(static_cast<uint32_t>(id));
  if (!plan.rule.IsFree()) {
    ASSIGN_OR_RETURN(*request.mutable_constraint(), prepared.model->format->Constrain(chat, prepared.prompt, plan.rule));
  }
  std::vector<v1::GenerateRequest> requests;
  std::vector<std::unique_ptr<OutputParser>> parsers;
  std::vector<StopMatcher> stops;
  for (int64_t i = 0; i < plan.n; ++i) {
    requests.push_back(request);
    v1::Sampling* const sampling = requests.back().mutable_sampling();
    if (sampling->has_seed()) sampling->set_seed(sampling->seed() + static_cast<uint64_t>(i));
    parsers.push_back(prepared.model->format->NewParser(chat, prepared.prompt));
    absl::StatusOr<StopMatcher> matcher = StopMatcher::Create(plan.answer.stops);
    if (!matcher.ok()) return FieldError("stop", "stop is refused: " + std::string(matcher.status().message()));
    stops.push_back(*std::move(matcher));
  }
  const uint64_t prompt_tokens = prepared.ids.size();
  RunGenerations(*call.engine, std::move(requests),
                 NewChatAnswer(std::move(parsers), plan.answer, std::move(stops), prompt_tokens, prepared.model->model,
                               make_writer(prepared.model->model, prompt_tokens)),
                 plan.form, *call.parts.metrics, call.exchange);
  return absl::OkStatus();
}

}  // namespace

void PrepareChat(const RouteCall& call, ChatRequest chat, ApiForm form,
                 std::function<void(PreparedChat, const ChatRequest&)> use) {
  const std::shared_ptr<Exchange>& exchange = call.exchange;
  call.parts.chats->Get(call.engine, [=, engine = call.engine, chat = std::move(chat),
                                      use = std::move(use)](const absl::StatusOr<ChatModels::Loaded>& model) {
    if (absl::IsFailedPrecondition(model.status())) {  // the model is what it is: the request can be made of another one
      return exchange->Respond(ErrorResponse(form, 400, std::string(model.status().message()), "messages"));
    }
    if (!model.ok()) return exchange->Respond(ErrorResponse(form, model.status()));
    absl::StatusOr<ChatPrompt> prompt = (*model)->format->Render(chat);
    if (!prompt.ok()) {
      const bool too_much = absl::IsResourceExhausted(prompt.status()) || absl::IsDeadlineExceeded(prompt.status());
      return exchange->Respond(too_much ? ErrorResponse(form, 400, std::string(prompt.status().message()), "messages")
                                        : ErrorResponse(form, prompt.status()));
    }
    v1::TokenizePiecesRequest tokenize = TokenizeRequestOf(*prompt);
    auto prepared = std::make_shared<PreparedChat>(PreparedChat{.model = *model, .prompt = *std::move(prompt)});
    engine->TokenizePieces(std::move(tokenize),
                           [form, exchange, prepared, chat, use](const absl::StatusOr<v1::TokenizePiecesResponse>& answer) {
                             if (!answer.ok()) return exchange->Respond(ErrorResponse(form, answer.status()));
                             prepared->ids.assign(answer->ids().begin(), answer->ids().end());
                             use(std::move(*prepared), chat);
                           });
  });
}

void RunChat(const RouteCall& call, ChatPlan plan, MakeChatWriter make_writer) {
  const ApiForm form = plan.form;
  ChatRequest chat = std::move(plan.chat);
  PrepareChat(call, std::move(chat), form,
              [call, form, plan = std::move(plan), make_writer = std::move(make_writer)](const PreparedChat& prepared,
                                                                                         const ChatRequest& chat) {
                const absl::Status started = StartGenerations(call, plan, prepared, chat, make_writer);
                if (!started.ok()) call.exchange->Respond(ErrorResponse(form, started));
              });
}

}  // namespace ferry
