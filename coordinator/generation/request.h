#pragma once

// One generation, from a checked prompt to its Finish message: it says which logits it wants, samples from them, and decides when
// it ends. It knows no RPC and does not wait: answers go to a sink, the time comes from a clock.
//
//  - A token that ends the generation (end-of-generation, or one of stop_token_ids) is among token_ids, so that a client knows
//    which one it was; its text appears with render_special only. With ignore_eos, end-of-generation tokens are ordinary tokens.
//  - A stop string is not part of the text. The ids of the tokens that formed it are among token_ids.
//  - Without max_tokens a request may fill its share of the KV cache, or the whole context when its prompt does not fit
//    the share: bounded by the cache's shape and never by what others happen to run.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/status.h"
#include "coordinator/constraint/constraint.h"
#include "coordinator/generation/batch_scheduler.h"
#include "coordinator/generation/output_constraint.h"
#include "coordinator/generation/sampler.h"
#include "coordinator/generation/stop_matcher.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

// Where a generation's answers go. Called by one thread; must not wait.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  virtual void Send(v1::GenerateResponse response) = 0;
  // How many rows of the prompt are cached, and how many are cached or computed.
  virtual void OnProgress(int64_t cached, int64_t done) {}
  // The end, exactly once, after the last Send: OK after a response with `finish`.
  virtual void Close(const absl::Status& status) = 0;
};

struct RequestLimits {
  int64_t context_tokens = 0;   // prompt and output of one request, at most
  int64_t share_tokens = 0;     // the share of the KV cache of each request that runs at once
  int64_t vocab_size = 0;       // number of logits in a row
  int64_t max_token_bytes = 0;  // length of the longest token: a text longer than context_tokens such tokens is refused unread
  // A token that comes sooner after the output's last message is sent with the next token, or when twice this time has passed
  // since that message. Zero: each token is sent at once.
  absl::Duration between_messages;
};

// The bounds of the API that generate.proto names.
inline constexpr int kMaxStopStringsOfRequest = 16;
inline constexpr size_t kMaxStopBytesOfRequest = 256;
inline constexpr uint32_t kMaxLogprobsOfRequest = 20;

class Request final : public Generation {
 public:
  // Checks everything of `request`, tokenizes, and prepares. InvalidArgument names the field and the allowed range.
  // `fallback_seed` is used when the request names none. `tokenizer` and `clock` must outlive the result. `constraints` compiles
  // for the vocabulary of `tokenizer`.
  static absl::StatusOr<std::shared_ptr<Request>> Create(const v1::GenerateRequest& request, const Tokenizer* tokenizer,
                                                         const RequestLimits& limits, uint64_t fallback_seed, absl::Time deadline,
                                                         const Clock* clock, std::shared_ptr<GenerationSink> sink,
                                                         constraint::ConstraintCompiler* constraints);

  int64_t prompt_tokens() const override { return prompt_tokens_; }
  int64_t reserve_tokens() const override { return prompt_tokens_ + max_tokens_; }
  bool may_reuse_prefix() const override { return !prompt_logprobs_ || rows_done_ >= prompt_tokens_; }
  absl::Time deadline() const override { return deadline_; }
  const GenerationOwner& owner() const override { return owner_; }
  // Before it is submitted.
  void SetOwner(GenerationOwner owner) { owner_ = std::move(owner); }
  int32_t priority() const override { return priority_; }
  bool forgets_experts() const override { return forget_experts_; }
  bool resumes() const override { return resumes_; }
  std::span<const int32_t> tokens() const override { return tokens_; }
  std::optional<LogitsRequest> LogitsAt(int64_t position) const override;
  void OnAdmitted(int64_t cached_tokens) override;
  void OnResumed() override { ++resumed_; }
  void OnSuspended() override { ++suspended_; }
  bool OnRows(int64_t first_position, int64_t num_tokens, std::span<LogitsResult> logits,
              const v1::ExpertCounters& experts) override;
  absl::Time unsent_until() const override;
  void SendUnsent() override;
  void OnFailed(const absl::Status& status) override;

  int64_t generated_tokens() const { return static_cast<int64_t>(tokens_.size()) - prompt_tokens_; }

 private:
  Request(const Tokenizer* tokenizer, bool render_special, StopMatcher stops, Sampler sampler, const Clock* clock);
  absl::Status OnPromptRow(int64_t position, const LogitsResult& logits, v1::GenerateResponse* response) const;
  absl::StatusOr<SampledToken> Sample(const LogitsResult& row);
  // Appends the next token; whether it ends the generation.
  // The mask of the tokens that may be drawn before min_tokens.
  std::vector<uint64_t> AllButEndTokens() const;
  absl::StatusOr<bool> OnSampledRow(const LogitsResult& logits, v1::GenerateResponse* response);
  void FillProgress(int64_t rows_done, v1::PromptProgress* progress) const;
  void FillUsage(v1::Usage* usage) const;
  void FillFinish(v1::Finish::Reason reason, v1::Finish* finish) const;

  const Tokenizer& tokenizer_;
  const Clock& clock_;
  GenerationOwner owner_;
  const bool render_special_;
  Detokenizer detokenizer_;
  StopMatcher stops_;
  Sampler sampler_;
  std::shared_ptr<GenerationSink> sink_;
  absl::Time deadline_ = absl::InfiniteFuture();
  std::vector<int32_t> tokens_;
  int64_t prompt_tokens_ = 0;
  int64_t max_tokens_ = 0, min_tokens_ = 0;
  int64_t vocab_size_ = 0;
  bool ignore_eos_ = false;
  std::vector<int32_t> stop_token_ids_;
  std::unique_ptr<OutputConstraint> constraint_;  // null: none
  bool logprobs_ = false;
  bool prompt_progress_ = false;
  std::vector<std::string> stop_strings_;
  std::optional<int32_t> matched_token_;  // the end token that ended the output
  std::optional<int> matched_stop_;       // index into stop_strings_ of the stop string that ended it
  int32_t priority_ = 0;
  bool forget_experts_ = false;
  bool resumes_ = true;
  std::optional<int32_t> prompt_logprobs_;  // how many of the best

  int64_t rows_done_ = 0;  // whose results were taken: of the first rows, which may be computed again
  uint32_t resumed_ = 0, suspended_ = 0;
  absl::Duration between_messages_;
  v1::GenerateResponse unsent_;             // tokens of rows that were answered
  absl::Time sent_ = absl::InfinitePast();  // when the last message with a token was
  int64_t cached_tokens_ = 0;
  absl::Time queued_, admitted_, prompt_done_;
  v1::ExpertCounters experts_;
};

}  // namespace ferry
