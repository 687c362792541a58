#include "coordinator/generation/output_constraint.h"

#include <utility>

namespace ferry {
namespace {

absl::StatusOr<constraint::ConstraintSpec> SpecOf(const v1::Constraint& constraint) {
  using constraint::ConstraintKind;
  switch (constraint.kind_case()) {
    case v1::Constraint::kJsonSchema:
      return constraint::ConstraintSpec{.kind = ConstraintKind::kJsonSchema, .text = constraint.json_schema(), .choices = {}};
    case v1::Constraint::kJsonObject:
      if (!constraint.json_object()) return InvalidArgument("constraint.json_object is false, want true or another kind");
      return constraint::ConstraintSpec{.kind = ConstraintKind::kJsonObject, .text = "", .choices = {}};
    case v1::Constraint::kRegex:
      return constraint::ConstraintSpec{.kind = ConstraintKind::kRegex, .text = constraint.regex(), .choices = {}};
    case v1::Constraint::kChoice:
      return constraint::ConstraintSpec{.kind = ConstraintKind::kChoice,
                                        .text = "",
                                        .choices = {constraint.choice().texts().begin(), constraint.choice().texts().end()}};
    case v1::Constraint::kGbnf:
      return constraint::ConstraintSpec{.kind = ConstraintKind::kGbnf, .text = constraint.gbnf(), .choices = {}};
    case v1::Constraint::KIND_NOT_SET:
      break;
  }
  return InvalidArgument("constraint has no kind: want json_schema, json_object, regex, choice or gbnf");
}

}  // namespace

absl::StatusOr<std::unique_ptr<OutputConstraint>> OutputConstraint::Create(const v1::Constraint& constraint, int64_t vocab_size,
                                                                           constraint::ConstraintCompiler* compiler) {
  if (constraint.start_after_size() > kMaxStartAfterOfConstraint) {
    return InvalidArgument("constraint.start_after has %d tokens, want at most %d", constraint.start_after_size(),
                           kMaxStartAfterOfConstraint);
  }
  for (const uint32_t id : constraint.start_after()) {
    if (id >= vocab_size) return InvalidArgument("constraint.start_after has %d, want 0 to %d", id, vocab_size - 1);
  }
  ASSIGN_OR_RETURN(const constraint::ConstraintSpec spec, SpecOf(constraint));
  absl::StatusOr<std::shared_ptr<const constraint::CompiledGrammar>> grammar = compiler->Compile(spec);
  if (!grammar.ok()) return Annotate(grammar.status(), "constraint");
  return std::unique_ptr<OutputConstraint>(
      new OutputConstraint(*std::move(grammar), {constraint.start_after().begin(), constraint.start_after().end()}));
}

absl::StatusOr<std::vector<uint64_t>> OutputConstraint::Allowed(std::span<const int32_t> end, std::span<const int32_t> stop) {
  ASSIGN_OR_RETURN(const constraint::TokenMask* mask, matcher_.Mask());
  std::vector<uint64_t> allowed(mask->words().begin(), mask->words().end());
  if (!matcher_.CanEnd()) return allowed;
  for (const std::span<const int32_t> ids : {end, stop}) {
    for (const int32_t id : ids) {
      const size_t word = static_cast<size_t>(id) / 64;
      if (word >= allowed.size()) allowed.resize(word + 1);
      allowed[word] |= uint64_t{1} << (id % 64);
    }
  }
  return allowed;
}

absl::StatusOr<bool> OutputConstraint::Accept(int32_t id) {
  if (active_) {
    RETURN_IF_ERROR(matcher_.Accept(id));
    return matcher_.MustEnd();
  }
  last_.push_back(id);
  if (last_.size() > start_after_.size()) last_.erase(last_.begin());
  active_ = last_ == start_after_;
  return false;
}

}  // namespace ferry
