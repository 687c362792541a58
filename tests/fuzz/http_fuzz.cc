// What any client may send to the gateway: heads of requests, and bodies of every route that translates JSON. Each is refused
// with a reason, or becomes requests that the engine could be sent, and answers that are JSON in UTF-8.
//
// Input: a byte that chooses the target, then the head or the body.

#include <iterator>
#include <memory>
#include <string>
#include <string_view>

#include "coordinator/text/utf8.h"
#include "gateway/errors.h"
#include "gateway/http/request_head.h"
#include "gateway/http/response_text.h"
#include "gateway/routes/chat_completions.h"
#include "gateway/routes/completions.h"
#include "gateway/routes/messages.h"
#include "gateway/routes/responses.h"
#include "tests/fuzz/wire_input.h"

namespace ferry {
namespace {

void FuzzHead(std::string_view bytes) {
  HeadError error;
  const std::optional<RequestHead> head = ParseRequestHead(bytes, &error);
  Require(head.has_value() == error.message.empty());
  if (!head) {
    Require(error.status >= 400 && error.status < 600);
    return;
  }
  Require(head->request.path.starts_with('/'));
  Require(!(head->chunked && head->content_length));
  Require(head->request.headers.size() <= static_cast<size_t>(kMaxRequestHeaders));
  for (const HttpHeader& header : head->request.headers) {
    Require(!header.name.empty() && header.value.find_first_of("\r\n") == std::string::npos);
  }
  // What a client sent may come back in an answer, and still be one line.
  const std::string text = HeadText({.headers = {{"X", head->request.path}}}, Framing::kLength, true);
  Require(text.find("\r\n\r\n") == text.size() - 4);
}

// The error that a client would read.
void CheckRefusal(const absl::Status& status) {
  Require(!status.message().empty());
  const Json body = Json::parse(Dump(ErrorBody(ApiForm::kOpenAi, status)), nullptr, /*allow_exceptions=*/false);
  Require(body.is_object());
  const HttpResponse response = ErrorResponse(ApiForm::kAnthropic, status);
  Require(response.status == 400 && IsValidUtf8(response.body));
}

void FuzzCompletion(const Json& body) {
  absl::StatusOr<CompletionRequest> request = CompletionRequestOf(body);
  if (!request.ok()) return CheckRefusal(request.status());
  const std::vector<v1::GenerateRequest> generations = GenerationsOf(*request);
  Require(!generations.empty() && generations.size() <= kMaxGenerationsOfRequest);
  for (const v1::GenerateRequest& generation : generations) Require(!generation.SerializeAsString().empty());
  for (const v1::GenerateRequest& prompt : request->prompts) request->echoed.push_back(prompt.text());
  const std::unique_ptr<AnswerWriter> writer =
      NewCompletionWriter(*request, {.id = "cmpl-1", .model = "m"}, std::make_shared<ServedModel>());
  v1::GenerateResponse message;
  message.add_token_ids(1);
  message.set_text("x");
  message.mutable_finish()->set_generated_tokens(1);
  std::string answer;
  for (size_t i = 0; i < generations.size(); ++i) answer += writer->OnMessage(i, message);
  answer += writer->End();
  Require(IsValidUtf8(answer));
  if (!request->stream) Require(Json::parse(answer, nullptr, /*allow_exceptions=*/false).is_object());
}

// A conversation that passed goes to the template as it is: messages, tools and variables of the right kinds.
void CheckChat(const ChatRequest& chat) {
  Require(chat.messages.is_array() && chat.tools.is_array() && chat.template_kwargs.is_object());
  for (const Json& tool : chat.tools) Require(tool["function"]["name"].is_string());
}

void FuzzChat(const Json& body) {
  const absl::StatusOr<ChatCompletion> completion = ChatCompletionOf(body);
  if (!completion.ok()) return CheckRefusal(completion.status());
  CheckChat(completion->plan.chat);
  Require(completion->plan.n >= 1 && completion->plan.n <= static_cast<int64_t>(kMaxGenerationsOfRequest));
}
void FuzzMessages(const Json& body) {
  const absl::StatusOr<ChatPlan> plan = MessagesPlanOf(body, /*count_only=*/false);
  if (!plan.ok()) return CheckRefusal(plan.status());
  CheckChat(plan->chat);
  Require(plan->generation.max_tokens() >= 1);
}
void FuzzResponses(const Json& body) {
  const absl::StatusOr<ResponsesPlan> responses = ResponsesPlanOf(body);
  if (!responses.ok()) return CheckRefusal(responses.status());
  CheckChat(responses->plan.chat);
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  using Fuzz = void (*)(const ferry::Json&);
  constexpr Fuzz kRoutes[] = {ferry::FuzzCompletion, ferry::FuzzChat, ferry::FuzzMessages, ferry::FuzzResponses};
  const size_t what = data[0] % (1 + std::size(kRoutes));
  if (what == 0) {
    ferry::FuzzHead(text);
    return 0;
  }
  const absl::StatusOr<ferry::Json> body = ferry::ParseJsonObject(text);
  if (body.ok()) {
    kRoutes[what - 1](*body);
  } else {
    ferry::CheckRefusal(body.status());
  }
  return 0;
}
