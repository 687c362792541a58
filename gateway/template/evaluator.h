#pragma once

// Runs the statements of a template.

#include "common/status.h"
#include "gateway/template/ast.h"
#include "gateway/template/context.h"

namespace ferry::jinja {

// One rendering; used once, by one thread.
class Evaluator {
 public:
  // All must outlive this.
  Evaluator(Heap* heap, absl::Time now) : heap_(*heap), context_{*heap, now} {}

  // Errors as Template::Render. `globals` may be changed.
  absl::StatusOr<MarkedString> Run(const Block& body, Scope* globals);

 private:
  absl::Status Execute(const Block& block);
  absl::Status Execute(const Statement& statement);
  absl::Status ExecuteIf(const Statement& statement);
  absl::Status ExecuteFor(const Statement& statement);
  absl::Status ExecuteLoopBody(const Statement& statement, const std::vector<Value>& items);
  absl::Status ExecuteSet(const Statement& statement);
  absl::Status Assign(const Target& target, const Value& value);
  absl::StatusOr<bool> LoopTakes(const Statement& statement, const Value& item);
  absl::Status Write(const MarkedString& text);
  // Runs `block` and gives what it writes.
  absl::StatusOr<MarkedString> Capture(const Block& block);

  absl::StatusOr<Value> Evaluate(const Expression& expression);
  absl::StatusOr<Value> EvaluateHere(const Expression& expression);
  absl::StatusOr<Value> EvaluateLiteral(const Expression& expression);
  absl::StatusOr<Value> EvaluateName(const std::string& name);
  absl::StatusOr<Value> EvaluateDict(const Expression& expression);
  absl::StatusOr<Value> EvaluateUnary(const Expression& expression);
  absl::StatusOr<Value> EvaluateBinary(const Expression& expression);
  absl::StatusOr<Value> EvaluateConcat(const Expression& expression);
  absl::StatusOr<Value> EvaluateCompare(const Expression& expression);
  absl::StatusOr<Value> EvaluateCondition(const Expression& expression);
  absl::StatusOr<Value> EvaluateSlice(const Expression& expression);
  absl::StatusOr<Value> EvaluateCall(const Expression& expression);
  absl::StatusOr<Value> EvaluateFilter(const Expression& expression);
  absl::StatusOr<Value> EvaluateTest(const Expression& expression);
  absl::StatusOr<std::vector<Value>> EvaluateChildren(const Expression& expression, size_t first);
  absl::StatusOr<Arguments> EvaluateArguments(const Expression& expression);
  absl::StatusOr<Value> CallMacro(const Callable& macro, Arguments& arguments);

  Heap& heap_;
  Context context_;
  Scope* scope_ = nullptr;
  MarkedString* out_ = nullptr;
  int depth_ = 0;
};

}  // namespace ferry::jinja
