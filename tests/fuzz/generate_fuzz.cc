// A client's request and the logits that workers answer with: the request is refused, or runs to its end on whatever rows pass
// the checks, and every number and text that a client would see is one.
//
// Input (wire_input.h): the kind of tokenizer; a GenerateRequest; then StepResponses.

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "coordinator/cluster/step_answer.h"
#include "coordinator/generation/request.h"
#include "coordinator/text/utf8.h"
#include "tests/coordinator/text/tiny_vocabulary.h"
#include "tests/fuzz/wire_input.h"

namespace ferry {
namespace {

const Tokenizer& TheTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::Create(
      TinyVocabulary({"Ġ t", "h e", "Ġt he"}, {{"<|end|>", TokenType::kControl}, {"<|call|>", TokenType::kUserDefined}}));
  return *tokenizer;
}

class CheckingSink final : public GenerationSink {
 public:
  void Send(v1::GenerateResponse response) override {
    Require(!closed_);
    Require(IsValidUtf8(response.text()));
    for (const auto* positions : {&response.logprobs(), &response.prompt_logprobs()}) {
      for (const v1::PositionLogprobs& position : *positions) {
        Require(!std::isnan(position.logprob()));
        Require(position.top_size() <= static_cast<int>(kMaxLogprobsOfRequest));
      }
    }
    finished_ = response.has_finish();
  }
  void Close(const absl::Status& status) override {
    Require(!closed_ && finished_ == status.ok());
    closed_ = true;
  }
  bool closed() const { return closed_; }

 private:
  bool closed_ = false, finished_ = false;
};

void FuzzGenerate(WireInput& input) {
  const Tokenizer& tokenizer = TheTokenizer();
  const int64_t vocab_size = tokenizer.vocab_size() + input.Byte() % 3;  // padded, as models' often are
  const RequestLimits limits = {.context_tokens = 40, .share_tokens = 12, .vocab_size = vocab_size, .max_token_bytes = 8};
  const auto sink = std::make_shared<CheckingSink>();
  static const TokenizerTokens tokens(&tokenizer);
  static constraint::ConstraintCompiler constraints(&tokens);
  const absl::StatusOr<std::shared_ptr<Request>> made =
      Request::Create(input.Next<v1::GenerateRequest>(), &tokenizer, limits, /*fallback_seed=*/1, absl::InfiniteFuture(),
                      Clock::Real(), sink, &constraints);
  if (!made.ok()) {
    Require(!made.status().message().empty());
    return;
  }
  Request& request = **made;
  Require(request.prompt_tokens() >= 1 && request.reserve_tokens() <= limits.context_tokens);
  request.OnAdmitted(0);
  // The prompt in chunks of up to 16 rows, then a row a step, until it ends or the answers do.
  int64_t position = 0;
  for (uint64_t step = 1; !input.empty(); ++step) {
    const int64_t end = static_cast<int64_t>(request.tokens().size());
    const int64_t rows = std::min<int64_t>(16, end - position);
    Require(rows >= 1 && end <= limits.context_tokens + 1);
    std::vector<LogitsRequest> wanted;
    for (int64_t row = position; row < position + rows; ++row) {
      if (const std::optional<LogitsRequest> logits = request.LogitsAt(row)) wanted.push_back(*logits);
    }
    internal::v1::StepResponse response = input.Next<internal::v1::StepResponse>();
    response.set_epoch(1);  // steps_fuzz has the answers to other steps
    response.set_step(step);
    absl::StatusOr<std::vector<LogitsResult>> logits = CheckStepResponse(
        response, {.worker = WorkerId(0), .epoch = 1, .step = step, .wanted = wanted, .vocab_size = vocab_size});
    if (!logits.ok()) {
      request.OnFailed(logits.status());
      return;
    }
    if (request.OnRows(position, rows, *logits, response.experts())) {
      Require(sink->closed());
      return;
    }
    position += rows;
  }
  request.OnFailed(Unavailable("no more answers"));
}

}  // namespace
}  // namespace ferry

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ferry::WireInput input(data, size);
  ferry::FuzzGenerate(input);
  return 0;
}
