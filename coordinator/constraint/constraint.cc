#include "coordinator/constraint/constraint.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/constraint/gbnf.h"
#include "coordinator/constraint/json_schema.h"
#include "coordinator/constraint/regex.h"
#include "coordinator/constraint/utf8_cursor.h"

namespace ferry::constraint {
namespace {

constexpr size_t kKept = 8;  // compiled constraints
constexpr size_t kMaxExcludedBytes = 256;

// A part that is a grammar of its own.
absl::StatusOr<Grammar> ParseWhole(const ConstraintSpec& spec);

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
    RETURN_IF_ERROR(CheckUtf8(choice));
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
    case ConstraintKind::kLiteral:
      return "literal";
    case ConstraintKind::kToken:
      return "token";
    case ConstraintKind::kText:
      return "text";
    case ConstraintKind::kSequence:
      return "sequence";
    case ConstraintKind::kAnyOf:
      return "any_of";
    case ConstraintKind::kRepeat:
      return "repeat";
  }
  return "constraint";
}

bool IsWhole(ConstraintKind kind) { return kind < ConstraintKind::kLiteral; }

// Puts an output in parts into one rule, so that a part's end is seen by the bytes that follow it; the grammars of schemas and
// the like are rules that it calls.
class PartsBuilder {
 public:
  explicit PartsBuilder(const TokenSource* source) : source_(source), terms_(&grammar_) {}

  absl::StatusOr<Grammar> Build(const ConstraintSpec& spec) {
    const RuleId root = grammar_.AddRule("output");
    ASSIGN_OR_RETURN(const ExprId expr, Add(spec, 0));
    grammar_.SetRule(root, expr);
    grammar_.SetRoot(root);
    return std::move(grammar_);
  }

 private:
  absl::StatusOr<ExprId> Add(const ConstraintSpec& spec, int depth) {
    if (depth > kMaxPartsDepth) return InvalidArgument("its parts are nested deeper than %d", kMaxPartsDepth);
    if (++num_parts_ > kMaxParts) return InvalidArgument("it has more than %d parts", kMaxParts);
    switch (spec.kind) {
      case ConstraintKind::kLiteral:
        literal_bytes_ += spec.text.size();
        if (literal_bytes_ > kMaxChoiceBytes) return InvalidArgument("its literals have more than %d bytes", kMaxChoiceBytes);
        RETURN_IF_ERROR(CheckUtf8(spec.text));
        return grammar_.Literal(spec.text);
      case ConstraintKind::kToken:
        return Token(spec.token);
      case ConstraintKind::kText:
        return Text(spec);
      case ConstraintKind::kSequence:
      case ConstraintKind::kAnyOf: {
        std::vector<ExprId> parts;
        for (const ConstraintSpec& part : spec.parts) {
          ASSIGN_OR_RETURN(const ExprId expr, Add(part, depth + 1));
          parts.push_back(expr);
        }
        return spec.kind == ConstraintKind::kSequence ? grammar_.Concat(std::move(parts)) : grammar_.Alternate(std::move(parts));
      }
      case ConstraintKind::kRepeat:
        return Repeat(spec, depth);
      default:
        return Whole(spec);
    }
  }

  absl::StatusOr<ExprId> Token(int32_t token) {
    if (source_ == nullptr || token < 0 || token >= source_->vocab_size()) {
      return InvalidArgument("token %d is none of the vocabulary", token);
    }
    const std::string_view bytes = source_->TokenBytes(token);
    if (source_->IsControl(token)) return grammar_.Literal(ControlBytes(token));
    if (bytes.empty()) return InvalidArgument("token %d has no bytes", token);
    return grammar_.Literal(bytes);
  }

