#pragma once

// A request's constraint while its output grows: it waits for its start, then says which tokens may come.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "coordinator/constraint/constraint.h"
#include "coordinator/constraint/matcher.h"
#include "coordinator/text/tokenizer.h"
#include "ferry/v1/generate.pb.h"

namespace ferry {

// The tokens of a tokenizer as a constraint sees them: special ones are no text.
class TokenizerTokens final : public constraint::TokenSource {
 public:
  explicit TokenizerTokens(const Tokenizer* tokenizer) : tokenizer_(*tokenizer) {}  // must outlive this
  int32_t vocab_size() const override { return tokenizer_.vocab_size(); }
  std::string_view TokenBytes(int32_t id) const override { return tokenizer_.TokenBytes(id); }
  bool IsControl(int32_t id) const override { return tokenizer_.IsSpecial(id); }

 private:
  const Tokenizer& tokenizer_;
};

inline constexpr int kMaxStartAfterOfConstraint = 16;

// One thread at a time.
class OutputConstraint {
 public:
  // InvalidArgument: what ConstraintCompiler says, no kind, json_object that is false, or start_after that is too long or names
  // a token outside [0, vocab_size).
  static absl::StatusOr<std::unique_ptr<OutputConstraint>> Create(const v1::Constraint& constraint, int64_t vocab_size,
                                                                  constraint::ConstraintCompiler* compiler);

  // The constraint has begun: the next token is one that Allowed() has.
  bool active() const { return active_; }
  // The output so far is complete. Only while active.
  bool CanEnd() const { return matcher_.CanEnd(); }
  // One bit a token; tokens of `end` and `stop` are allowed when the output is complete. Only while active.
  absl::StatusOr<std::vector<uint64_t>> Allowed(std::span<const int32_t> end, std::span<const int32_t> stop);
  // A token of the output, which does not end it. True: the output is complete and nothing can follow.
  absl::StatusOr<bool> Accept(int32_t id);

 private:
  OutputConstraint(std::shared_ptr<const constraint::CompiledGrammar> grammar, std::vector<int32_t> start_after)
      : matcher_(std::move(grammar)), start_after_(std::move(start_after)), active_(start_after_.empty()) {}

  constraint::Matcher matcher_;
  const std::vector<int32_t> start_after_;
  std::vector<int32_t> last_;  // of the output, at most start_after_.size(), while not active
  bool active_;
};

}  // namespace ferry
