#include "coordinator/generation/output_constraint.h"

#include <algorithm>
#include <utility>

namespace ferry {
namespace {

using constraint::ConstraintKind;
using constraint::ConstraintSpec;

absl::StatusOr<ConstraintSpec> SpecOf(const v1::Constraint& constraint, int depth);

absl::StatusOr<ConstraintSpec> SpecOfParts(ConstraintKind kind, const v1::Constraint::Parts& parts, int depth) {
  ConstraintSpec spec = {.kind = kind};
  for (const v1::Constraint& part : parts.parts()) {
    ASSIGN_OR_RETURN(spec.parts.emplace_back(), SpecOf(part, depth + 1));
  }
  return spec;
}

absl::StatusOr<ConstraintSpec> SpecOfRepeat(const v1::Constraint::Repeat& repeat, int depth) {
  ConstraintSpec spec = {.kind = ConstraintKind::kRepeat};
  const auto bounded = [](uint32_t count) { return static_cast<int32_t>(std::min<uint32_t>(count, INT32_MAX)); };
  spec.min = bounded(repeat.min());
  if (repeat.has_max()) spec.max = bounded(repeat.max());
  ASSIGN_OR_RETURN(spec.parts.emplace_back(), SpecOf(repeat.part(), depth + 1));
  return spec;
}

ConstraintSpec SpecOfText(const v1::Constraint::Text& text) {
  ConstraintSpec spec = {.kind = ConstraintKind::kText, .choices = {text.without().begin(), text.without().end()}};
  spec.limits.min_length = text.min_length();
  if (text.has_max_length()) spec.limits.max_length = text.max_length();
  if (text.has_pattern()) spec.limits.pattern = text.pattern();
  if (text.has_format()) spec.limits.format = text.format();
  return spec;
}

absl::StatusOr<ConstraintSpec> SpecOf(const v1::Constraint& constraint, int depth) {
  if (depth > constraint::kMaxPartsDepth) {
    return InvalidArgument("constraint has parts that are nested deeper than %d", constraint::kMaxPartsDepth);
  }
  switch (constraint.kind_case()) {
    case v1::Constraint::kJsonSchema:
      return ConstraintSpec{.kind = ConstraintKind::kJsonSchema, .text = constraint.json_schema()};
    case v1::Constraint::kJsonObject:
      if (!constraint.json_object()) return InvalidArgument("constraint.json_object is false, want true or another kind");
      return ConstraintSpec{.kind = ConstraintKind::kJsonObject};
    case v1::Constraint::kRegex:
      return ConstraintSpec{.kind = ConstraintKind::kRegex, .text = constraint.regex()};
    case v1::Constraint::kChoice:
      return ConstraintSpec{.kind = ConstraintKind::kChoice,
                            .choices = {constraint.choice().texts().begin(), constraint.choice().texts().end()}};
    case v1::Constraint::kGbnf:
      return ConstraintSpec{.kind = ConstraintKind::kGbnf, .text = constraint.gbnf()};
    case v1::Constraint::kLiteral:
      return ConstraintSpec{.kind = ConstraintKind::kLiteral, .text = constraint.literal()};
    case v1::Constraint::kToken:
      return ConstraintSpec{.kind = ConstraintKind::kToken,
                            .token = static_cast<int32_t>(std::min<uint32_t>(constraint.token(), INT32_MAX))};
    case v1::Constraint::kText:
      return SpecOfText(constraint.text());
    case v1::Constraint::kSequence:
      return SpecOfParts(ConstraintKind::kSequence, constraint.sequence(), depth);
    case v1::Constraint::kAnyOf:
      return SpecOfParts(ConstraintKind::kAnyOf, constraint.any_of(), depth);
    case v1::Constraint::kRepeat:
      return SpecOfRepeat(constraint.repeat(), depth);
    case v1::Constraint::KIND_NOT_SET:
      break;
  }
  return InvalidArgument(
      "constraint has no kind: want json_schema, json_object, regex, choice, gbnf, literal, token, text, sequence, any_of or "
      "repeat");
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
  ASSIGN_OR_RETURN(const ConstraintSpec spec, SpecOf(constraint, /*depth=*/0));
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