  absl::StatusOr<ExprId> Text(const ConstraintSpec& spec) {
    absl::StatusOr<ExprId> text = terms_.Plain(spec.limits);
    if (!text.ok()) return Annotate(text.status(), "text");
    if (spec.choices.empty()) return *text;
    if (spec.choices.size() > kMaxExcludedTexts) {
      return InvalidArgument("text excludes %d texts, want at most %d", spec.choices.size(), kMaxExcludedTexts);
    }
    ASSIGN_OR_RETURN(const ExprId anything, terms_.Plain({}));
    std::vector<ExprId> excluded;
    for (const std::string& without : spec.choices) {
      if (without.empty() || without.size() > kMaxExcludedBytes) {
        return InvalidArgument("text excludes a text of %d bytes, want 1 to %d", without.size(), kMaxExcludedBytes);
      }
      RETURN_IF_ERROR(CheckUtf8(without));
      excluded.push_back(grammar_.Literal(without));
    }
    return grammar_.Minus(*text, grammar_.Concat({anything, grammar_.Alternate(std::move(excluded)), anything}));
  }

  absl::StatusOr<ExprId> Repeat(const ConstraintSpec& spec, int depth) {
    if (spec.parts.size() != 1) return InvalidArgument("repeat has no part");
    const bool bounded = spec.max != kUnbounded;
    if (spec.min < 0 || spec.min > kMaxRepetition || (bounded && (spec.max < spec.min || spec.max > kMaxRepetition))) {
      return InvalidArgument("repeat is from %d to %d, want 0 to %d", spec.min, spec.max, kMaxRepetition);
    }
    ASSIGN_OR_RETURN(const ExprId part, Add(spec.parts[0], depth + 1));
    return grammar_.Repeat(part, spec.min, spec.max);
  }

  absl::StatusOr<ExprId> Whole(const ConstraintSpec& spec) {
    ASSIGN_OR_RETURN(const Grammar whole, ParseWhole(spec));
    return grammar_.Call(grammar_.Import(whole));
  }

  const TokenSource* const source_;
  Grammar grammar_;
  JsonTerms terms_;
  size_t num_parts_ = 0, literal_bytes_ = 0;
};

std::string KeyOf(const ConstraintSpec& spec) {
  std::string key = absl::StrCat(NameOf(spec.kind), ":", spec.text.size(), ":", spec.text, spec.choices.size(), "(");
  for (const std::string& choice : spec.choices) absl::StrAppend(&key, choice.size(), ":", choice);
  absl::StrAppend(&key, spec.token, ",", spec.min, ",", spec.max, ",", spec.limits.min_length, ",",
                  spec.limits.max_length.value_or(-1));
  for (const std::optional<std::string>* const text : {&spec.limits.pattern, &spec.limits.format}) {
    if (*text) absl::StrAppend(&key, ":", (*text)->size(), ":", **text);
    absl::StrAppend(&key, ",");
  }
  for (const ConstraintSpec& part : spec.parts) absl::StrAppend(&key, KeyOf(part));
  return key + ")";
}

absl::StatusOr<Grammar> ParseWhole(const ConstraintSpec& spec) {
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
    default:
      return Internal("%s is no grammar of its own", NameOf(spec.kind));
  }
  if (!grammar.ok()) return Annotate(grammar.status(), NameOf(spec.kind));
  return grammar;
}

}  // namespace

absl::StatusOr<Grammar> ParseConstraint(const ConstraintSpec& spec, const TokenSource* source) {
  return IsWhole(spec.kind) ? ParseWhole(spec) : PartsBuilder(source).Build(spec);
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
  ASSIGN_OR_RETURN(const Grammar grammar, ParseConstraint(spec, &source_));
  absl::StatusOr<Automaton> automaton = Automaton::Compile(grammar);
  if (!automaton.ok()) return Annotate(automaton.status(), NameOf(spec.kind));
  auto compiled = std::make_shared<const CompiledGrammar>(*std::move(automaton), Trie());
  absl::MutexLock lock(&mutex_);
  kept_.emplace_front(key, compiled);
  if (kept_.size() > kKept) kept_.pop_back();
  return compiled;
}

}  // namespace ferry::constraint
