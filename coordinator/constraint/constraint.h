#pragma once

// Constrained decoding: a request's constraint, compiled for a vocabulary.

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/status.h"
#include "coordinator/constraint/grammar.h"
#include "coordinator/constraint/json_terms.h"
#include "coordinator/constraint/token_mask.h"
#include "coordinator/constraint/token_trie.h"

namespace ferry::constraint {

enum class ConstraintKind {
  kJsonSchema,
  kJsonObject,
  kRegex,
  kChoice,
  kGbnf,
  // Outputs in parts.
  kLiteral,
  kToken,  // a special token itself, or the bytes of another one
  kText,   // written plainly, without special tokens
  kSequence,
  kAnyOf,
  kRepeat,
};

struct ConstraintSpec {
  ConstraintKind kind = ConstraintKind::kJsonObject;
  std::string text = {};                   // the schema, the regular expression, the GBNF or the literal
  std::vector<std::string> choices = {};   // kChoice; kText: none of these is in it
  int32_t token = 0;                       // kToken
  StringLimits limits = {};                // kText
  std::vector<ConstraintSpec> parts = {};  // kSequence, kAnyOf; kRepeat: one
  int32_t min = 0, max = kUnbounded;       // kRepeat
};

inline constexpr size_t kMaxChoices = 10'000;
inline constexpr size_t kMaxChoiceBytes = 256 * 1024;  // together
inline constexpr size_t kMaxParts = 20'000;            // constraints within one, itself counted
inline constexpr int kMaxPartsDepth = 16;
inline constexpr size_t kMaxExcludedTexts = 16;

// `source` is asked for the bytes of tokens that the constraint names; without one it may name none.
// InvalidArgument names the fault, or the feature that is not supported; see json_schema.h, regex.h and gbnf.h.
absl::StatusOr<Grammar> ParseConstraint(const ConstraintSpec& spec, const TokenSource* source = nullptr);

// Compiles constraints for one vocabulary and keeps the last ones, which requests often share. Thread-safe.
class ConstraintCompiler {
 public:
  // The tree of tokens is made when the first constraint comes. `source` must outlive this.
  explicit ConstraintCompiler(const TokenSource* source) : source_(*source) {}

  // Called by any thread; compiling takes milliseconds, up to a second for a constraint at the bounds.
  absl::StatusOr<std::shared_ptr<const CompiledGrammar>> Compile(const ConstraintSpec& spec) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  std::shared_ptr<const TokenTrie> Trie() ABSL_LOCKS_EXCLUDED(mutex_);

  const TokenSource& source_;
  absl::Mutex mutex_;
  std::shared_ptr<const TokenTrie> trie_ ABSL_GUARDED_BY(mutex_);
  std::list<std::pair<std::string, std::shared_ptr<const CompiledGrammar>>> kept_ ABSL_GUARDED_BY(mutex_);  // last first
};

}  // namespace ferry::constraint
