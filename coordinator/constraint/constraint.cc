#include "coordinator/constraint/constraint.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/constraint/gbnf.h"
#include "coordinator/constraint/json_schema.h"
#include "coordinator/constraint/regex.h"

namespace ferry::constraint {
namespace {

constexpr size_t kKept = 8;  // compiled constraints

absl::StatusOr<Grammar> ParseChoices(const std::vector<std::string>& choices) {
  if (choices.empty() || choices.size() > kMaxChoices) {
    return InvalidArgument("it has %d texts, want 1 to %d", choices.size(), kMaxChoices);
  }
  Grammar grammar;
  std::vector<ExprId> ways;
  size_t bytes = 0;
  for (const std::string& choice : choices) {
    bytes += choice.size();
    if (bytes > kMaxChoiceBytes) return InvalidArgument("its texts have more than %d bytes", kMaxChoiceBytes);
    ways.push_back(grammar.Literal(choice));
  }
  grammar.SetRoot(grammar.AddRule("choice"));
  grammar.SetRule(grammar.root(), grammar.Alternate(std::move(ways)));
  return grammar;
}

absl::StatusOr<Grammar> ParseWholeRegex(const std::string& pattern) {
  Grammar grammar;
  ASSIGN_OR_RETURN(const ExprId expr, ParseRegex(&grammar, pattern, RegexMatch::kWhole, TextForm::kPlain));
  grammar.SetRoot(grammar.AddRule("regex"));
  grammar.SetRule(grammar.root(), expr);
  return grammar;
}

const char* NameOf(ConstraintKind kind) {
  switch (kind) {
    case ConstraintKind::kJsonSchema:
      return "json_schema";
    case ConstraintKind::kJsonObject:
      return "json_object";
    case ConstraintKind::kRegex:
      return "regex";
    case ConstraintKind::kChoice:
      return "choice";
    case ConstraintKind::kGbnf:
      return "gbnf";
  }
  return "constraint";
}

std::string KeyOf(const ConstraintSpec& spec) {
  std::string key = absl::StrCat(NameOf(spec.kind), ":", spec.text);
  for (const std::string& choice : spec.choices) absl::StrAppend(&key, choice.size(), ":", choice);
  return key;
}

}  // namespace

absl::StatusOr<Grammar> ParseConstraint(const ConstraintSpec& spec) {
  absl::StatusOr<Grammar> grammar;
  switch (spec.kind) {
    case ConstraintKind::kJsonSchema:
      grammar = ParseJsonSchema(spec.text);
      break;
    case ConstraintKind::kJsonObject:
      grammar = JsonObjectGrammar();
      break;
    case ConstraintKind::kRegex:
      grammar = ParseWholeRegex(spec.text);
      break;
    case ConstraintKind::kChoice:
      grammar = ParseChoices(spec.choices);
      break;
    case ConstraintKind::kGbnf:
      grammar = ParseGbnf(spec.text);
      break;
  }
  if (!grammar.ok()) return Annotate(grammar.status(), NameOf(spec.kind));
  return grammar;
}

std::shared_ptr<const TokenTrie> ConstraintCompiler::Trie() {
  absl::MutexLock lock(&mutex_);
  if (trie_ == nullptr) trie_ = std::make_shared<const TokenTrie>(source_);
  return trie_;
}

absl::StatusOr<std::shared_ptr<const CompiledGrammar>> ConstraintCompiler::Compile(const ConstraintSpec& spec) {
  const std::string key = KeyOf(spec);
  {
    absl::MutexLock lock(&mutex_);
    const auto it = std::find_if(kept_.begin(), kept_.end(), [&](const auto& kept) { return kept.first == key; });
    if (it != kept_.end()) {
      kept_.splice(kept_.begin(), kept_, it);
      return it->second;
    }
  }
  ASSIGN_OR_RETURN(const Grammar grammar, ParseConstraint(spec));
  absl::StatusOr<Automaton> automaton = Automaton::Compile(grammar);
  if (!automaton.ok()) return Annotate(automaton.status(), NameOf(spec.kind));
  auto compiled = std::make_shared<const CompiledGrammar>(*std::move(automaton), Trie());
  absl::MutexLock lock(&mutex_);
  kept_.emplace_front(key, compiled);
  if (kept_.size() > kKept) kept_.pop_back();
  return compiled;
}

}  // namespace ferry::constraint
